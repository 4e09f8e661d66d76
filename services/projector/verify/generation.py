"""The live generation against the fold, slice by slice, each at the checkpoint that it was read at.

Owns the comparison. A slice tells the checkpoint of its moment; the fold goes on to exactly there, and what stands must then
equal what the fold gives, byte by byte: nothing is guessed because projectors go on committing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from services.projector.verify.differences import Differences
from services.projector.verify.refold import Refold
from services.projector.verify.scratch import Row
from services.projector.verify.stored import Moment, Stored
from shared.documents import parse_document, render
from shared.instants import milliseconds_of
from shared.position import Position
from shared.read_models import CHRONOLOGICAL_KEY_CHARACTERS, N_CHARACTERS, members

ENTRIES_PER_SLICE = 250
INDEXES_PER_SLICE = 500
# An entry that changes between every two looks is looked at so often; then it is said that it could not be judged.
LOOKS_MAX = 50
ENTRY_CHARACTERS_MAX = 64


class Behind(Exception):
    """The checkpoint lies before the fold's position: it ran backwards."""


class GenerationCheck:
    """Compares one generation. `unjudged` are entries that cannot be told yet, or change all the time."""

    def __init__(self, stored: Stored, refold: Refold, generation: bytes, progress: Callable[[int], None]) -> None:
        self.differences = Differences()
        self.unjudged: set[str] = set()
        self._stored = stored
        self._refold = refold
        self._scratch = refold.scratch
        self._generation = generation
        self._progress = progress
        self._suspect: set[str] = set()

    async def run(self, indexes: Iterable[str]) -> None:
        """Everything; `indexes` are those for which a key was found. Raises Flipped, Behind and what the fold raises."""
        self._scratch.forget_indexes()
        self._scratch.add_indexes(indexes)
        self._refold.counted_to = 0
        while rows := self._scratch.rows_after(self._refold.counted_to, limit=ENTRIES_PER_SLICE):
            await self.judge(rows, count=True)
            self._progress(rows[-1].number)
        # Who is published from now on is counted when the fold comes to it.
        self._refold.counted_to = 2**62
        await self._compare_sizes()
        for index in sorted(self._suspect):
            await self._find_extra(f"i:{index}", "index", partial(self._has_member, index))

    async def judge(self, rows: Sequence[Row], *, count: bool) -> None:
        """Compare these entries' documents and index members; `count` their members when they are judged."""
        expected = {row.entry: self._members(row) for row in rows}
        todo = {row.entry: row for row in rows}
        by_index = _by_index(expected, list(todo))
        begun = self._refold.position
        for _ in range(LOOKS_MAX):
            before = self._refold.position
            asked = list(todo)
            answer = await self._stored.documents(self._generation, asked, by_index)
            await self._fold_to(answer.checkpoint)
            if self._refold.position != before:
                current = self._scratch.rows_of(asked)
                changed = {entry: current[entry] for entry in asked if current[entry].document != todo[entry].document}
            else:
                changed = {}
            open_entries = self._scratch.taken_from(asked)
            self._compare(
                {
                    entry: found
                    for entry, found in zip(asked, answer.documents, strict=True)
                    if entry not in changed and entry not in open_entries
                },
                todo,
            )
            unsettled = changed.keys() | open_entries
            owners = {
                (index, member): entry
                for entry in (asked if answer.wrong else ())
                for index, member in expected[entry]
                if entry not in unsettled
            }
            for index, member, score in answer.wrong:
                entry = owners.get((index, member.decode()))
                if entry is not None:
                    self._suspect.add(index)
                    shown = None if score is None else f"{member.decode()} with score {score.decode()}"
                    self.differences.add("index", index, stored=shown, folded=member)
            self.unjudged |= open_entries
            if not changed:
                break
            todo = changed
            expected.update((entry, self._members(row)) for entry, row in changed.items())
            by_index = _by_index(expected, list(todo))
        else:
            self.unjudged |= todo.keys()
        if count:
            if self._refold.position != begun:
                current = self._scratch.rows_of(expected)
                by_index = _by_index({entry: self._members(row) for entry, row in current.items()}, list(current))
            self._scratch.count_members({index: len(found) for index, found in by_index.items()})
            self._refold.counted_to = rows[-1].number

    def _compare(self, found: Mapping[str, bytes | None], rows: Mapping[str, Row]) -> None:
        for entry, document in found.items():
            if document != rows[entry].document:
                self.differences.add("document", entry, stored=document, folded=rows[entry].document)

    async def _compare_sizes(self) -> None:
        """Every member that the fold gives stands there: an index of as many members then holds no other."""
        name = ""
        while True:
            names = self._scratch.indexes_after(name, limit=INDEXES_PER_SLICE)
            sizes = await self._stored.sizes(self._generation, names)
            await self._fold_to(sizes.checkpoint)
            counts = self._scratch.counts_of(names)
            for index in names:
                if sizes.members[index] != counts[index]:
                    self._suspect.add(index)
                # Where content is gone and its redaction not yet folded, the fold's own counts say nothing.
                wanted = sizes.members[index] if self.unjudged else counts[index]
                if (index in sizes.named) != (wanted > 0):
                    stored, folded = ("named", None) if index in sizes.named else (None, "named")
                    self.differences.add("names", index, stored=stored, folded=folded)
            if self.unjudged:
                self._suspect.update(names)
            if not names:
                break
            name = names[-1]
        if sizes.documents != self._refold.documents:
            await self._find_extra("documents", "document", self._has_document)
        if sizes.names != self._scratch.count_indexes():
            await self._find_extra("names", "names", self._has_members)

    async def _find_extra(self, key: str, what: str, belongs: Callable[[str], bool]) -> None:
        """Name what stands in a key of the generation and not in the fold."""
        seen: set[str] = set()
        async for walked in self._stored.walk(self._generation, key):
            await self._fold_to(walked.checkpoint)
            for name in walked.names:
                text = name.decode(errors="backslashreplace")
                if text in seen or belongs(text):
                    continue
                seen.add(text)
                which = key.removeprefix("i:") if what == "index" else text
                self.differences.add(what, which, stored=name, folded=None)

    def _has_document(self, entry: str) -> bool:
        row = self._scratch.rows_of([entry]).get(entry)
        return row is not None and row.document is not None

    def _has_members(self, index: str) -> bool:
        # An index for which there is a key or a member was compared already, with its name.
        return index in self._scratch.counts_of([index])

    def _has_member(self, index: str, member: str) -> bool:
        # A member ends with its entry's id; how long the sort key before it is, only the read model knows.
        usual = [member[start:] for start in (CHRONOLOGICAL_KEY_CHARACTERS, N_CHARACTERS) if len(member) > start]
        every = [member[start:] for start in range(max(0, len(member) - ENTRY_CHARACTERS_MAX), len(member))]
        for owners in (usual, every):
            rows = self._scratch.rows_of(owners)
            if self._scratch.taken_from(list(rows)):
                return True
            if any((index, member) in self._members(row) for row in rows.values()):
                return True
        return False

    async def compare_feed(self, moment: Moment) -> None:
        """The feed's document, its last own change and its place in the list, as they stood at this moment."""
        assert moment.checkpoint is not None  # noqa: S101  who compares a generation has read its checkpoint
        await self._fold_to(moment.checkpoint)
        feed = self._refold.feed
        self.differences.equal("feed document", "feed", stored=moment.feed, folded=render(feed) if feed else None)
        position = self._refold.feed_position
        folded = str(position) if position else None
        stored = moment.feed_position.decode() if moment.feed_position is not None else None
        self.differences.equal("feed_position", "generation", stored=stored, folded=folded)
        if feed is not None:
            updated_at = milliseconds_of(feed.updated_at)
            if moment.activity is None or float(moment.activity) != updated_at:
                self.differences.add("feeds", "activity", stored=moment.activity, folded=updated_at)

    async def _fold_to(self, checkpoint: Position) -> None:
        if checkpoint.n < self._refold.position.n:
            raise Behind
        await self._refold.to(checkpoint, committed=True)

    def _members(self, row: Row) -> set[tuple[str, str]]:
        return members(parse_document(row.document) if row.document else None, self._refold.models)


def _by_index(expected: Mapping[str, set[tuple[str, str]]], entries: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in entries:
        for index, member in expected[entry]:
            found.setdefault(index, []).append(member)
    return found

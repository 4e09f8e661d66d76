"""The fold of a feed's log from its first event, step by step to wherever the stored side stands, in bounded memory.

Owns what the log alone gives at a position: documents, the write side's records and head. What an event does is
`shared.fold`'s, whether the log is sound in itself `soundness`'; what is stored is read by the rooms that compare.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import msgspec
from msgspec import Struct

from services.projector.verify.scratch import Row, Scratch
from services.projector.verify.soundness import Read, Soundness
from services.projector.verify.tally import Tally
from shared.documents import Document, Entry, Feed, parse_document, render
from shared.errors import CannotFold
from shared.events import EntryPublished, EntryRedacted, Recorded
from shared.fingerprints import publication_fingerprint
from shared.fold import Change, Documents, fold
from shared.keys import Keys
from shared.log import Log
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.read_models import ReadModel, index_changes
from shared.redis import Redis

EVENTS_PER_CHUNK = 500
UNKNOWN = "?"
# What a record holds in a fingerprint's place after a redaction.
NO_FINGERPRINT = "-"


class LogEnds(Exception):
    """The log has no event after the fold's position, though something stored names one."""


class Known(Struct):
    """An entry while a chunk is folded: its row's number and record, and its document before the chunk."""

    number: int
    before: Document | None
    record: str


class Refold:
    """Folds one feed's log. Index members are counted for the entries up to `counted_to`, from then on as they change."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        feed: str,
        *,
        scratch: Scratch,
        progress: Callable[[int], None],
    ) -> None:
        self.feed_id = feed
        self.scratch = scratch
        self.soundness = Soundness(scratch)
        self.tally = Tally()
        self.feed: Feed | None = None
        self.feed_position: Position | None = None
        self.documents = 0
        self.entries = 0
        self.models: tuple[ReadModel, ...] = ()
        self.counted_to = 0
        self._redis = redis
        self._keys = keys.feed(feed)
        self._log = Log(redis, keys)
        self._progress = progress

    @property
    def position(self) -> Position:
        return self.soundness.position

    async def to(self, target: Position, *, committed: bool) -> None:
        """Fold on up to `target`; LogEnds when the log ends before it, Corrupted for a gap, NewerLog as ever.

        `committed`: a generation stands there already, so whatever is skipped must stand in the quarantine.
        """
        while self.position.n < target.n:
            entries = await self._log.read_chunk(
                self.feed_id, after=self.position, to=target, events_max=EVENTS_PER_CHUNK
            )
            if not entries:
                raise LogEnds(f"{target} is not in the log, which goes up to {self.position}")
            quarantined = await self._quarantined(entries)
            self._fold([self._read(entry, quarantined, committed=committed) for entry in entries], committed=committed)
            self._progress(self.position.n)

    async def _quarantined(self, entries: Sequence[StreamEntry]) -> set[bytes]:
        """Those of the events that stand in the quarantine: an input of every fold."""
        if not await cast("Any", self._redis.hlen(self._keys.quarantine)):
            return set()
        ids = [entry.id for entry in entries]
        found = await cast("Any", self._redis.hmget(self._keys.quarantine, ids))
        return {entry_id for entry_id, record in zip(ids, found, strict=True) if record is not None}

    def _read(self, entry: StreamEntry, quarantined: set[bytes], *, committed: bool) -> Read:
        return self.soundness.read(entry, skipped=entry.id in quarantined, committed=committed)

    def _fold(self, chunk: Sequence[Read], *, committed: bool) -> None:
        known = {
            entry: Known(row.number, parse_document(row.document) if row.document else None, row.record)
            for entry, row in self.scratch.rows_of({read.entry for read in chunk if read.entry is not None}).items()
        }
        state = Documents(self.feed, {entry: row.before for entry, row in known.items() if row.before is not None})
        for read in chunk:
            if read.entry is not None and read.entry not in known:
                known[read.entry] = Known(read.position.n, None, "")
                self.entries += 1
            self._step(state, known, read, committed=committed)
        self.feed = state.feed
        if self.counted_to:
            self._count((row, state.entries.get(entry)) for entry, row in known.items())
        self.scratch.store(
            Row(row.number, entry, render(document) if (document := state.entries.get(entry)) else None, row.record)
            for entry, row in known.items()
        )

    def _step(self, state: Documents, known: dict[str, Known], read: Read, *, committed: bool) -> None:
        """One event as the projector commits it: what cannot be folded moves the feed's position and nothing else."""
        row = known[read.entry] if read.entry is not None else None
        was_live = isinstance(state.entries.get(read.entry or ""), Entry)
        self.tally.add(
            read.envelope,
            read.position,
            was_live=None if row is not None and row.record.startswith(UNKNOWN) else was_live,
        )
        change: Change | None = None
        if read.event is not None:
            try:
                change = fold(state, read.event, feed_id=self.feed_id)
            except CannotFold as error:
                self.soundness.unfolded(read.position, error, committed=committed)
        if change is None:
            self.scratch.skip(read.position, read.recorded_at)
            if state.feed is not None:
                state.feed = msgspec.structs.replace(state.feed, position=str(read.position))
            if row is not None:
                row.record = f"{UNKNOWN} {UNKNOWN} {read.position} {UNKNOWN}"
            return
        state.apply(change)
        if change.of_feed:
            self.feed_position = read.position
        if change.after is not None and row is not None and read.event is not None:
            self.documents += change.before is None
            row.record = _record(change.after, read.event, row.record)

    def _count(self, rows: Iterable[tuple[Known, Document | None]]) -> None:
        changes: Counter[str] = Counter()
        for row, after in rows:
            if row.number <= self.counted_to:
                found = index_changes(row.before, after, self.models)
                changes.update(index for index, _ in found.added)
                changes.subtract(index for index, _ in found.removed)
        self.scratch.count_members(changes)


def _record(document: Document, recorded: Recorded, before: str) -> str:
    """What the write side holds of the entry now: status, revision, position, and the first publication's fingerprint."""
    fingerprint = before.rpartition(" ")[2] or UNKNOWN
    event = recorded.event
    if isinstance(event, EntryRedacted):
        fingerprint = NO_FINGERPRINT
    elif isinstance(event, EntryPublished) and not recorded.removed and recorded.envelope.version == event.version:
        fingerprint = publication_fingerprint(
            published_at=event.published_at, key_event=event.key_event, content=event.content
        )
    status = "published" if isinstance(document, Entry) else "retracted"
    return f"{status} {document.revision} {document.position} {fingerprint}"

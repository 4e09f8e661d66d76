"""One feed's past: its log folded once into rows that say from which position to which they stood, in a file of its own.

Owns the file and the fold into it. A page at position p is then a range of rows that stood at p, for every p at the same
cost. Which part of the log to fold, and when to forget, is `pasts`' business; no method here waits for anything but the disk.
"""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from services.gateway.cursor import Filters
from shared.documents import Document, Feed, Tombstone, parse_document, render
from shared.errors import CannotFold, Corrupted
from shared.events import EntryCorrected, EntryRedacted, EntryRetracted, Recorded, about, decode
from shared.fold import Documents, fold
from shared.instants import instant_of
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.read_models import (
    CHRONOLOGICAL_KEY_CHARACTERS,
    N_CHARACTERS,
    READ_MODELS,
    index_changes,
    index_for,
    members,
)

# What no page lists needs no rows.
MODELS = tuple(model for model in READ_MODELS.values() if model.name not in ("changed", "first_published"))

# Beyond every position: until when a row stands that stands still.
STILL = 2**62
_CACHE_KIB = 1024

_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA secure_delete = ON;
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -{_CACHE_KIB};
CREATE TABLE events (n INTEGER PRIMARY KEY, epoch INTEGER, recorded_at INTEGER, type TEXT, by TEXT, causation TEXT);
CREATE INDEX events_by_time ON events (recorded_at, n);
CREATE TABLE versions (
  entry TEXT, n INTEGER, document BLOB, revision INTEGER, why TEXT, removed INTEGER, skipped INTEGER,
  PRIMARY KEY (entry, n)
);
CREATE TABLE members (idx TEXT, member TEXT, n INTEGER, until INTEGER, PRIMARY KEY (idx, member, n)) WITHOUT ROWID;
"""

_PAGE = """
SELECT member, (
  SELECT document FROM versions WHERE entry = substr(member, :skip + 1) AND n <= :n AND NOT skipped
  ORDER BY n DESC LIMIT 1
) FROM members WHERE idx = :idx AND member >= :lower AND member < :upper AND n <= :n AND until > :n
ORDER BY member {direction} LIMIT :limit
"""

_TOTAL = """
SELECT COUNT(*) FROM members WHERE idx = :idx AND member >= :lower AND member < :upper AND n <= :n AND until > :n
"""

# The last one of its kind is the one that stands.
_END_OF_MEMBER = """
UPDATE members SET until = ? WHERE idx = ? AND member = ?
AND n = (SELECT MAX(n) FROM members WHERE idx = ? AND member = ?)
"""

_HISTORY = """
SELECT n, epoch, recorded_at, type, by, causation, revision, document, why, removed, skipped
FROM versions JOIN events USING (n) WHERE entry = ? AND n > ? AND n <= ? ORDER BY n LIMIT ?
"""


class PastPage(NamedTuple):
    """What a page lists, as JSON bytes; `last` is the last member's key where there are more."""

    total: int
    pinned: Sequence[bytes]
    entries: Sequence[bytes]
    last: str | None


class Past:
    """Not for two threads at once. Any error of the file's leaves it unusable: whoever meets one closes it."""

    def __init__(self, feed: str) -> None:
        self.feed = feed
        # SQLite's own temporary file: unlinked as soon as it is open, and in memory only while it is small.
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._file.executescript(_SCHEMA)
        self._document: Feed | None = None
        self._opened_n: int | None = None
        self._skipped: dict[Position, bool] = {}
        self.last: StreamEntry | None = None

    def close(self) -> None:
        self._file.close()

    @property
    def size_bytes(self) -> int:
        (pages,), (free,), (page_bytes,) = (
            self._file.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page_bytes)

    # Folding

    def fold(self, entries: Sequence[StreamEntry], *, quarantined: Collection[Position]) -> None:
        """Fold the log's next events; those in quarantine are skipped, and so is what cannot be folded.

        Raises NewerLog for what this release must leave to a newer one, with nothing folded.
        """
        recorded = [self._decoded(entry, quarantined) for entry in entries]
        state = Documents(self._document, self._current(entries))
        self._file.execute("BEGIN")
        for entry, event in zip(entries, recorded, strict=True):
            self._fold_one(state, entry, event, by_record=entry.position in quarantined)
        self._file.execute("COMMIT")
        self._document = state.feed
        self.last = entries[-1]

    def agrees(self, quarantined: Collection[Position]) -> bool:
        """Whether what was skipped is still what the feed's quarantine says must be."""
        n = self.last.position.n if self.last is not None else 0
        recorded = {position for position in quarantined if position.n <= n}
        by_record = {position for position, told in self._skipped.items() if told}
        # What could not be folded here may come to stand in the quarantine later: the same to every reader.
        return by_record <= recorded <= set(self._skipped)

    @staticmethod
    def _decoded(entry: StreamEntry, quarantined: Collection[Position]) -> Recorded | None:
        if entry.position in quarantined:
            return None
        try:
            return decode(entry.id, entry.fields)
        except CannotFold:
            return None

    def _current(self, entries: Sequence[StreamEntry]) -> dict[str, Document]:
        """The documents, as they stand, of the entries that the events are about."""
        found: dict[str, Document] = {}
        for entry_id in {_entry_of(entry) for entry in entries} - {None}:
            row = self._file.execute(
                "SELECT document FROM versions WHERE entry = ? AND NOT skipped ORDER BY n DESC LIMIT 1", (entry_id,)
            ).fetchone()
            if row is not None:
                found[entry_id] = parse_document(row[0])  # type: ignore[index]  # None is taken out
        return found

    def _fold_one(self, state: Documents, entry: StreamEntry, recorded: Recorded | None, *, by_record: bool) -> None:
        position = entry.position
        event = _whose(entry)
        self._file.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
            (position.n, position.epoch, int(entry.fields[b"recorded_at"]), event.type, event.by, event.causation),
        )
        try:
            if recorded is None:
                raise CannotFold("it is skipped")
            change = fold(state, recorded, feed_id=self.feed)
        except CannotFold:
            self._skipped[position] = by_record
            self._skip(entry)
            return
        state.apply(change)
        if self._opened_n is None:
            self._opened_n = position.n
        if change.after is not None:
            self._add(change.before, change.after, recorded)

    def _add(self, before: Document | None, after: Document, recorded: Recorded) -> None:
        n, event = recorded.position.n, recorded.event
        self._file.execute(
            "INSERT INTO versions VALUES (?, ?, ?, ?, ?, 0, 0)",
            (after.id, n, render(after), after.revision, _why(event)),
        )
        changes = index_changes(before, after, MODELS)
        self._file.executemany(_END_OF_MEMBER, [(n, *pair, *pair) for pair in changes.removed])
        self._file.executemany(
            "INSERT INTO members VALUES (?, ?, ?, ?)",
            [(index, member, n, STILL) for index, member in changes.added],
        )
        if isinstance(event, EntryRedacted):
            self._blank(after.id, before_n=n)

    def _skip(self, entry: StreamEntry) -> None:
        """What was skipped changed nothing; a history shows that it was there."""
        entry_id = _entry_of(entry)
        if entry_id is not None:
            row = (entry_id, entry.position.n)
            self._file.execute("INSERT INTO versions VALUES (?, ?, NULL, NULL, NULL, 0, 1)", row)

    # Forgetting

    def forget(self, entry: str) -> None:
        """Remove an entry's content from everything before its redaction, or from all when that is not folded yet."""
        row = self._file.execute(
            "SELECT MAX(n) FROM versions JOIN events USING (n) WHERE entry = ? AND type = ? AND NOT skipped",
            (entry, EntryRedacted.__name__),
        ).fetchone()
        self._file.execute("BEGIN")
        self._blank(entry, before_n=row[0] if row[0] is not None else STILL)
        self._file.execute("COMMIT")

    def _blank(self, entry: str, *, before_n: int) -> None:
        found = self._file.execute(
            "SELECT n FROM versions WHERE entry = ? AND n < ? AND NOT skipped ORDER BY n", (entry, before_n)
        )
        versions = [n for (n,) in found]
        for n in versions:
            (raw,) = self._file.execute(
                "SELECT document FROM versions WHERE entry = ? AND n = ?", (entry, n)
            ).fetchone()
            if raw is None:
                continue
            document = parse_document(raw)
            self._file.executemany("DELETE FROM members WHERE idx = ? AND member = ?", list(members(document, MODELS)))
            # The last one is what the fold goes on from.
            kept = render(_stripped(document)) if before_n == STILL and n == versions[-1] else None
            self._file.execute(
                "UPDATE versions SET document = ?, why = NULL, removed = 1 WHERE entry = ? AND n = ?", (kept, entry, n)
            )

    # Looking

    def position_at(self, milliseconds: int) -> Position | None:
        """The last event recorded at or before an instant; None before the first."""
        row = self._file.execute(
            "SELECT epoch, n FROM events WHERE recorded_at <= ? ORDER BY recorded_at DESC, n DESC LIMIT 1",
            (milliseconds,),
        ).fetchone()
        return Position(*row) if row is not None else None

    def open_at(self, position: Position) -> bool:
        """Whether the feed was there at a position."""
        return self._opened_n is not None and position.n >= self._opened_n

    def page(self, position: Position, filters: Filters, *, limit: int, after: str | None) -> PastPage:
        """The page that readers got when the checkpoint was `position`; `after` is a cursor's key."""
        newest = filters.order == "newest"
        within = {
            "n": position.n,
            "idx": index_for(tag=filters.tag, key_events=filters.key_events),
            "lower": filters.since or "",
            "upper": filters.until or "~",
        }
        (total,) = self._file.execute(_TOTAL, within).fetchone()
        if after is not None:
            # No member comes between a key and the key with a NUL behind it.
            within |= {"upper": min(after, str(within["upper"]))} if newest else {"lower": after + "\0"}
        rows = self._members(within, skip=CHRONOLOGICAL_KEY_CHARACTERS, newest=newest, limit=limit + 1)
        pinned: list[tuple[str, bytes]] = []
        if newest and after is None:
            everything = {"n": position.n, "idx": "pinned", "lower": "", "upper": "~"}
            pinned = self._members(everything, skip=N_CHARACTERS, newest=True, limit=-1)
        return PastPage(
            total=total,
            pinned=[document for _, document in pinned],
            entries=[document for _, document in rows[:limit]],
            last=rows[limit - 1][0] if len(rows) > limit else None,
        )

    def _members(self, within: Mapping[str, Any], *, skip: int, newest: bool, limit: int) -> list[tuple[str, bytes]]:
        statement = _PAGE.format(direction="DESC" if newest else "ASC")
        rows = self._file.execute(statement, {**within, "skip": skip, "limit": limit}).fetchall()
        if any(document is None for _, document in rows):
            raise Corrupted(f"the past of {self.feed!r} lists an entry that has no document", feed=self.feed)
        return rows

    def history(self, entry: str, *, after_n: int, to_n: int, events_max: int) -> list[tuple[int, bytes]]:
        """The events about an entry in (`after_n`, `to_n`], each with its n, as the JSON of a history."""
        return [_history_event(row) for row in self._file.execute(_HISTORY, (entry, after_n, to_n, events_max))]


def _entry_of(entry: StreamEntry) -> str | None:
    try:
        return about(entry.fields).entry
    except CannotFold:
        return None


class _Whose(msgspec.Struct, frozen=True):
    type: str | None = None
    by: str | None = None
    causation: str | None = None


_whose_decoder = msgspec.json.Decoder(_Whose)


def _whose(entry: StreamEntry) -> _Whose:
    """What can be told of an event whether or not it can be folded."""
    try:
        return _whose_decoder.decode(entry.fields[b"envelope"])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Whose()


def _why(event: Any) -> str | None:
    if isinstance(event, EntryRedacted):
        return event.reason
    if isinstance(event, EntryRetracted):
        return event.content.reason
    if isinstance(event, EntryCorrected):
        return event.content.correction_note or None
    return None


def _stripped(document: Document) -> Document:
    if isinstance(document, Tombstone):
        return msgspec.structs.replace(document, reason=None)
    return msgspec.structs.replace(document, headline=None, body=[], authors=[], tags=[], correction=None)


def _history_event(row: tuple[Any, ...]) -> tuple[int, bytes]:
    n, epoch, recorded_at, type_, by, causation, revision, document, why, removed, skipped = row
    shown = document is not None and not removed
    facts = {
        "position": str(Position(epoch, n)),
        "recorded_at": instant_of(recorded_at),
        "type": type_,
        "by": by,
        "causation": causation,
        "revision": revision,
        "why": why,
        "removed": bool(removed),
        "quarantined": bool(skipped),
        "document": msgspec.Raw(document) if shown else None,
    }
    return n, msgspec.json.encode(facts)

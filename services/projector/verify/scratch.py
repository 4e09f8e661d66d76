"""Scratch: what the fold has made so far, in a temporary table on the disk, so that memory stays the same for any feed.

Owns the tables. SQLite keeps a database without a name in a file that is unlinked as soon as it is open (TMPDIR says where):
nothing of it outlives the process.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

from shared.position import Position

CACHE_KIB = 16 * 1024
# Fewer than the parameters that any SQLite takes in one statement.
NAMES_PER_QUERY_MAX = 500

_SCHEMA = """
CREATE TABLE entries(number INTEGER PRIMARY KEY, entry TEXT NOT NULL UNIQUE, document BLOB, record TEXT NOT NULL);
CREATE TABLE indexes(name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE skipped(n INTEGER PRIMARY KEY, position TEXT NOT NULL, recorded_at INTEGER NOT NULL);
CREATE TABLE removed(n INTEGER PRIMARY KEY, position TEXT NOT NULL, digest TEXT NOT NULL, entry TEXT);
CREATE TABLE redacted(n INTEGER PRIMARY KEY, position TEXT NOT NULL, digest TEXT NOT NULL, at TEXT NOT NULL);
"""


class Row(NamedTuple):
    """One entry. `number` is the n of the first event that names it, `document` None when none of them could be folded.

    `record` is what the write side must hold: status, revision, position and fingerprint, `?` where the log does not tell.
    """

    number: int
    entry: str
    document: bytes | None
    record: str


class Taken(NamedTuple):
    """A content that the log has no more: removed from `position`, an event of `entry`."""

    position: str
    digest: str
    entry: str | None


class Named(NamedTuple):
    """A content that the redaction `at` names."""

    position: str
    digest: str
    at: str


class Scratch:
    """The tables of one feed's fold."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{CACHE_KIB};")
        self._db.executescript(_SCHEMA)
        # One transaction that never ends: pages go to the disk when the cache is full, and at no other time.
        self._db.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    # Entries

    def rows_of(self, entries: Iterable[str]) -> dict[str, Row]:
        """Those of the entries that are known."""
        found: dict[str, Row] = {}
        for names in _slices(list(entries)):
            query = f"SELECT * FROM entries WHERE entry IN ({_marks(names)})"  # noqa: S608  only question marks
            found.update((row[1], Row(*row)) for row in self._db.execute(query, names))
        return found

    def rows_after(self, number: int, *, limit: int) -> list[Row]:
        query = "SELECT * FROM entries WHERE number > ? ORDER BY number LIMIT ?"
        return [Row(*row) for row in self._db.execute(query, (number, limit))]

    def store(self, rows: Iterable[Row]) -> None:
        query = (
            "INSERT INTO entries VALUES(?, ?, ?, ?) "
            "ON CONFLICT(number) DO UPDATE SET document = excluded.document, record = excluded.record"
        )
        self._db.executemany(query, rows)

    # Indexes, with the number of members that are counted so far

    def add_indexes(self, names: Iterable[str]) -> None:
        self._db.executemany("INSERT OR IGNORE INTO indexes VALUES(?, 0)", ((name,) for name in names))

    def count_members(self, changes: Mapping[str, int]) -> None:
        query = "INSERT INTO indexes VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET count = count + excluded.count"
        self._db.executemany(query, changes.items())

    def indexes_after(self, name: str, *, limit: int) -> list[str]:
        query = "SELECT name FROM indexes WHERE name > ? ORDER BY name LIMIT ?"
        return [row[0] for row in self._db.execute(query, (name, limit))]

    def counts_of(self, names: Sequence[str]) -> dict[str, int]:
        query = f"SELECT name, count FROM indexes WHERE name IN ({_marks(names)})"  # noqa: S608  only question marks
        return dict(self._db.execute(query, names))

    def count_indexes(self) -> int:
        """How many have members."""
        return int(self._db.execute("SELECT COUNT(*) FROM indexes WHERE count > 0").fetchone()[0])

    def forget_indexes(self) -> None:
        self._db.execute("DELETE FROM indexes")

    # Skipped events

    def skip(self, position: Position, recorded_at: int) -> None:
        self._db.execute("INSERT INTO skipped VALUES(?, ?, ?)", (position.n, str(position), recorded_at))

    def skipped_at(self, position: Position) -> int | None:
        """When the log recorded the skipped event at `position`; None when that was not skipped."""
        query = "SELECT recorded_at FROM skipped WHERE n = ? AND position = ?"
        row = self._db.execute(query, (position.n, str(position))).fetchone()
        return row and int(row[0])

    def skipped(self) -> Iterator[str]:
        return (row[0] for row in self._db.execute("SELECT position FROM skipped ORDER BY n"))

    # Removed content

    def take(self, position: Position, *, digest: str, entry: str | None) -> None:
        self._db.execute("INSERT INTO removed VALUES(?, ?, ?, ?)", (position.n, str(position), digest, entry))

    def redact(self, position: Position, *, digest: str, at: Position) -> None:
        """The redaction `at` names this content: it explains that it is gone, or asks why it is not."""
        at_n = (position.n, str(position), digest)
        self._db.execute("DELETE FROM removed WHERE n = ? AND position = ? AND digest = ?", at_n)
        self._db.execute("INSERT OR REPLACE INTO redacted VALUES(?, ?, ?, ?)", (*at_n, str(at)))

    def taken(self) -> Iterator[Taken]:
        """Removed contents that no redaction names, as far as the log is folded."""
        return (Taken(*row) for row in self._db.execute("SELECT position, digest, entry FROM removed ORDER BY n"))

    def taken_from(self, entries: Sequence[str]) -> set[str]:
        """Those of the entries of which some content is gone and the redaction is still to come."""
        if self._db.execute("SELECT 1 FROM removed LIMIT 1").fetchone() is None:
            return set()
        query = f"SELECT DISTINCT entry FROM removed WHERE entry IN ({_marks(entries)})"  # noqa: S608  only question marks
        return {row[0] for row in self._db.execute(query, entries)}

    def named(self) -> Iterator[Named]:
        return (Named(*row) for row in self._db.execute("SELECT position, digest, at FROM redacted ORDER BY n"))

    def redactions_between(self, first_n: int, last_n: int) -> dict[int, str]:
        """By n, the digests of the contents that redactions name, from `first_n` to `last_n`."""
        return dict(self._db.execute("SELECT n, digest FROM redacted WHERE n BETWEEN ? AND ?", (first_n, last_n)))


def _marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))


def _slices(values: list[str]) -> Iterator[list[str]]:
    return (values[i : i + NAMES_PER_QUERY_MAX] for i in range(0, len(values), NAMES_PER_QUERY_MAX))

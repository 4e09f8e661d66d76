"""Index keys: which indexes of which feeds have a key at all, wanted or not, found by a walk over the server's keys.

Owns the walk, once for any number of feeds, and what it found, on the disk. Whether an index should be there is
`generation`'s to say.
"""

import re
import sqlite3
from collections.abc import Iterator
from typing import Any, Self, cast

from shared.keys import Keys
from shared.redis import Redis

KEYS_PER_SCAN = 1_000
_GLOB = re.compile(r"[*?\[\]\\]")


class FoundKeys:
    """Feeds, and the indexes of their generations, for which a key stands on the server."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("CREATE TABLE feeds(feed TEXT PRIMARY KEY) WITHOUT ROWID")
        self._db.execute(
            "CREATE TABLE indexes(feed TEXT, generation TEXT, name TEXT, PRIMARY KEY(feed, generation, name)) WITHOUT ROWID"
        )
        self._db.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    async def walk(self, feed: str | None = None) -> None:
        """Look for the keys of one feed, or of all."""
        prefix = re.escape(self._keys.prefix)
        form = re.compile(rf"{prefix}:\{{[^}}]*\}}:f:([^:]*):(?:g([0-9]+):i:(.*)|log|head|active)", re.DOTALL)
        pattern = f"{_escaped(self._keys.prefix)}:{{*}}:f:{feed or '*'}:*"
        if feed is not None:
            self._db.execute("DELETE FROM indexes WHERE feed = ?", (feed,))
        async for key in cast("Any", self._redis.scan_iter(match=pattern, count=KEYS_PER_SCAN)):
            text = key.decode(errors="backslashreplace")
            match = form.fullmatch(text)
            if match is None or not text.startswith(self._keys.feed(match[1]).generation.removesuffix("g")):
                continue
            self._db.execute("INSERT OR IGNORE INTO feeds VALUES(?)", (match[1],))
            if match[2] is not None:
                self._db.execute("INSERT OR IGNORE INTO indexes VALUES(?, ?, ?)", match.groups())

    def feeds(self) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT feed FROM feeds ORDER BY feed")]

    def of(self, feed: str, generation: bytes) -> Iterator[str]:
        """The indexes of one generation."""
        query = "SELECT name FROM indexes WHERE feed = ? AND generation = ?"
        return (row[0] for row in self._db.execute(query, (feed, generation.decode())))


def _escaped(text: str) -> str:
    return _GLOB.sub(r"\\\g<0>", text)

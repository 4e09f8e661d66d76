"""The log: what a decision needs of it in one look, appending to it, and reading it in order.

Owns the look and the order of what is read. An append's form and its answers are `append`'s, its way to the server `lanes`'.
"""

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, cast

from msgspec import Struct

from shared.append import Answer, Append, Appended, Known, RecordStatus, answer_of, args_of, keys_of
from shared.archive.archives import Archives
from shared.documents import Document, Feed, parse_document, parse_feed
from shared.durability import Confirmation
from shared.errors import Corrupted, StalePosition
from shared.keys import Keys
from shared.lanes import Lanes
from shared.ndjson import StreamEntry
from shared.position import ORIGIN, Position
from shared.read_models import N_CHARACTERS
from shared.redis import Redis, Script, command, run_pipeline

_EPOCH_MAX = 10**18 - 1

_load = Script(__file__, "load.lua", read_only=True)


class Record(NamedTuple):
    """What the write side keeps of an entry; `fingerprint` is of the first publication as the client sent it.

    It is not salted: removing an entry's content has to remove it here, in the command buckets and in `frames` too.
    """

    status: RecordStatus
    revision: int
    position: Position
    fingerprint: str


class Head(NamedTuple):
    """The end of a feed's log. `version` and `pins` are the n of the last event of the feed's own and of its pins."""

    position: Position
    recorded_at: int
    status: str
    version: int
    pins: int
    live: int


class Looked(Struct, frozen=True):
    """One look at a feed: the write side, and the documents of the active generation at its checkpoint."""

    known: Known | None
    head: Head | None
    records: Mapping[str, Record | None]
    checkpoint: Position
    feed: Feed | None
    documents: Mapping[str, Document | None]
    pinned: frozenset[str]


class Log:
    """The logs of all feeds of one installation."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._lanes = Lanes(redis)
        self.archives = Archives(redis, keys)

    async def append(self, feed: str, append: Append, *, confirmation: Confirmation | None = None) -> Answer:
        """Append all events at consecutive positions, or change nothing. Known: an earlier attempt did it.

        Safe to send twice: a second arrival of this very call is recognised by its attempt and answered as the first.
        OutcomeUnknown when `confirmation` did not come: the events may stand, and are not as durable as promised.
        """
        shard = self._keys.shard_of(feed)
        keys, attempt = self._keys.feed(feed), secrets.token_hex(6)
        raw, confirmed = await self._lanes.send(
            shard,
            keys_of(keys, self._keys.shard(shard)),
            args_of(feed, append, commands=keys.commands, attempt=attempt),
            confirmation=confirmation,
        )
        answer = answer_of(raw)
        if confirmation is not None and isinstance(answer, Appended | Known):
            if isinstance(confirmed, Exception):
                raise confirmed
            confirmation.check(confirmed)
        if isinstance(answer, Known) and answer.attempt == attempt:
            return Appended(answer.last, await self.recorded_at(feed, answer.last))
        return answer

    async def close(self) -> None:
        """Give up the appends that are under way."""
        await self._lanes.close()

    async def confirm(self, feed: str, confirmation: Confirmation) -> None:
        """OutcomeUnknown unless all that stands in the feed's log until now is as durable as promised."""
        touch = self._keys.shard(self._keys.shard_of(feed)).touch
        pipeline = self._redis.pipeline(transaction=False)
        # On a connection that wrote nothing the server has nothing to wait for, and says yes at once.
        pipeline.set(touch, "confirm", ex=60)
        pipeline.execute_command(*confirmation.command)
        _, confirmed = await run_pipeline(self._redis, pipeline)
        confirmation.check(confirmed)

    async def look(self, feed: str, *, entries: Sequence[str], pins: bool, command: str | None) -> Looked:
        """What a decision about `entries` needs, all of one moment."""
        keys = self._keys.feed(feed)
        args = [keys.commands, command or "", keys.generation, "1" if pins else "", *entries]
        known, head, records, checkpoint, feed_document, documents, pinned = await _load(
            self._redis, (keys.head, keys.entries, keys.active), args
        )
        if head is None:
            records = documents = [None] * len(entries)
        return Looked(
            known=Known.parse(known) if known else None,
            head=_head(head) if head else None,
            records={entry: _record(raw) if raw else None for entry, raw in zip(entries, records, strict=True)},
            checkpoint=Position.parse(checkpoint.decode()) if checkpoint else ORIGIN,
            feed=parse_feed(feed_document) if feed_document else None,
            documents={
                entry: parse_document(raw) if raw else None for entry, raw in zip(entries, documents, strict=True)
            },
            pinned=frozenset(member[N_CHARACTERS:].decode() for member in pinned),
        )

    async def read(
        self, feed: str, *, after: Position, to: Position | None = None, chunk_events: int = 500
    ) -> AsyncGenerator[StreamEntry, None]:
        """The log's entries in (`after`, `to`], in order, in chunks; asserts that every position is the last plus one.

        What was trimmed from the stream comes from the feed's archive, verified. Raises Corrupted when neither has it.
        """
        while to is None or after.n < to.n:
            entries, first_n = await self._from_stream(feed, after=after, to=to, events_max=chunk_events)
            for entry in entries:
                yield entry
            if entries:
                after = entries[-1].position
            if first_n is not None:
                before = after
                async for archived in self.archives.read(feed, after=after, before_n=first_n, to=to):
                    for entry in archived:
                        yield entry
                    after = archived[-1].position
                if after == before:
                    return
            elif len(entries) < chunk_events:
                return

    async def read_chunk(
        self, feed: str, *, after: Position, to: Position | None = None, events_max: int
    ) -> list[StreamEntry]:
        """The first `events_max` entries of what `read` gives."""
        found: list[StreamEntry] = []
        while len(found) < events_max and (to is None or after.n < to.n):
            wanted = events_max - len(found)
            entries, first_n = await self._from_stream(feed, after=after, to=to, events_max=wanted)
            if first_n is None:
                return found + entries
            before = len(found)
            async with aclosing(self.archives.read(feed, after=after, before_n=first_n, to=to)) as chunks:
                async for archived in chunks:
                    found += archived[: events_max - len(found)]
                    if len(found) == events_max:
                        break
            if len(found) == before:
                return found
            after = found[-1].position
        return found

    async def event_at(self, feed: str, position: Position) -> StreamEntry | None:
        """The event at exactly this position, of whatever epoch; None when the log does not hold it."""
        log = self._keys.feed(feed).log
        raw = await command(self._redis, "XRANGE", log, str(position), str(position))
        if raw:
            return stream_entry(raw[0])
        first = await command(self._redis, "XRANGE", log, "-", "+", "COUNT", 1)
        if not first or stream_entry(first[0]).position.n <= position.n:
            return None
        # The stream was trimmed above it: the event of this n in the archive may be one of another epoch.
        before, of_any_epoch = Position(position.epoch, position.n - 1), Position(_EPOCH_MAX, position.n)
        found = await self.read_chunk(feed, after=before, to=of_any_epoch, events_max=1)
        return found[0] if found and found[0].position == position else None

    async def check_held(self, feed: str, position: Position, *, head: Head) -> None:
        """StalePosition unless the log holds an event at exactly this position, of whatever epoch."""
        if position == head.position:
            return
        if position > head.position or await self.event_at(feed, position) is None:
            raise StalePosition(
                f"the log of {feed!r} holds no event at {position}; it has come to {head.position}",
                position=str(position),
                head=str(head.position),
            )

    async def head(self, feed: str) -> Head | None:
        """The end of the feed's log, None for a feed that was never opened."""
        looked = await self.look(feed, entries=(), pins=False, command=None)
        return looked.head

    async def recorded_at(self, feed: str, position: Position) -> int:
        entry = await self.event_at(feed, position)
        if entry is None:
            raise Corrupted(f"the log of {feed!r} has no event at {position}")
        return int(entry.fields[b"recorded_at"])

    async def _from_stream(
        self, feed: str, *, after: Position, to: Position | None, events_max: int
    ) -> tuple[list[StreamEntry], int | None]:
        """What the stream has next; or, where it begins only later, the n that it begins with."""
        log = self._keys.feed(feed).log
        end = str(to) if to is not None else "+"
        raw = await command(self._redis, "XRANGE", log, f"({after}", end, "COUNT", events_max)
        # A stream is trimmed from its beginning, and never of its last event.
        first = raw if raw or to is None else await command(self._redis, "XRANGE", log, "-", "+", "COUNT", 1)
        first_n = stream_entry(first[0]).position.n if first else 0
        if first_n > after.n + 1:
            return [], first_n
        return in_order(feed, raw, after=after), None

    async def quarantined(self, feed: str) -> Mapping[Position, bytes]:
        """The feed's quarantine: what every fold of it skips, with the record of why."""
        raw = await cast("Any", self._redis.hgetall(self._keys.feed(feed).quarantine))
        return {Position.parse(position.decode()): record for position, record in raw.items()}


def in_order(feed: str, raw: Sequence[Any], *, after: Position) -> list[StreamEntry]:
    """XRANGE's answer as log entries; Corrupted unless each position's n is the one before plus one."""
    entries = [stream_entry(item) for item in raw]
    n = after.n
    for entry in entries:
        n += 1
        if int(entry.id.partition(b"-")[2]) != n:
            raise Corrupted(f"the log of {feed!r} has {entry.id.decode()} where n must be {n}", feed=feed)
    return entries


def stream_entry(item: Any) -> StreamEntry:
    entry_id, flat = item
    return StreamEntry(entry_id, dict(zip(flat[::2], flat[1::2], strict=True)) if isinstance(flat, list) else flat)


def _head(raw: Sequence[bytes | None]) -> Head:
    epoch, n, recorded_at, status, version, pins, live = raw
    if None in raw:
        raise Corrupted(f"a feed's head lacks a field: {raw!r}")
    return Head(
        position=Position(int(epoch or 0), int(n or 0)),
        recorded_at=int(recorded_at or 0),
        status=(status or b"").decode(),
        version=int(version or 0),
        pins=int(pins or 0),
        live=int(live or 0),
    )


def _record(raw: bytes) -> Record:
    status, revision, position, fingerprint = raw.decode().split(" ")
    return Record(cast("RecordStatus", status), int(revision), Position.parse(position), fingerprint)

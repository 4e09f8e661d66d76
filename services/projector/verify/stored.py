"""Stored: what Redis holds of one feed, read in slices that are each of one moment and say which.

Owns the scripts, which only read: they run on a replica too. What should stand there is `refold`'s to say.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from shared.errors import Corrupted
from shared.keys import Keys
from shared.position import Position
from shared.redis import Redis, Script, packed

NAMES_PER_WALK = 500

_moment = Script(__file__, "moment.lua", read_only=True)
_documents = Script(__file__, "documents.lua", read_only=True)
_sizes = Script(__file__, "sizes.lua", read_only=True)
_walk = Script(__file__, "walk.lua", read_only=True)
_records = Script(__file__, "records.lua", read_only=True)


class Flipped(Exception):
    """Another generation is active than the one that was being compared."""


class WrongType(NamedTuple):
    """A key that holds something else than what belongs there."""

    key: str
    stored: str
    belongs: str


class Head(NamedTuple):
    """The head's fields as they stand, None where one is missing."""

    epoch: bytes | None
    n: bytes | None
    recorded_at: bytes | None
    status: bytes | None
    version: bytes | None
    pins: bytes | None
    live: bytes | None


class Moment(NamedTuple):
    """A feed's small things. `checkpoint` is None where there is no generation, or none that has one."""

    generation: bytes | None
    checkpoint: Position | None
    read_models: bytes | None
    fold_version: bytes | None
    feed_position: bytes | None
    feed: bytes | None
    highest_generation: bytes | None
    head: Head
    last: Position | None
    first: Position | None
    activity: bytes | None
    dirty: bool
    records: int
    quarantined: int

    @property
    def head_position(self) -> str | None:
        epoch, n = self.head.epoch, self.head.n
        return None if epoch is None or n is None else f"{epoch.decode()}-{n.decode()}"


class Slice(NamedTuple):
    """Documents in the order of the entries asked for; `wrong` are members that are missing or have a score."""

    checkpoint: Position
    documents: Sequence[bytes | None]
    wrong: Sequence[tuple[str, bytes, bytes | None]]


class Sizes(NamedTuple):
    """`members` counts those of each index asked for, `named` are those of them that the generation names."""

    checkpoint: Position
    documents: int
    names: int
    members: Mapping[str, int]
    named: frozenset[str]


class Walked(NamedTuple):
    checkpoint: Position
    names: Sequence[bytes]


class Stored:
    """Reads one feed."""

    def __init__(self, redis: Redis, keys: Keys, feed: str) -> None:
        self._redis = redis
        self._feed_id = feed
        self._shard = keys.shard(keys.shard_of(feed))
        self.keys = keys.feed(feed)

    async def moment(self) -> Moment | list[WrongType]:
        keys = self.keys
        answer = await _moment(
            self._redis,
            (
                keys.log,
                keys.head,
                keys.entries,
                keys.active,
                keys.generations,
                keys.quarantine,
                self._shard.feeds,
                self._shard.dirty,
            ),
            (self._feed_id, keys.generation),
        )
        if answer[0]:
            return [WrongType(*(part.decode() for part in wrong)) for wrong in answer[0]]
        _, generation, meta, feed, highest, head, last, first, activity, dirty, records, quarantined = answer
        return Moment(
            generation=generation,
            checkpoint=_position(meta[0]) if meta[0] is not None else None,
            read_models=meta[1],
            fold_version=meta[2],
            feed_position=meta[3],
            feed=feed,
            highest_generation=highest,
            head=Head(*head),
            last=_position(last) if last is not None else None,
            first=_position(first) if first is not None else None,
            activity=activity,
            dirty=bool(dirty),
            records=records,
            quarantined=quarantined,
        )

    async def documents(self, generation: bytes, entries: Sequence[str], members: Mapping[str, Sequence[str]]) -> Slice:
        """Of one entry at least. Raises Flipped."""
        # One argument for a thousand names: to encode each by itself costs more than all the rest.
        args = (self.keys.generation, packed((entries, *members.items())))
        active, checkpoint, documents, wrong = await _documents(self._redis, (self.keys.active,), args)
        at = self._checkpoint(generation, active, checkpoint)
        triples = zip(wrong[::3], wrong[1::3], wrong[2::3], strict=True)
        return Slice(at, documents, [(index.decode(), member, score) for index, member, score in triples])

    async def sizes(self, generation: bytes, indexes: Sequence[str]) -> Sizes:
        """Raises Flipped."""
        args = (self.keys.generation, *indexes)
        active, checkpoint, documents, names, counts, named = await _sizes(self._redis, (self.keys.active,), args)
        at = self._checkpoint(generation, active, checkpoint)
        return Sizes(
            at,
            documents,
            names,
            members=dict(zip(indexes, counts, strict=True)),
            named=frozenset(index for index, is_named in zip(indexes, named, strict=True) if is_named),
        )

    async def walk(self, generation: bytes, key: str) -> AsyncIterator[Walked]:
        """Everything in one key of the generation, some of it perhaps twice. Raises Flipped."""
        cursor = b"0"
        while True:
            args = (self.keys.generation, key, cursor, NAMES_PER_WALK)
            active, checkpoint, cursor, names = await _walk(self._redis, (self.keys.active,), args)
            yield Walked(self._checkpoint(generation, active, checkpoint), names)
            if cursor == b"0":
                return

    async def records(self, entries: Sequence[str]) -> tuple[Position | None, list[bytes | None]]:
        """The entries' records, and the end of the stream at that moment."""
        last, records = await _records(self._redis, (self.keys.log, self.keys.entries), (packed(entries),))
        return _position(last) if last is not None else None, records

    async def every_record(self) -> AsyncIterator[bytes]:
        """The entries that the write side has a record of; some of them perhaps twice."""
        async for entry, _ in cast("Any", self._redis.hscan_iter(self.keys.entries, count=NAMES_PER_WALK)):
            yield entry

    async def quarantine(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """Position and record of every event in quarantine; some of them perhaps twice."""
        async for found in cast("Any", self._redis.hscan_iter(self.keys.quarantine, count=NAMES_PER_WALK)):
            yield found

    @staticmethod
    def _checkpoint(generation: bytes, active: bytes | None, checkpoint: bytes | None) -> Position:
        if active != generation:
            raise Flipped
        if checkpoint is None:
            raise Corrupted(f"the generation {generation.decode()} has no checkpoint")
        return _position(checkpoint)


def _position(text: bytes) -> Position:
    try:
        return Position.parse(text.decode())
    except ValueError as error:
        raise Corrupted(f"{text!r} is no position") from error

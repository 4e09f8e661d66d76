"""Epochs: raising a feed's epoch, because acknowledged history may be lost or because a repair changed what readers hold.

Owns the act, and whether the log holds a position that somebody saw. When the server as a whole is in doubt is `incarnation`'s,
whose turn it is to act `admission`'s and `witness`'s.
"""

import secrets
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from shared.errors import Unavailable
from shared.events import Encoded, EpochRaised, EpochReason, encode
from shared.keys import Keys
from shared.position import Position
from shared.redis import Pipeline, Redis, Script, run_pipeline

BY = "dateline"
FEEDS_PER_ROUND = 100
ATTEMPTS_MAX = 50

_raise = Script(__file__, "raise.lua")
_standing = Script(__file__, "standing.lua", read_only=True)
_server = Script(__file__, "server.lua", read_only=True)

Answer = Literal["raised", "stale", "settled", "moved"]


class Process(NamedTuple):
    """The server process as it tells of itself; `server` is its run id and its replication id."""

    server: str
    role: str
    replicas: int
    promoted: bool


class Standing(NamedTuple):
    """Where a feed's log stands: None for a feed that is not there; `seen` is what witnesses reported of it.

    `lost`: readers may hold `seen` in the log's present epoch, and it is none of the log's positions.
    """

    feed: str
    head: Position | None
    seen: Position | None
    lost: bool

    @property
    def next_epoch(self) -> int:
        """Above every epoch in which anybody can hold a position."""
        epochs = [position.epoch for position in (self.head, self.seen) if position is not None]
        return max(epochs) + 1

    @property
    def loss(self) -> str | None:
        """What a witness tells of a loss, in words."""
        return f"a witness saw {self.seen}, the log has {self.head}" if self.lost else None


class Raise(NamedTuple):
    """One epoch to raise: decided on `standing`, told to readers as `reason` and to operators as `because`.

    `settles`: for a server in doubt, once for each feed and incarnation.
    """

    standing: Standing
    reason: EpochReason
    because: str
    settles: bool = False


def raising_event(event: EpochRaised) -> Encoded:
    """As it is appended, under a command of its own."""
    return encode(event, command=f"raise-{secrets.token_hex(8)}", by=BY, causation=None)


class Epochs:
    """The epochs of all feeds of one installation."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def process(self) -> Process:
        """The server process that answers now."""
        server, role, replicas, offset = await _server(self._redis, (self._keys.shard(0).incarnation,), ())
        return Process(server.decode(), role.decode(), int(replicas), promoted=int(offset) >= 0)

    async def standings(self, feeds: Sequence[str]) -> list[Standing]:
        pipeline = self._redis.pipeline(transaction=False)
        for feed in feeds:
            keys = self._keys.feed(feed)
            witnessed = self._keys.shard(self._keys.shard_of(feed)).witnessed
            _standing.queue(pipeline, (keys.log, keys.head, witnessed), (feed,))
        answers = await run_pipeline(self._redis, pipeline, (_standing,)) if feeds else []
        return [
            Standing(
                feed,
                Position(int(epoch), int(n)) if epoch else None,
                Position.parse(seen.decode()) if seen else None,
                bool(lost),
            )
            for feed, (epoch, n, seen, lost) in zip(feeds, answers, strict=True)
        ]

    async def raise_all(self, raises: Sequence[Raise], *, server: str) -> list[Answer]:
        """Raise each where nothing changed since it was decided for the process `server`; safe to send twice."""
        pipeline = self._redis.pipeline(transaction=False)
        for item in raises:
            self._queue(pipeline, item, server)
        answers = await run_pipeline(self._redis, pipeline, (_raise,)) if raises else []
        return [answer[0].decode() for answer in answers]

    def _queue(self, pipeline: Pipeline, item: Raise, server: str) -> None:
        standing = item.standing
        feed = self._keys.feed(standing.feed)
        shard = self._keys.shard(self._keys.shard_of(standing.feed))
        event = raising_event(EpochRaised(item.reason, item.because))
        _raise.queue(
            pipeline,
            (feed.log, feed.head, shard.dirty, shard.doorbell, shard.incarnation, shard.witnessed),
            (
                *(standing.feed, server, str(standing.head), standing.next_epoch),
                *(event.envelope, item.reason, item.because),
                "1" if item.settles else "",
            ),
        )

    async def make_losses_visible(self, feeds: Iterable[str], *, server: str) -> list[Standing]:
        """Raise the epoch of each of the feeds whose log lacks what witnesses reported; gives those raised.

        Unavailable when another server process answers meanwhile.
        """
        feeds = list(feeds)
        parts = [feeds[start : start + FEEDS_PER_ROUND] for start in range(0, len(feeds), FEEDS_PER_ROUND)]
        return [standing for part in parts for standing in await self._make_visible(part, server)]

    async def _make_visible(self, feeds: list[str], server: str) -> list[Standing]:
        raised: list[Standing] = []
        for _ in range(ATTEMPTS_MAX):
            raises = [Raise(s, "epoch", s.loss) for s in await self.standings(feeds) if s.loss is not None]
            answers = await self.raise_all(raises, server=server)
            if "moved" in answers:
                raise Unavailable("another server process answers than before")
            raised += [item.standing for item, answer in zip(raises, answers, strict=True) if answer == "raised"]
            feeds = [item.standing.feed for item, answer in zip(raises, answers, strict=True) if answer == "stale"]
            if not feeds:
                return raised
        raise Unavailable("logs move faster than their epochs can be raised")

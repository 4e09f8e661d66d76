"""Witness: what a running process saw of the feeds' logs, told to whatever server process answers next.

Owns the memory and the report. Positions that are in the log are no news; one that is not is acknowledged history that was
lost, and makes its feed's epoch grow.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping

import structlog

from shared.epochs.raising import Epochs
from shared.errors import Unavailable
from shared.keys import Keys
from shared.position import Position
from shared.redis import UNREACHABLE, Redis, Script

log = structlog.get_logger()

CHECK_SECONDS = 1.0
# The feeds seen last: what a server loses is its end.
FEEDS_MAX = 10_000
FEEDS_PER_REPORT = 500

_report = Script(__file__, "report.lua")


class Witness:
    """One process's memory. `on_restart` is called when another server process answers than before, after the report."""

    def __init__(self, redis: Redis, keys: Keys, *, on_restart: Callable[[], None] | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._epochs = Epochs(redis, keys)
        self._on_restart = on_restart
        self._seen: dict[str, Position] = {}
        self._server: str | None = None
        self._one_at_a_time = asyncio.Lock()

    @property
    def seen(self) -> Mapping[str, Position]:
        return self._seen

    def saw(self, feed: str, position: Position) -> None:
        """The log has, or had, the feed's event at `position`."""
        before = self._seen.pop(feed, None)
        self._seen[feed] = position if before is None or before < position else before
        if len(self._seen) > FEEDS_MAX:
            del self._seen[next(iter(self._seen))]

    async def watch(self) -> None:
        """Look for another server process, once a second, until cancelled."""
        while True:
            try:
                await self.check()
            except (Unavailable, *UNREACHABLE) as error:
                log.warning("server_not_checked", error=repr(error))
            await asyncio.sleep(CHECK_SECONDS)

    async def check(self) -> None:
        """Tell another server process than before what was seen, before anything else is asked of it."""
        async with self._one_at_a_time:
            process = await self._epochs.process()
            if process.server == self._server:
                return
            seen = dict(self._seen)
            if seen:
                await report(self._redis, self._keys, seen)
                # Whoever admits the server waits for reports, but not for ever.
                for standing in await self._epochs.make_losses_visible(seen, server=process.server):
                    log.error("loss_witnessed", feed=standing.feed, saw=str(standing.seen), head=str(standing.head))
            restarted, self._server = self._server is not None, process.server
            if restarted:
                log.warning("server_changed", server=process.server)
                if self._on_restart is not None:
                    self._on_restart()


async def report(redis: Redis, keys: Keys, seen: Mapping[str, Position]) -> None:
    """Write down what was seen where whoever admits the server reads it; safe to send twice."""
    by_shard: dict[int, list[str]] = {}
    for feed in seen:
        by_shard.setdefault(keys.shard_of(feed), []).append(feed)
    for shard, feeds in by_shard.items():
        for part in _parts(feeds):
            pairs = [text for feed in part for text in (feed, str(seen[feed]))]
            await _report(redis, (keys.shard(shard).witnessed,), pairs)


def _parts(feeds: list[str]) -> Iterable[list[str]]:
    return (feeds[start : start + FEEDS_PER_REPORT] for start in range(0, len(feeds), FEEDS_PER_REPORT))

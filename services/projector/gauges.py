"""Gauges of a projector: how far its shards lag, and what of them is in quarantine, for whoever watches by night.

Owns measuring, beside the work and never in its way: reads only, in slices. What counts as alarming the watcher says.
"""

import asyncio
from collections.abc import Collection

import structlog

from shared.keys import Keys
from shared.metrics import Metrics
from shared.redis import UNREACHABLE, Redis, Script

log = structlog.get_logger()

LAG_SECONDS = 5.0
QUARANTINE_SECONDS = 30.0
# In one call of a script, which nothing else of the server runs beside.
FEEDS_PER_LOOK_MAX = 500

_lagging = Script(__file__, "lagging.lua", read_only=True)
_quarantined = Script(__file__, "quarantined.lua", read_only=True)


class Gauges:
    """Measures the shards that `held` has at each time."""

    def __init__(self, redis: Redis, keys: Keys, metrics: Metrics, held: Collection[int]) -> None:
        self._redis = redis
        self._keys = keys
        self._metrics = metrics
        self._held = held

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        counted = float("-inf")
        while True:
            try:
                await self.measure_lag()
                if loop.time() - counted >= QUARANTINE_SECONDS:
                    await self.count_quarantine()
                    counted = loop.time()
            except UNREACHABLE as error:
                log.warning("gauges_not_read", error=repr(error))
            await asyncio.sleep(LAG_SECONDS)

    async def measure_lag(self) -> None:
        """Of a shard that has more dirty feeds than one look takes, as many."""
        events, milliseconds = 0, 0
        for shard in list(self._held):
            args = (self._keys.prefix_of_feeds(shard), FEEDS_PER_LOOK_MAX)
            found, oldest, now = await _lagging(self._redis, (self._keys.shard(shard).dirty,), args)
            events += found
            milliseconds = max(milliseconds, now - oldest if oldest else 0)
        self._metrics.lag_events.set(events)
        self._metrics.lag_seconds.set(milliseconds / 1000)

    async def count_quarantine(self) -> None:
        total = 0
        for shard in list(self._held):
            looked_at = FEEDS_PER_LOOK_MAX
            rank = 0
            while looked_at == FEEDS_PER_LOOK_MAX:
                args = (self._keys.prefix_of_feeds(shard), rank, FEEDS_PER_LOOK_MAX)
                looked_at, found = await _quarantined(self._redis, (self._keys.shard(shard).feeds,), args)
                total += found
                rank += looked_at
        self._metrics.quarantined_open.set(total)

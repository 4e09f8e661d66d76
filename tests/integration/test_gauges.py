"""The projector's gauges on real servers: the lag and the quarantine of the shards that it holds, and of no others."""

from typing import Any, cast

import pytest

from services.projector import gauges as gauges_module
from services.projector.gauges import Gauges
from shared.keys import Keys
from shared.log import Log
from shared.metrics import Metrics
from shared.redis import Redis, command
from tests.integration.builders import (
    Projection,
    appending_entry,
    damaged,
    dump,
    feed_in_shard,
    log_entries,
    open_feed,
    project,
    published,
)

SHARD = 3
FEED = feed_in_shard(SHARD)


class Measured:
    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.metrics = Metrics()
        self.held = {SHARD}
        self.gauges = Gauges(redis, keys, self.metrics, self.held)

    async def lag(self) -> tuple[float, float]:
        await self.gauges.measure_lag()
        return self._value("dateline_lag_events"), self._value("dateline_lag_seconds")

    async def quarantine(self) -> float:
        await self.gauges.count_quarantine()
        return self._value("dateline_events_in_quarantine")

    def _value(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value(name)
        assert value is not None
        return value


@pytest.fixture
def measured(redis: Redis, keys: Keys) -> Measured:
    return Measured(redis, keys)


@pytest.fixture
def log(redis: Redis, keys: Keys) -> Log:
    return Log(redis, keys)


async def recorded_long_ago(redis: Redis, keys: Keys, feed: str, *, seconds: int) -> None:
    """Let the feed's second event be recorded `seconds` ago, the first before that, fields in another order than ours."""
    now, _ = await command(redis, "TIME")
    standing = await log_entries(redis, keys, feed)
    await command(redis, "DEL", keys.feed(feed).log)
    for number, entry in enumerate(standing):
        at = str((int(now) - seconds - (300 if number == 0 and len(standing) > 1 else 0)) * 1000)
        fields = ("recorded_at", at, "envelope", entry.fields[b"envelope"], "content", b"9" * 15)
        await command(redis, "XADD", keys.feed(feed).log, entry.id, *fields)


async def test_the_lag_is_that_of_all_feeds_and_its_age_that_of_the_oldest_event(
    redis: Redis, keys: Keys, log: Log, measured: Measured
) -> None:
    assert await measured.lag() == (0, 0)
    folded, half, new = [name for name in (f"feed-{n}" for n in range(200)) if Keys.shard_of(name) == SHARD][:3]
    for feed in (folded, half, new):
        await open_feed(log, feed)
        await log.append(feed, appending_entry("e1"))
    await project(redis, keys, folded)
    projection = Projection(redis, keys, half)
    await projection.take_shard()
    await projection.step(events_max=1)
    # Whichever of them the look comes to first.
    for of_half, of_new in ((400, 50), (100, 100)):
        await recorded_long_ago(redis, keys, half, seconds=of_half)
        await recorded_long_ago(redis, keys, new, seconds=of_new)
        events, seconds = await measured.lag()
        assert events == 3
        assert 399 <= seconds < 410
    await projection.step()
    assert (await measured.lag())[0] == 2
    measured.held.clear()
    assert await measured.lag() == (0, 0)


async def test_one_look_takes_a_bounded_number_of_feeds(
    redis: Redis, keys: Keys, log: Log, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in (f"feed-{n}" for n in range(200)) if Keys.shard_of(name) == SHARD][:5]:
        await open_feed(log, name)
    assert (await measured.lag())[0] == 5
    monkeypatch.setattr(gauges_module, "FEEDS_PER_LOOK_MAX", 2)
    assert (await measured.lag())[0] == 2


async def test_a_feed_of_which_nothing_is_left_but_its_name_lags_by_nothing(
    redis: Redis, keys: Keys, measured: Measured
) -> None:
    await cast("Any", redis.sadd(keys.shard(SHARD).dirty, FEED))
    assert await measured.lag() == (0, 0)


@pytest.mark.parametrize("per_look", [500, 2])
async def test_the_open_quarantine_of_every_feed_is_counted(
    redis: Redis, keys: Keys, log: Log, measured: Measured, monkeypatch: pytest.MonkeyPatch, per_look: int
) -> None:
    monkeypatch.setattr(gauges_module, "FEEDS_PER_LOOK_MAX", per_look)
    assert await measured.quarantine() == 0
    feeds = [name for name in (f"feed-{n}" for n in range(200)) if Keys.shard_of(name) == SHARD][:5]
    for feed in (*feeds, feed_in_shard(SHARD + 1)):
        await open_feed(log, feed)
        await log.append(feed, appending_entry("e1", event=damaged(published("e1"))))
        await project(redis, keys, feed)
    assert await measured.quarantine() == 5
    records = {feeds[0]: b'{"discarded":{"reason":"twice"}}', feeds[1]: b'{"discarded":null}', feeds[2]: b"1"}
    for feed, record in records.items():
        await cast("Any", redis.hset(keys.feed(feed).quarantine, "1-2", record))
    await cast("Any", redis.hset(keys.feed(feeds[3]).quarantine, "1-3", b"no json"))
    assert await measured.quarantine() == 5
    before = await dump(redis, keys)
    await measured.quarantine()
    await measured.lag()
    assert await dump(redis, keys) == before

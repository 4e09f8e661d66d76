"""The look of `ops status` on real servers: each feed of one moment, every feed once, and nothing is written."""

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from services.cli.ops.feed_status import FeedStatus
from services.cli.ops.installation import Installation
from services.cli.ops.look import FEEDS_PER_ROUND, feeds_of
from services.cli.ops.server import Server
from services.cli.ops.surroundings import installation_of
from services.projector.lease import Leases
from shared.archive.archiving import Archiving
from shared.archive.trimming import Trimming
from shared.config import Config
from shared.epochs.admission import Admission
from shared.errors import FeedNotFound
from shared.fold import FOLD_VERSION
from shared.instants import milliseconds_of
from shared.keys import SHARD_TAGS, SHARDS, Keys
from shared.log import Log
from shared.members import Members
from shared.position import Position
from shared.read_models import READ_MODELS
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
from tests.integration.conftest import RunningServer
from tests.integration.rebuild_kit import Owner, an_owner, history

FEED = feed_in_shard(3)


@pytest.fixture
def log(redis: Redis, keys: Keys) -> Log:
    return Log(redis, keys)


async def look_at(redis: Redis, keys: Keys, feed: str = FEED) -> FeedStatus:
    [found] = [found async for found in feeds_of(redis, keys, [feed])]
    return found


async def look_around(redis: Redis, keys: Keys, server: RunningServer) -> Installation:
    config = Config(key_prefix=keys.prefix)
    return await installation_of(Server(config, redis, server.url, None))


async def test_a_feed_that_no_projector_has_seen_is_listed_with_all_its_lag(redis: Redis, keys: Keys, log: Log) -> None:
    await open_feed(log, FEED)
    await log.append(FEED, appending_entry("e1"))
    [found] = [found async for found in feeds_of(redis, keys, [])]
    assert (found.feed, found.shard, found.status, found.entries) == (FEED, 3, "open", 1)
    assert (found.head, found.checkpoint, found.lag_events) == ("1-2", None, 2)
    assert (found.generation, found.fold_version) == (None, None)


async def test_a_folded_feed_shows_where_it_stands(redis: Redis, keys: Keys, log: Log) -> None:
    await open_feed(log, FEED)
    appended = await log.append(FEED, appending_entry("e1"))
    await project(redis, keys, FEED)
    found = await look_at(redis, keys)
    assert (found.head, found.checkpoint, found.lag_events, found.lag_seconds) == ("1-2", "1-2", 0, 0.0)
    assert (found.generation, found.fold_version, found.entries) == (1, 1, 1)
    assert milliseconds_of(found.recorded_at) == cast("Any", appended).recorded_at
    assert (found.log.events, found.log.first) == (2, "1-1")
    assert found.log.memory_bytes == await command(redis, "MEMORY", "USAGE", keys.feed(FEED).log)
    assert (found.quarantine.open, found.quarantine.discarded) == (0, 0)
    assert (found.epoch.number, found.epoch.raised_at, found.epoch.reason, found.epoch.because) == (1, None, None, None)


async def test_the_lag_in_seconds_is_the_age_of_the_oldest_event_that_is_not_folded(
    redis: Redis, keys: Keys, log: Log
) -> None:
    await open_feed(log, FEED)
    await project(redis, keys, FEED)
    first = cast("Any", await log.append(FEED, appending_entry("e1"))).recorded_at
    await asyncio.sleep(0.03)
    second = cast("Any", await log.append(FEED, appending_entry("e2"))).recorded_at
    assert second > first

    async def ages(since: int) -> tuple[float, float, float]:
        before = await clock(redis)
        found = await look_at(redis, keys)
        return (before - since) / 1000, found.lag_seconds, (await clock(redis) - since) / 1000

    assert (await look_at(redis, keys)).lag_events == 2
    least, lag, most = await ages(first)
    assert least <= lag <= most
    projection = Projection(redis, keys, FEED)
    await projection.take_shard()
    await projection.step(events_max=1)
    assert (await look_at(redis, keys)).lag_events == 1
    least, lag, most = await ages(second)
    assert least <= lag <= most


async def clock(redis: Redis) -> int:
    seconds, microseconds = await command(redis, "TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


async def test_an_event_recorded_by_a_clock_that_was_ahead_is_not_older_than_now(
    redis: Redis, keys: Keys, log: Log
) -> None:
    await open_feed(log, FEED)
    await project(redis, keys, FEED)
    await cast("Any", redis.hset(keys.feed(FEED).head, "recorded_at", str(await clock(redis) + 3_600_000)))
    await log.append(FEED, appending_entry("e1"))
    found = await look_at(redis, keys)
    assert (found.lag_events, found.lag_seconds) == (1, 0.0)


async def test_no_look_sees_a_lag_below_zero_however_fast_the_log_grows_and_is_folded(
    redis: Redis, keys: Keys, log: Log
) -> None:
    await open_feed(log, FEED)
    projection = Projection(redis, keys, FEED)
    await projection.to_head()
    done = asyncio.Event()
    looks: list[FeedStatus] = []

    async def looking() -> None:
        while not done.is_set():
            looks.append(await look_at(redis, keys))

    looker = asyncio.create_task(looking())
    for number in range(60):
        await log.append(FEED, appending_entry(f"e{number}"))
        await projection.step()
    done.set()
    await looker
    assert len(looks) > 20
    for found in looks:
        head, checkpoint = Position.parse(found.head), Position.parse(found.checkpoint or "")
        assert found.lag_events == head.n - checkpoint.n >= 0
        assert found.lag_seconds == 0 or found.lag_events > 0


async def test_quarantined_events_are_open_until_somebody_discards_them(redis: Redis, keys: Keys, log: Log) -> None:
    await open_feed(log, FEED)
    for entry in ("e1", "e2"):
        await log.append(FEED, appending_entry(entry, event=damaged(published(entry))))
    await project(redis, keys, FEED)
    found = await look_at(redis, keys)
    assert (found.quarantine.open, found.quarantine.discarded, found.lag_events) == (2, 0, 0)
    quarantine = keys.feed(FEED).quarantine
    record = msgspec.json.decode(await command(redis, "HGET", quarantine, "1-2"))
    record["discarded"] = {"by": "ops", "at": "2026-01-01T00:00:00.000Z", "reason": "sent twice"}
    await cast("Any", redis.hset(quarantine, "1-2", msgspec.json.encode(record)))
    found = await look_at(redis, keys)
    assert (found.quarantine.open, found.quarantine.discarded) == (1, 1)


async def test_a_feed_whose_data_is_damaged_can_be_looked_at(redis: Redis, keys: Keys, log: Log) -> None:
    await open_feed(log, FEED)
    await project(redis, keys, FEED)
    for number, record in enumerate((b"", b"1", b'"text"', b'{"discarded":null}')):
        await cast("Any", redis.hset(keys.feed(FEED).quarantine, f"1-{number}", record))
    await command(redis, "DEL", keys.feed(FEED).log)
    found = await look_at(redis, keys)
    assert (found.log.events, found.log.memory_bytes, found.log.first) == (0, 0, None)
    assert (found.quarantine.open, found.quarantine.discarded) == (4, 0)


async def test_the_fields_of_an_event_may_stand_in_any_order(redis: Redis, keys: Keys, log: Log) -> None:
    await open_feed(log, FEED)
    [entry] = await log_entries(redis, keys, FEED)
    await command(redis, "DEL", keys.feed(FEED).log)
    old = {b"recorded_at": b"1000", b"envelope": entry.fields[b"envelope"], b"content": b"9" * 15}
    await command(redis, "XADD", keys.feed(FEED).log, entry.id, *(part for pair in old.items() for part in pair))
    assert (await look_at(redis, keys)).lag_seconds > 1_000_000_000


async def test_a_raised_epoch_shows_when_and_why(redis: Redis, keys: Keys, log: Log) -> None:
    await open_feed(log, FEED)
    raised = {"raised_at": "1000", "raised_reason": "epoch", "raised_because": "a witness saw 1-9"}
    await cast("Any", redis.hset(keys.feed(FEED).head, mapping=cast("Any", raised)))
    epoch = (await look_at(redis, keys)).epoch
    assert (epoch.raised_at, epoch.reason) == ("1970-01-01T00:00:01.000Z", "epoch")
    assert epoch.because == "a witness saw 1-9"


async def test_a_build_shows_how_far_it_is_until_it_is_done(redis: Redis, keys: Keys) -> None:
    owner = await an_owner(redis, keys, FEED, history(1, events=20))
    assert (await look_at(redis, keys)).build is None
    await owner.ask()
    found = (await look_at(redis, keys)).build
    assert found is not None
    assert (found.state, found.reason, found.progress, found.checkpoint, found.generation) == (
        *("asked", "rebuild", 0.0),
        *(None, None),
    )
    assert await owner.begin() == "begun"
    site = await owner.site()
    await owner.slice(site, events_max=5)
    looked = await look_at(redis, keys)
    found = looked.build
    assert found is not None
    assert (found.state, found.generation, found.checkpoint) == ("building", site.generation, "1-5")
    assert found.progress == 5 / Position.parse(looked.head).n
    assert looked.generation == 1
    await fail(redis, keys, owner)
    found = (await look_at(redis, keys)).build
    assert found is not None
    assert (found.state, found.progress, found.detail) == ("failed", None, "it does not fit")


async def fail(redis: Redis, keys: Keys, owner: Owner) -> None:
    await cast("Any", redis.hset(keys.feed(owner.feed).build, mapping={"state": "failed", "detail": "it does not fit"}))


async def test_an_archive_shows_how_far_it_reaches_and_the_stream_what_is_left(
    redis: Redis, keys: Keys, log: Log, tmp_path: Path
) -> None:
    await open_feed(log, FEED)
    for number in range(8):
        await log.append(FEED, appending_entry(f"e{number}"))
    await project(redis, keys, FEED)
    never = (await look_at(redis, keys)).archive
    assert (never.url, never.archived_to, never.trimmed_to, never.bytes) == (None, None, None, None)
    archived = await Archiving(redis, keys).archive(FEED, url=str(tmp_path))
    found = (await look_at(redis, keys)).archive
    assert (found.url, found.archived_to, found.trimmed_to) == (tmp_path.as_uri(), "1-9", None)
    assert found.bytes == archived.bytes > 0
    await Trimming(redis, keys).trim(FEED)
    found_feed = await look_at(redis, keys)
    assert (found_feed.archive.archived_to, found_feed.archive.trimmed_to) == ("1-9", "1-8")
    assert (found_feed.log.events, found_feed.log.first, found_feed.lag_events) == (1, "1-9", 0)


async def test_every_feed_is_seen_once_whatever_its_shard(redis: Redis, keys: Keys, log: Log) -> None:
    # More than one round in one shard, folded ones and others, and one in each of some others.
    crowded = [name for name in (f"feed-{n}" for n in range(3000)) if Keys.shard_of(name) == 5][: FEEDS_PER_ROUND + 3]
    feeds = [*crowded, *(feed_in_shard(shard) for shard in (0, 9, SHARDS - 1))]
    for feed in feeds:
        await open_feed(log, feed)
    for feed in feeds[::2]:
        await project(redis, keys, feed)
    names = [found.feed async for found in feeds_of(redis, keys, [])]
    assert sorted(names) == sorted(feeds)


async def test_named_feeds_are_looked_at_in_their_order_and_unknown_ones_are_said(
    redis: Redis, keys: Keys, log: Log
) -> None:
    for shard in (7, 2):
        await open_feed(log, feed_in_shard(shard))
    named = [feed_in_shard(7), feed_in_shard(2)]
    assert [found.feed async for found in feeds_of(redis, keys, named)] == named
    with pytest.raises(FeedNotFound, match="nowhere"):
        [found async for found in feeds_of(redis, keys, [*named, "nowhere"])]


async def test_an_installation_shows_its_server_its_processes_and_who_holds_which_shard(
    redis: Redis, keys: Keys, log: Log, server: RunningServer
) -> None:
    await open_feed(log, FEED)
    leases = Leases(redis, keys, owner="projector-1")
    await leases.renew()
    await Members(redis, keys.gateways).announce("gateway-1", seconds=30)
    await cast("Any", redis.hset(keys.shard(4).lease, mapping={"expires": "1000"}))
    found = await look_around(redis, keys, server)
    info = await redis.info()
    assert (found.server.run_id, found.server.role) == (info["run_id"], "master")
    assert found.server.name in ("Valkey", "Redis")
    assert found.server.version
    assert (found.server.durability, found.server.problem) == ("fsync", None)
    assert (found.server.aof.enabled, found.server.aof.last_write) == (True, "ok")
    assert (found.server.aof.size_bytes or 0) > 0
    assert (found.gateways, found.running) == (["gateway-1"], True)
    [projector] = found.projectors
    assert (projector.name, projector.fold_version) == ("projector-1", FOLD_VERSION)
    assert list(projector.read_models) == list(READ_MODELS)
    assert [shard.tag for shard in found.shards] == list(SHARD_TAGS)
    held = [shard for shard in found.shards if shard.holder is not None]
    assert len(held) == SHARDS - 1
    assert {(shard.holder, shard.fence) for shard in held} == {("projector-1", 1)}
    assert all(0 < (shard.seconds_left or 0) <= 3.0 for shard in held)
    assert (found.shards[4].holder, found.shards[4].seconds_left, found.shards[4].fence) == (None, None, 1)
    assert (found.shards[3].feeds, found.shards[3].dirty_feeds, found.shards[2].dirty_feeds) == (0, 1, 0)
    await project(redis, keys, FEED)
    shard = (await look_around(redis, keys, server)).shards[3]
    assert (shard.feeds, shard.dirty_feeds, shard.builds) == (1, 0, 0)
    await cast("Any", redis.sadd(keys.shard(3).builds, FEED))
    assert (await look_around(redis, keys, server)).shards[3].builds == 1


async def test_a_shard_shows_which_server_process_takes_its_events_and_why_its_epochs_were_raised(
    redis: Redis, keys: Keys, server: RunningServer
) -> None:
    def admission(found: Installation) -> tuple[Any, ...]:
        it = found.shards[5].admission
        return it.admitted, it.admitted_at, it.raising, it.raised_at, it.raised_because

    incarnation = keys.shard(5).incarnation
    await command(redis, "DEL", incarnation)
    assert admission(await look_around(redis, keys, server)) == (False, None, None, None, None)
    await cast("Any", redis.hset(incarnation, mapping={"server": "another one", "raising": "it is a promoted replica"}))
    assert admission(await look_around(redis, keys, server)) == (False, None, "it is a promoted replica", None, None)
    await command(redis, "DEL", incarnation)
    raised = {"raised_because": "a loss", "raised_at": "1000"}
    await cast("Any", redis.hset(incarnation, mapping=cast("Any", raised)))
    await Admission(redis, keys).admit()
    found = admission(await look_around(redis, keys, server))
    assert found[0]
    assert found[2:] == (None, "1970-01-01T00:00:01.000Z", "a loss")
    assert milliseconds_of(found[1]) <= await clock(redis)


async def test_looking_writes_nothing(redis: Redis, keys: Keys, log: Log, server: RunningServer) -> None:
    await open_feed(log, FEED)
    await project(redis, keys, FEED)
    await log.append(FEED, appending_entry("e1"))
    before = await dump(redis, keys)
    await look_around(redis, keys, server)
    assert [found.feed async for found in feeds_of(redis, keys, [])] == [FEED]
    assert await dump(redis, keys) == before

"""The projector on real servers: what wakes it, whose shards are whose, and that it outlives whatever happens around it.

Owns `Projector`. Single commits are test_commit's, single leases test_lease's.
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from structlog.testing import capture_logs

from services.cli.embedded import DataDir, EmbeddedServer, server_binary
from services.projector import lease as lease_module
from services.projector import worker as worker_module
from services.projector.shard import FEEDS_PER_ROUND_MAX
from services.projector.worker import Projector
from shared.append import Append, Appended
from shared.epochs.admission import Admission
from shared.errors import Corrupted, OutcomeUnknown
from shared.events import Encoded, EntryPinned
from shared.keys import SHARDS, Keys, ShardKeys
from shared.log import Log
from shared.metrics import Metrics
from shared.redis import Redis, command, connect, connect_for_blocking
from tests.integration.builders import (
    COMMIT,
    LEASE,
    Projection,
    appending,
    appending_entry,
    carry_out,
    checkpoint,
    damaged,
    desk_of,
    dump,
    encoded,
    eventually,
    feed_in_shard,
    folded,
    frames_of,
    generation_of,
    is_dirty,
    log_entries,
    log_positions,
    open_feed,
    published,
    publishing,
)
from tests.proxy import Proxy

OF_COMMIT = COMMIT.sha.encode()
OF_LEASE = LEASE.sha.encode()
SHARD = 3
FEED = feed_in_shard(SHARD)
NEVER_SECONDS = 1e9
TTL_MILLISECONDS = 3000


class Running(Projector):
    """A projector with its task, and what a test wants to know of it."""

    task: asyncio.Task[None]

    @property
    def listens(self) -> bool:
        return set(self._cursors) == set(self.shards) != set()

    async def die(self) -> None:
        """End without a word, as a killed process does: nothing is released, nobody is told."""

        async def nothing() -> None:
            pass

        self._leases.leave = nothing  # type: ignore[method-assign]
        self.task.cancel()
        await asyncio.wait([self.task])


@asynccontextmanager
async def projecting(url: str, keys: Keys, *, owner: str = "p1") -> AsyncIterator[Running]:
    redis = connect(url)
    blocking = connect_for_blocking(url, block_seconds=worker_module.BLOCK_SECONDS)
    projector = Running(redis, blocking, keys, Metrics(), owner=owner)
    projector.task = asyncio.create_task(projector.run())
    try:
        yield projector
    finally:
        projector.task.cancel()
        [ended] = await asyncio.gather(projector.task, return_exceptions=True)
        await redis.aclose()
        await blocking.aclose()
    if not isinstance(ended, asyncio.CancelledError):
        raise cast("BaseException", ended)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Rounds of a tenth of a second instead of one: what a test waits for is the same."""
    for name in ("BLOCK_SECONDS", "SWEEP_SECONDS", "RENEW_SECONDS", "BACKOFF_SECONDS"):
        monkeypatch.setattr(worker_module, name, 0.1)
    return monkeypatch


@pytest.fixture
def log(redis: Redis, keys: Keys) -> Log:
    return Log(redis, keys)


async def a_feed(log: Log, feed: str = FEED, *, entries: int = 2) -> None:
    await open_feed(log, feed)
    for number in range(entries):
        await log.append(feed, appending_entry(f"e{number}"))


async def at_head(redis: Redis, keys: Keys, feed: str = FEED) -> bool:
    return await checkpoint(redis, keys, feed) == (await log_positions(redis, keys, feed))[-1]


async def projected(redis: Redis, keys: Keys, feed: str = FEED) -> None:
    """The read models reach the head of the log, equal its fold, and every position had its frame once."""
    await eventually(lambda: at_head(redis, keys, feed))
    entries = await log_entries(redis, keys, feed)
    active = int(await command(redis, "GET", keys.feed(feed).active))
    assert await generation_of(redis, keys, feed, active) == folded(feed, entries)
    assert [position for position, _, _ in await frames_of(redis, keys, feed)] == [e.id.decode() for e in entries]
    assert not await is_dirty(redis, keys, feed)


class Unheard(Keys):
    """Keys under which appends ring a doorbell that nobody listens to."""

    def shard(self, shard: int) -> ShardKeys:
        keys = super().shard(shard)
        return keys._replace(doorbell=keys.doorbell + ":unheard")


async def append_unheard(redis: Redis, keys: Keys, append: Append) -> None:
    assert isinstance(await Log(redis, Unheard(keys.prefix)).append(FEED, append), Appended)


async def take_from(redis: Redis, keys: Keys, owner: str = "other") -> int:
    """Another projector takes the shard, as if its lease had expired; gives the new fence."""
    lease = keys.shard(SHARD).lease
    while True:
        await command(redis, "HSET", lease, "expires", "1")
        # Its owner may confirm in between, and then it is not free.
        if fence := int(await LEASE(redis, (lease,), (owner, 0, TTL_MILLISECONDS))):
            return fence


# What wakes it


async def test_what_was_appended_before_it_started_is_folded(server: Any, redis: Redis, keys: Keys, log: Log) -> None:
    feeds = [feed_in_shard(shard) for shard in (0, SHARD, SHARDS - 1)]
    for feed in feeds:
        await a_feed(log, feed)
    # Not even a doorbell is left of it.
    for feed in feeds:
        await redis.delete(keys.shard(keys.shard_of(feed)).doorbell)
    async with projecting(server.url, keys):
        for feed in feeds:
            await projected(redis, keys, feed)


async def test_a_doorbell_wakes_it_long_before_the_sweep(
    server: Any, redis: Redis, keys: Keys, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_feed(log)
    async with projecting(server.url, keys) as projector:
        await projected(redis, keys)
        await eventually(lambda: projector.listens)
        monkeypatch.setattr(worker_module, "SWEEP_SECONDS", NEVER_SECONDS)
        for number in range(3):
            await log.append(FEED, appending_entry(f"later-{number}"))
            await projected(redis, keys)


async def test_a_feed_whose_doorbell_was_lost_is_found_by_the_sweep(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    await a_feed(log)
    async with projecting(server.url, keys) as projector:
        await projected(redis, keys)
        await eventually(lambda: projector.listens)
        rung = await redis.xlen(keys.shard(SHARD).doorbell)
        for number in range(2):
            await append_unheard(redis, keys, appending_entry(f"unheard-{number}"))
            assert await redis.xlen(keys.shard(SHARD).doorbell) == rung
            await projected(redis, keys)


def test_a_lost_doorbell_costs_two_seconds_at_most() -> None:
    """A sweep waits for the blocking read that is under way."""
    assert worker_module.SWEEP_SECONDS + worker_module.BLOCK_SECONDS <= 2.0


async def test_a_doorbell_made_anew_with_smaller_ids_does_not_deafen_it(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    doorbell = keys.shard(SHARD).doorbell
    await a_feed(log)
    async with projecting(server.url, keys) as projector:
        await projected(redis, keys)
        await eventually(lambda: projector.listens)
        # The clock of the server that held the stream before ran ahead.
        ahead = "99999999999999-0"
        await command(redis, "XADD", doorbell, ahead, "feed", FEED)
        await eventually(lambda: projector._cursors[SHARD] == ahead)
        await redis.delete(doorbell)
        await log.append(FEED, appending_entry("found-by-the-sweep"))
        await projected(redis, keys)
        await eventually(lambda: projector._cursors[SHARD] != ahead)
        quick.setattr(worker_module, "SWEEP_SECONDS", NEVER_SECONDS)
        await log.append(FEED, appending_entry("heard"))
        await projected(redis, keys)


async def test_a_trimmed_doorbell_does_not_deafen_it(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    await a_feed(log)
    async with projecting(server.url, keys) as projector:
        await projected(redis, keys)
        await eventually(lambda: projector.listens)
        await command(redis, "XTRIM", keys.shard(SHARD).doorbell, "MAXLEN", 0)
        await log.append(FEED, appending_entry("after-the-trim"))
        await projected(redis, keys)
        quick.setattr(worker_module, "SWEEP_SECONDS", NEVER_SECONDS)
        await log.append(FEED, appending_entry("heard"))
        await projected(redis, keys)


async def test_a_shard_with_more_feeds_than_a_round_takes_is_folded_whole_without_another_wake_up(
    server: Any, redis: Redis, keys: Keys, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = [name for n in range(1000) if Keys.shard_of(name := f"many-{n}") == SHARD][: FEEDS_PER_ROUND_MAX + 5]
    await asyncio.gather(*[a_feed(log, feed, entries=1) for feed in feeds])
    monkeypatch.setattr(worker_module, "SWEEP_SECONDS", NEVER_SECONDS)
    async with projecting(server.url, keys):
        for feed in feeds:
            await projected(redis, keys, feed)


async def test_a_long_log_is_folded_commit_after_commit_without_another_wake_up(
    server: Any, redis: Redis, keys: Keys, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_feed(log, entries=0)
    for batch in range(2):
        await log.append(FEED, appending(*[published(f"b{batch}-{number}") for number in range(180)]))
    # The last commits end at what they render, not at the number of events.
    await log.append(FEED, appending(published("large", headline="x" * 300_000)))
    await log.append(FEED, appending(*[EntryPinned(entry="large")] * 12))
    monkeypatch.setattr(worker_module, "SWEEP_SECONDS", NEVER_SECONDS)
    async with projecting(server.url, keys):
        await projected(redis, keys)


# Warm feeds


@asynccontextmanager
async def warm(server: Any, redis: Redis, keys: Keys, log: Log) -> AsyncIterator[list[str]]:
    """A projector that follows the log of a feed with entries e0 and e1; gives the feeds that it asks for from then on."""
    await a_feed(log)
    asked: list[str] = []
    async with projecting(server.url, keys) as projector:
        await projected(redis, keys)
        await eventually(lambda: projector.listens)
        worker_module.SWEEP_SECONDS = NEVER_SECONDS
        pending = projector._commits.pending

        async def counted(feeds: Sequence[str]) -> Any:
            asked.extend(feeds)
            return await pending(feeds)

        projector._commits.pending = counted  # type: ignore[method-assign]
        await eventually(lambda: appended_unasked(log, redis, keys, asked))
        yield asked


async def test_new_entries_of_a_feed_that_was_just_committed_are_folded_without_asking(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    async with warm(server, redis, keys, log) as asked:
        for number in range(5):
            await log.append(FEED, appending_entry(f"later-{number}"))
            await projected(redis, keys)
        assert asked == []
        # What may be about an entry that is there is asked for, and the next new one is not.
        await log.append(FEED, appending(EntryPinned(entry="later-3")))
        await projected(redis, keys)
        assert asked == [FEED]
        await eventually(lambda: appended_unasked(log, redis, keys, asked))


async def appended_unasked(log: Log, redis: Redis, keys: Keys, asked: list[str]) -> bool:
    asked.clear()
    await log.append(FEED, appending(published(f"new-{await redis.xlen(keys.feed(FEED).log)}")))
    await projected(redis, keys)
    return not asked


async def test_an_entry_that_is_there_already_is_not_taken_for_new(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    async with warm(server, redis, keys, log) as asked:
        await log.append(FEED, appending(published("e0", headline="Another one")))
        await projected(redis, keys)
        assert asked == [FEED]
        [position] = await redis.hkeys(keys.feed(FEED).quarantine)
        assert position == (await log_positions(redis, keys, FEED))[-1].encode()


async def test_an_event_that_the_quarantine_names_is_not_folded_as_new(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    async with warm(server, redis, keys, log) as asked:
        following = f"1-{await redis.xlen(keys.feed(FEED).log) + 1}"
        await command(redis, "HSET", keys.feed(FEED).quarantine, following, "{}")
        await log.append(FEED, appending_entry("skipped"))
        await eventually(lambda: at_head(redis, keys))
        assert asked == [FEED]
        assert [kind for _, kind, _ in await frames_of(redis, keys, FEED)][-1] == "skipped"


# Whose shards are whose


async def test_two_projectors_share_evenly_and_one_takes_over_within_5_seconds_when_the_other_is_killed(
    server: Any, redis: Redis, keys: Keys, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = [feed_in_shard(shard) for shard in range(SHARDS)]
    for feed in feeds:
        await a_feed(log, feed, entries=0)
    async with projecting(server.url, keys, owner="p1") as survivor, projecting(server.url, keys, owner="p2") as other:
        with monkeypatch.context() as quickly:
            quickly.setattr(worker_module, "RENEW_SECONDS", 0.05)
            await eventually(lambda: [len(survivor.shards), len(other.shards)] == [8, 8])
        assert sorted(survivor.shards + other.shards) == list(range(SHARDS))
        for feed in feeds:
            await projected(redis, keys, feed)
        orphaned = [feeds[shard] for shard in other.shards]
        await other.die()
        assert lease_module.TIME_TO_LIVE_SECONDS + lease_module.RENEW_SECONDS < 5
        for feed in orphaned:
            await log.append(feed, appending_entry("after-the-death"))
        await eventually(lambda: survivor.shards == list(range(SHARDS)))
        for feed in orphaned:
            await projected(redis, keys, feed)


async def test_a_projector_that_ends_lets_go_at_once(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    await a_feed(log)
    async with projecting(server.url, keys):
        await projected(redis, keys)
    for shard in range(SHARDS):
        assert await command(redis, "HGET", keys.shard(shard).lease, "owner") == b""
    assert not await redis.exists(keys.projectors)
    async with projecting(server.url, keys, owner="p2") as second:
        await eventually(lambda: len(second.shards) == SHARDS)


def without_leases(keys: Keys, dumped: dict[str, Any]) -> dict[str, Any]:
    """What a projector that goes on confirming its other leases must leave as it is."""
    leases = {keys.shard(shard).lease for shard in range(SHARDS)} | {keys.projectors}
    return {key: value for key, value in dumped.items() if key not in leases}


@pytest.mark.parametrize("first_commit", [True, False])
async def test_a_projector_stopped_past_its_lease_is_fenced_and_changes_nothing(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch, first_commit: bool
) -> None:
    await command(redis, "SCRIPT LOAD", COMMIT.text)
    async with Proxy(server.url) as proxy, projecting(proxy.url, keys) as projector:
        await eventually(lambda: projector.listens)
        if not first_commit:
            await a_feed(log)
            await projected(redis, keys)
        # No renewal may tell it before the commit does.
        quick.setattr(worker_module, "RENEW_SECONDS", NEVER_SECONDS)
        renewed = projector.last_renewal
        await eventually(lambda: projector.last_renewal > renewed)
        # It read, it folded, its commit is on the way, and it stands still while its time runs out.
        commit = proxy.stall("request", of=OF_COMMIT)
        if first_commit:
            await open_feed(log, FEED)
        else:
            await log.append(FEED, appending_entry("while-it-stood-still"))
        await commit.struck.wait()
        proxy.stop()
        fence = await take_from(redis, keys)
        before = without_leases(keys, await dump(redis, keys))
        with capture_logs() as logs:
            proxy.go_on()
            await eventually(lambda: any(line["event"] == "commit_refused" for line in logs))
        assert [line["why"] for line in logs if line["event"] == "commit_refused"] == ["fenced"]
        await eventually(lambda: SHARD not in projector.shards)
        assert without_leases(keys, await dump(redis, keys)) == before
        await Projection(redis, keys, FEED, fence=fence).to_head()
        await projected(redis, keys)


async def test_a_commit_that_another_made_meanwhile_is_not_made_twice(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    async with Proxy(server.url) as proxy, projecting(proxy.url, keys) as projector:
        await a_feed(log)
        await projected(redis, keys)
        await eventually(lambda: projector.listens)
        quick.setattr(worker_module, "SWEEP_SECONDS", NEVER_SECONDS)
        commit = proxy.stall("request", of=OF_COMMIT)
        await log.append(FEED, appending(published("e7"), published("e8")))
        await commit.struck.wait()
        fence = int(await command(redis, "HGET", keys.shard(SHARD).lease, "fence"))
        await Projection(redis, keys, FEED, fence=fence).step(events_max=1)
        with capture_logs() as logs:
            proxy.go_on()
            await eventually(lambda: any(line["event"] == "commit_refused" for line in logs))
            # It looks again by itself at what is left.
            await projected(redis, keys)
        assert [line["why"] for line in logs if line["event"] == "commit_refused"] == ["moved"]
        assert SHARD in projector.shards


async def test_a_shard_that_is_lost_during_a_sweep_is_not_listened_to_any_more(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    """Its cursor would never move on: each of its rings would be heard again at once, for ever."""
    await a_feed(log)
    async with Proxy(server.url) as proxy, projecting(proxy.url, keys) as projector:
        await projected(redis, keys)
        await eventually(lambda: projector.listens)
        sweep = proxy.stall("reply", of=b"SMEMBERS")
        await sweep.struck.wait()
        folding = projector._tasks[SHARD]
        await take_from(redis, keys)
        await eventually(lambda: SHARD not in projector._shards)
        await eventually(folding.done)
        swept = asyncio.get_running_loop().time()
        proxy.go_on()
        await eventually(lambda: asyncio.get_running_loop().time() > swept + 0.2 and projector.listens)


# A log that it must leave, events that it cannot fold, damage that stops it


def of_a_newer_release() -> Encoded:
    event = encoded(EntryPinned(entry="e0"))
    return Encoded(msgspec.json.encode({**msgspec.json.decode(event.envelope), "type": "EntryTranslated"}), b"")


@pytest.mark.parametrize("newer", ["event", "read model"])
async def test_a_shard_with_something_of_a_newer_release_is_left_to_others(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch, newer: str
) -> None:
    elsewhere = feed_in_shard(SHARD + 1)
    await a_feed(log)
    await Projection(redis, keys, FEED).to_head()
    if newer == "read model":
        await command(redis, "HSET", keys.feed(FEED).of_generation(1).meta, "read_models", "chronological,by_mood")
    async with projecting(server.url, keys) as projector:
        await eventually(lambda: projector.listens)
        await log.append(FEED, appending(of_a_newer_release() if newer == "event" else published("e9")))
        await eventually(lambda: SHARD not in projector.shards)
        # At once, without waiting for a time to live.
        assert await LEASE(redis, (keys.shard(SHARD).lease,), ("newer", 0, TTL_MILLISECONDS)) > 0
        await a_feed(log, elsewhere)
        await projected(redis, keys, elsewhere)
        assert projector.shards == [shard for shard in range(SHARDS) if shard != SHARD]
        assert await log.quarantined(FEED) == {}
        assert await checkpoint(redis, keys, FEED) == "1-3"


async def test_a_shard_that_was_left_is_tried_again_later(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    # Over before the next look at the leases: it is lost and taken between two of them.
    quick.setattr(worker_module, "REFUSED_SECONDS", 0.0)
    await a_feed(log)
    await log.append(FEED, appending(of_a_newer_release()))
    with capture_logs() as logs:
        async with projecting(server.url, keys):
            await eventually(lambda: [line["event"] for line in logs].count("log_is_newer") >= 2)
    assert {line["shard"] for line in logs if line["event"] == "log_is_newer"} == {SHARD}


async def test_a_shard_that_is_left_while_its_lease_is_being_confirmed_is_left_all_the_same(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    """The late confirmation would make it own a shard that nobody folds."""
    await a_feed(log)
    async with Proxy(server.url) as proxy, projecting(proxy.url, keys) as projector:
        await projected(redis, keys)
        confirmation = proxy.stall("reply", of=OF_LEASE)
        await confirmation.struck.wait()
        with capture_logs() as logs:
            await log.append(FEED, appending(of_a_newer_release()))
            await eventually(lambda: any(line["event"] == "log_is_newer" for line in logs))
        with contextlib.suppress(TimeoutError):
            # Either it lets go now, or waits with that for the confirmation.
            await eventually(lambda: is_released(redis, keys), seconds=0.3)
        renewed = projector.last_renewal
        proxy.go_on()
        await eventually(lambda: projector.last_renewal > renewed)
        await eventually(lambda: SHARD not in projector.shards)
        await eventually(lambda: is_free_for_a_newer_one(redis, keys))


async def is_released(redis: Redis, keys: Keys) -> bool:
    return bool(await command(redis, "HGET", keys.shard(SHARD).lease, "owner") == b"")


async def is_free_for_a_newer_one(redis: Redis, keys: Keys) -> bool:
    return bool(await LEASE(redis, (keys.shard(SHARD).lease,), ("newer", 0, TTL_MILLISECONDS)))


async def test_a_quarantined_event_rings_an_alarm_and_the_feed_goes_on(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    await a_feed(log)
    await log.append(FEED, appending(damaged(published("e9"))))
    with capture_logs() as logs:
        async with projecting(server.url, keys) as projector:
            await projected(redis, keys)
            await log.append(FEED, appending_entry("afterwards"))
            await projected(redis, keys)
    [alarm] = [line for line in logs if line["event"] == "event_quarantined"]
    assert (alarm["log_level"], alarm["feed"], alarm["position"]) == ("error", FEED, "1-4")
    counted = projector._metrics.registry.get_sample_value
    assert counted("dateline_events_quarantined_total") == 1
    assert counted("dateline_events_folded_total") == 4


async def test_the_alarm_rings_though_the_answer_to_the_commit_was_lost(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    await a_feed(log)
    async with Proxy(server.url) as proxy, projecting(proxy.url, keys):
        await projected(redis, keys)
        lost = proxy.cut("reply", of=OF_COMMIT)
        with capture_logs() as logs:
            await log.append(FEED, appending(damaged(published("e9"))))
            await eventually(lambda: any(line["event"] == "event_quarantined" for line in logs))
        assert lost.fired == 1
        await projected(redis, keys)


async def test_a_shard_that_could_not_even_be_released_is_left_all_the_same(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    elsewhere = feed_in_shard(SHARD + 1)
    await a_feed(log)
    async with Proxy(server.url) as proxy, projecting(proxy.url, keys) as projector:
        await projected(redis, keys)
        await eventually(lambda: projector.listens)
        quick.setattr(worker_module, "RENEW_SECONDS", NEVER_SECONDS)
        renewed = projector.last_renewal
        await eventually(lambda: projector.last_renewal > renewed)
        release = proxy.cut("request", of=OF_LEASE, times=2)
        await log.append(FEED, appending(of_a_newer_release()))
        await eventually(lambda: release.fired == 2)
        await a_feed(log, elsewhere)
        await projected(redis, keys, elsewhere)
        assert SHARD not in projector.shards


async def test_damage_to_the_log_stops_the_projector(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    await a_feed(log)
    await command(redis, "XTRIM", keys.feed(FEED).log, "MINID", "1-2")
    with pytest.raises(ExceptionGroup) as raised:
        async with projecting(server.url, keys) as projector:
            await asyncio.wait([projector.task], timeout=5)
    assert raised.value.subgroup(Corrupted) is not None
    # It let go on the way out: another release, or a repaired log, need not wait.
    assert await command(redis, "HGET", keys.shard(SHARD).lease, "owner") == b""


# Trouble with the server


async def test_a_network_that_fails_and_comes_back_is_outlived(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    await a_feed(log)
    async with Proxy(server.url) as proxy, projecting(proxy.url, keys) as projector:
        await projected(redis, keys)
        with capture_logs() as logs:
            proxy.down = True
            await proxy.cut_all()
            await log.append(FEED, appending_entry("while-it-was-cut-off"))
            told = {"leases_not_renewed", "doorbells_not_heard"}
            await eventually(lambda: told <= {line["event"] for line in logs})
            proxy.down = False
            await projected(redis, keys)
        assert len(projector.shards) == SHARDS
        proxy.cut("reply", after_bytes=5, of=OF_COMMIT)
        proxy.cut("request", after_bytes=200, of=OF_COMMIT)
        for number in range(3):
            await log.append(FEED, appending_entry(f"after-{number}"))
            await projected(redis, keys)


async def test_a_commit_that_could_not_be_made_is_made_when_the_network_is_back(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    await a_feed(log)
    async with Proxy(server.url) as proxy, projecting(proxy.url, keys):
        await projected(redis, keys)
        quick.setattr(worker_module, "SWEEP_SECONDS", NEVER_SECONDS)
        lost = proxy.cut("request", of=OF_COMMIT, times=4)
        with capture_logs() as logs:
            await log.append(FEED, appending_entry("at-last"))
            await projected(redis, keys)
        assert lost.fired == 4
        assert "commit_not_done" in {line["event"] for line in logs}


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> Path:
    found = server_binary() if request.param == "valkey" else shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not installed")
    return Path(found)


async def test_a_server_that_restarts_is_outlived(
    tmp_path_factory: pytest.TempPathFactory, binary: Path, keys: Keys, quick: pytest.MonkeyPatch
) -> None:
    with DataDir.lock(tmp_path_factory.mktemp("s")) as data_dir:
        running = await EmbeddedServer.start(data_dir, binary=binary)
        redis = connect(running.url)
        try:
            log = Log(redis, keys)
            await Admission(redis, keys).admit()
            await a_feed(log)
            async with projecting(running.url, keys) as projector:
                await projected(redis, keys)
                with capture_logs() as logs:
                    await running.stop()
                    await eventually(lambda: any(line["event"] == "leases_not_renewed" for line in logs))
                    running = await EmbeddedServer.start(data_dir, binary=binary)
                await Admission(redis, keys).admit(alone=True)
                assert isinstance(await log.append(FEED, appending_entry("after-the-restart")), Appended)
                # The new process knows none of the scripts.
                await projected(redis, keys)
                await eventually(lambda: len(projector.shards) == SHARDS)
        finally:
            await redis.aclose()
            await running.stop()


@asynccontextmanager
async def plain_server(binary: Path, directory: Path) -> AsyncIterator[str]:
    """A server of the test's own that lets it change settings; gives its URL."""
    socket = directory / "socket"
    process = await asyncio.create_subprocess_exec(
        binary,
        *("--port", "0", "--unixsocket", str(socket), "--dir", str(directory), "--save", "", "--appendonly", "no"),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        await eventually(socket.exists)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        await process.wait()


async def test_a_server_that_refuses_writes_for_a_while_is_outlived(
    tmp_path_factory: pytest.TempPathFactory, binary: Path, keys: Keys, quick: pytest.MonkeyPatch
) -> None:
    """As a full disk or a failover has it: reads are answered, writes are not carried out."""
    async with plain_server(binary, tmp_path_factory.mktemp("s")) as url:
        redis = connect(url)
        try:
            log = Log(redis, keys)
            desk = desk_of(redis, keys)
            await Admission(redis, keys).admit()
            await a_feed(log)
            async with projecting(url, keys):
                await projected(redis, keys)
                with capture_logs() as logs:
                    await command(redis, "CONFIG", "SET", "min-replicas-to-write", "1")
                    with pytest.raises(OutcomeUnknown):
                        await carry_out(desk, FEED, publishing("e9"))
                    await eventually(lambda: any(line["event"] == "leases_not_renewed" for line in logs))
                await command(redis, "CONFIG", "SET", "min-replicas-to-write", "0")
                assert (await carry_out(desk, FEED, publishing("e9"))).created
                await projected(redis, keys)
        finally:
            await redis.aclose()

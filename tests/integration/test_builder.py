"""The projector builds on real servers: asked for, beside the live fold, through take-overs and ends at any step.

Owns when a projector carries out which build. The steps are test_rebuild's.
"""

import asyncio
from typing import Any

import pytest

from services.projector import builder as builder_module
from services.projector import rebuild as rebuild_module
from services.projector.builds import Builds
from services.projector.flip import flip
from services.projector.rebuild import Rebuilds
from services.projector.release import Release
from shared.fold import FOLD_VERSION
from shared.keys import Keys
from shared.log import Log
from shared.redis import Redis, command
from tests.integration.builders import (
    checkpoint,
    damaged,
    eventually,
    feed_in_shard,
    folded,
    generation_of,
    is_dirty,
    log_entries,
    log_positions,
    open_feed,
    published,
)
from tests.integration.gateway_kit import on_one_server
from tests.integration.rebuild_kit import Owner, an_owner, append, history
from tests.integration.test_projector import SHARD, projecting, quick

pytestmark = on_one_server

FEED = feed_in_shard(SHARD)

__all__ = ["quick"]


@pytest.fixture(autouse=True)
def little_waiting(quick: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("BACKOFF_SECONDS", "ASIDE_SECONDS"):
        quick.setattr(builder_module, name, 0.05)
    return quick


@pytest.fixture
async def owner(redis: Redis, keys: Keys) -> Owner:
    return await an_owner(redis, keys, FEED, history(3, events=300, entries=30))


async def is_state(owner: Owner, state: str) -> bool:
    latest = await owner.builds.latest(FEED)
    return latest is not None and latest.state == state


async def is_clean(owner: Owner, generation: int) -> bool:
    """Only this generation is left, and the shard's list of builds is empty."""
    listed = await owner.redis.exists(owner.keys.shard(owner.keys.shard_of(FEED)).builds)
    return not listed and await owner.generations() == {generation}


async def assert_is_its_fold(owner: Owner, generation: int) -> None:
    whole = folded(FEED, await log_entries(owner.redis, owner.keys, FEED))
    assert await owner.active() == generation
    assert await generation_of(owner.redis, owner.keys, FEED, generation) == whole


async def test_a_rebuild_that_was_asked_for_is_carried_out_and_leaves_one_generation(
    server: Any, redis: Redis, keys: Keys, owner: Owner
) -> None:
    async with projecting(server.url, keys) as projector:
        await eventually(lambda: projector.listens)
        await owner.ask()
        await eventually(lambda: is_clean(owner, 2))
    await assert_is_its_fold(owner, 2)
    assert (await owner.latest()).state == "flipped"
    assert (await owner.latest()).events == 301 + await quarantined(owner)


async def quarantined(owner: Owner) -> int:
    """Damaged events that `history` strewed in beside those that it was asked for."""
    return len(await log_positions(owner.redis, owner.keys, FEED)) - 301


async def test_a_request_whose_doorbell_was_lost_is_found_by_the_sweep(
    server: Any, redis: Redis, keys: Keys, owner: Owner
) -> None:
    async with projecting(server.url, keys) as projector:
        await eventually(lambda: projector.listens)
        await owner.ask()
        await command(redis, "DEL", keys.shard(SHARD).doorbell)
        await eventually(lambda: is_clean(owner, 2))


async def test_commits_go_on_during_a_build_and_the_flip_is_at_the_live_checkpoint(
    server: Any, redis: Redis, keys: Keys, owner: Owner
) -> None:
    log = Log(redis, keys)
    async with projecting(server.url, keys):
        for number in range(4):
            await owner.ask()
            for _ in range(20):
                await append(log, FEED, history(number, events=5, entries=30))
                await asyncio.sleep(0)
            await eventually(lambda: is_state(owner, "flipped"))
        await eventually(lambda: at_head(redis, keys))
        await eventually(lambda: is_clean(owner, 5))
    await assert_is_its_fold(owner, 5)


async def at_head(redis: Redis, keys: Keys) -> bool:
    return await checkpoint(redis, keys, FEED) == (await log_positions(redis, keys, FEED))[-1]


async def test_whoever_takes_the_shard_over_goes_on_where_the_build_was(
    server: Any, redis: Redis, keys: Keys, owner: Owner
) -> None:
    await owner.ask(throttle=200.0)
    async with projecting(server.url, keys, owner="p1") as projector:
        await eventually(lambda: has_built(owner))
        await projector.die()
    part = await owner.latest()
    assert part.state == "building"
    await command(redis, "HSET", keys.feed(FEED).build, "throttle", "")
    for shard in range(16):
        await command(redis, "HSET", keys.shard(shard).lease, "expires", "1")
    async with projecting(server.url, keys, owner="p2"):
        await eventually(lambda: is_clean(owner, 2))
    done = await owner.latest()
    assert (done.token, done.generation, done.started_at) == (part.token, part.generation, part.started_at)
    assert done.events == (await Log(redis, keys).head(FEED)).position.n  # type: ignore[union-attr]  # it is open
    await assert_is_its_fold(owner, 2)


async def has_built(owner: Owner) -> bool:
    latest = await owner.builds.latest(FEED)
    return latest is not None and latest.events > 0


async def test_a_throttled_build_takes_its_time(server: Any, redis: Redis, keys: Keys, owner: Owner) -> None:
    loop = asyncio.get_running_loop()
    await owner.ask(throttle=600.0)
    async with projecting(server.url, keys):
        await eventually(lambda: has_built(owner))
        started = loop.time()
        await eventually(lambda: is_state(owner, "flipped"))
    # The last events before the flip wait for nobody.
    assert loop.time() - started > 0.15


class Ended(BaseException):
    """The process ends at this point, without a word."""


@pytest.mark.parametrize("step", ["survey", "begin", "slice", "flip", "remove_piece", "rest"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_projector_that_ends_between_any_two_steps_leaves_nothing_to_mend(
    server: Any, redis: Redis, keys: Keys, owner: Owner, step: str, when: str
) -> None:
    await owner.ask()
    with pytest.MonkeyPatch.context() as patch:
        on: Any = Rebuilds if hasattr(Rebuilds, step) else builder_module
        act = getattr(on, step)

        async def ending(*args: Any, **more: Any) -> Any:
            if when == "after":
                await act(*args, **more)
            raise Ended

        patch.setattr(on, step, ending)
        with pytest.raises(BaseExceptionGroup):
            async with projecting(server.url, keys, owner="p1") as projector:
                await asyncio.wait([projector.task])
    for shard in range(16):
        await command(redis, "HSET", keys.shard(shard).lease, "expires", "1")
    await append(Log(redis, keys), FEED, history(5, events=20))
    async with projecting(server.url, keys, owner="p2"):
        await eventually(lambda: is_clean(owner, 2))
        await eventually(lambda: at_head(redis, keys))
    await assert_is_its_fold(owner, 2)


async def test_a_build_that_stumbles_fails_and_the_live_feed_goes_on(
    server: Any, redis: Redis, keys: Keys, owner: Owner
) -> None:
    await append(Log(redis, keys), FEED, [damaged(published("broken"))])
    await owner.to_head()
    broken = (await log_positions(redis, keys, FEED))[-1]
    await command(redis, "HDEL", keys.feed(FEED).quarantine, broken)
    async with projecting(server.url, keys):
        await owner.ask()
        await eventually(lambda: is_state(owner, "failed"))
        assert broken in (await owner.latest()).detail
        await append(Log(redis, keys), FEED, [published("after")])
        await eventually(lambda: at_head(redis, keys))
        await eventually(lambda: is_clean(owner, 1))


async def test_a_log_that_lost_its_beginning_fails_the_build_and_not_the_projector(
    server: Any, redis: Redis, keys: Keys, owner: Owner
) -> None:
    await command(redis, "XTRIM", keys.feed(FEED).log, "MINID", "1-20")
    async with projecting(server.url, keys):
        await owner.ask()
        await eventually(lambda: is_state(owner, "failed"))
        await append(Log(redis, keys), FEED, [published("after")])
        await eventually(lambda: at_head(redis, keys))


async def test_a_generation_of_an_older_release_stands_still_until_it_is_built_anew(
    server: Any, redis: Redis, keys: Keys, owner: Owner
) -> None:
    its = keys.feed(FEED).of_generation(1)
    await command(redis, "HSET", its.meta, "fold", str(FOLD_VERSION - 1))
    await append(Log(redis, keys), FEED, [published("late")])
    async with projecting(server.url, keys):
        await eventually(lambda: is_clean(owner, 2))
        await eventually(lambda: at_head(redis, keys))
    await assert_is_its_fold(owner, 2)
    assert (await owner.latest()).reason == "release"


async def test_a_generation_of_an_older_release_is_built_anew_though_nothing_happens_in_the_feed(
    server: Any, redis: Redis, keys: Keys, owner: Owner
) -> None:
    assert not await is_dirty(redis, keys, FEED)
    await command(redis, "HSET", keys.feed(FEED).of_generation(1).meta, "fold", str(FOLD_VERSION - 1))
    async with projecting(server.url, keys):
        await eventually(lambda: is_clean(owner, 2))


async def test_a_build_that_an_older_release_began_begins_again(
    server: Any, redis: Redis, keys: Keys, owner: Owner
) -> None:
    await owner.ask()
    await owner.begin()
    await owner.slice(await owner.site(), events_max=9)
    await command(redis, "HSET", keys.feed(FEED).of_generation(2).meta, "read_models", "chronological")
    async with projecting(server.url, keys):
        await eventually(lambda: is_clean(owner, 3))
    await assert_is_its_fold(owner, 3)


async def test_a_build_of_a_newer_release_waits_and_the_live_feed_goes_on(
    server: Any, redis: Redis, keys: Keys, owner: Owner
) -> None:
    await owner.ask()
    await command(redis, "HSET", keys.feed(FEED).build, "fold", str(FOLD_VERSION + 1))
    async with projecting(server.url, keys) as projector:
        await append(Log(redis, keys), FEED, [published("late")])
        await eventually(lambda: at_head(redis, keys))
        assert SHARD in projector.shards
        assert (await owner.latest()).state == "asked"
        # A projector that can carry it out announces itself: the shard is left to it.
        newer = Release(FOLD_VERSION + 1, Release.this().models).announced_by("newer")
        await command(redis, "ZADD", keys.projectors, int(9e15), newer)
        await eventually(lambda: SHARD not in projector.shards)


async def test_a_feed_that_nobody_projected_yet_is_built_once_it_is(server: Any, redis: Redis, keys: Keys) -> None:
    log = Log(redis, keys)
    await open_feed(log, FEED)
    owner = Owner(redis, keys, FEED)
    await owner.ask()
    async with projecting(server.url, keys):
        await eventually(lambda: is_state(owner, "flipped"))
        await eventually(lambda: is_clean(owner, 2))


async def test_a_slice_is_small_enough_for_the_live_feeds(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(rebuild_module, "thread_time", lambda: next(clock) * 0.0499)
    await owner.ask()
    await owner.begin()
    site = await owner.site()
    await owner.slice(site)
    assert site.slice_events == 5  # fifty took 0.1 s: 10 ms are worth five
    monkeypatch.setattr(rebuild_module, "thread_time", lambda: 0.0)
    await owner.slice(site)
    assert site.slice_events == 10


async def test_more_builds_than_are_carried_out_at_once_are_all_carried_out(
    server: Any, redis: Redis, keys: Keys
) -> None:
    owners = [await an_owner(redis, keys, f"feed-{number}", history(number, events=40)) for number in range(9)]
    for owner in owners:
        await owner.ask()
    async with projecting(server.url, keys):
        for owner in owners:
            await eventually(lambda owner=owner: flipped(owner))


async def flipped(owner: Owner) -> bool:
    return (await owner.latest()).state == "flipped"


async def test_a_flip_and_a_commit_exclude_each_other(redis: Redis, keys: Keys, owner: Owner) -> None:
    """Whichever comes first, the other is refused and tries again."""
    await owner.ask()
    site = await owner.built()
    survey = await owner.survey()
    await append(Log(redis, keys), FEED, [published("late")])
    prepared = await owner.prepared()
    assert await flip(redis, keys, site, survey, fence=1) == "flipped"
    assert await owner.commit(prepared) == "moved"
    await owner.to_head()
    await assert_is_its_fold(owner, 2)


async def test_asked_of_a_feed_that_has_no_build_nothing_is_asked_anew(redis: Redis, keys: Keys) -> None:
    assert await Builds(redis, keys).ask_anew(FEED, reason="redaction", by="ops:anna") is None

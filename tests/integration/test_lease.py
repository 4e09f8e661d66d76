"""Leases on real servers: who owns a shard, under which fence, and how projectors share the shards.

Owns the lease script and `Leases`. That a former owner's commit changes nothing is test_commit's.
"""

from typing import Any

import pytest

from services.projector.lease import TIME_TO_LIVE_SECONDS, Leases, fair_share
from services.projector.release import Release
from shared.keys import SHARDS, Keys
from shared.redis import Redis, command, connect
from tests.integration.builders import LEASE, dump
from tests.proxy import Proxy

SHARD = 3
TTL_MILLISECONDS = 3000


class Lease:
    """The script on one shard's lease, as two projectors would call it."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.redis = redis
        self.key = keys.shard(SHARD).lease

    async def take(self, owner: str, *, fence: int = 0) -> int:
        return int(await LEASE(self.redis, (self.key,), (owner, fence, TTL_MILLISECONDS)))

    async def release(self, owner: str, *, fence: int) -> None:
        assert await LEASE(self.redis, (self.key,), (owner, fence, 0)) == 0

    async def expire(self) -> None:
        await command(self.redis, "HSET", self.key, "expires", str(await self._now() - 1))

    async def left_milliseconds(self) -> int:
        return int(await command(self.redis, "HGET", self.key, "expires")) - await self._now()

    async def owner(self) -> bytes:
        owner: bytes = await command(self.redis, "HGET", self.key, "owner")
        return owner

    async def _now(self) -> int:
        seconds, microseconds = await self.redis.time()
        return seconds * 1000 + microseconds // 1000


@pytest.fixture
def lease(redis: Redis, keys: Keys) -> Lease:
    return Lease(redis, keys)


# One lease


async def test_a_free_shard_is_taken_under_the_first_fence(lease: Lease) -> None:
    assert await lease.take("a") == 1
    assert await lease.owner() == b"a"
    assert TTL_MILLISECONDS - 1000 < await lease.left_milliseconds() <= TTL_MILLISECONDS


async def test_the_owner_confirms_without_raising_the_fence_and_gets_its_time_anew(lease: Lease) -> None:
    fence = await lease.take("a")
    await command(lease.redis, "HINCRBY", lease.key, "expires", -2500)
    assert [await lease.take("a", fence=fence) for _ in range(3)] == [fence] * 3
    assert await lease.left_milliseconds() > TTL_MILLISECONDS - 1000


async def test_a_take_sent_again_after_a_lost_reply_keeps_the_owner_and_raises_the_fence(lease: Lease) -> None:
    assert await lease.take("a") == 1
    assert await lease.take("a") == 2
    assert await lease.owner() == b"a"
    # What the first, lost answer said does not confirm: a commit under it is fenced already.
    assert await lease.take("a", fence=1) == 3


async def test_another_projector_is_refused_until_the_lease_expires(redis: Redis, keys: Keys, lease: Lease) -> None:
    await lease.take("a")
    before = await dump(redis, keys)
    assert await lease.take("b") == 0
    # Knowing the owner's fence does not help either.
    assert await lease.take("b", fence=1) == 0
    assert await dump(redis, keys) == before


async def test_an_expired_lease_is_taken_under_a_higher_fence(lease: Lease) -> None:
    await lease.take("a")
    await lease.expire()
    assert await lease.take("b") == 2
    assert await lease.owner() == b"b"
    assert await lease.take("a", fence=1) == 0


async def test_an_owner_that_comes_late_keeps_what_nobody_else_took(lease: Lease) -> None:
    fence = await lease.take("a")
    await lease.expire()
    assert await lease.take("a", fence=fence) == fence
    assert await lease.take("b") == 0


async def test_a_released_shard_is_free_at_once_and_its_fence_goes_on_growing(lease: Lease) -> None:
    fence = await lease.take("a")
    await lease.release("a", fence=fence)
    assert await lease.take("b") == fence + 1
    await lease.release("b", fence=fence + 1)
    assert await lease.take("a") == fence + 2


async def test_a_lease_without_an_owner_is_free_whatever_its_time(lease: Lease) -> None:
    await lease.take("a")
    await command(lease.redis, "HSET", lease.key, "owner", "")
    assert await lease.left_milliseconds() > 0
    assert await lease.take("b") == 2


@pytest.mark.parametrize(("owner", "fence"), [("a", 0), ("a", 1), ("a", 3), ("b", 2), ("", 2)])
async def test_a_wrong_fence_or_a_wrong_owner_cannot_release(
    redis: Redis, keys: Keys, lease: Lease, owner: str, fence: int
) -> None:
    await lease.take("a")
    assert await lease.take("a") == 2
    before = await dump(redis, keys)
    await lease.release(owner, fence=fence)
    assert await dump(redis, keys) == before


async def test_a_former_owner_that_kept_its_fence_through_a_release_gets_a_higher_one(lease: Lease) -> None:
    fence = await lease.take("a")
    await lease.release("a", fence=fence)
    assert await lease.take("a", fence=fence) == fence + 1


# The shares of several projectors


def leases(redis: Redis, keys: Keys, *owners: str) -> list[Leases]:
    return [Leases(redis, keys, owner=owner) for owner in owners]


def announced(owner: str) -> str:
    return Release.this().announced_by(owner)


async def settle(*projectors: Leases) -> None:
    """Enough rounds for every projector to see the others, let go, and take what the others let go."""
    for _ in range(3):
        for projector in projectors:
            await projector.renew()


def assert_shared(*projectors: Leases) -> None:
    """Every shard has exactly one owner."""
    assert sorted(shard for projector in projectors for shard in projector.held) == list(range(SHARDS))


async def test_one_projector_takes_all_shards_and_keeps_its_fences(redis: Redis, keys: Keys) -> None:
    [a] = leases(redis, keys, "a")
    await a.renew()
    assert a.held == dict.fromkeys(range(SHARDS), 1)
    await a.renew()
    assert a.held == dict.fromkeys(range(SHARDS), 1)


async def test_two_projectors_share_evenly(redis: Redis, keys: Keys) -> None:
    a, b = leases(redis, keys, "a", "b")
    await a.renew()
    await settle(a, b)
    assert [len(a.held), len(b.held)] == [8, 8]
    assert_shared(a, b)
    # What changed hands did so under a higher fence.
    assert set(a.held.values()) == {1} and set(b.held.values()) == {2}


async def test_three_projectors_share_evenly_and_two_take_over_from_one_that_leaves(redis: Redis, keys: Keys) -> None:
    a, b, c = leases(redis, keys, "a", "b", "c")
    await settle(a, b, c)
    assert sorted([len(a.held), len(b.held), len(c.held)]) == [4, 6, 6]
    assert_shared(a, b, c)
    await c.leave()
    assert not c.held
    await settle(a, b)
    assert [len(a.held), len(b.held)] == [8, 8]
    assert_shared(a, b)


async def test_shares_that_are_even_stay_where_they_are(redis: Redis, keys: Keys) -> None:
    a, b, c = leases(redis, keys, "a", "b", "c")
    await settle(a, b, c)
    before = [dict(projector.held) for projector in (a, b, c)]
    await settle(a, b, c)
    assert [projector.held for projector in (a, b, c)] == before


async def test_a_projector_that_died_is_neither_counted_nor_waited_for(redis: Redis, keys: Keys) -> None:
    a, b = leases(redis, keys, "a", "b")
    await settle(a, b)
    # As the servers' clock would show it after the time to live.
    await command(redis, "ZADD", keys.projectors, "XX", 1, announced("a"))
    for shard in a.held:
        await command(redis, "HSET", keys.shard(shard).lease, "expires", "1")
    await b.renew()
    assert len(b.held) == SHARDS
    assert await command(redis, "ZRANGE", keys.projectors, 0, -1) == [announced("b").encode()]


async def test_a_projector_learns_that_a_shard_went_to_another(redis: Redis, keys: Keys) -> None:
    a, b = leases(redis, keys, "a", "b")
    await a.renew()
    await command(redis, "HSET", keys.shard(SHARD).lease, "expires", "1")
    assert await LEASE(redis, (keys.shard(SHARD).lease,), ("b", 0, TTL_MILLISECONDS)) == 2
    await a.renew()
    assert set(a.held) == set(range(SHARDS)) - {SHARD}
    assert not b.held


async def test_shards_that_a_projector_refuses_are_not_taken(redis: Redis, keys: Keys) -> None:
    a, b = leases(redis, keys, "a", "b")
    await a.renew(refused=[2, 5])
    assert set(a.held) == set(range(SHARDS)) - {2, 5}
    await b.renew()
    assert set(b.held) == {2, 5}


async def test_the_announced_time_to_live_is_that_of_the_leases(redis: Redis, keys: Keys) -> None:
    [a] = leases(redis, keys, "a")
    await a.renew()
    seconds, microseconds = await redis.time()
    now = seconds * 1000 + microseconds // 1000
    until = await redis.zscore(keys.projectors, announced("a"))
    assert until is not None and 0 < until - now <= TIME_TO_LIVE_SECONDS * 1000


async def test_leases_whose_replies_are_lost_are_held_all_the_same(server: Any, redis: Redis, keys: Keys) -> None:
    async with Proxy(server.url) as proxy:
        client = connect(proxy.url)
        try:
            [a] = leases(client, keys, "a")
            await a.renew()
            await a.leave()
            fault = proxy.cut("reply", of=LEASE.sha.encode(), after_bytes=9)
            await a.renew()
            assert fault.fired == 1
            # Taken twice: the fence that counts is the one that the projector holds.
            stored = [int(await command(redis, "HGET", keys.shard(s).lease, "fence")) for s in range(SHARDS)]
            assert stored == [a.held[shard] for shard in range(SHARDS)] == [3] * SHARDS
            await a.renew()
            assert set(a.held.values()) == {3}
        finally:
            await client.aclose()


@pytest.mark.parametrize(("projectors", "share"), [(0, 16), (1, 16), (2, 8), (3, 6), (5, 4), (16, 1), (40, 1)])
def test_fair_shares_leave_no_shard_without_an_owner(projectors: int, share: int) -> None:
    assert fair_share(projectors) == share
    assert share * max(projectors, 1) >= SHARDS

"""Leases: which shards this projector owns, under which fence, and how projectors share the shards evenly.

Owns taking, confirming and letting go. What an owner does with its shard is `worker`'s; that a former owner can change
nothing is the commit's, by the fence.
"""

import asyncio
from collections.abc import Collection, Iterable

from services.projector.release import Release
from shared.keys import SHARDS, Keys
from shared.members import Members
from shared.redis import Call, Redis, Script, run_scripts

# A dead projector's shards are free after this time; another looks every RENEW_SECONDS: together well under 5 s.
TIME_TO_LIVE_SECONDS = 3.0
RENEW_SECONDS = 0.5

_lease = Script(__file__, "lease.lua")


class Leases:
    """The leases of one projector. `held` maps shards to fences."""

    def __init__(self, redis: Redis, keys: Keys, *, owner: str) -> None:
        self._redis = redis
        self._keys = keys
        self._owner = owner
        self._members = Members(redis, keys.projectors)
        self._name = Release.this().announced_by(owner)
        # A confirmation under way must not bring back what is let go meanwhile.
        self._one_at_a_time = asyncio.Lock()
        self.held: dict[int, int] = {}

    async def renew(self, *, refused: Collection[int] = ()) -> None:
        """Confirm what is held, let go what is over the fair share, take what is free below it; `refused` is not taken."""
        async with self._one_at_a_time:
            share = fair_share(await self._announce(counts=not refused))
            await self._release(sorted(self.held)[share:])
            wanted = [shard for shard in range(SHARDS) if shard not in self.held and shard not in set(refused)]
            await self._take(list(self.held))
            missing = share - len(self.held)
            # From a place of its own on, so that projectors that start together do not all reach for the same shards.
            start = hash(self._owner) % SHARDS
            wanted.sort(key=lambda shard: (shard - start) % SHARDS)
            while missing > 0 and wanted:
                asked, wanted = wanted[:missing], wanted[missing:]
                missing -= await self._take(asked)

    async def release(self, shards: Iterable[int]) -> None:
        """Let go, so that another projector need not wait for the time to run out."""
        async with self._one_at_a_time:
            await self._release(shards)

    async def leave(self) -> None:
        await self.release(list(self.held))
        await self._members.leave(self._name)

    async def releases(self) -> list[Release]:
        """The releases of the other projectors that are alive."""
        names = [name for name in await self._members.alive() if name != self._name]
        return [release for name in names if (release := Release.announced(name)) is not None]

    async def _announce(self, *, counts: bool) -> int:
        """Gives how many share the shards. Who refuses some does not count for the others: their share includes those."""
        if counts:
            return await self._members.announce(self._name, seconds=TIME_TO_LIVE_SECONDS)
        await self._members.leave(self._name)
        return len(await self._members.alive()) + 1

    async def _release(self, shards: Iterable[int]) -> None:
        held = [(shard, self.held.pop(shard)) for shard in shards if shard in self.held]
        if held:
            await run_scripts(self._redis, [self._call(shard, fence, 0) for shard, fence in held])

    async def _take(self, shards: list[int]) -> int:
        """Take or confirm; gives how many are held of those asked for."""
        if not shards:
            return 0
        calls = [self._call(shard, self.held.get(shard, 0), _milliseconds()) for shard in shards]
        fences = await run_scripts(self._redis, calls)
        for shard, fence in zip(shards, fences, strict=True):
            if fence:
                self.held[shard] = fence
            else:
                self.held.pop(shard, None)
        return sum(bool(fence) for fence in fences)

    def _call(self, shard: int, fence: int, milliseconds: int) -> Call:
        return _lease, (self._keys.shard(shard).lease,), (self._owner, fence, milliseconds)


def fair_share(projectors: int) -> int:
    """How many shards one of `projectors` may own, so that all shards have an owner."""
    return -(-SHARDS // max(projectors, 1))


def _milliseconds() -> int:
    return int(TIME_TO_LIVE_SECONDS * 1000)

"""Admission: before another server process takes appends, the loss of acknowledged history is excluded or made visible.

Owns the order of the steps, shard by shard: each may be done twice, by two processes at once, or not at all by one that ends
in the middle; the shard's incarnation comes last. Whether a server is in doubt is `incarnation`'s, a single feed `raising`'s.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import structlog

from shared.epochs.incarnation import Incarnation, ServerFacts, doubt, run_id
from shared.epochs.raising import FEEDS_PER_ROUND, Epochs, Raise, Standing
from shared.epochs.witness import CHECK_SECONDS
from shared.errors import Corrupted, Unavailable
from shared.keys import SHARDS, Keys
from shared.redis import UNREACHABLE, Redis, Script, check_installation, command, durability_kept, run_pipeline

log = structlog.get_logger()

# Every process looks for another server once a second; this leaves it the time to report.
WITNESS_SECONDS = 2 * CHECK_SECONDS
ATTEMPTS_MAX = 50

_admit = Script(__file__, "admit.lua")


class _AnotherServerError(Exception):
    """What was decided was decided for a server process that answers no longer, or by another than that admitted meanwhile."""


class Admission:
    """Admits server processes to one installation's shards."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._epochs = Epochs(redis, keys)
        self._under_way: asyncio.Task[None] | None = None
        self._noted: ServerFacts | None = None

    async def admit(self, *, alone: bool = False) -> None:
        """Returns when the server process takes appends; joins an admission that is under way in this process.

        `alone`: no other process of the installation can be running, so that there is no witness to wait for.
        Raises Unavailable for a replica, and whatever an unreachable server makes redis-py raise.
        """
        if self._under_way is None:
            self._under_way = asyncio.get_running_loop().create_task(self._admit(alone=alone))
            self._under_way.add_done_callback(self._done)
        # One who loses patience must not take it from the others.
        await asyncio.shield(self._under_way)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way = None
        if not task.cancelled():
            task.exception()  # whoever still waits gets it; nobody may be left to

    async def watch(self) -> None:
        """Admit whatever server process answers, and note what becomes of it, until cancelled; for processes that append."""
        while True:
            try:
                await self.admit()
                await self.note()
            except (Unavailable, *UNREACHABLE) as error:
                log.warning("server_not_admitted", error=repr(error))
            await asyncio.sleep(CHECK_SECONDS)

    async def note(self) -> None:
        """Let the incarnation know of a durability that has been lowered and of replicas that have come."""
        facts = await self.facts()
        if facts == self._noted:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for shard in range(SHARDS):
            self._queue(pipeline, shard, facts, before=facts.server, because=None)
        await run_pipeline(self._redis, pipeline, (_admit,))
        self._noted = facts

    async def facts(self) -> ServerFacts:
        process = await self._epochs.process()
        if process.role != "master":
            raise Unavailable("the log's server is a replica of another; nothing was appended")
        kept = await durability_kept(self._redis)
        return ServerFacts(process.server, kept, process.replicas, process.promoted)

    async def incarnations(self) -> list[Incarnation | None]:
        """Of each shard, the server process that was admitted; None where there was none yet."""
        pipeline = self._redis.pipeline(transaction=False)
        for shard in range(SHARDS):
            pipeline.hmget(self._keys.shard(shard).incarnation, ["server", "kept", "replicas", "raising"])
        return [_incarnation(*raw) for raw in await run_pipeline(self._redis, pipeline)]

    async def _admit(self, *, alone: bool) -> None:
        waited = alone
        for _ in range(ATTEMPTS_MAX):
            facts = await self.facts()
            before = await self.incarnations()
            strangers = [shard for shard in range(SHARDS) if _is_new(before[shard], facts)]
            if not strangers:
                return
            # A server lost with all it had forgot which installation it was too.
            await check_installation(self._redis, self._keys)
            if not waited and await self._waits_for_witnesses(before, facts):
                await asyncio.sleep(WITNESS_SECONDS)
                waited = True
                continue
            try:
                for shard in strangers:
                    await self._admit_shard(shard, before[shard], facts)
            except _AnotherServerError:
                continue
            log.info("server_admitted", server=facts.server, kept=facts.kept, shards=len(strangers))
            return
        raise Unavailable("the log's server changes all the time; nothing was appended")

    async def _waits_for_witnesses(self, before: Sequence[Incarnation | None], facts: ServerFacts) -> bool:
        """Not for those of a process that is the same as before, and not where there is nothing to be held against them."""
        if all(one is not None and run_id(one.server) == run_id(facts.server) for one in before):
            return False
        pipeline = self._redis.pipeline(transaction=False)
        for shard in range(SHARDS):
            keys = self._keys.shard(shard)
            pipeline.exists(keys.feeds, keys.dirty)
        return any(await run_pipeline(self._redis, pipeline))

    async def _admit_shard(self, shard: int, before: Incarnation | None, facts: ServerFacts) -> None:
        because = doubt(before, facts)
        feeds = await self._feeds(shard)
        if because is not None and feeds:
            # First, so that an admission that goes on after this one ended raises the rest.
            await self._store(shard, facts, before=before, because=because)
            for start in range(0, len(feeds), FEEDS_PER_ROUND):
                await self._raise(feeds[start : start + FEEDS_PER_ROUND], facts, because=because)
        else:
            witnessed = await command(self._redis, "HKEYS", self._keys.shard(shard).witnessed)
            raised = await self._epochs.make_losses_visible([feed.decode() for feed in witnessed], server=facts.server)
            for standing in raised:
                _log_raised(standing, standing.loss or "")
        await self._store(shard, facts, before=before, because=None)

    async def _feeds(self, shard: int) -> list[str]:
        """All feeds of a shard: those that were projected, and those that wait for it."""
        keys = self._keys.shard(shard)
        listed = await command(self._redis, "ZRANGE", keys.feeds, 0, -1)
        dirty = await command(self._redis, "SMEMBERS", keys.dirty)
        return sorted({feed.decode() for feed in (*listed, *dirty)})

    async def _raise(self, feeds: list[str], facts: ServerFacts, *, because: str) -> None:
        for _ in range(ATTEMPTS_MAX):
            standings = [standing for standing in await self._epochs.standings(feeds) if standing.head is not None]
            raises = [
                Raise(standing, "epoch", "; ".join(filter(None, (because, standing.loss))), settles=True)
                for standing in standings
            ]
            answers = await self._epochs.raise_all(raises, server=facts.server)
            if "moved" in answers:
                raise _AnotherServerError
            for item, answer in zip(raises, answers, strict=True):
                if answer == "raised":
                    _log_raised(item.standing, item.because)
            feeds = [item.standing.feed for item, answer in zip(raises, answers, strict=True) if answer == "stale"]
            if not feeds:
                return
        raise Corrupted(f"logs move while no append is admitted: {feeds}")

    async def _store(self, shard: int, facts: ServerFacts, *, before: Incarnation | None, because: str | None) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        self._queue(pipeline, shard, facts, before=before.server if before else "", because=because)
        [answer] = await run_pipeline(self._redis, pipeline, (_admit,))
        if answer != b"done":
            raise _AnotherServerError

    def _queue(self, pipeline: Any, shard: int, facts: ServerFacts, *, before: str, because: str | None) -> None:
        keys = (self._keys.shard(shard).incarnation,)
        _admit.queue(pipeline, keys, (facts.server, before, because or "", facts.kept, facts.replicas))


def _is_new(before: Incarnation | None, facts: ServerFacts) -> bool:
    return before is None or before.server != facts.server


def _incarnation(
    server: bytes | None, kept: bytes | None, replicas: bytes | None, raising: bytes | None
) -> Incarnation | None:
    because = raising.decode() if raising else None
    if server is None:
        # What was being raised before any server was admitted must still be raised.
        return None if because is None else Incarnation("", "memory", 0, because)
    return Incarnation(server.decode(), cast("Any", (kept or b"").decode()), int(replicas or 0), because)


def _log_raised(standing: Standing, because: str) -> None:
    log.error("epoch_raised", feed=standing.feed, head=str(standing.head), because=because)

"""A projector killed at any byte that matters of a build or its flip: the next owner finishes it, and what the network still
held of the former arrives in vain.

Owns those moments on the wire. Ends between the steps in a process are test_builder's, what a step refuses test_rebuild's.
"""

from typing import Any

import pytest

from services.projector import builder as builder_module
from shared.keys import Keys
from shared.log import Log
from shared.redis import Redis, command
from tests.integration.builders import (
    dump,
    eventually,
    feed_in_shard,
    folded,
    generation_of,
    log_entries,
)
from tests.integration.gateway_kit import on_one_server
from tests.integration.rebuild_kit import BEGIN, BUILD, FLIP, REST, RETIRE, Owner, an_owner, append, history
from tests.integration.test_projector import SHARD, at_head, projecting, quick, without_leases
from tests.proxy import Direction, Proxy

pytestmark = on_one_server

__all__ = ["quick"]

FEED = feed_in_shard(SHARD)
SCRIPTS = {"begin": BEGIN, "build": BUILD, "flip": FLIP, "retire": RETIRE, "rest": REST}


@pytest.fixture
async def owner(redis: Redis, keys: Keys) -> Owner:
    return await an_owner(redis, keys, FEED, history(3, events=60))


async def is_done(owner: Owner) -> bool:
    """One generation is left, it is the live one, and nothing is left to do."""
    listed = await owner.redis.exists(owner.keys.shard(SHARD).builds)
    return not listed and await owner.generations() == {await owner.active()} and await owner.active() > 1


@pytest.mark.parametrize("direction", ["request", "reply"])
@pytest.mark.parametrize("step", SCRIPTS)
async def test_a_build_whose_owner_is_killed_on_the_wire_is_finished_by_the_next(
    server: Any,
    redis: Redis,
    keys: Keys,
    owner: Owner,
    quick: pytest.MonkeyPatch,
    step: str,
    direction: Direction,
) -> None:
    for name in ("BACKOFF_SECONDS", "ASIDE_SECONDS"):
        quick.setattr(builder_module, name, 0.05)
    for script in SCRIPTS.values():
        await command(redis, "SCRIPT LOAD", script.text)
    async with Proxy(server.url) as proxy:
        async with projecting(proxy.url, keys, owner="p1") as first:
            await eventually(lambda: first.listens)
            fault = proxy.stall(direction, of=SCRIPTS[step].sha.encode(), after_bytes=3)
            await owner.ask()
            await fault.struck.wait()
            await first.die()
        for shard in range(16):
            await command(redis, "HSET", keys.shard(shard).lease, "expires", "1")
        await command(redis, "DEL", keys.projectors)
        await append(Log(redis, keys), FEED, history(5, events=20))
        async with projecting(server.url, keys, owner="p2"):
            await eventually(lambda: is_done(owner))
            await eventually(lambda: at_head(redis, keys, FEED))
        active = await owner.active()
        assert await generation_of(redis, keys, FEED, active) == folded(FEED, await log_entries(redis, keys, FEED))
        before = without_leases(keys, await dump(redis, keys))
        answered = proxy.reply_bytes
        proxy.go_on()
        if direction == "request":
            await eventually(lambda: proxy.reply_bytes > answered)
        assert without_leases(keys, await dump(redis, keys)) == before

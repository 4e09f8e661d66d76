"""A projector killed between any two steps of a commit, and one that stands still past its lease: the next owner goes on,
and whatever of the former still arrives changes nothing.

Owns those moments. What wakes a projector and how shards are shared is test_projector's.
"""

import json
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from services.projector import commit as commit_module
from services.projector.shard import Shard
from shared.keys import Keys
from shared.log import Log
from shared.redis import Redis, Script, command
from tests.acceptance.harness import Service, clean_environment
from tests.integration.builders import (
    COMMIT,
    LEASE,
    Projection,
    appending_entry,
    dump,
    eventually,
    open_feed,
)
from tests.integration.test_projector import (
    FEED,
    SHARD,
    TTL_MILLISECONDS,
    a_feed,
    at_head,
    log,
    projected,
    projecting,
    quick,
    take_from,
    without_leases,
)
from tests.proxy import Direction, Proxy

__all__ = ["log", "quick"]

PENDING = Script(commit_module.__file__, "pending.lua", read_only=True)
OF_LOOK = PENDING.sha.encode()
OF_NUMBER = b"\r\nINCR\r\n"
OF_COMMIT = COMMIT.sha.encode()


class Step(NamedTuple):
    """Where on the wire the projector stands when it dies."""

    direction: Direction
    of: bytes
    after_bytes: int = 0


STEPS = {
    "before its look": Step("request", OF_LOOK),
    "in the middle of its look's answer": Step("reply", OF_LOOK, 30),
    "before its generation is numbered": Step("request", OF_NUMBER),
    "before it knows the number": Step("reply", OF_NUMBER),
    "before its commit": Step("request", OF_COMMIT),
    "in the middle of its commit": Step("request", OF_COMMIT, 300),
    "before it knows that it committed": Step("reply", OF_COMMIT),
    "in the middle of its commit's answer": Step("reply", OF_COMMIT, 5),
}


def without_the_count(keys: Keys, dumped: dict[str, Any]) -> dict[str, Any]:
    """A number that came late is nobody's generation: that it was given is all that it leaves."""
    return {key: value for key, value in without_leases(keys, dumped).items() if key != keys.feed(FEED).generations}


# Only a first commit numbers a generation.
CASES = [(name, first) for name, step in STEPS.items() for first in (True, False) if first or step.of != OF_NUMBER]


@pytest.mark.parametrize(("step", "first_commit"), CASES)
async def test_a_projector_killed_between_two_steps_of_a_commit_is_recovered(
    server: Any,
    redis: Redis,
    keys: Keys,
    log: Log,
    quick: pytest.MonkeyPatch,
    step: str,
    first_commit: bool,
) -> None:
    where = STEPS[step]
    for script in (PENDING, COMMIT):
        await command(redis, "SCRIPT LOAD", script.text)
    if not first_commit:
        await a_feed(log)
        await Projection(redis, keys, FEED).to_head()
    async with Proxy(server.url) as proxy, projecting(proxy.url, keys) as projector:
        await eventually(lambda: projector.listens)
        fault = proxy.stall(where.direction, of=where.of, after_bytes=where.after_bytes)
        if first_commit:
            await open_feed(log, FEED)
        else:
            await log.append(FEED, appending_entry("while-it-lived"))
        await fault.struck.wait()
        await projector.die()
        await log.append(FEED, appending_entry("after-its-death"))

        fence = await take_from(redis, keys)
        await Projection(redis, keys, FEED, fence=fence).to_head()
        await projected(redis, keys)
        before = without_the_count(keys, await dump(redis, keys))
        # What the network still held arrives.
        answered = proxy.reply_bytes
        proxy.go_on()
        if where.direction == "request":
            await eventually(lambda: proxy.reply_bytes > answered)
        assert without_the_count(keys, await dump(redis, keys)) == before


async def test_a_process_stopped_past_its_lease_is_fenced_and_changes_nothing(
    server: Any, redis: Redis, keys: Keys, log: Log, tmp_path: Path
) -> None:
    await a_feed(log)
    lease = keys.shard(SHARD).lease
    async with Proxy(server.url) as proxy:
        process = Service(
            ["projector", "--redis-url", proxy.url],
            tmp_path / "projector.log",
            clean_environment(DATELINE_KEY_PREFIX=keys.prefix),
        ).start()
        try:
            await eventually(lambda: at_head(redis, keys), seconds=30.0)
            await projected(redis, keys)
            commit = proxy.stall("request", of=OF_COMMIT)
            await log.append(FEED, appending_entry("while-it-stood-still"))
            await commit.struck.wait()
            process.signal(signal.SIGSTOP)
            fences: list[int] = []

            async def taken() -> bool:
                fences.append(int(await LEASE(redis, (lease,), ("other", 0, 20 * TTL_MILLISECONDS))))
                return fences[-1] > 0

            # Nobody helps: its time runs out by itself.
            await eventually(taken, seconds=30.0)
            await Projection(redis, keys, FEED, fence=fences[-1]).to_head()
            await projected(redis, keys)
            before = without_leases(keys, await dump(redis, keys))
            answered = proxy.reply_bytes
            proxy.go_on()
            await eventually(lambda: proxy.reply_bytes > answered)
            assert without_leases(keys, await dump(redis, keys)) == before
            process.signal(signal.SIGCONT)
            # Its commit's answer tells it, or, where its patience with that ran out meanwhile, the next renewal of its leases.
            await eventually(lambda: left_by(process), seconds=30.0)
            assert without_leases(keys, await dump(redis, keys)) == before
            # It goes on with what is still its own, and leaves alone what is not.
            await log.append(FEED, appending_entry("after-it-went-on"))
            await Projection(redis, keys, FEED, fence=fences[-1]).to_head()
            await projected(redis, keys)
            assert await command(redis, "HGET", lease, "owner") == b"other"
        finally:
            process.kill()


def left_by(process: Service) -> bool:
    """Whether it knows that the feed's shard is no longer its own."""
    lines = [line for line in process.output.splitlines(keepends=True) if "shards_changed" in line]
    return any(SHARD in json.loads(line)["left"] for line in lines if line.endswith("\n"))


async def test_a_shard_whose_lease_went_while_its_feeds_waited_is_not_folded(
    server: Any, redis: Redis, keys: Keys, log: Log, quick: pytest.MonkeyPatch
) -> None:
    async with projecting(server.url, keys) as projector:
        await eventually(lambda: projector.listens)
        await projector.die()
        await a_feed(log)
        projector._leases.held.pop(SHARD)
        before = await dump(redis, keys)
        assert await projector._fold(Shard(SHARD), [FEED]) == []
        assert await dump(redis, keys) == before

"""Appends that go to the server together: in their order, each with its own answer, and what a loss does to each.

Owns what callers at the same moment do to each other. What one append does is test_append's, its losses test_lost_replies'.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from shared import lanes as lanes_module
from shared.append import Append, Appended, Conflict, Guards, Known, Stale
from shared.durability import Confirmation
from shared.errors import Corrupted, OutcomeUnknown, Unavailable
from shared.keys import Keys
from shared.log import Log
from shared.position import Position
from shared.redis import UNREACHABLE, Redis, command, connect, exchange
from tests.integration.builders import (
    APPEND,
    appending,
    appending_entry,
    events_of,
    log_positions,
    open_feed,
    published,
)
from tests.proxy import Direction, Fault, Proxy

FEED = "final"
OF_APPEND = APPEND.sha.encode()
NO_REPLICA = Confirmation("replicated", ("WAIT", 1, 50))


class Tapped(Proxy):
    """A proxy that keeps what was requested through it."""

    requested = b""

    def binding(self, direction: Direction, chunk: bytes, bound: Sequence[Fault]) -> list[Fault]:
        if direction == "request":
            self.requested += chunk
        return super().binding(direction, chunk, bound)


@pytest.fixture
async def proxy(server: Any, redis: Redis, keys: Keys) -> AsyncIterator[Tapped]:
    """The feed is open, and the server knows the script."""
    await open_feed(Log(redis, keys), FEED)
    proxy = Tapped(server.url)
    async with proxy:
        yield proxy


@pytest.fixture
async def log(proxy: Tapped, keys: Keys) -> AsyncIterator[Log]:
    client = connect(proxy.url)
    log = Log(client, keys)
    yield log
    await log.close()
    await client.aclose()


async def at_once(log: Log, *appends: Append, **more: Any) -> list[Any]:
    return await asyncio.gather(*[log.append(FEED, append, **more) for append in appends], return_exceptions=True)


def entries(names: str) -> list[Append]:
    return [appending_entry(name) for name in names]


async def in_log(redis: Redis, keys: Keys) -> str:
    """The entries in the order of their publication; positions are gapless besides."""
    positions = await log_positions(redis, keys, FEED)
    assert positions == [f"1-{n}" for n in range(1, len(positions) + 1)]
    return "".join(getattr(event, "entry", "") for event in await events_of(redis, keys, FEED))


def last(answers: Sequence[Any]) -> list[int]:
    assert all(isinstance(answer, Appended) for answer in answers), answers
    return [answer.last.n for answer in answers]


async def sent_with_stalled_reply(proxy: Tapped, log: Log, names: str) -> list[asyncio.Task[Any]]:
    """They stand in the log, and nobody has heard of it yet."""
    fault = proxy.stall("reply", of=OF_APPEND)
    tasks = [asyncio.create_task(log.append(FEED, append)) for append in entries(names)]
    await fault.struck.wait()
    return tasks


async def waiting_behind(log: Log, names: str) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(log.append(FEED, append)) for append in entries(names)]
    await asyncio.sleep(0)  # each has its turn, and waits in the lane
    return tasks


async def test_appends_of_one_moment_go_on_one_connection_in_their_order(
    proxy: Tapped, log: Log, redis: Redis, keys: Keys
) -> None:
    assert last(await at_once(log, *entries("abcdefgh"))) == list(range(2, 10))
    assert await in_log(redis, keys) == "abcdefgh"
    assert proxy.accepted == 1


async def test_feeds_of_all_shards_go_together_and_a_confirmation_holds_up_its_shard_alone(
    proxy: Tapped, log: Log, redis: Redis, keys: Keys
) -> None:
    feeds = [FEED, next(name for n in range(1000) if Keys.shard_of(name := f"f-{n}") != Keys.shard_of(FEED))]
    await open_feed(Log(redis, keys), feeds[1])
    assert last(await asyncio.gather(*[log.append(feed, appending_entry("a")) for feed in feeds])) == [2, 2]
    assert proxy.accepted == 1
    asked = [log.append(feed, appending_entry("b"), confirmation=NO_REPLICA) for feed in feeds]
    assert [type(answer) for answer in await asyncio.gather(*asked, return_exceptions=True)] == [OutcomeUnknown] * 2
    assert proxy.accepted == 2


async def test_what_comes_while_a_pipeline_is_under_way_goes_in_the_next(
    proxy: Tapped, log: Log, redis: Redis, keys: Keys
) -> None:
    sent = await sent_with_stalled_reply(proxy, log, "ab")
    behind = await waiting_behind(log, "cd")
    assert await in_log(redis, keys) == "ab"
    proxy.go_on()
    assert last(await asyncio.gather(*sent, *behind)) == [2, 3, 4, 5]


async def test_each_gets_its_own_answer(log: Log, redis: Redis, keys: Keys) -> None:
    torn = next(name for n in range(1000) if Keys.shard_of(name := f"torn-{n}") == Keys.shard_of(FEED))
    await open_feed(log, torn)
    await command(redis, "HSET", keys.feed(torn).head, "n", "7")
    await log.append(FEED, appending_entry("a", command="known"))
    answers = await asyncio.gather(
        log.append(FEED, appending_entry("b")),
        log.append(FEED, appending(published("c"), guards=Guards(version=9))),
        log.append(torn, appending_entry("d")),
        log.append(FEED, appending_entry("a", command="known")),
        log.append(FEED, appending_entry("e", command="known", fingerprint="other")),
        log.append(FEED, appending_entry("f")),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [Appended, Stale, Corrupted, Known, Conflict, Appended]
    assert str(answers[2]).startswith(f"CORRUPTED the head of {torn}")
    assert (answers[0].last, answers[5].last) == (Position(1, 3), Position(1, 4))  # type: ignore[union-attr]
    assert await in_log(redis, keys) == "abf"


async def test_a_script_that_the_server_forgot_is_brought_for_all(log: Log, redis: Redis, keys: Keys) -> None:
    await command(redis, "SCRIPT FLUSH")
    assert last(await at_once(log, *entries("abc"))) == [2, 3, 4]
    assert last(await at_once(log, *entries("d"))) == [5]


@pytest.mark.parametrize("direction", ["request", "reply"])
async def test_those_whose_connection_is_lost_in_the_middle_are_each_appended_once(
    proxy: Tapped, log: Log, redis: Redis, keys: Keys, direction: Direction
) -> None:
    """The first ones were answered, or carried out, before it was lost."""
    fault = proxy.cut(direction, after_bytes=1500 if direction == "request" else 100, of=OF_APPEND)
    answers = await at_once(log, *entries("abcdef"))
    assert fault.fired == 1
    assert sorted(last(answers)) == list(range(2, 8))
    assert sorted(await in_log(redis, keys)) == list("abcdef")


async def test_when_the_server_is_lost_the_sent_are_unknown_and_those_that_waited_were_not_appended(
    proxy: Tapped, log: Log, redis: Redis, keys: Keys
) -> None:
    sent = await sent_with_stalled_reply(proxy, log, "ab")
    behind = await waiting_behind(log, "cd")
    proxy.down = True
    await proxy.cut_all()
    answers = await asyncio.gather(*sent, *behind, return_exceptions=True)
    assert all(isinstance(answer, UNREACHABLE) for answer in answers[:2]), answers
    assert [type(answer) for answer in answers[2:]] == [Unavailable, Unavailable]
    assert await in_log(redis, keys) == "ab"
    proxy.down = False
    assert last(await at_once(log, *entries("e"))) == [4]


async def test_a_caller_that_goes_away_takes_none_of_the_others_with_it(
    proxy: Tapped, log: Log, redis: Redis, keys: Keys
) -> None:
    sent = await sent_with_stalled_reply(proxy, log, "abc")
    behind = await waiting_behind(log, "def")
    for gone in (sent[0], behind[1]):
        gone.cancel()
    proxy.go_on()
    answers = await asyncio.gather(*sent, *behind, return_exceptions=True)
    assert last([answers[1], answers[2], answers[3], answers[5]]) == [3, 4, 5, 6]
    assert isinstance(answers[0], asyncio.CancelledError) and isinstance(answers[4], asyncio.CancelledError)
    # What was sent stands; what was not is never sent.
    assert await in_log(redis, keys) == "abcdf"


async def test_one_confirmation_serves_all_that_ask_for_it_and_nobody_else_waits(
    proxy: Tapped, log: Log, redis: Redis, keys: Keys
) -> None:
    plain, *asked = await asyncio.gather(
        log.append(FEED, appending_entry("a")),
        log.append(FEED, appending_entry("b"), confirmation=NO_REPLICA),
        log.append(FEED, appending(published("c"), guards=Guards(version=9)), confirmation=NO_REPLICA),
        log.append(FEED, appending_entry("d"), confirmation=NO_REPLICA),
        return_exceptions=True,
    )
    assert isinstance(plain, Appended)
    assert [type(answer) for answer in asked] == [OutcomeUnknown, Stale, OutcomeUnknown]
    assert sorted(await in_log(redis, keys)) == list("abd")
    assert proxy.requested.count(b"WAIT") == 1
    # Behind the last of them, on their connection.
    assert proxy.requested.index(b"WAIT") > proxy.requested.rindex(b"$1\r\nd\r\n")
    assert proxy.accepted == 2


async def test_a_pipeline_is_bounded_in_appends_and_bytes(
    log: Log, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    async def measured(client: Redis, commands: Sequence[bytes]) -> list[Any]:
        sizes.append(len(commands))
        return await exchange(client, commands)

    monkeypatch.setattr(lanes_module, "exchange", measured)
    monkeypatch.setattr(lanes_module, "APPENDS_MAX", 3)
    assert last(await at_once(log, *entries("abcdefg"))) == list(range(2, 9))
    assert sizes == [3, 3, 1]
    sizes.clear()
    monkeypatch.setattr(lanes_module, "BYTES_MAX", 1)
    assert last(await at_once(log, *entries("hi"))) == [9, 10]
    assert sizes == [1, 1]


async def test_closing_waits_for_no_answer_and_leaves_nobody_waiting(
    proxy: Tapped, log: Log, redis: Redis, keys: Keys
) -> None:
    sent = await sent_with_stalled_reply(proxy, log, "a")
    behind = await waiting_behind(log, "b")
    # Of another lane, which has not begun.
    behind.append(asyncio.create_task(log.append(FEED, appending_entry("d"), confirmation=NO_REPLICA)))
    await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await log.close()
        answers = await asyncio.gather(*sent, *behind, return_exceptions=True)
    assert isinstance(answers[0], UNREACHABLE)
    assert [type(answer) for answer in answers[1:]] == [Unavailable, Unavailable]
    proxy.go_on()
    assert last(await at_once(log, *entries("c"))) == [3]

"""`events`: the raw log over HTTP, in bounded pieces, at the reader's pace, whole or visibly broken off."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import aiohttp
import pytest

from services.gateway import streamed
from shared.events import EpochRaised
from shared.keys import Keys
from shared.log import Log
from shared.ndjson import StreamEntry, line_of, parse_line
from shared.position import Position
from shared.redis import Redis, command
from tests.integration.builders import encoded, log_entries
from tests.integration.gateway_kit import SIGNED, Answer, Newsroom, Running, eventually, on_one_server

pytestmark = on_one_server

FEED = "story"
EVENTS = f"/v1/feeds/{FEED}/events"


async def raise_epoch(redis: Redis, keys: Keys, feed: str) -> Position:
    """A new epoch as it stands in the log once it was raised."""
    its = keys.feed(feed)
    epoch, n = (int(part) for part in await command(redis, "HMGET", its.head, "epoch", "n"))
    raised = Position(epoch + 1, n + 1)
    stamp = await command(redis, "HGET", its.head, "recorded_at")
    event = encoded(EpochRaised("epoch", "a test"))
    fields = ("envelope", event.envelope, "content", event.content, "recorded_at", stamp)
    await command(redis, "XADD", its.log, str(raised), *fields)
    await command(redis, "HSET", its.head, "epoch", raised.epoch, "n", raised.n)
    return raised


async def events(gateway: Running, query: str = "") -> Answer:
    return await gateway.get(f"{EVENTS}?{query}", headers=SIGNED)


def positions(answer: Answer) -> list[str]:
    return [parse_line(line).id.decode() for line in answer.body.splitlines(keepends=True)]


async def test_the_log_is_given_line_by_line_as_it_stands(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys
) -> None:
    head = await newsroom.story(FEED, 700)
    answer = await events(gateway)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert answer.headers["Dateline-Position"] == str(head)
    entries = await log_entries(redis, keys, FEED)
    assert answer.body == b"".join(map(line_of, entries))
    assert [parse_line(line) for line in answer.body.splitlines(keepends=True)] == entries


async def test_the_events_are_the_logs_and_wait_for_no_projector(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.open(FEED)
    await newsroom.publish(FEED, "e1")
    assert positions(await events(gateway)) == ["1-1", "1-2"]


async def test_after_may_be_any_position_of_the_log_whatever_its_epoch(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys
) -> None:
    await newsroom.story(FEED, 3)
    assert await raise_epoch(redis, keys, FEED) == Position(2, 5)
    await newsroom.publish(FEED, "e4")
    assert positions(await events(gateway)) == ["1-1", "1-2", "1-3", "1-4", "2-5", "2-6"]
    assert positions(await events(gateway, "after=1-2")) == ["1-3", "1-4", "2-5", "2-6"]
    assert positions(await events(gateway, "after=1-4")) == ["2-5", "2-6"]
    assert positions(await events(gateway, "after=2-5")) == ["2-6"]
    assert positions(await events(gateway, "after=2-6")) == []
    for stale in ("1-5", "2-4", "2-7", "3-1", "1-999999999999999999"):
        answer = await events(gateway, f"after={stale}")
        assert (answer.status, answer.json["type"]) == (410, "urn:dateline:problem:stale-position"), stale
        assert answer.json["head"] == "2-6"


async def test_what_is_in_quarantine_is_in_the_log(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys
) -> None:
    await newsroom.open(FEED)
    await newsroom.publish(FEED, "e1")
    await newsroom.commit(FEED, broken=["1-2"])
    assert list(await Log(redis, keys).quarantined(FEED)) == [Position(1, 2)]
    assert positions(await events(gateway)) == ["1-1", "1-2"]


async def test_whoever_may_not_read_the_log_is_told_so(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    refused = await gateway.get(EVENTS)
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, 'Bearer realm="dateline"')
    assert (await gateway.get(EVENTS, headers={"Authorization": "Bearer other"})).status == 401
    for query in ("after=1", "after=0-0", "limit=3", "min_position=x"):
        answer = await events(gateway, query)
        assert (answer.status, answer.json["errors"][0]["path"]) == (422, "/" + query.partition("=")[0])
    for feed in ("another", "Story", "story:g1"):
        assert (await gateway.get(f"/v1/feeds/{feed}/events", headers=SIGNED)).status == 404
    assert (await gateway.send("POST", EVENTS)).status == 405


async def test_a_min_position_is_waited_for(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.open(FEED)
    position = await newsroom.publish(FEED, "e1")
    waiting = asyncio.create_task(events(gateway, f"min_position={position}"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await newsroom.commit_all(FEED)
    assert positions(await waiting) == ["1-1", "1-2"]
    assert (await events(gateway, "min_position=2-1")).status == 410


async def test_a_head_request_leaves_the_connection_good_for_the_next(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 2)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    authorization = f"Authorization: {SIGNED['Authorization']}"
    for method in ("HEAD", "HEAD", "GET"):
        writer.write(f"{method} {EVENTS} HTTP/1.1\r\nHost: test\r\n{authorization}\r\n\r\n".encode())
        async with asyncio.timeout(30):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200")
        assert b"dateline-position: 1-3" in head and b"x-request-id: " in head
        assert b"access-control-allow-origin" not in head
    assert int((await reader.readline()).strip(), 16) > 0, "the body of the GET follows, in chunks"
    writer.close()
    await writer.wait_closed()


async def test_what_is_appended_while_the_log_is_given_is_the_next_requests(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 1)
    original = Log.head

    async def head(log: Log, feed: str) -> Any:
        found = await original(log, feed)
        await newsroom.publish(FEED, "meanwhile")
        return found

    with monkeypatch.context() as once:
        once.setattr(Log, "head", head)
        assert positions(await events(gateway)) == ["1-1", "1-2"]
    assert positions(await events(gateway)) == ["1-1", "1-2", "1-3"]


async def large(newsroom: Newsroom, *, entries: int) -> None:
    """A log of about 250 KB an event."""
    await newsroom.open(FEED)
    block = {"type": "text", "html": "x" * 9_900}
    for i in range(entries):
        await newsroom.publish(FEED, f"e{i}", body=[block] * 25)


class Watched:
    """Counts what is read of the log, and lets the server go away before the event after the first `events_max`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, events_max: float = math.inf) -> None:
        self.events = 0
        original = Log.read

        async def read(log: Log, *args: Any, **kwargs: Any) -> AsyncGenerator[StreamEntry, None]:
            async with aclosing(original(log, *args, **kwargs)) as entries:
                async for entry in entries:
                    if self.events >= events_max:
                        raise ConnectionResetError("the server is gone")
                    self.events += 1
                    yield entry

        monkeypatch.setattr(Log, "read", read)


async def test_a_reader_that_stalls_is_read_for_no_further_and_its_going_ends_the_reading(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.events.EVENTS_PER_READ", 2)
    await large(newsroom, entries=80)
    watched = Watched(monkeypatch)
    url = f"http://127.0.0.1:{gateway.port}{EVENTS}"
    async with aiohttp.ClientSession(read_bufsize=1024) as session:
        response = await session.get(url, headers=SIGNED)
        await response.content.readexactly(1000)
        seen = 0
        while watched.events != seen:
            seen = watched.events
            await asyncio.sleep(0.2)
        assert 0 < seen < 70, "20 MB went into the buffers of a reader that takes nothing"
        assert gateway.tasks()
        response.close()
        await eventually(lambda: not gateway.tasks(), what="nothing reads for a reader that is gone")
    assert watched.events < 80


async def test_a_reader_that_takes_nothing_for_too_long_is_cut_off(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "STALLED_SECONDS", 0.2)
    await large(newsroom, entries=80)
    url = f"http://127.0.0.1:{gateway.port}{EVENTS}"
    async with aiohttp.ClientSession(read_bufsize=1024) as session, session.get(url, headers=SIGNED) as response:
        await response.content.readexactly(1000)
        await eventually(lambda: not gateway.tasks(), what="the reader is given up")
        with pytest.raises(aiohttp.ClientError):
            await response.read()


async def test_an_answer_that_fails_half_way_is_broken_off_and_not_merely_short(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 1_000)
    with monkeypatch.context() as once:
        Watched(once, events_max=600)
        with pytest.raises(aiohttp.ClientError):
            await events(gateway)
    with monkeypatch.context() as once:
        Watched(once, events_max=0)
        assert (await events(gateway)).status == 503, "what fails at once is an answer like any other"
    assert len(positions(await events(gateway))) == 1_001

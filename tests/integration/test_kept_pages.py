"""Pages that are kept: read once for all, ready in every coding, and gone as soon as anything tells of a change."""

import asyncio
import gzip
import sys
from functools import partial
from typing import Any

import pytest

from services.gateway import kept, tail
from services.gateway.reads import Reads
from shared.keys import Keys
from tests.integration.conftest import RunningServer
from tests.integration.gateway_kit import (
    PATIENCE_SECONDS,
    SIGNED,
    Answer,
    Gate,
    Newsroom,
    Running,
    eventually,
    on_one_server,
    running_gateway,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = on_one_server

FEED = "story"
ENTRIES = f"/v1/feeds/{FEED}/entries"
DOCUMENTS = [ENTRIES, f"/v1/feeds/{FEED}", f"{ENTRIES}/e1", f"/v1/feeds/{FEED}/changes"]
PUBLIC = "public, max-age=0, s-maxage=1"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every read of Redis, by its name."""
    made: list[str] = []
    for name in ("page", "difference", "document"):
        monkeypatch.setattr(Reads, name, _noted(name, getattr(Reads, name), made))
    return made


def _noted(name: str, original: Any, made: list[str]) -> Any:
    async def noted(*args: Any, **kwargs: Any) -> Any:
        made.append(name)
        return await original(*args, **kwargs)

    return noted


def headers_of(answer: Answer) -> dict[str, str]:
    names = {name.lower() for name in answer.headers} - {"date", "x-request-id"}
    return {name: answer.headers[name] for name in names}


# What is the same


@pytest.mark.parametrize("path", [*DOCUMENTS, f"{ENTRIES}?limit=2&order=oldest"])
async def test_a_kept_answer_is_the_one_that_was_read(
    newsroom: Newsroom, gateway: Running, reads: list[str], path: str
) -> None:
    """Header by header, to GET, HEAD and If-None-Match, and without a second read."""
    await newsroom.story(FEED, 5)
    first = await gateway.get(path)
    again = await gateway.get(path)
    assert (again.status, again.body, headers_of(again)) == (200, first.body, headers_of(first))
    assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    assert first.headers["Cache-Control"] == PUBLIC
    head = await gateway.get(path, method="HEAD")
    assert (head.status, head.body, headers_of(head)) == (200, b"", headers_of(first))
    matched = await gateway.get(path, headers={"If-None-Match": first.headers["ETag"]})
    expected = {name: value for name, value in headers_of(first).items() if not name.startswith("content-")}
    assert (matched.status, matched.body, headers_of(matched)) == (304, b"", expected)
    assert (await gateway.get(path, headers={"If-None-Match": "no tag"})).status == 400
    assert len(reads) == 1


@pytest.mark.parametrize("tag", ["", "If-None-Match: *\r\n"])
async def test_a_kept_answer_is_on_the_wire_what_one_in_an_older_protocol_is(
    newsroom: Newsroom, gateway: Running, tag: str
) -> None:
    """Its head is put together beforehand, but for HTTP/1.1 alone; a connection that is to end says so and ends."""
    await newsroom.story(FEED, 25)
    heads = []
    for version, connection in (("1.1", ""), ("1.1", ""), ("1.1", "Connection: close\r\n"), ("1.0", "")):
        request = f"GET {ENTRIES} HTTP/{version}\r\nHost: test\r\n{connection}{tag}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(request.encode())
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
            body = await reader.readexactly(int(lines.get("content-length", 0)) if not tag else 0)
            assert lines.pop("connection", "keep-alive") == ("close" if connection else "keep-alive")
            if connection or version == "1.0":
                assert await reader.read() == b""
            else:
                writer.write(request.encode())
                assert (await reader.readuntil(b"\r\n\r\n")).decode().startswith(head.partition("\r\n")[0])
        writer.close()
        assert len(lines.pop("x-request-id")) == 36 and lines.pop("date").endswith(" gmt")
        heads.append((head.split(" ", 1)[1].partition("\r\n")[0], lines, body))
    assert all(head == heads[0] for head in heads)
    assert heads[0][0] == ("304 Not Modified" if tag else "200 OK") and "link" in heads[0][1]


async def test_a_page_comes_in_the_coding_that_a_client_takes_under_one_tag(
    newsroom: Newsroom, gateway: Running, reads: list[str]
) -> None:
    await newsroom.story(FEED, 25)
    plain = await gateway.get(ENTRIES)
    assert "Content-Encoding" not in plain.headers
    for coding, decode in (("gzip", gzip.decompress), ("zstd", zstd.decompress)):
        for _ in range(2):
            coded = await gateway.get(ENTRIES, headers={"Accept-Encoding": f"br, {coding}"})
            assert coded.headers["Content-Encoding"] == coding
            assert len(coded.body) < len(plain.body) / 3
            assert decode(coded.body) == plain.body
            for name in ("ETag", "Vary", "Cache-Control", "Link", "Content-Type", "Dateline-Position"):
                assert coded.headers[name] == plain.headers[name]
    matched = await gateway.get(ENTRIES, headers={"Accept-Encoding": "gzip", "If-None-Match": plain.headers["ETag"]})
    assert matched.status == 304 and "Content-Encoding" not in matched.headers
    entry = await gateway.get(f"{ENTRIES}/e1", headers={"Accept-Encoding": "gzip"})
    assert entry.headers["ETag"].startswith('"') and "Content-Encoding" not in entry.headers
    assert reads == ["page", "document"]


async def test_a_large_page_is_coded_once_beside_the_event_loop(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED)
    block = {"type": "text", "html": "x" * 9_000}
    await newsroom.batch(FEED, [{"type": "publish", "id": f"e{i}", "headline": "h", "body": [block]} for i in range(6)])
    await newsroom.commit_all(FEED)
    codings = 0
    original = asyncio.to_thread

    async def counted(*args: Any) -> Any:
        nonlocal codings
        codings += 1
        return await original(*args)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    answers = await asyncio.gather(*(gateway.get(ENTRIES, headers={"Accept-Encoding": "gzip"}) for _ in range(20)))
    assert {answer.headers["Content-Encoding"] for answer in answers} == {"gzip"}
    assert {gzip.decompress(answer.body) for answer in answers} == {(await gateway.get(ENTRIES)).body}
    assert codings == 1


# How often Redis is asked


async def test_readers_who_come_at_once_cost_one_read(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 3)
    gate = Gate(monkeypatch, "page")
    asking = [asyncio.create_task(gateway.get(ENTRIES)) for _ in range(50)]
    await gate.reached()
    gate.open()
    assert len({answer.body for answer in await asyncio.gather(*asking)}) == 1
    assert gate.calls == 1


async def test_a_storm_of_readers_who_come_back_costs_one_read_of_each_kind(
    newsroom: Newsroom, gateway: Running, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, and for longer than what was read would be trusted without the sweep."""
    monkeypatch.setattr(kept, "TRUSTED_SECONDS", 0.6)
    monkeypatch.setattr(tail, "KEPT_SWEEP_SECONDS", 0.1)
    await newsroom.story(FEED, 3)
    await asyncio.sleep(0.4)  # the sweep's last long pause
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.9
    while loop.time() < until:
        async with await gateway.stream(f"/v1/feeds/{FEED}/stream?last_event_id=1-2") as stream:
            assert [event.n for event in (await stream.until("live"))[1:]] == [3, 4, 4]
    assert sorted(reads) == ["difference", "document"]


# When it goes


async def test_a_read_that_began_before_the_feed_moved_is_neither_kept_nor_joined(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 1)
    first = True

    def once(*args: object, **kwargs: object) -> bool:
        nonlocal first
        held, first = first, False
        return held

    gate = Gate(monkeypatch, "page", when=once)
    async with await gateway.stream(f"/v1/feeds/{FEED}/stream") as stream:
        await stream.until("live")
        early = asyncio.create_task(gateway.get(ENTRIES))
        await gate.reached()
        await newsroom.retract(FEED, "e1")
        await newsroom.commit_all(FEED)
        await stream.until("retraction")
        assert (await gateway.get(ENTRIES)).json["entries"] == []
        gate.open()
        assert len((await early).json["entries"]) == 1
        assert (await gateway.get(ENTRIES)).json["entries"] == []


@pytest.mark.parametrize("found_by", ["the sweep", "nobody"])
async def test_a_retraction_whose_frame_was_lost_is_shown_soon_and_for_good(
    newsroom: Newsroom, server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch, found_by: str
) -> None:
    """The sweep finds it. Where there is none either, what is kept is trusted for its time and no longer."""
    if found_by == "the sweep":
        monkeypatch.setattr(kept, "TRUSTED_SECONDS", 3600.0)
    else:
        monkeypatch.setattr(kept, "TRUSTED_SECONDS", 0.3)
        monkeypatch.setattr(tail, "KEPT_SWEEP_SECONDS", 3600.0)
    await newsroom.story(FEED, 2)
    async with running_gateway(server.url, keys) as gateway, asyncio.timeout(PATIENCE_SECONDS):
        loop = asyncio.get_running_loop()
        for path in DOCUMENTS:
            await gateway.get(path)
        await newsroom.retract(FEED, "e1")
        await newsroom.commit_all(FEED, frames=False)
        retracted = asked = loop.time()
        while (await gateway.get(ENTRIES)).headers["Dateline-Position"] != "1-4":
            assert asked - retracted <= kept.TRUSTED_SECONDS
            asked = loop.time()
        # One answer told of it: none of the others may show what was before.
        assert [(await gateway.get(path)).headers["Dateline-Position"] for path in DOCUMENTS] == ["1-4"] * 4


def test_what_is_retracted_is_shown_for_two_seconds_at_most_here_and_in_shared_caches() -> None:
    assert kept.TRUSTED_SECONDS == 1.0
    assert PUBLIC.endswith("s-maxage=1")
    assert tail.KEPT_SWEEP_SECONDS <= kept.TRUSTED_SECONDS / 2


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_a_position_that_what_is_kept_does_not_reach_is_read_for(
    newsroom: Newsroom, gateway: Running, path: str
) -> None:
    await newsroom.story(FEED, 1)
    await gateway.get(path)
    for _ in range(2):
        assert (await gateway.get(f"{path}?min_position=1-9")).status == 410
    position = await newsroom.retract(FEED, "e1")
    await newsroom.commit_all(FEED, frames=False)
    assert (await gateway.get(f"{path}?min_position={position}")).headers["Dateline-Position"] == str(position)
    assert (await gateway.get(path)).headers["Dateline-Position"] == str(position)


@pytest.mark.parametrize("query", ["entries?unread_since", "changes?after", "entries?min_position"])
async def test_a_position_that_the_log_holds_is_not_called_stale_by_what_was_kept_before_it(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    await newsroom.story(FEED, 1)
    path = f"/v1/feeds/{FEED}/{query}=1-3"
    assert (await gateway.get(path)).status == 410
    await newsroom.publish(FEED, "e2")
    asking = asyncio.create_task(gateway.get(path))
    await eventually(lambda: asking.done() or gateway.gateway._tail._arrivals._waiting)
    await newsroom.commit_all(FEED)
    assert (await asking).status == 200


@pytest.mark.parametrize("name", ["last_event_id", "min_position"])
async def test_nor_does_a_stream_begin_from_what_was_kept_before_the_log_held_its_position(
    newsroom: Newsroom, gateway: Running, name: str
) -> None:
    await newsroom.story(FEED, 1)
    path = f"/v1/feeds/{FEED}/stream?{name}=1-3"
    async with await gateway.stream(path) as early:
        events = await early.until("reset" if name == "last_event_id" else "bye")
        assert events[-1].data["reason"] == ("position" if name == "last_event_id" else "unavailable")
    await newsroom.publish(FEED, "e2")
    opening = asyncio.create_task(gateway.stream(path))
    await eventually(lambda: gateway.gateway._tail._arrivals._waiting, what="it waits for the position")
    await newsroom.commit_all(FEED)
    async with await opening as stream:
        assert [event.kind for event in await stream.until("live")] == ["retry", "live"]


async def test_a_flip_and_another_server_end_what_is_kept(
    newsroom: Newsroom, gateway: Running, reads: list[str]
) -> None:
    await newsroom.story(FEED, 1)
    tail_ = gateway.gateway._tail
    for forget in (partial(tail_._deliver, {b"f": FEED.encode(), b"k": b"flip"}), gateway.gateway._restarted):
        await gateway.get(ENTRIES)
        before = len(reads)
        await gateway.get(ENTRIES)
        assert len(reads) == before
        forget()
        await gateway.get(ENTRIES)
        assert len(reads) == before + 1


# Who may see it


async def test_what_a_token_sees_is_never_given_to_one_without(
    newsroom: Newsroom, gateway: Running, reads: list[str]
) -> None:
    """They share what was read of a private feed, and nothing else."""
    await newsroom.story(FEED, 20, visibility="private")
    for path in DOCUMENTS:
        assert (await gateway.get(path)).status == 404
        seen = await gateway.get(path, headers={**SIGNED, "Accept-Encoding": "gzip"})
        assert seen.status == 200
        assert seen.headers["Cache-Control"] == "private, no-store"
        assert "Access-Control-Allow-Origin" not in seen.headers
        for headers in ({}, {"If-None-Match": seen.headers["ETag"]}, {"Authorization": "Bearer another"}):
            assert (await gateway.get(path, headers=headers)).status == (401 if "Authorization" in headers else 404)
    assert len(reads) == len(DOCUMENTS)


async def test_a_token_makes_nothing_private_that_was_public_nor_the_other_way_round(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 1)
    for _ in range(2):
        for headers, control in (({}, PUBLIC), (SIGNED, "private, no-store")):
            answer = await gateway.get(ENTRIES, headers=headers)
            assert answer.headers["Cache-Control"] == control
            assert ("Access-Control-Allow-Origin" in answer.headers) == (control == PUBLIC)
        assert (await gateway.get(f"{ENTRIES}?unread_since=1-1")).headers["Cache-Control"] == "private, no-store"
    await newsroom.revise(FEED, visibility="private")
    await newsroom.commit_all(FEED)
    await eventually(lambda: not gateway.gateway._kept._values, what="the frame has come")
    assert (await gateway.get(ENTRIES)).status == 404

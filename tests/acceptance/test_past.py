"""The past over HTTP, by the public contract: pages as readers saw them, histories, and the raw log."""

import asyncio
import random
import socket
from typing import Any

import pytest

from tests.acceptance.harness import (
    ENTRY_FIELDS,
    PAGE_FIELDS,
    Answer,
    Installation,
    Json,
    Newsroom,
    ids,
    later,
    number,
    position_key,
)

PRIVATE = "private, no-store"
QUERIES: tuple[dict[str, str | int], ...] = (
    {},
    {"limit": 3},
    {"order": "oldest", "limit": 100},
    {"tag": "goal"},
    {"key_events": "true"},
    {"since": "2022-01-10T09:00:00Z", "until": "2022-01-10T11:00:00Z", "order": "oldest"},
)


async def asked(newsroom: Newsroom, path: str, **query: str | int) -> Answer:
    return await newsroom.get(path, query, token=newsroom.token)


async def past(newsroom: Newsroom, feed: str, at: str, **query: str | int) -> Json:
    return (await asked(newsroom, f"/v1/feeds/{feed}/entries", at=at, **query)).ok(200).json


def without_cursor(answer: Answer) -> bytes:
    """A page's bytes, but for its cursor, which belongs to its moment."""
    cursor = answer.json["next"]
    return answer.body if cursor is None else answer.body.replace(cursor.encode(), b"a cursor")


async def desk(newsroom: Newsroom, feed: str, name: str, steps: int) -> None:
    """One of several desks that write at once, each about entries of its own and all about the feed."""
    chance = random.Random(name)
    live: list[str] = []
    for step in range(steps):
        entry = chance.choice(live) if live else None
        what = chance.choice(["publish", "publish", "correct", "retime", "pin", "unpin", "mark", "retract", "revise"])
        path = f"/v1/feeds/{feed}/entries/{entry}"
        hour = f"2022-01-10T{chance.randint(8, 12):02}:00:00Z"
        if entry is None or what == "publish":
            live.append(f"{name}{step}")
            tags = chance.choice([[], ["goal"], ["goal", "var"]])
            await newsroom.publish(feed, f"{name} {step}", id=live[-1], published_at=hour, tags=tags)
        elif what in ("correct", "retime"):
            revision = (await newsroom.entry(feed, entry))["revision"]
            change = {"headline": f"{step}"} if what == "correct" else {"published_at": hour}
            await newsroom.correct(feed, entry, revision, **change)
        elif what == "pin":
            (await newsroom.write("PUT", path + "/pin")).ok(200, 409)
        elif what == "unpin":
            await newsroom.unpin(feed, entry)
        elif what == "mark":
            await newsroom.mark(feed, entry)
        elif what == "retract":
            live.remove(entry)
            await newsroom.retract(feed, entry)
        else:
            await newsroom.revise_feed(feed, title=f"{name} {step}")


async def test_the_past_is_what_readers_saw_while_desks_were_writing(newsroom: Newsroom, feed: str) -> None:
    seen: dict[tuple[str, int], bytes] = {}
    done = False

    async def reader(i: int) -> None:
        while not done:
            answer = (await newsroom.get(f"/v1/feeds/{feed}/entries", QUERIES[i])).ok(200)
            seen[answer.position, i] = without_cursor(answer)
            # Asked while the log moves on, it is the same.
            again = await asked(newsroom, f"/v1/feeds/{feed}/entries", at=answer.position, **QUERIES[i])
            assert without_cursor(again.ok(200)) == seen[answer.position, i]

    await newsroom.page(feed)
    readers = [asyncio.create_task(reader(i)) for i in range(len(QUERIES))]
    await asyncio.gather(*(desk(newsroom, feed, name, 25) for name in "abc"))
    done = True
    await asyncio.gather(*readers)
    # Not the end alone: how many there are in between depends on the machine.
    assert len({position for position, _ in seen}) > 3
    for (position, i), body in seen.items():
        answer = await asked(newsroom, f"/v1/feeds/{feed}/entries", at=position, **QUERIES[i])
        assert without_cursor(answer.ok(200)) == body, (position, QUERIES[i])
        assert answer.position == position
    log = [event["position"] for event in await events(newsroom, feed)]
    assert [(await past(newsroom, feed, position))["position"] for position in log] == log


async def events(newsroom: Newsroom, feed: str, **query: str | int) -> list[Json]:
    answer = (await asked(newsroom, f"/v1/feeds/{feed}/events", **query)).ok(200)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.headers["Cache-Control"] == PRIVATE
    return [_object(line) for line in answer.body.splitlines()]


def _object(line: bytes) -> Json:
    return Answer("GET", "a line", 200, {}, line).json


async def test_an_instant_means_what_the_log_had_recorded_by_then(newsroom: Newsroom, feed: str) -> None:
    for i in range(3):
        await asyncio.sleep(0.01)
        # Long before or long after: it is the recording that counts.
        await newsroom.publish(feed, f"h{i}", id=f"e{i}", published_at=f"200{i}-01-01T00:00:00Z")
    for event in await events(newsroom, feed):
        assert (await past(newsroom, feed, event["recorded_at"]))["position"] == event["position"]
    assert ids((await past(newsroom, feed, "2100-01-01T00:00:00+02:00"))["entries"]) == ["e2", "e1", "e0"]
    answer = await asked(newsroom, f"/v1/feeds/{feed}/entries", at="2010-01-01T00:00:00Z")
    answer.problem(404, "feed-not-found")


async def test_a_past_page_has_the_shape_of_a_page_and_walks_to_its_end(newsroom: Newsroom, feed: str) -> None:
    position = [(await newsroom.publish(feed, f"h{i}", id=f"e{i}"))["position"] for i in range(5)][-1]
    await newsroom.retract(feed, "e1")
    found, query = [], {"at": position, "limit": 2, "order": "oldest"}
    while True:
        answer = (await asked(newsroom, f"/v1/feeds/{feed}/entries", **query)).ok(200)
        page = answer.json
        assert page.keys() == PAGE_FIELDS and page["unread"] is None and page["total"] == 5
        assert answer.headers["Cache-Control"] == PRIVATE and "ETag" not in answer.headers
        assert all(entry.keys() == ENTRY_FIELDS for entry in page["entries"])
        found += ids(page["entries"])
        if page["next"] is None:
            break
        assert f"at={position}" in answer.headers["Link"] and 'rel="next"' in answer.headers["Link"]
        query["cursor"] = page["next"]
    assert found == [f"e{i}" for i in range(5)]
    head = (await newsroom.request("HEAD", f"/v1/feeds/{feed}/entries?at={position}", token=newsroom.token)).ok(200)
    assert head.body == b"" and head.position == position


async def test_a_history_says_who_when_and_why(newsroom: Newsroom, feed: str) -> None:
    first = await newsroom.publish(feed, "Kik-off", id="e1")
    await newsroom.publish(feed, "Another", id="e2")
    second = await newsroom.correct(feed, "e1", 1, headline="Kick-off", correction_note="a misprint")
    third = await newsroom.mark(feed, "e1")
    last = await newsroom.retract(feed, "e1", "not ours")
    answer = (await asked(newsroom, f"/v1/feeds/{feed}/entries/e1/history")).ok(200)
    assert answer.headers["Cache-Control"] == PRIVATE
    history = answer.json
    assert {name: history[name] for name in ("feed", "entry", "position")} == {
        "feed": feed, "entry": "e1", "position": last["position"],
    }  # fmt: skip
    assert [event["document"] for event in history["events"]] == [first, second, third, last]
    assert [(event["type"], event["revision"], event["why"]) for event in history["events"]] == [
        ("EntryPublished", 1, None),
        ("EntryCorrected", 2, "a misprint"),
        ("KeyEventMarked", 2, None),
        ("EntryRetracted", 2, "not ours"),
    ]
    assert {event["by"] for event in history["events"]} == {"ops"}
    assert all(event["recorded_at"] and event["causation"] for event in history["events"])


async def test_the_raw_log_goes_on_from_any_of_its_positions(newsroom: Newsroom, feed: str) -> None:
    for i in range(4):
        await newsroom.publish(feed, f"h{i}", id=f"e{i}")
    log = await events(newsroom, feed)
    assert [number(event["position"]) for event in log] == [1, 2, 3, 4, 5]
    assert [event["envelope"]["type"] for event in log] == ["FeedOpened", *["EntryPublished"] * 4]
    assert log[1]["content"]["headline"] == "h0"
    for i, event in enumerate(log):
        assert await events(newsroom, feed, after=event["position"]) == log[i + 1 :]
    head = await newsroom.request("HEAD", f"/v1/feeds/{feed}/events", token=newsroom.token)
    assert head.ok(200).position == log[-1]["position"] and head.body == b""


@pytest.mark.parametrize("path", ["/entries?at=1-1", "/entries/e1/history", "/events"])
async def test_only_who_carries_a_token_sees_the_past(newsroom: Newsroom, feed: str, path: str) -> None:
    await newsroom.publish(feed, "h", id="e1")
    refused = await newsroom.get(f"/v1/feeds/{feed}{path}")
    refused.problem(401, "unauthorized")
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    (await newsroom.get(f"/v1/feeds/{feed}{path}", token="another")).problem(401, "unauthorized")
    (await newsroom.get(f"/v1/feeds/{feed}-not{path}", token=newsroom.token)).problem(404, "feed-not-found")
    (await newsroom.get(f"/v1/feeds/{feed}{path}", token=newsroom.token)).ok(200)


async def test_a_position_that_the_log_does_not_hold_is_gone(newsroom: Newsroom, feed: str) -> None:
    position = (await newsroom.publish(feed, "h", id="e1"))["position"]
    epoch, n = position_key(position)
    for stale in (later(position), f"{epoch + 1}-{n}", f"{epoch + 1}-{n + 1}", f"{epoch}-999999999999999999"):
        (await asked(newsroom, f"/v1/feeds/{feed}/entries", at=stale)).problem(410, "stale-position")
        (await asked(newsroom, f"/v1/feeds/{feed}/events", after=stale)).problem(410, "stale-position")


async def test_what_is_no_moment_and_what_belongs_to_another_is_refused(newsroom: Newsroom, feed: str) -> None:
    position = [(await newsroom.publish(feed, f"h{i}", id=f"e{i}"))["position"] for i in range(3)][-1]
    entries = f"/v1/feeds/{feed}/entries"
    for at in ("", "now", "1-0", "2022-01-10T18:38:00", "57"):
        (await asked(newsroom, entries, at=at)).problem(422, "invalid", path="/at")
    live = (await newsroom.page(feed, limit=1))["next"]
    then = (await past(newsroom, feed, position, limit=1))["next"]
    wrong: list[dict[str, Any]] = [
        {"at": position, "cursor": live},
        {"at": "1-3", "cursor": then},
        {"at": position, "cursor": then, "order": "oldest"},
        {"cursor": then},
    ]
    for query in wrong:
        (await asked(newsroom, entries, limit=1, **query)).problem(422, "invalid", path="/cursor")
    (await asked(newsroom, entries, at=position, unread_since="1-1")).problem(422, path="/unread_since")
    (await asked(newsroom, f"{entries}/e9/history")).problem(404, "entry-not-found")


async def test_a_reader_of_the_log_that_stalls_and_goes_away_harms_nobody(
    newsroom: Newsroom, installation: Installation, feed: str
) -> None:
    block = {"type": "text", "html": "x" * 9_900}
    for i in range(30):
        await newsroom.publish(feed, f"h{i}", body=[block] * 24)
    stalled = []
    head = f"GET /v1/feeds/{feed}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {newsroom.token}\r\n\r\n"
    for _ in range(8):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", installation.port))
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 200")
        stalled.append(connection)
    assert len(await events(newsroom, feed)) == 31
    for connection in stalled:
        connection.close()
    await newsroom.publish(feed, "Desks go on", id="last")
    assert len(await events(newsroom, feed)) == 32


async def test_a_log_too_long_for_one_request_is_gathered_by_several(newsroom: Newsroom, feed: str, long: bool) -> None:
    """One request gathers 20,000 events at once, and once more what is left then."""
    entries = 50_000 if long else 1_000
    for start in range(0, entries, 200):
        commands = [{"type": "publish", "headline": "h", "id": f"e{start + i}"} for i in range(200)]
        await newsroom.batch(feed, *commands)
    refusals, at = 0, f"1-{entries // 2 + 1}"
    while (answer := await asked(newsroom, f"/v1/feeds/{feed}/entries", at=at, limit=1)).status != 200:
        problem = answer.problem(503, "unavailable")
        assert answer.headers["Retry-After"] == "1"
        assert 0 < problem["folded_events"] <= entries and str(problem["folded_events"]) in problem["detail"]
        refusals += 1
    assert refusals == (1 if long else 0)
    assert (answer.json["total"], ids(answer.json["entries"])) == (entries // 2, [f"e{entries // 2 - 1}"])

"""The past of a feed over HTTP: equal to what readers got, gathered within bounds, kept within bounds, forgotten for good."""

import asyncio
import json
import sqlite3
import threading
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from services.gateway import pasts as module
from services.gateway.past import Past
from services.writer.redaction import Redactions
from shared.archive import segments
from shared.archive.archiving import Archiving
from shared.archive.trimming import Trimming
from shared.keys import Keys
from shared.log import Log
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.redis import Redis, command
from tests.integration.builders import log_entries
from tests.integration.gateway_kit import (
    SIGNED,
    Answer,
    Json,
    Newsroom,
    Running,
    minute,
    number,
    on_one_server,
)
from tests.integration.test_events import raise_epoch

pytestmark = on_one_server

FEED = "story"
ENTRIES = f"/v1/feeds/{FEED}/entries"
QUERIES = (
    "limit=100",
    "order=oldest&limit=2",
    "tag=live",
    "key_events=true&limit=1",
    f"since={minute(1)}&until={minute(3)}",
)


async def get(gateway: Running, path: str) -> Answer:
    return await gateway.get(path, headers=SIGNED)


async def past(gateway: Running, at: object, query: str = "") -> Json:
    answer = await get(gateway, f"{ENTRIES}?at={at}&{query}")
    assert answer.status == 200, answer
    return cast("Json", answer.json)


async def history(gateway: Running, entry: str) -> Json:
    answer = await get(gateway, f"{ENTRIES}/{entry}/history")
    assert answer.status == 200, answer
    return cast("Json", answer.json)


async def walked(gateway: Running, query: str) -> list[bytes]:
    """The pages of a walk as their bytes, but for the cursors."""
    pages: list[bytes] = []
    cursor = ""
    while True:
        answer = await get(gateway, f"{ENTRIES}?{query}{cursor}")
        assert answer.status == 200, answer
        following = answer.json["next"]
        if following is None:
            return [*pages, answer.body]
        pages.append(answer.body.replace(following.encode(), b"next"))
        cursor = f"&cursor={following}"


async def told(newsroom: Newsroom) -> None:
    """A story of every kind of event, uncommitted."""
    await newsroom.open(FEED)
    for i in range(1, 6):
        await newsroom.publish(FEED, f"e{i}", published_at=minute(i % 3), tags=["live"] if i % 2 else [])
    await newsroom.pin(FEED, "e3")
    await newsroom.correct(FEED, "e2", revision=1, headline="Corrected", correction_note="a name")
    await newsroom.revise(FEED, title="Another title")
    await newsroom.mark(FEED, "e2")
    await newsroom.mark(FEED, "e5")
    await newsroom.pin(FEED, "e5")
    await newsroom.correct(FEED, "e5", revision=1, published_at=minute(2), tags=[])
    await newsroom.unpin(FEED, "e3")
    await newsroom.retract(FEED, "e4")
    await newsroom.unmark(FEED, "e2")
    await newsroom.retract(FEED, "e5")
    await newsroom.revise(FEED, status="closed")


async def recorded(
    newsroom: Newsroom, gateway: Running, *, broken: tuple[str, ...] = ()
) -> dict[str, list[list[bytes]]]:
    """What readers got at each position, while the log was committed one event at a time."""
    pages: dict[str, list[list[bytes]]] = {}
    head = await newsroom.head(FEED)
    while str(head) not in pages:
        checkpoint = await newsroom.commit(FEED, events=1, broken=broken)
        pages[str(checkpoint)] = [await walked(gateway, query) for query in QUERIES]
    return pages


async def test_the_past_is_byte_for_byte_what_readers_got(newsroom: Newsroom, gateway: Running) -> None:
    await told(newsroom)
    pages = await recorded(newsroom, gateway)
    assert len(pages) == 18
    for position, then in pages.items():
        assert [await walked(gateway, f"at={position}&{query}") for query in QUERIES] == then, position


async def test_what_is_in_quarantine_is_skipped_then_as_now(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys
) -> None:
    """The damage is the projector's alone: only the record tells the past of it, and its removal tells it again."""
    await told(newsroom)
    pages = await recorded(newsroom, gateway, broken=("1-4", "1-7"))
    for position, then in pages.items():
        assert [await walked(gateway, f"at={position}&{query}") for query in QUERIES] == then, position
    assert (await past(gateway, "1-18"))["total"] == 2
    assert [event["quarantined"] for event in (await history(gateway, "e3"))["events"]] == [True, True, True]
    await command(redis, "DEL", keys.feed(FEED).quarantine)
    assert (await past(gateway, "1-18"))["total"] == 3
    assert [event["quarantined"] for event in (await history(gateway, "e3"))["events"]] == [False, False, False]


async def test_an_event_that_is_quarantined_later_changes_the_past(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys
) -> None:
    await newsroom.story(FEED, 3)
    assert (await past(gateway, "1-4"))["total"] == 3
    await cast("Any", redis.hset(keys.feed(FEED).quarantine, "1-3", b"{}"))
    assert [entry["id"] for entry in (await past(gateway, "1-4"))["entries"]] == ["e3", "e1"]


async def test_a_quarantine_that_changes_while_a_past_is_gathered_is_seen(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 3)
    original = Log.read

    async def read(log: Log, *args: Any, **kwargs: Any) -> AsyncGenerator[StreamEntry, None]:
        await cast("Any", redis.hset(keys.feed(FEED).quarantine, "1-3", b"{}"))
        async with aclosing(original(log, *args, **kwargs)) as entries:
            async for entry in entries:
                yield entry

    monkeypatch.setattr(Log, "read", read)
    assert (await past(gateway, "1-4"))["total"] == 2


async def test_a_feed_whose_opening_is_in_quarantine_was_never_there(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys
) -> None:
    await newsroom.story(FEED, 1)
    await cast("Any", redis.hset(keys.feed(FEED).quarantine, "1-1", b"{}"))
    answer = await get(gateway, f"{ENTRIES}?at=1-2")
    assert (answer.status, answer.json["type"]) == (404, "urn:dateline:problem:feed-not-found")


async def test_a_log_of_a_newer_release_is_left_to_its_gateway(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys
) -> None:
    await newsroom.story(FEED, 1)
    envelope = {
        "type": "EntrySung",
        "version": 1,
        "command": "c",
        "by": "b",
        "causation": None,
        "digest": None,
        "facts": {},
    }
    fields = ("envelope", json.dumps(envelope), "content", "", "recorded_at", "9999999999999")
    await command(redis, "XADD", keys.feed(FEED).log, "1-3", *fields)
    await command(redis, "HSET", keys.feed(FEED).head, "n", 3)
    answer = await get(gateway, f"{ENTRIES}?at=1-2")
    assert answer.status == 503 and "EntrySung version 1 at 1-3 is newer" in answer.json["detail"]


async def test_every_position_of_every_epoch_has_its_page(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys
) -> None:
    await newsroom.story(FEED, 2)
    assert (await past(gateway, "1-3"))["total"] == 2
    await raise_epoch(redis, keys, FEED)
    await newsroom.publish(FEED, "e3")
    for position, total in {"1-1": 0, "1-2": 1, "1-3": 2, "2-4": 2, "2-5": 3}.items():
        page = await past(gateway, position)
        assert (page["position"], page["total"]) == (position, total)
    for stale in ("1-4", "2-3", "2-6", "3-1"):
        answer = await get(gateway, f"{ENTRIES}?at={stale}")
        assert (answer.status, answer.json["type"]) == (410, "urn:dateline:problem:stale-position"), stale


async def test_a_history_that_was_lost_is_lost_from_the_past_too(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys
) -> None:
    """A failover to a server that had less: what was folded here is no history of this log."""
    await newsroom.story(FEED, 4)
    assert (await past(gateway, "1-5"))["total"] == 4
    its = keys.feed(FEED)
    kept = await log_entries(redis, keys, FEED)
    await command(redis, "DEL", its.log)
    for entry in kept[:3]:
        await command(redis, "XADD", its.log, entry.id, *(part for pair in entry.fields.items() for part in pair))
    await command(redis, "HSET", its.head, "n", 3)
    await command(redis, "HDEL", its.entries, "e3", "e4")
    await raise_epoch(redis, keys, FEED)
    await newsroom.publish(FEED, "e9")
    page = await past(gateway, "2-5")
    assert [entry["id"] for entry in page["entries"]] == ["e9", "e2", "e1"]
    assert (await get(gateway, f"{ENTRIES}?at=1-5")).status == 410
    assert (await get(gateway, f"{ENTRIES}/e3/history")).status == 404


async def test_an_instant_is_when_the_log_recorded(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.open(FEED)
    for i in range(3):
        await asyncio.sleep(0.003)
        await newsroom.publish(FEED, f"e{i}", published_at=minute(-i % 3))
    log = [json.loads(line) for line in (await get(gateway, f"/v1/feeds/{FEED}/events")).body.splitlines()]
    for event in log:
        assert (await past(gateway, event["recorded_at"]))["position"] == event["position"]
    assert (await past(gateway, "2199-01-01T00:00:00%2B01:00"))["position"] == "1-4"
    before = await get(gateway, f"{ENTRIES}?at=2001-01-01T00:00:00Z")
    assert (before.status, before.json["type"]) == (404, "urn:dateline:problem:feed-not-found")


async def test_a_walk_over_an_instant_stays_at_the_moment_that_it_began_at(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 4)
    at = "2199-01-01T00:00:00.000Z"
    first = await past(gateway, at, "limit=2")
    await newsroom.say(FEED, "e9", published_at=minute(1))
    second = await past(gateway, "2199-01-01T00:00:00Z", f"limit=2&cursor={first['next']}")
    assert (second["position"], second["total"], second["next"]) == ("1-5", 4, None)
    assert [entry["id"] for entry in second["entries"]] == ["e2", "e1"]


async def test_a_past_page_links_to_the_next_of_its_own_moment(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 4)
    answer = await get(gateway, f"{ENTRIES}?at=1-4&limit=2&min_position=1-5")
    assert answer.headers["Dateline-Position"] == "1-4"
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert "ETag" not in answer.headers
    link = answer.headers["Link"]
    assert link == f'<{ENTRIES}?at=1-4&limit=2&cursor={answer.json["next"]}>; rel="next"'
    following = await get(gateway, link[1:].partition(">")[0])
    assert [entry["id"] for entry in following.json["entries"]] == ["e1"]
    assert following.json["pinned"] == [] and following.json["next"] is None


async def test_what_is_asked_wrongly_is_named(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 4)
    live = (await gateway.page(FEED, "limit=1"))["next"]
    then = (await past(gateway, "1-5", "limit=1"))["next"]
    for query, path in {
        "at=yesterday": "/at",
        "at=": "/at",
        "at=2022-01-10T18:38:00": "/at",
        "at=1-2&unread_since=1-1": "/unread_since",
        f"at=1-5&cursor={live}": "/cursor",
        f"at=1-4&cursor={then}": "/cursor",
        f"at=1-5&order=oldest&cursor={then}": "/cursor",
        f"cursor={then}": "/cursor",
        "at=1-5&limit=0": "/limit",
    }.items():
        answer = await get(gateway, f"{ENTRIES}?{query}")
        assert answer.status == 422, query
        assert [error["path"] for error in answer.json["errors"]] == [path], query
    for path in (f"{ENTRIES}?at=1-2", f"{ENTRIES}/e1/history"):
        assert (await gateway.get(path)).status == 401
        assert (await gateway.get(path.replace(FEED, "another"), headers=SIGNED)).status == 404
        assert (await gateway.get(path, headers=SIGNED, method="HEAD")).status == 200
    assert (await get(gateway, f"{ENTRIES}/e9/history")).json["type"] == "urn:dateline:problem:entry-not-found"
    assert (await get(gateway, f"{ENTRIES}/e%3A/history")).status == 404
    assert (await get(gateway, f"{ENTRIES}/e1/history?limit=2")).status == 422
    assert (await get(gateway, f"{ENTRIES}?at=1-5&min_position=1-9")).status == 410


async def test_a_history_tells_each_event_of_its_entry(newsroom: Newsroom, gateway: Running) -> None:
    await told(newsroom)
    answer = await history(gateway, "e5")
    assert (answer["feed"], answer["entry"], answer["position"]) == (FEED, "e5", "1-18")
    assert [event["type"] for event in answer["events"]] == [
        "EntryPublished", "KeyEventMarked", "EntryPinned", "EntryCorrected", "EntryRetracted",
    ]  # fmt: skip
    assert [event["revision"] for event in answer["events"]] == [1, 1, 1, 2, 2]
    assert all(event["document"]["position"] == event["position"] for event in answer["events"])
    assert {(event["by"], event["causation"]) for event in answer["events"]} == {("test", "test")}
    [_, note] = (await history(gateway, "e2"))["events"][:2]
    assert note["why"] == "a name" == note["document"]["correction"]["note"]


async def test_a_long_history_comes_whole(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    for _ in range(70):
        await newsroom.mark(FEED, "e1")
        await newsroom.unmark(FEED, "e1")
    events = (await history(gateway, "e1"))["events"]
    assert [number(event["position"]) for event in events] == list(range(2, 143))


# Bounds


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_PER_SLICE_MAX", 10)
    monkeypatch.setattr(module, "EVENTS_PER_FILLING_MAX", 40)


async def test_a_long_log_is_gathered_request_by_request(
    newsroom: Newsroom, gateway: Running, bounded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 199)
    slices: list[int] = []
    original = Past.fold

    def counted(past: Past, entries: Any, **more: Any) -> None:
        slices.append(len(entries))
        original(past, entries, **more)

    monkeypatch.setattr(Past, "fold", counted)
    answers: list[Answer] = []
    while not answers or answers[-1].status != 200:
        slices.clear()
        answers.append(await get(gateway, f"{ENTRIES}?at=1-100"))
        # A request may wait for a filling that others began, and then for one of its own.
        assert sum(slices) <= 80 and max(slices) <= 10
    assert len(answers) > 1
    refused = answers[0]
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    assert refused.json["type"] == "urn:dateline:problem:unavailable"
    assert refused.json["folded_events"] == 80 and refused.json["head"] == "1-200"
    assert "80 of 200" in refused.json["detail"]
    slices.clear()
    assert (await past(gateway, "1-7"))["total"] == 6
    assert slices == [], "what was folded stays"
    await newsroom.say(FEED, "more")
    assert (await past(gateway, "1-201"))["total"] == 200
    assert slices == [1], "only what is new is folded"


async def test_all_who_ask_at_once_share_one_filling(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 300)
    folded = 0
    original = Past.fold

    def counted(past: Past, entries: Any, **more: Any) -> None:
        nonlocal folded
        folded += len(entries)
        original(past, entries, **more)

    monkeypatch.setattr(Past, "fold", counted)
    pages = await asyncio.gather(*(past(gateway, f"1-{n}") for n in range(1, 40)))
    assert [page["total"] for page in pages] == list(range(39))
    assert folded == 301


async def test_one_who_goes_away_does_not_end_the_filling_of_the_others(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 30)
    began, go_on = asyncio.Event(), asyncio.Event()
    original = Log.quarantined

    async def held(log: Log, feed: str) -> Any:
        began.set()
        await go_on.wait()
        return await original(log, feed)

    monkeypatch.setattr(Log, "quarantined", held)
    first = asyncio.create_task(past(gateway, "1-3"))
    await began.wait()
    second = asyncio.create_task(past(gateway, "1-4"))
    await asyncio.sleep(0.05)
    filling = gateway.gateway._pasts._fillings[FEED]
    first.cancel()
    await asyncio.wait([first])
    await asyncio.sleep(0.1)
    go_on.set()
    assert (await second)["total"] == 3
    assert not filling.cancelled(), "the client tries a request again whose connection ended"


async def test_whoever_asks_while_the_log_grows_is_not_turned_away(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filling that one waits for second may be another's, who came earlier and saw less of the log."""
    await newsroom.story(FEED, 3)
    began, go_on = asyncio.Event(), asyncio.Event()
    original = Log.quarantined

    async def held(log: Log, feed: str) -> Any:
        began.set()
        await go_on.wait()
        return await original(log, feed)

    monkeypatch.setattr(Log, "quarantined", held)
    asking = [asyncio.create_task(past(gateway, "1-2"))]
    await began.wait()
    for i in range(3):
        await newsroom.publish(FEED, f"more{i}")
        asking.append(asyncio.create_task(past(gateway, f"1-{5 + i}")))
        await asyncio.sleep(0.05)
    go_on.set()
    assert [page["total"] for page in await asyncio.gather(*asking)] == [1, 4, 5, 6]


async def test_the_least_recently_asked_past_makes_room(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEEDS_MAX", 2)
    pasts = gateway.gateway._pasts
    for feed in ("a", "b", "c"):
        await newsroom.story(feed, 2)
    for feed in ("a", "b", "a", "c"):
        assert (await get(gateway, f"/v1/feeds/{feed}/entries?at=1-2")).status == 200
    assert list(pasts._kept) == ["a", "c"]
    monkeypatch.setattr(module, "FILES_BYTES_MAX", max(kept.size_bytes for kept in pasts._kept.values()))
    await newsroom.say("c", "e9")
    assert (await get(gateway, "/v1/feeds/c/entries?at=1-2")).status == 200
    assert list(pasts._kept) == ["c"]
    monkeypatch.setattr(module, "FILES_BYTES_MAX", 1)
    await newsroom.say("c", "e10")
    answer = await get(gateway, "/v1/feeds/c/entries?at=1-2")
    assert answer.status == 503 and "larger than this gateway keeps" in answer.json["detail"]
    assert not pasts._kept


async def test_a_file_that_fails_is_dropped_and_filled_anew(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 3)
    original = Past.page

    def failing(past: Past, *args: Any, **kwargs: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Past, "page", failing)
    assert (await get(gateway, f"{ENTRIES}?at=1-2")).status == 503
    assert not gateway.gateway._pasts._kept
    monkeypatch.setattr(Past, "page", original)
    assert (await past(gateway, "1-2"))["total"] == 1


async def test_folding_a_long_log_leaves_the_loop_to_others(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have their turn while each slice is folded, and a slice is short: what waits for the thread waits for one."""
    await newsroom.story(FEED, 1_000)
    loop, original, slices = asyncio.get_running_loop(), Past.fold, list[int]()

    def fold(past: Past, entries: Sequence[StreamEntry], *, quarantined: Collection[Position]) -> None:
        turn = threading.Event()
        loop.call_soon_threadsafe(turn.set)
        assert turn.wait(30), "the loop stands still while a slice is folded"
        slices.append(len(entries))
        original(past, entries, quarantined=quarantined)

    monkeypatch.setattr(Past, "fold", fold)
    assert (await past(gateway, "1-1001", "limit=1"))["total"] == 1_000
    assert slices == [100] * 10 + [1]


# Redactions


async def redact(newsroom: Newsroom, entry: str) -> Position:
    redacted, _ = await Redactions(newsroom.redis, newsroom.keys, Log(newsroom.redis, newsroom.keys)).append(
        FEED, entry, reason="court order", by="ops"
    )
    return redacted.position


SECRET = "a name that no one may print"


def held(past: Past) -> str:
    """All that the file holds of documents and reasons."""
    return repr(past._file.execute("SELECT * FROM versions").fetchall())


async def test_a_redacted_entry_is_in_no_page_and_its_history_keeps_who_and_when(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 2)
    await newsroom.publish(FEED, "named", headline=SECRET, tags=["live"], key_event=True)
    await newsroom.pin(FEED, "named")
    await newsroom.correct(FEED, "named", revision=1, headline="x", correction_note=SECRET)
    page = await past(gateway, "1-5")
    assert (page["total"], page["pinned"][0]["headline"]) == (3, SECRET)
    position = await redact(newsroom, "named")
    for at in ("1-4", "1-5", "1-6", str(position)):
        page = await past(gateway, at)
        assert (page["total"], page["pinned"]) == (2, [])
        assert [entry["id"] for entry in page["entries"]] == ["e2", "e1"]
        assert (
            (await past(gateway, at, "tag=live"))["total"] == (await past(gateway, at, "key_events=true"))["total"] == 0
        )
    events = (await history(gateway, "named"))["events"]
    assert [event["removed"] for event in events] == [True, True, True, False]
    assert [event["document"] for event in events[:3]] == [None, None, None]
    assert [event["why"] for event in events] == [None, None, None, "court order"]
    assert [event["type"] for event in events] == ["EntryPublished", "EntryPinned", "EntryCorrected", "EntryRedacted"]
    assert events[3]["document"]["status"] == "retracted"
    assert SECRET not in json.dumps(events)


async def test_what_a_gateway_is_told_to_forget_is_gone_from_its_file_when_it_says_so(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 2)
    await newsroom.publish(FEED, "named", headline=SECRET)
    assert (await past(gateway, "1-4"))["total"] == 3
    pasts = gateway.gateway._pasts
    assert SECRET in held(pasts._kept[FEED].past)
    await pasts.forget_entry(FEED, "named")
    await pasts.forget_entry("another", "named")
    assert SECRET not in held(pasts._kept[FEED].past)
    await pasts.forget(FEED)
    await pasts.forget(FEED)
    assert not pasts._kept


async def test_what_was_read_before_it_was_to_be_forgotten_does_not_come_after(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filling under way holds content that it has read and not yet folded: it ends, and the file with it."""
    await newsroom.story(FEED, 2)
    await newsroom.publish(FEED, "named", headline=SECRET)
    pasts = gateway.gateway._pasts
    arrived, go_on = asyncio.Event(), asyncio.Event()
    original = pasts.run
    folded: list[Past] = []

    async def held(kept: Any, act: Any) -> Any:
        if not arrived.is_set():
            folded.append(kept.past)
            arrived.set()
            await go_on.wait()
        return await original(kept, act)

    monkeypatch.setattr(pasts, "run", held)
    asking = asyncio.create_task(past(gateway, "1-4"))
    await arrived.wait()
    forgetting = asyncio.create_task(pasts.forget_entry(FEED, "named"))
    await asyncio.sleep(0.02)
    assert not forgetting.done()
    await redact(newsroom, "named")
    go_on.set()
    await forgetting
    with pytest.raises(sqlite3.ProgrammingError):
        folded[0]._file.execute("SELECT 1")
    page = await asking
    assert all(entry["headline"] != SECRET or page["position"] == "1-4" for entry in page["entries"])
    assert SECRET not in json.dumps(await past(gateway, "1-4"))


async def test_a_past_that_is_dropped_while_it_is_asked_is_closed_by_whoever_leaves_last(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 2)
    pasts, log = gateway.gateway._pasts, Log(newsroom.redis, newsroom.keys)
    head = await log.head(FEED)
    assert head is not None
    async with pasts.of(FEED, head=head) as query:
        held = pasts._kept[FEED]
        await pasts.forget(FEED)
        assert await query(lambda past: past.open_at(head.position)) and not held.closed
    assert held.closed


async def test_a_redaction_that_is_asked_for_everywhere_reaches_the_past(
    newsroom: Newsroom, gateway: Running, keys: Keys, redis: Redis
) -> None:
    await newsroom.story(FEED, 2)
    await newsroom.publish(FEED, "named", headline=SECRET)
    await past(gateway, "1-4")
    await redact(newsroom, "named")
    redactions = Redactions(redis, keys, Log(redis, keys))
    await redactions.ask_gateways(FEED, "named", token="t1")
    async with asyncio.timeout(30):
        while not await redactions.confirmed(FEED, token="t1"):
            await asyncio.sleep(0.01)
    assert SECRET not in held(gateway.gateway._pasts._kept[FEED].past)


# Archives


async def test_what_was_trimmed_from_the_stream_is_past_and_raw_log_as_before(
    newsroom: Newsroom, gateway: Running, redis: Redis, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_EVENTS_MAX", 10)
    await newsroom.story(FEED, 12)
    await raise_epoch(redis, keys, FEED)
    for i in range(13, 24):
        await newsroom.publish(FEED, f"e{i}")
    await newsroom.pin(FEED, "e3")
    await newsroom.commit_all(FEED)
    raw = (await get(gateway, f"/v1/feeds/{FEED}/events")).body
    positions = [json.loads(line)["position"] for line in raw.splitlines()]
    before = [await walked(gateway, f"at={position}&limit=5") for position in positions]
    told_before = await history(gateway, "e3")
    await Archiving(redis, keys).archive(FEED, url=str(tmp_path / "archives"))
    await Trimming(redis, keys).trim(FEED)
    assert await command(redis, "XLEN", keys.feed(FEED).log) < 5
    # Gathered anew, and after that gone on with.
    for _ in range(2):
        assert [await walked(gateway, f"at={position}&limit=5") for position in positions] == before
        assert await history(gateway, "e3") == told_before
        assert (await get(gateway, f"/v1/feeds/{FEED}/events")).body == raw
        await gateway.gateway._pasts.forget(FEED)
    for i, position in enumerate(positions):
        after = await get(gateway, f"/v1/feeds/{FEED}/events?after={position}")
        assert after.body == b"".join(raw.splitlines(keepends=True)[i + 1 :])
    for stale in ("2-13", "1-14", "2-4", "1-20", "2-999", "3-3"):
        for path in (f"events?after={stale}", f"entries?at={stale}"):
            answer = await get(gateway, f"/v1/feeds/{FEED}/{path}")
            assert (answer.status, answer.json["type"]) == (410, "urn:dateline:problem:stale-position"), path

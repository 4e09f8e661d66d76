"""Server-Sent Events, by the public contract: snapshots, live frames, resumption, resets, several feeds, pings, slowness.

Every byte goes through the strict parser of the harness, every state through its folding reader. Streams across
crashes and random cuts are in test_concurrency.
"""

import asyncio
import random
import socket
import time
from typing import Any

import aiohttp
import pytest

from tests.acceptance.conftest import QuietReader
from tests.acceptance.harness import (
    FEED_FIELDS,
    PAGE_FIELDS,
    FoldedFeed,
    Frame,
    Json,
    Newsroom,
    Stream,
    ids,
    later,
    number,
    order_key,
    position_key,
    positions_of,
)


def minute(n: int) -> str:
    return f"2022-01-10T{8 + n // 60:02}:{n % 60:02}:00.000Z"


async def publish_minutes(newsroom: Newsroom, feed: str, minutes: list[int]) -> list[Json]:
    commands = [
        {"type": "publish", "id": f"e{n}", "headline": f"h{n}", "published_at": minute(at)}
        for n, at in enumerate(minutes)
    ]
    results: list[Json] = (await newsroom.batch(feed, *commands))["results"]
    return results


async def open_and_settled(newsroom: Newsroom, *feeds: str) -> None:
    for feed in feeds:
        await newsroom.open_feed(feed)
        await newsroom.feed(feed)


def names(frames: list[Frame]) -> list[str]:
    return [frame.event for frame in frames]


async def nothing_more(stream: Stream, seconds: float = 0.3) -> None:
    with pytest.raises(TimeoutError):
        await stream.frame(timeout_seconds=seconds)


# The beginning ----------------------------------------------------------------------------------------------------


async def test_a_stream_begins_with_retry_and_live(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "h")
    async with newsroom.stream(feed, query=newsroom.known(feed)) as stream:
        frame = await stream.frame()
        assert (frame.event, frame.id, frame.data) == ("live", entry["position"], {"feed": feed})
        assert stream.retry_ms is not None and stream.retry_ms > 0
        await nothing_more(stream)


async def test_retry_is_jittered(newsroom: Newsroom, feed: str) -> None:
    seen: set[int | None] = set()
    for _ in range(10):
        async with newsroom.stream(feed, query=newsroom.known(feed)) as stream:
            await stream.frame()
            seen.add(stream.retry_ms)
    assert len(seen) > 1


async def test_a_snapshot_is_the_page_with_its_feed_document(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [3, 1, 2, 2, 5])
    await newsroom.pin(feed, "e1")
    for order, expected in (("newest", ["e4", "e0", "e3"]), ("oldest", ["e1", "e2", "e3"])):
        query: dict[str, str | int] = {**newsroom.known(feed), "snapshot": 3}
        if order == "oldest":
            query["order"] = order
        async with newsroom.stream(feed, query=query) as stream:
            snapshot, live = await stream.frame(), await stream.frame()
            page = await newsroom.page(feed, limit=3, order=order)
            assert (snapshot.event, snapshot.id) == ("snapshot", newsroom.positions[feed])
            assert snapshot.data.keys() >= PAGE_FIELDS | {"feed_document"}
            assert ids(snapshot.data["entries"]) == expected
            feed_document = snapshot.data.pop("feed_document")
            assert snapshot.data == page
            assert feed_document == await newsroom.feed(feed)
            assert feed_document.keys() >= FEED_FIELDS
            assert (live.event, live.id, live.data) == ("live", snapshot.id, {"feed": feed})


async def test_the_cursor_of_a_snapshot_loads_what_is_behind_it(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, list(range(7)))
    async with newsroom.stream(feed, query={**newsroom.known(feed), "snapshot": 3}) as stream:
        snapshot = await stream.frame()
        rest = await newsroom.walk(feed, limit=3, cursor=snapshot.data["next"])
        assert ids(snapshot.data["entries"] + rest) == [f"e{n}" for n in range(6, -1, -1)]


@pytest.mark.parametrize(
    "query", ["snapshot=0", "snapshot=101", "snapshot=x", "snapshot=5&order=sideways", "catch_up=x", "min_position=x"]
)
async def test_an_invalid_stream_request_is_refused_before_it_streams(
    newsroom: Newsroom, feed: str, query: str
) -> None:
    await newsroom.feed(feed)
    name = query.rpartition("&")[2].partition("=")[0]
    answer = await newsroom.get(f"/v1/feeds/{feed}/stream?{query}")
    answer.problem(422, path=f"/{name}")


# Live -------------------------------------------------------------------------------------------------------------


async def test_every_write_is_one_frame_with_the_document_that_its_desk_got(newsroom: Newsroom, feed: str) -> None:
    async with newsroom.stream(feed, query=newsroom.known(feed)) as stream:
        await stream.until("live")
        written: list[tuple[str, Json]] = [
            ("entry", await newsroom.publish(feed, "h", id="one", published_at=minute(1))),
            ("entry", await newsroom.correct(feed, "one", 1, headline="h2", correction_note="n")),
            ("entry", await newsroom.correct(feed, "one", 2, published_at=minute(0))),
            ("entry", await newsroom.pin(feed, "one")),
            ("entry", await newsroom.mark(feed, "one")),
            ("feed", await newsroom.revise_feed(feed, title="A new title")),
            ("entry", await newsroom.unpin(feed, "one")),
            ("feed", await newsroom.revise_feed(feed, status="closed")),
            ("retraction", await newsroom.retract(feed, "one", "Wrong")),
        ]
        for event, document in written:
            frame = await stream.frame()
            assert (frame.event, frame.id, frame.data) == (event, document["position"], document)


async def test_what_appends_nothing_sends_nothing(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    async with newsroom.stream(feed, query=newsroom.known(feed)) as stream:
        await stream.until("live")
        await newsroom.correct(feed, "one", 1, headline="h")
        await newsroom.write("DELETE", f"/v1/feeds/{feed}/entries/one/pin")
        await newsroom.write("POST", f"/v1/feeds/{feed}/entries", {"headline": ""})
        entry = await newsroom.publish(feed, "next")
        assert (await stream.frame()).data == entry


async def test_a_batch_is_one_frame_for_each_position(newsroom: Newsroom, feed: str) -> None:
    async with newsroom.stream(feed, query=newsroom.known(feed)) as stream:
        await stream.until("live")
        commands: list[Json] = [{"type": "publish", "id": f"e{n}", "headline": f"h{n}"} for n in range(150)]
        commands += [{"type": "correct", "id": "e7", "revision": 1, "headline": "c"}, {"type": "pin", "id": "e7"}]
        commands += [{"type": "retract", "id": "e7"}]
        document = await newsroom.batch(feed, *commands)
        frames = await stream.until(lambda frame: frame.id == document["position"])
        assert [frame.id for frame in frames] == [f"1-{n}" for n in range(2, 155)]
        assert names(frames) == ["entry"] * 152 + ["retraction"]
        assert [frames[n].data["pinned"] for n in (150, 151)] == [False, True]


async def test_a_frame_is_sent_only_after_the_read_models_hold_it(newsroom: Newsroom, feed: str) -> None:
    async with newsroom.stream(feed, query=newsroom.known(feed)) as stream:
        await stream.until("live")

        async def write() -> None:
            for n in range(25):
                await newsroom.publish(feed, f"h{n}", id=f"e{n}")

        writing = asyncio.create_task(write())
        for n in range(25):
            frame = await stream.frame()
            page = (await newsroom.get(f"/v1/feeds/{feed}/entries", {"limit": 100})).ok(200).json
            assert position_key(page["position"]) >= position_key(frame.position)
            assert f"e{n}" in ids(page["entries"])
            again = await newsroom.get(f"/v1/feeds/{feed}/entries/{frame.data['id']}")
            assert again.ok(200).json == frame.data
        await writing


async def test_nothing_that_a_desk_types_breaks_out_of_its_line(newsroom: Newsroom, feed: str) -> None:
    hostile = 'a\r\n\r\nevent: bye\ndata: {}\n\nid: 9-9\u2028\u2029\u0085\x0b<!-- </script> \U0001f54a "\\'
    async with newsroom.stream(feed, query=newsroom.known(feed)) as stream:
        await stream.until("live")
        sent = {"headline": hostile, "tags": [hostile[:64]], "authors": [{"name": hostile}]}
        answer = await newsroom.write("POST", f"/v1/feeds/{feed}/entries", sent)
        if answer.status == 422:
            sent.pop("tags")
            answer = await newsroom.write("POST", f"/v1/feeds/{feed}/entries", {"headline": hostile.replace("\r", "")})
        if answer.status == 422:
            answer.problem(422)
            return
        frame = await stream.frame()
        assert (frame.event, frame.data) == ("entry", answer.ok(201).json)
        last = await newsroom.publish(feed, "after")
        assert (await stream.frame()).data == last


async def test_entries_as_large_as_a_request_may_be_are_frames_like_others(newsroom: Newsroom, feed: str) -> None:
    def large(name: str, size: int) -> Json:
        return {"id": name, "body": [{"type": "text", "html": f"{name} " + "é" * size}]}

    async with newsroom.stream(feed, query=newsroom.known(feed)) as stream:
        await stream.until("live")
        alone = await newsroom.publish(feed, **large("alone", 40_000))
        commands = [{"type": "publish", **large(f"e{n}", 30_000)} for n in range(5)]
        together = (await newsroom.batch(feed, *commands))["results"]
        small = await newsroom.publish(feed, "small")
        for document in (alone, *together, small):
            frame = await stream.frame()
            assert (frame.event, frame.data) == ("entry", document)
    async with newsroom.stream(feed, query={**newsroom.known(feed), "snapshot": 5}, last_event_id="1-1") as stream:
        assert [frame.data for frame in (await stream.until("live"))[:-1]] == [alone, *together, small]


async def test_many_readers_get_the_same_frames(newsroom: Newsroom, feed: str) -> None:
    async def read() -> list[Frame]:
        async with newsroom.stream(feed, query=newsroom.known(feed)) as stream:
            await stream.until("live")
            connected.release()
            return await stream.until(lambda frame: frame.id == "1-21")

    connected = asyncio.Semaphore(0)
    readers = [asyncio.create_task(read()) for _ in range(25)]
    async with asyncio.timeout(30):
        for _ in readers:
            await connected.acquire()
    await publish_minutes(newsroom, feed, list(range(20)))
    seen = await asyncio.gather(*readers)
    assert all(frames == seen[0] for frames in seen)
    assert [frame.id for frame in seen[0]] == [f"1-{n}" for n in range(2, 22)]


# Resumption -------------------------------------------------------------------------------------------------------


async def test_a_page_continues_from_its_position(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [1, 2, 3])
    page = await newsroom.page(feed)
    await newsroom.retract(feed, "e0")
    await newsroom.correct(feed, "e1", 1, headline="c")
    last = await newsroom.correct(feed, "e1", 2, headline="cc")
    async with newsroom.stream(feed, query={**newsroom.known(feed), "last_event_id": page["position"]}) as stream:
        frames = await stream.until("live")
        assert [(frame.event, frame.id) for frame in frames] == [
            ("retraction", "1-5"),
            ("entry", "1-7"),
            ("live", "1-7"),
        ]
        assert frames[1].data == last
        entry = await newsroom.publish(feed, "live again")
        assert (await stream.frame()).data == entry


async def test_last_event_id_wins_over_its_query_and_over_snapshot(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [1, 2, 3])
    known = newsroom.known(feed)
    cases: list[tuple[str | None, dict[str, Any], list[str | None]]] = [
        ("1-3", {"last_event_id": "1-1"}, ["1-4", "1-4"]),
        ("1-4", {"snapshot": 5}, ["1-4"]),
        (None, {"last_event_id": "1-2", "snapshot": 5}, ["1-3", "1-4", "1-4"]),
    ]
    for header, query, expected in cases:
        async with newsroom.stream(feed, query={**known, **query}, last_event_id=header) as stream:
            frames = await stream.until("live")
            assert [frame.id for frame in frames] == expected
            assert set(names(frames)) <= {"entry", "live"}


async def test_the_difference_tells_of_the_feed_if_it_changed(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [1, 2])
    await newsroom.revise_feed(feed, title="One")
    revised = await newsroom.revise_feed(feed, title="Two")
    await newsroom.publish(feed, "h", id="last")
    async with newsroom.stream(feed, query=newsroom.known(feed), last_event_id="1-2") as stream:
        folded = FoldedFeed()
        folded.position = "1-2"
        frames = await stream.until("live")
        for frame in frames:
            folded.take(frame)
        assert sorted(names(frames)) == ["entry", "entry", "feed", "live"]
        assert folded.feed_document is not None and folded.feed_document["title"] == "Two"
    async with newsroom.stream(feed, query=newsroom.known(feed), last_event_id=revised["position"]) as stream:
        assert names(await stream.until("live")) == ["entry", "live"]


async def test_a_reader_resumes_from_every_past_position_to_the_same_state(newsroom: Newsroom, feed: str) -> None:
    rng = random.Random(11)
    pages: list[Json] = [await newsroom.page(feed, limit=100)]
    alive: list[str] = []
    for n in range(24):
        act = rng.choice(["publish", "publish", "correct", "retime", "retract", "pin", "feed"])
        if act == "publish" or not alive:
            await newsroom.publish(feed, f"h{n}", id=f"e{n}", published_at=minute(rng.randrange(4)))
            alive.append(f"e{n}")
        elif act in ("correct", "retime"):
            chosen = rng.choice(alive)
            change = {"headline": f"c{n}"} if act == "correct" else {"published_at": minute(30 + n)}
            await newsroom.correct(feed, chosen, (await newsroom.entry(feed, chosen))["revision"], **change)
        elif act == "retract":
            await newsroom.retract(feed, alive.pop(rng.randrange(len(alive))))
        elif act == "pin":
            await newsroom.write("PUT", f"/v1/feeds/{feed}/entries/{rng.choice(alive)}/pin")
        else:
            await newsroom.revise_feed(feed, summary=f"s{n}")
        pages.append(await newsroom.page(feed, limit=100))
    final = pages[-1]

    async def resume(page: Json) -> None:
        folded = FoldedFeed.of_page(page)
        async with newsroom.stream(feed, query=newsroom.known(feed), last_event_id=page["position"]) as stream:
            await stream.follow(folded, final["position"])
        assert folded.entries() == final["entries"]
        assert not folded.resets

    await asyncio.gather(*(resume(page) for page in pages))


async def test_the_reader_of_a_snapshot_hides_what_lies_beyond_its_last_entry(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, list(range(10)))
    for order in ("newest", "oldest"):
        folded = FoldedFeed()
        query = {**newsroom.known(feed), "snapshot": 4, "order": order}
        async with newsroom.stream(feed, query=query) as stream:
            await stream.follow(folded, newsroom.positions[feed])
            await newsroom.publish(feed, "newest of all", published_at=minute(99))
            await newsroom.publish(feed, "oldest of all", published_at=minute(0))
            shown = folded.entries(order)[1]
            await newsroom.correct(feed, shown["id"], shown["revision"], headline="seen")
            await newsroom.retract(feed, folded.entries(order)[2]["id"])
            await stream.follow(folded, newsroom.positions[feed])
        visible = folded.entries(order)
        assert visible == (await newsroom.page(feed, limit=100, order=order))["entries"][: len(visible)]
        # Four were loaded, one of them was retracted, and one came before them.
        assert len(visible) == 4


# Reset ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", ["1-99", "1-99999999999999999999999", "nonsense", "1", "-1", "1-2-3", "1-2,x:1-2"])
async def test_a_position_ahead_of_the_log_or_malformed_resets(newsroom: Newsroom, feed: str, unknown: str) -> None:
    await publish_minutes(newsroom, feed, list(range(25)))
    async with newsroom.stream(feed, query=newsroom.known(feed), last_event_id=unknown) as stream:
        reset, snapshot, live = [await stream.frame() for _ in range(3)]
        assert (reset.event, reset.data) == ("reset", {"feed": feed, "reason": "position"})
        assert (snapshot.event, snapshot.id, len(snapshot.data["entries"])) == ("snapshot", "1-26", 20)
        assert (live.event, live.id) == ("live", "1-26")
    async with newsroom.stream(
        feed, query={**newsroom.known(feed), "snapshot": 3, "order": "oldest", "last_event_id": unknown}
    ) as stream:
        reset, snapshot, live = [await stream.frame() for _ in range(3)]
        assert names([reset, snapshot, live]) == ["reset", "snapshot", "live"]
        assert ids(snapshot.data["entries"]) == ["e0", "e1", "e2"]


@pytest.mark.parametrize("foreign", ["2-1", "0-2", "7-99999"])
async def test_a_position_of_another_epoch_resets(newsroom: Newsroom, feed: str, foreign: str) -> None:
    await publish_minutes(newsroom, feed, [1, 2])
    async with newsroom.stream(feed, query=newsroom.known(feed), last_event_id=foreign) as stream:
        frames = await stream.until("live")
        assert names(frames) == ["reset", "snapshot", "live"]
        assert frames[0].data["reason"] in ("epoch", "position")


async def test_a_reader_too_far_behind_resets_if_it_asked_to(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, list(range(6)))
    for n in range(6):
        await newsroom.correct(feed, f"e{n % 3}", 1 + n // 3, headline=f"c{n}")
    # Three entries changed since 1-7, in six events.
    known = newsroom.known(feed)
    for catch_up, expected in ((3, ["entry"] * 3 + ["live"]), (2, ["reset", "snapshot", "live"])):
        query: dict[str, str | int] = {**known, "catch_up": catch_up, "snapshot": 2}
        async with newsroom.stream(feed, query=query, last_event_id="1-7") as stream:
            frames = await stream.until("live")
            assert names(frames) == expected
            if expected[0] == "reset":
                assert frames[0].data == {"feed": feed, "reason": "behind"}
                assert len(frames[1].data["entries"]) == 2


# min_position, bye ------------------------------------------------------------------------------------------------


async def test_a_stream_of_what_is_not_there_yet_says_bye_and_is_still_a_stream(
    newsroom: Newsroom, feed: str, feed_id: str
) -> None:
    missing = f"{feed_id[:55]}-missing"
    (await newsroom.get(f"/v1/feeds/{missing}/stream")).problem(404)
    started = time.monotonic()

    async def farewell(feed: str, position: str) -> None:
        async with newsroom.stream(feed, query={"min_position": position}) as stream:
            frames = await stream.to_the_end()
            assert names(frames) == ["bye"]
            assert frames[0].data["reason"] == "unavailable"
            assert isinstance(frames[0].data["reconnect_ms"], int)
            assert stream.retry_ms is not None

    await asyncio.gather(farewell(missing, "1-1"), farewell(feed, "1-50"))
    assert time.monotonic() - started > 1.5


async def test_a_stream_waits_for_min_position(newsroom: Newsroom, feed_id: str) -> None:
    async def read() -> list[Frame]:
        async with newsroom.stream(feed_id, query={"min_position": "1-1", "snapshot": 5}) as stream:
            return await stream.until("live")

    reader = asyncio.create_task(read())
    await asyncio.sleep(0.3)
    opened = await newsroom.open_feed(feed_id)
    snapshot, live = await reader
    assert (snapshot.event, live.event) == ("snapshot", "live")
    assert snapshot.data["feed_document"] == opened


async def test_a_ping_comes_every_15_seconds(quiet_reader: QuietReader) -> None:
    _, ping = await asyncio.to_thread(quiet_reader.first, "ping", timeout_seconds=60)
    assert ping.data == {}
    assert next(frame.event for _, frame in quiet_reader.seen) == "live"


# Several feeds ----------------------------------------------------------------------------------------------------


async def test_one_stream_carries_several_feeds(newsroom: Newsroom, feed_id: str) -> None:
    a, b = f"{feed_id[:60]}-a", f"{feed_id[:60]}-b"
    await open_and_settled(newsroom, a, b)
    await newsroom.publish(a, "before", id="before")
    await asyncio.gather(newsroom.feed(a), newsroom.feed(b))
    async with newsroom.stream(a, b) as stream:
        beginning = [await stream.frame(), await stream.frame()]
        assert names(beginning) == ["live", "live"]
        assert sorted(frame.data["feed"] for frame in beginning) == [a, b]
        assert beginning[-1].id == f"{a}:1-2,{b}:1-1"
        first = await newsroom.publish(b, "in b")
        frame = await stream.frame()
        assert (frame.event, frame.id, frame.data) == ("entry", f"{a}:1-2,{b}:1-2", first)
        second = await newsroom.retract(a, "before")
        frame = await stream.frame()
        assert (frame.event, frame.id, frame.data) == ("retraction", f"{a}:1-3,{b}:1-2", second)
        third = await newsroom.revise_feed(b, title="B")
        frame = await stream.frame()
        assert (frame.event, frame.id, frame.data) == ("feed", f"{a}:1-3,{b}:1-3", third)


def take(folded: dict[str, FoldedFeed], frame: Frame) -> None:
    """Fold a frame of a stream of several feeds into the state of its feed."""
    if frame.event in ("ping", "bye"):
        return
    feed = frame.data["id"] if frame.event == "feed" else frame.data["feed"]
    folded[feed].take(frame, positions_of(frame.id)[feed] if frame.id is not None else None)


async def test_several_feeds_resume_from_any_id_each_in_its_own_place(newsroom: Newsroom, feed_id: str) -> None:
    feeds = [f"{feed_id[:60]}-{name}" for name in "abc"]
    await open_and_settled(newsroom, *feeds)
    for feed in feeds:
        await publish_minutes(newsroom, feed, [1, 2, 3, 4])
        await newsroom.feed(feed)
    expected = [*("snapshot", "live") * 3, *("entry",) * 9]
    seen: list[Frame] = []
    async with newsroom.stream(*feeds, query={"snapshot": 100}) as stream:
        seen.extend([await stream.frame() for _ in range(6)])
        for n in range(3):
            for feed in feeds:
                await newsroom.correct(feed, f"e{n}", 1, headline="c")
                seen.append(await stream.frame())
    assert sorted(names(seen)) == sorted(expected)
    pages = {feed: (await newsroom.page(feed, limit=100))["entries"] for feed in feeds}
    for cut in range(1, len(seen) + 1):
        folded = {feed: FoldedFeed() for feed in feeds}
        for frame in seen[:cut]:
            take(folded, frame)
        for state in folded.values():
            state.disconnected()
        known = positions_of(seen[cut - 1].position)
        for feed in feeds:
            # The id never claims what the reader has not got.
            position = folded[feed].position
            assert feed not in known or (position is not None and known[feed] == position)
        async with newsroom.stream(*feeds, query={"snapshot": 100}, last_event_id=seen[cut - 1].id) as stream:
            async with asyncio.timeout(30):
                while not all(state.live for state in folded.values()):
                    take(folded, await stream.frame())
        assert {feed: state.entries() for feed, state in folded.items()} == pages


async def test_resets_of_several_feeds_come_one_by_one(newsroom: Newsroom, feed_id: str) -> None:
    a, b, c = (f"{feed_id[:60]}-{name}" for name in "abc")
    await open_and_settled(newsroom, a, b, c)
    for feed in (a, b, c):
        await publish_minutes(newsroom, feed, [1, 2])
        await newsroom.feed(feed)
    async with newsroom.stream(a, b, c, last_event_id=f"{a}:1-2,{b}:1-77") as stream:
        frames: list[Frame] = []
        while sum(frame.event == "live" for frame in frames) < 3:
            frames.append(await stream.frame())
        per_feed = {feed: [f.event for f in frames if f.data["feed"] == feed] for feed in (a, b, c)}
        assert per_feed == {a: ["entry", "live"], b: ["reset", "snapshot", "live"], c: ["live"]}
        assert positions_of(frames[-1].position) == {a: "1-3", b: "1-3", c: "1-3"}


async def test_sixteen_feeds_fit_on_a_stream_and_no_more(newsroom: Newsroom, feed_id: str) -> None:
    feeds = [f"{feed_id[:58]}-{n:02}" for n in range(17)]
    await asyncio.gather(*(open_and_settled(newsroom, feed) for feed in feeds))
    async with newsroom.stream(*feeds[:16]) as stream:
        frames = [await stream.frame() for _ in range(16)]
        assert set(names(frames)) == {"live"}
        assert list(positions_of(frames[-1].position)) == feeds[:16]
        entry = await newsroom.publish(feeds[15], "h")
        assert (await stream.frame()).data == entry
    many = "&".join(f"feed={feed}" for feed in feeds)
    (await newsroom.get(f"/v1/stream?{many}")).problem(422, path="/feed")


async def test_a_stream_of_no_feed_or_of_an_unknown_one_is_refused(newsroom: Newsroom, feed: str) -> None:
    await newsroom.feed(feed)
    (await newsroom.get("/v1/stream")).problem(422, path="/feed")
    (await newsroom.get(f"/v1/stream?feed={feed}&feed=there-is-no-such-feed")).problem(404)


async def test_private_feeds_stream_to_the_token_only(newsroom: Newsroom, feed: str, feed_id: str) -> None:
    private = f"{feed_id[:55]}-private"
    await newsroom.open_feed(private, visibility="private")
    await asyncio.gather(
        newsroom.feed(feed), newsroom.get(f"/v1/feeds/{private}", newsroom.known(private), token=newsroom.token)
    )
    (await newsroom.get(f"/v1/feeds/{private}/stream")).problem(404)
    (await newsroom.get(f"/v1/stream?feed={feed}&feed={private}")).problem(404)
    async with (
        newsroom.stream(private, token=newsroom.token) as alone,
        newsroom.stream(*sorted((feed, private)), token=newsroom.token) as both,
    ):
        await alone.until("live")
        await both.until("live")
        await both.until("live")
        entry = await newsroom.publish(private, "internal")
        assert (await alone.frame()).data == (await both.frame()).data == entry


async def test_an_open_stream_shows_no_more_of_a_feed_that_turns_private(newsroom: Newsroom, feed: str) -> None:
    async with newsroom.stream(feed, query=newsroom.known(feed)) as stream:
        await stream.until("live")
        await newsroom.revise_feed(feed, visibility="private")
        entry = await newsroom.publish(feed, "Internal from now on")
        (await newsroom.get(f"/v1/feeds/{feed}", {"min_position": entry["position"]}, token=newsroom.token)).ok(200)
        shown: list[Frame] = []
        try:
            while (frame := await stream.frame_or_end(timeout_seconds=1.0)) is not None:
                shown.append(frame)
        except TimeoutError:
            pass
        assert "entry" not in names(shown)


# Slowness ---------------------------------------------------------------------------------------------------------


async def test_a_reader_that_reads_too_slowly_falls_back_to_the_difference(newsroom: Newsroom, feed: str) -> None:
    def small_buffer(address: Any) -> socket.socket:
        family, kind, protocol, _, _ = address
        connection = socket.socket(family, kind, protocol)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        return connection

    entries, rounds = 60, 8
    text = "x" * 12_000

    def body(n: int) -> Json:
        return {"body": [{"type": "text", "html": f"{n} {text}"}]}

    folded = FoldedFeed()
    folded.position = newsroom.positions[feed]
    connector = aiohttp.TCPConnector(socket_factory=small_buffer)
    async with aiohttp.ClientSession(connector=connector) as session:
        slow = Newsroom(session, newsroom.base_url, newsroom.token)
        async with slow.stream(
            feed, query=newsroom.known(feed), last_event_id=folded.position, read_bufsize=4096
        ) as stream:
            folded.take(await stream.frame())
            await newsroom.batch(feed, *({"type": "publish", "id": f"e{n}", **body(n)} for n in range(entries)))
            for revision in range(1, rounds + 1):
                await newsroom.batch(
                    feed,
                    *(
                        {"type": "correct", "id": f"e{n}", "revision": revision, **body(n + 1000 * revision)}
                        for n in range(entries)
                    ),
                )
            page = await newsroom.page(feed, limit=100)
            # Its frames were never all queued: as it reads again, what it missed comes folded.
            frames = 0
            async with asyncio.timeout(60):
                while folded.position != page["position"]:
                    frame = await stream.frame()
                    if folded.position and number(frame.position) > number(folded.position) + 1:
                        folded.disconnected()
                    folded.take(frame)
                    frames += frame.event == "entry"
            assert frames < entries * (rounds + 1)
            assert folded.entries() == sorted(page["entries"], key=order_key, reverse=True)
            last = await newsroom.publish(feed, "And live again", id="last")
            following = await stream.until("entry")
            assert following[-1].data == last and last["position"] == later(page["position"])

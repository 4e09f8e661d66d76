"""The first words of a stream: every way to begin, and that nothing is lost or repeated whatever is committed meanwhile."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.gateway import reads, tail, waiting
from services.gateway import streams as module
from services.gateway.reads import Reads
from shared.epochs.raising import Epochs, Raise
from shared.keys import Keys
from tests.integration.conftest import RunningServer
from tests.integration.gateway_kit import (
    SIGNED,
    Event,
    Gate,
    Held,
    Newsroom,
    Running,
    assert_equals_page,
    eventually,
    minute,
    nothing_is_kept,
    number,
    on_one_server,
    raw_exchange,
    running_gateway,
)

pytestmark = on_one_server

FEED = "story"
STREAM = f"/v1/feeds/{FEED}/stream"


@pytest.fixture
async def gateway(server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """It sweeps once only: what these tests see comes by frames and by the gaps that they show."""
    monkeypatch.setattr(tail, "SWEEP_SECONDS", 3600)
    async with running_gateway(server.url, keys) as running:
        yield running
        await running.at_rest()


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


# Ways to begin


async def test_a_stream_of_nothing_begins_live_at_the_present(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 3)
    async with await gateway.stream(STREAM) as stream:
        first, live = await stream.until("live")
        assert first.kind == "retry"
        assert live == Event("live", "1-4", {"feed": FEED})
        await newsroom.say(FEED, "e4")
        assert (await stream.next()).n == 5


async def test_a_snapshot_is_the_page_and_live_follows(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 5)
    await newsroom.pin(FEED, "e1")
    await newsroom.commit_all(FEED)
    for order in ("newest", "oldest"):
        async with await gateway.stream(f"{STREAM}?snapshot=2&order={order}") as stream:
            _, snapshot, live = await stream.until("live")
            page = await gateway.page(FEED, f"limit=2&order={order}")
            feed = (await gateway.get(f"/v1/feeds/{FEED}")).json
            assert snapshot == Event("snapshot", "1-7", {**page, "feed_document": feed})
            assert live.id == "1-7"


async def test_a_reader_resumes_after_its_position_and_not_with_a_snapshot(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 4)
    async with await gateway.stream(f"{STREAM}?last_event_id=1-3&snapshot=2") as stream:
        assert [(event.kind, event.id) for event in await stream.until("live")] == [
            ("retry", None),
            ("entry", "1-4"),
            ("entry", "1-5"),
            ("live", "1-5"),
        ]


async def test_the_header_wins_over_the_parameter(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 4)
    path = f"{STREAM}?last_event_id=1-1"
    async with await gateway.stream(path, headers={"Last-Event-ID": "1-4"}) as stream:
        assert [event.id for event in await stream.until("live")] == [None, "1-5", "1-5"]
    async with await gateway.stream(path, headers={"Last-Event-ID": ""}) as stream:
        assert [event.id for event in await stream.until("live")][1] == "1-2", "an empty one says nothing"


@pytest.mark.parametrize("last", ["1-3", "1-1", "1-2"])
async def test_a_difference_holds_the_feed_document_where_it_changed(
    newsroom: Newsroom, gateway: Running, last: str
) -> None:
    await newsroom.story(FEED, 1)
    await newsroom.revise(FEED, title="New title")
    await newsroom.publish(FEED, "e2")
    await newsroom.retract(FEED, "e1")
    await newsroom.commit_all(FEED)
    async with await gateway.stream(f"{STREAM}?last_event_id={last}") as stream:
        expected = [("feed", "1-3"), ("entry", "1-4"), ("retraction", "1-5"), ("live", "1-5")]
        found = [(event.kind, event.id) for event in (await stream.until("live"))[1:]]
        assert found == [item for item in expected if item[0] != "feed" or number(last) < 3]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("1-999", "position"),
        ("2-1", "position"),
        ("nonsense", "position"),
        ("1-5x", "position"),
        ("story:1-2", "position"),
        ("-", "position"),
        ("0-0", "position"),
        ("1-" + "9" * 18, "position"),
        ("1-" + "9" * 400, "position"),
        ("%00", "position"),
        ("%FF", "position"),
        ("%E2%80%A8", "position"),
    ],
)
async def test_an_id_that_is_no_position_of_this_log_resets_with_a_snapshot(
    newsroom: Newsroom, gateway: Running, last: str, reason: str
) -> None:
    await newsroom.story(FEED, 3)
    async with await gateway.stream(f"{STREAM}?last_event_id={last}") as stream:
        events = await stream.until("live")
        assert kinds(events) == ["retry", "reset", "snapshot", "live"]
        assert events[1] == Event("reset", None, {"feed": FEED, "reason": reason})
        assert len(events[2].data["entries"]) == 3
        await newsroom.say(FEED, "e4")
        assert (await stream.next()).id == "1-5"


async def test_a_header_of_raw_bytes_resets_too(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM, headers={"Last-Event-ID": "1-1\udcff"}) as stream:
        assert kinds(await stream.until("live")) == ["retry", "reset", "snapshot", "live"]


async def test_a_snapshot_after_a_reset_has_the_size_and_order_asked_for(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 30)
    async with await gateway.stream(f"{STREAM}?last_event_id=x") as stream:
        assert len((await stream.until("snapshot"))[-1].data["entries"]) == 20
    async with await gateway.stream(f"{STREAM}?last_event_id=x&snapshot=3&order=oldest") as stream:
        snapshot = (await stream.until("snapshot"))[-1].data
        assert [entry["id"] for entry in snapshot["entries"]] == ["e1", "e2", "e3"]


async def test_a_position_of_an_older_epoch_resets(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 2)
    await _raise_epoch(newsroom)
    async with await gateway.stream(f"{STREAM}?last_event_id=1-2") as stream:
        assert (await stream.until("reset"))[-1].data["reason"] == "epoch"
        await stream.until("live")
    async with await gateway.stream(f"{STREAM}?last_event_id=2-4") as stream:
        assert kinds(await stream.until("live")) == ["retry", "live"]


async def _raise_epoch(newsroom: Newsroom) -> None:
    """The next event is of epoch 2, because history may have been lost; n goes on."""
    epochs = Epochs(newsroom.redis, newsroom.keys)
    [standing] = await epochs.standings([FEED])
    process = await epochs.process()
    assert await epochs.raise_all([Raise(standing, "epoch", "a test says so")], server=process.server) == ["raised"]
    await newsroom.commit_all(FEED)


@pytest.mark.parametrize(("catch_up", "resets"), [(3, False), (2, True), (0, True)])
async def test_a_reader_too_far_behind_is_reset_if_it_wished_so(
    newsroom: Newsroom, gateway: Running, catch_up: int, resets: bool
) -> None:
    await newsroom.story(FEED, 4)
    async with await gateway.stream(f"{STREAM}?last_event_id=1-2&catch_up={catch_up}") as stream:
        events = await stream.until("live")
        assert ("reset" in kinds(events)) == resets
        if resets:
            assert events[1].data["reason"] == "behind"


async def test_a_difference_of_more_than_one_chunk_comes_whole_with_one_live_at_its_end(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 9)
    await newsroom.revise(FEED, title="In the middle")
    await newsroom.publish(FEED, "e10")
    await newsroom.commit_all(FEED)
    monkeypatch.setattr(reads, "DIFFERENCE_BYTES_MAX", 900)
    async with await gateway.stream(f"{STREAM}?last_event_id=1-1") as stream:
        events = (await stream.until("live"))[1:]
        assert [event.n for event in events] == [*range(2, 13), 12]
        assert kinds(events) == ["entry"] * 9 + ["feed", "entry", "live"]
        assert gateway.metrics.registry.get_sample_value("dateline_catch_ups_total") or 0 >= 3


async def test_a_difference_goes_on_as_one_to_its_live_even_where_the_ring_reaches_back(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first chunk left positions out: without its end and its `live` a client could not tell that nothing is missing."""
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as other:
        await other.until("live")
        for i in range(2, 9):
            await newsroom.say(FEED, f"e{i}")
        for i in (2, 3, 8):
            await newsroom.correct(FEED, f"e{i}", revision=1, headline="corrected")
        await newsroom.commit_all(FEED)
        await other.until_n(12)  # all of it is in the ring
        monkeypatch.setattr(reads, "DIFFERENCE_BYTES_MAX", 900)
        async with await gateway.stream(f"{STREAM}?last_event_id=1-2") as stream:
            events = (await stream.until("live"))[1:]
            assert [event.n for event in events] == [5, 6, 7, 8, 10, 11, 12, 12]


async def test_a_parameter_that_is_not_valid_is_refused_before_it_streams(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED)
    for query in ("snapshot=0", "snapshot=101", "order=x", "catch_up=-1", "min_position=1", "snapshot=%F0%9F%93%B0"):
        answer = await gateway.get(f"{STREAM}?{query}")
        assert answer.status == 422, query
    assert (await gateway.get("/v1/feeds/no-such-feed/stream")).status == 404


# Commits between the first read and the point where the reader is live


BEGINNINGS = {
    "nothing": ("", "document"),
    "snapshot": ("?snapshot=100", "page"),
    "resume": ("?last_event_id=1-1", "difference"),
    "reset": ("?last_event_id=9-9&snapshot=100", "page"),
}


@pytest.mark.parametrize("frames", [True, False], ids=["frames come", "frames are lost"])
@pytest.mark.parametrize("others", [True, False], ids=["among others", "alone"])
@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_commits_between_the_first_read_and_the_first_frame_are_neither_lost_nor_repeated(
    newsroom: Newsroom,
    gateway: Running,
    monkeypatch: pytest.MonkeyPatch,
    beginning: str,
    others: bool,
    frames: bool,
) -> None:
    """The answer of the handshake's read is held back while positions are committed and their frames come or do not."""
    nothing_is_kept(monkeypatch)
    await newsroom.story(FEED, 2)
    query, method = BEGINNINGS[beginning]
    other = await gateway.stream(f"{STREAM}?last_event_id=1-1") if others else None
    others_held = Held(at="1-1")
    if other is not None:
        others_held.take(await other.until("live"))
    # A stream that begins with nothing reads the document twice: once to know the feed, once for its position.
    seen = 0

    def second(*args: object, **kwargs: object) -> bool:
        nonlocal seen
        seen += 1
        return beginning != "nothing" or seen == 2

    gate = Gate(monkeypatch, method, when=second)
    held = Held(at="1-3" if beginning == "nothing" else "1-1")
    async with await gateway.stream(STREAM + query) as stream:
        await gate.reached()
        await newsroom.publish(FEED, "during-1")
        await newsroom.commit_all(FEED, frames=frames)
        await newsroom.correct(FEED, "during-1", revision=1, headline="corrected")
        await newsroom.retract(FEED, "e1")
        await newsroom.commit_all(FEED, one_by_one=True, frames=frames)
        if frames and others:
            await gateway.followed(FEED, 6)
        elif frames:
            await eventually(lambda: len(_only_followed(gateway)) == 3, what="the tail has brought the frames")
        gate.open()
        await newsroom.say(FEED, "after")
        if frames:
            # What had come by the time of the read is in it; what comes after it comes as one frame each, and only so.
            events = await stream.until_n(7)
            assert [event.n for event in events[-4:]] == [4, 5, 6, 7]
            assert "live" not in kinds(events[-4:])
            held.take(events)
        await held.follow(stream, 7)
        if beginning == "nothing":
            assert [d["id"] for d in held.documents.values()] == ["during-1", "e1", "after"]
            assert held.documents["during-1"]["headline"] == "corrected"
        else:
            await assert_equals_page(gateway, FEED, held)
    if other is not None:
        await others_held.follow(other, 7)
        await assert_equals_page(gateway, FEED, others_held)
        other.close()


def _only_followed(gateway: Running) -> list[object]:
    (followed,) = gateway.readers.following.feeds()
    return list(followed.backlog)


async def test_what_is_committed_before_the_read_is_in_it_and_comes_no_second_time(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has joined, its frames are kept, and the read that follows holds them already."""
    await newsroom.story(FEED, 2)
    original = Reads.page

    async def late(reads: Reads, *args: object, **kwargs: object) -> object:
        await newsroom.say(FEED, "during")
        await eventually(lambda: len(_only_followed(gateway)) == 1)
        return await original(reads, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Reads, "page", late)
    async with await gateway.stream(f"{STREAM}?snapshot=100") as stream:
        held = Held()
        held.take(await stream.until("live"))
        assert held.last == 4
        await newsroom.say(FEED, "after")
        event = await stream.next()
        assert (event.kind, event.n, event.data["id"]) == ("entry", 5, "after")


async def test_many_readers_that_begin_at_one_moment_share_one_read(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 3)
    gate = Gate(monkeypatch, "difference")
    streams = [await gateway.stream(f"{STREAM}?last_event_id=1-1") for _ in range(12)]
    await gate.reached()
    await eventually(lambda: len(gateway.readers) == 12)
    streams.pop(0).cut()  # who leaves takes the answer from nobody
    await eventually(lambda: len(gateway.readers) == 11)
    gate.open()
    for stream in streams:
        assert kinds(await stream.until("live")) == ["retry", "entry", "entry", "entry", "live"]
        stream.close()
    assert gate.calls == 1


# Several feeds


async def test_ids_of_several_feeds_name_each_in_feed_order(newsroom: Newsroom, gateway: Running) -> None:
    for feed in ("beta", "alpha"):
        await newsroom.story(feed, 1)
    async with await gateway.stream("/v1/stream?feed=beta&feed=alpha&feed=beta") as stream:
        events = await stream.until("live", times=2)
        assert [(event.id, event.data["feed"]) for event in events[1:]] == [
            ("alpha:1-2", "alpha"),
            ("alpha:1-2,beta:1-2", "beta"),
        ]
        await newsroom.say("beta", "e2")
        await newsroom.say("alpha", "e2")
        assert (await stream.next()).id == "alpha:1-2,beta:1-3"
        assert (await stream.next()).id == "alpha:1-3,beta:1-3"


async def test_a_feed_that_is_missing_from_the_id_begins_as_new(newsroom: Newsroom, gateway: Running) -> None:
    for feed in ("alpha", "beta"):
        await newsroom.story(feed, 3)
    path = "/v1/stream?feed=alpha&feed=beta&snapshot=2&last_event_id=alpha:1-3"
    async with await gateway.stream(path) as stream:
        events = (await stream.until("live", times=2))[1:]
        assert [(event.kind, event.id) for event in events] == [
            ("entry", "alpha:1-4"),
            ("live", "alpha:1-4"),
            ("snapshot", "alpha:1-4,beta:1-4"),
            ("live", "alpha:1-4,beta:1-4"),
        ]


async def test_a_reader_cut_after_any_event_of_its_beginning_resumes_right(
    newsroom: Newsroom, gateway: Running
) -> None:
    """Wherever the stream of several feeds is cut, its last id continues every feed without gap or repeat."""
    feeds = ("alpha", "beta", "gamma")
    for feed in feeds:
        await newsroom.story(feed, 2)
    query = "/v1/stream?" + "&".join(f"feed={feed}" for feed in feeds) + "&snapshot=50"
    async with await gateway.stream(query) as whole:
        events = await whole.until("live", times=3)
    for cut_after in range(1, len(events) + 1):
        held = {feed: Held() for feed in feeds}
        last_id = None
        async with await gateway.stream(query) as stream:
            for _ in range(cut_after):
                last_id = _hold(held, await stream.next()) or last_id
        for feed in feeds:
            await newsroom.say(feed, f"after-{cut_after}")
        async with await gateway.stream(query, headers={"Last-Event-ID": last_id} if last_id else None) as stream:
            # Feeds that the id names go on by the difference, the others begin by a snapshot; each ends with `live`.
            lives = 0
            while lives < 3:
                event = await stream.next()
                lives += event.kind == "live"
                _hold(held, event)
        for feed in feeds:
            await assert_equals_page(gateway, feed, held[feed])


def _hold(held: dict[str, Held], event: Event) -> str | None:
    """Fold an event of a stream of several feeds: its position is that of the feed that it is about."""
    if event.kind in ("retry", "ping"):
        return None
    feed = event.data["id"] if event.kind == "feed" else event.data["feed"]
    assert event.id is not None
    positions = dict(pair.rsplit(":", 1) for pair in event.id.split(","))
    assert list(positions) == sorted(positions)
    held[feed].take_one(event._replace(id=positions[feed]))
    return event.id


async def test_resets_come_for_the_feeds_that_need_them_alone(newsroom: Newsroom, gateway: Running) -> None:
    for feed in ("alpha", "beta", "gamma"):
        await newsroom.story(feed, 2)
    path = "/v1/stream?feed=alpha&feed=beta&feed=gamma&last_event_id=alpha:1-3,beta:1-99,gamma:1-2"
    async with await gateway.stream(path) as stream:
        events = (await stream.until("live", times=3))[1:]
        assert [(event.kind, event.id) for event in events] == [
            ("live", "alpha:1-3,beta:1-99,gamma:1-2"),
            ("reset", None),
            ("snapshot", "alpha:1-3,beta:1-3,gamma:1-2"),
            ("live", "alpha:1-3,beta:1-3,gamma:1-2"),
            ("entry", "alpha:1-3,beta:1-3,gamma:1-3"),
            ("live", "alpha:1-3,beta:1-3,gamma:1-3"),
        ]
        assert events[1].data == {"feed": "beta", "reason": "position"}


@pytest.mark.parametrize(
    "last", ["1-2", "alpha", "alpha:1-2;beta:1-2", "alpha:", ":", ",", ":1-2", "Alpha:1-2", "alpha:1-2,", "alpha:x"]
)
async def test_an_id_that_is_no_list_of_pairs_resets_every_feed(
    newsroom: Newsroom, gateway: Running, last: str
) -> None:
    for feed in ("alpha", "beta"):
        await newsroom.story(feed, 1)
    async with await gateway.stream("/v1/stream?feed=alpha&feed=beta", headers={"Last-Event-ID": last}) as stream:
        events = await stream.until("live", times=2)
        assert kinds(events) == ["retry", *["reset", "snapshot", "live"] * 2]


async def test_a_stream_names_1_to_16_feeds_that_are_there(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story("alpha")
    assert (await gateway.get("/v1/stream")).status == 422
    assert (await gateway.get("/v1/stream?" + "&".join(f"feed=f{i}" for i in range(17)))).status == 422
    assert (await gateway.get("/v1/stream?feed=alpha&feed=nowhere")).status == 404
    assert (await gateway.get("/v1/stream?feed=alpha&min_position=1-1")).status == 422


# min_position on a stream


async def test_a_stream_waits_for_min_position_and_then_shows_it(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    position = await newsroom.publish(FEED, "e2")
    opening = asyncio.create_task(gateway.stream(f"{STREAM}?snapshot=5&min_position={position}"))
    await eventually(lambda: gateway.gateway._tail._arrivals._waiting)
    await newsroom.commit(FEED)
    async with await opening as stream:
        snapshot = (await stream.until("snapshot"))[-1]
        assert snapshot.n >= position.n


async def test_a_stream_that_waited_in_vain_says_bye_inside_a_200(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "WAIT_SECONDS", 0.05)
    await newsroom.story(FEED, 1)
    position = await newsroom.publish(FEED, "e2")
    for path in (
        f"{STREAM}?min_position={position}",
        "/v1/feeds/not-yet/stream?min_position=1-1",
        f"/v1/stream?feed={FEED}&min_position={FEED}:{position}",
    ):
        async with await gateway.stream(path) as stream:
            events = await stream.rest()
            assert kinds(events) == ["retry", "bye"]
            assert events[1].data["reason"] == "unavailable"


async def test_a_resuming_reader_that_knows_more_than_the_read_models_waits_for_them(
    newsroom: Newsroom, gateway: Running
) -> None:
    """It comes from another gateway, or knows the position of its own write."""
    await newsroom.story(FEED, 1)
    position = await newsroom.publish(FEED, "e2")
    opening = asyncio.create_task(gateway.stream(f"{STREAM}?last_event_id={position}"))
    await eventually(lambda: gateway.gateway._tail._arrivals._waiting)
    await newsroom.publish(FEED, "e3")
    await newsroom.commit_all(FEED, one_by_one=True)
    async with await opening as stream:
        held = Held(at=position)
        await held.follow(stream, 4)
        assert [document["id"] for document in held.entries] == ["e3"]


# Privacy


@pytest.mark.parametrize("query", ["", "?snapshot=5", "?last_event_id=1-1", "?last_event_id=nonsense"])
async def test_a_feed_that_turns_private_during_the_handshake_is_not_shown(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """It was public when the request was let in; the read that follows says otherwise."""
    nothing_is_kept(monkeypatch)
    await newsroom.story(FEED, 2)
    original = Reads.document
    turned = False

    async def turning(reads: Reads, feed: str, entry: str | None = None) -> object:
        nonlocal turned
        found = await original(reads, feed, entry)
        if not turned:
            turned = True
            await newsroom.revise(FEED, visibility="private", title="Nobody may know")
            await newsroom.commit_all(FEED, frames=False)
        return found

    monkeypatch.setattr(Reads, "document", turning)
    async with await gateway.stream(STREAM + query) as stream:
        events = await stream.rest()
        assert kinds(events)[-1] == "bye"
        assert events[-1].data["reason"] == "expired"
        assert set(kinds(events)) <= {"retry", "reset", "bye"}
    assert (await gateway.get(STREAM + query)).status == 404


async def test_a_reader_that_waits_for_its_position_is_not_shown_what_turned_private_meanwhile(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 1)
    position = await newsroom.publish(FEED, "e2")
    await newsroom.revise(FEED, visibility="private", title="Nobody may know")
    await newsroom.publish(FEED, "secret")
    opening = asyncio.create_task(gateway.get(f"{STREAM}?last_event_id={position}"))
    await eventually(lambda: gateway.gateway._tail._arrivals._waiting)
    await newsroom.commit_all(FEED, frames=False)
    answer = await opening
    assert answer.status == 404 or (b"bye" in answer.body and b"unavailable" in answer.body)
    assert b"Nobody may know" not in answer.body and b"secret" not in answer.body


async def test_a_private_frame_that_comes_during_the_handshake_ends_it(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public page is read and held back; the frame that makes the feed private comes; then the page would be sent."""
    await newsroom.story(FEED, 2)
    gate = Gate(monkeypatch, "page")
    async with await gateway.stream(f"{STREAM}?snapshot=5") as stream:
        await gate.reached()
        # Known here because another reader stands at this position.
        async with await gateway.stream(STREAM, headers=SIGNED) as signed:
            await signed.until("live")
            await newsroom.revise(FEED, visibility="private", title="Nobody may know")
            await newsroom.commit_all(FEED)
            assert (await signed.until("feed"))[-1].data["visibility"] == "private"
            gate.open()
            events = await stream.rest()
            assert kinds(events) == ["retry", "bye"]
            assert events[-1].data["reason"] == "expired"


async def test_a_token_sees_the_private_feed_through_every_beginning(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 2, visibility="private")
    for query in ("", "?snapshot=5", "?last_event_id=1-1", "?last_event_id=nonsense"):
        assert (await gateway.get(STREAM + query)).status == 404
        async with await gateway.stream(STREAM + query, headers=SIGNED) as stream:
            await stream.until("live")


# Capacity, HEAD and odd clients


async def test_at_capacity_a_stream_is_refused_inside_a_200(
    newsroom: Newsroom, server: RunningServer, keys: Keys
) -> None:
    await newsroom.story(FEED, 1)
    async with running_gateway(server.url, keys, readers_max=2) as gateway:
        streams = [await gateway.stream(STREAM) for _ in range(2)]
        for stream in streams:
            await stream.until("live")
        async with await gateway.stream(STREAM) as refused:
            events = await refused.rest()
            assert kinds(events) == ["retry", "bye"]
            assert events[1].data["reason"] == "capacity"
        streams.pop().cut()
        await eventually(lambda: not gateway.readers.full)
        async with await gateway.stream(STREAM) as stream:
            await stream.until("live")
        streams.pop().close()
        await gateway.at_rest()


async def test_readers_that_come_at_one_moment_do_not_overrun_the_capacity(
    newsroom: Newsroom, server: RunningServer, keys: Keys
) -> None:
    await newsroom.story(FEED, 1)
    async with running_gateway(server.url, keys, readers_max=3) as gateway:
        streams = await asyncio.gather(*(gateway.stream(STREAM) for _ in range(12)))
        outcomes = [(await stream.until("live" if i < 0 else "retry"))[-1].kind for i, stream in enumerate(streams)]
        assert outcomes == ["retry"] * 12
        seconds = [(await stream.next()).kind for stream in streams]
        assert sorted(seconds) == ["bye"] * 9 + ["live"] * 3
        for stream in streams:
            stream.close()
        await gateway.at_rest()


async def test_head_of_a_stream_has_its_headers_and_no_reader(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    raw = await raw_exchange(gateway.port, f"HEAD {STREAM} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"text/event-stream" in head
    assert body == b""
    assert not gateway.readers


async def test_http_1_0_gets_the_same_bytes(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(f"{STREAM}?last_event_id=1-1", version="1.0") as stream:
        assert kinds(await stream.until("live")) == ["retry", "entry", "live"]
        await newsroom.say(FEED, "e2")
        assert (await stream.next()).n == 3


async def test_a_stream_on_a_connection_that_was_used_before_works(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.readuntil(b'{"status":"alive"}')
    writer.write(f"GET {STREAM} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert b'"feed":"story"' in await reader.readuntil(b'"}\n\n')
    await newsroom.say(FEED, "e2")
    assert b"id: 1-3\n" in await reader.readuntil(b"}\n\n")
    writer.close()


@pytest.mark.parametrize(
    "after",
    [
        b"GET /v1/feeds/story HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00\xff garbage that is no request \r\n\r\n" * 10,
        b"GET /v1/feeds/story/stream HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
        b"x" * 300_000,
    ],
    ids=["a second request", "garbage", "many requests", "a flood"],
)
async def test_what_comes_behind_the_request_is_never_answered_into_the_stream(
    newsroom: Newsroom, gateway: Running, after: bytes
) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        await stream.send(after)
        await newsroom.say(FEED, "e2")
        assert (await stream.next()).n == 3
        assert len(gateway.readers) == 1


async def test_a_second_request_in_the_same_segment_is_never_answered_into_the_stream(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 1)
    second = b"GET /v1/feeds/story HTTP/1.1\r\nHost: x\r\n\r\n"
    async with await gateway.stream(STREAM, after=second * 3) as stream:
        await stream.until("live")
        await newsroom.say(FEED, "e2")
        assert (await stream.next()).n == 3


async def test_a_client_that_half_closes_leaves_nothing_behind(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        stream.half_close()
        await gateway.at_rest()


async def test_a_body_behind_a_stream_request_is_discarded_and_its_end_is_noticed(
    newsroom: Newsroom, gateway: Running
) -> None:
    """Reading was paused for a body that nobody takes: a client that leaves must be noticed all the same."""
    await newsroom.story(FEED, 1)
    stream = await gateway.stream(STREAM, headers={"Content-Length": "5000000"}, after=b"x" * 2_000_000)
    await stream.until("live")
    await newsroom.say(FEED, "e2")
    assert (await stream.next()).n == 3
    stream.close()
    await gateway.at_rest()


async def test_a_client_that_leaves_in_the_middle_of_its_handshake_leaves_nothing_behind(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 1)
    gate = Gate(monkeypatch, "page")
    stream = await gateway.stream(f"{STREAM}?snapshot=5")
    await gate.reached()
    stream.cut()
    await eventually(lambda: not gateway.readers)
    gate.open()
    await gateway.at_rest()


async def test_a_failing_read_ends_the_handshake_with_bye(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong after the 200: never a second head in the stream, never a reader that waits for ever."""
    await newsroom.story(FEED, 1)

    async def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Reads, "page", broken)
    async with await gateway.stream(f"{STREAM}?snapshot=5") as stream:
        events = await stream.rest()
        assert kinds(events) == ["retry", "bye"]
        assert events[1].data["reason"] == "unavailable"


def test_a_stream_may_carry_16_feeds() -> None:
    assert module.FEEDS_MAX == 16
    assert minute(1) < minute(2)

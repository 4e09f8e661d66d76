"""Readers that are live, slow, stuck, cut or stranded: none delays another, none grows without bound, none misses anything."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.gateway import catch_ups, reads, tail
from services.gateway import following as following_module
from services.gateway import readers as module
from services.gateway import ring as ring_module
from services.gateway.connection import SEND_BUFFER_BYTES, TRANSPORT_BYTES, TransportConnection
from services.gateway.differences import Differences, Folded
from services.gateway.followed import Followed
from services.gateway.hub import Hub, _socket
from services.gateway.reader import Reader
from services.gateway.reads import Reads
from services.gateway.ring import Ready
from shared.epochs.raising import Epochs, Raise
from shared.errors import Unavailable
from shared.keys import Keys
from shared.position import Position
from tests.integration.conftest import RunningServer
from tests.integration.gateway_kit import (
    SIGNED,
    Event,
    Gate,
    Held,
    Newsroom,
    Running,
    Stream,
    assert_equals_page,
    eventually,
    on_one_server,
    running_gateway,
)

pytestmark = on_one_server

FEED = "story"
STREAM = f"/v1/feeds/{FEED}/stream"
SMALL_WINDOW = 4096


@pytest.fixture
async def gateway(server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """It sweeps once only: what these tests see comes by frames and by the gaps that they show."""
    monkeypatch.setattr(tail, "SWEEP_SECONDS", 3600)
    async with running_gateway(server.url, keys) as running:
        yield running
        await running.at_rest()


def large(text: str, size: int = 8_000) -> list[dict[str, str]]:
    return [{"type": "text", "html": text[0] * size}]


async def flood(newsroom: Newsroom, count: int, *, name: str = "x", size: int = 8_000) -> None:
    """`count` entries of `size` bytes, committed in batches."""
    for start in range(0, count, 20):
        await newsroom.batch(
            FEED,
            [
                {"type": "publish", "id": f"{name}{i}", "headline": "h", "body": large(name, size)}
                for i in range(start, min(start + 20, count))
            ],
        )
        await newsroom.commit_all(FEED)


def waiting_bytes(reader: Reader) -> int:
    """What waits in user space for this reader."""
    connection: Any = reader.connection
    if isinstance(connection, TransportConnection):
        return connection._transport.get_write_buffer_size()
    return len(connection._rest or b"")


def send_buffer_bytes(reader: Reader) -> int:
    connection: Any = reader.connection
    if isinstance(connection, TransportConnection):
        size: int = connection._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        return size
    with _socket(connection.fd) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@pytest.fixture(params=["descriptor", "transport"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the descriptor in the hub, and where a connection must stay with its transport."""
    if request.param == "transport":
        monkeypatch.setattr(Hub, "take", lambda hub, request: None)
    return str(request.param)


async def stuck_reader(newsroom: Newsroom, gateway: Running, path: str = f"{STREAM}?last_event_id=1-1") -> Stream:
    """A live reader that has stopped reading, with its socket full."""
    stuck = await gateway.stream(path, receive_buffer_bytes=SMALL_WINDOW)
    await stuck.until("live")
    reader = gateway.reader
    await flood(newsroom, 100)
    await eventually(lambda: reader.connection.full, what="the socket is full")
    return stuck


# Fan-out


async def test_every_live_reader_gets_every_position_as_one_frame(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED)
    streams = [await gateway.stream(STREAM) for _ in range(5)]
    for stream in streams:
        await stream.until("live")
    await newsroom.batch(FEED, [{"type": "publish", "id": f"e{i}", "headline": "h"} for i in range(20)])
    await newsroom.retract(FEED, "e3")
    await newsroom.revise(FEED, title="New")
    await newsroom.pin(FEED, "e4")
    await newsroom.commit_all(FEED)
    for stream in streams:
        events = [await stream.next() for _ in range(23)]
        assert [event.n for event in events] == list(range(2, 25))
        assert [event.kind for event in events] == ["entry"] * 20 + ["retraction", "feed", "entry"]
        stream.close()


async def test_a_feed_frame_is_the_document_of_that_moment(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 2)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        await newsroom.revise(FEED, title="First")
        await newsroom.publish(FEED, "e3")
        await newsroom.revise(FEED, title="Second")
        await newsroom.commit_all(FEED)
        first, _, second = [await stream.next() for _ in range(3)]
        assert (first.data["title"], first.data["entry_count"], first.data["position"]) == ("First", 2, "1-4")
        assert (second.data["title"], second.data["entry_count"], second.data["position"]) == ("Second", 3, "1-6")


async def test_readers_of_different_sets_of_feeds_get_ids_of_their_own(newsroom: Newsroom, gateway: Running) -> None:
    """All feeds stand at equal positions, so that only the names tell the ids apart."""
    for feed in ("alpha", "beta", "gamma"):
        await newsroom.story(feed, 1)
    sets = [("alpha", "beta"), ("beta", "gamma"), ("alpha", "gamma"), ("beta",), ("alpha", "beta")]
    streams = [await gateway.stream("/v1/stream?" + "&".join(f"feed={feed}" for feed in feeds)) for feeds in sets]
    for feeds, stream in zip(sets, streams, strict=True):
        await stream.until("live", times=len(feeds))
    for feed in ("beta", "alpha", "gamma"):
        await newsroom.say(feed, "e2")
    for feeds, stream in zip(sets, streams, strict=True):
        at = dict.fromkeys(feeds, "1-2")
        for feed in ("beta", "alpha", "gamma"):
            if feed in feeds:
                at[feed] = "1-3"
                event = await stream.next()
                assert event.data["feed"] == feed
                assert event.id == ",".join(f"{name}:{at[name]}" for name in sorted(feeds))
        stream.close()


async def test_a_frame_is_rendered_once_for_readers_that_stand_alike(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for feed in ("alpha", "beta"):
        await newsroom.story(feed)
    calls = 0
    original = Ready.wire_with

    def counted(ready: Ready, position: str) -> bytes:
        nonlocal calls
        calls += ready.feed == "alpha" and ready.position.n == 2
        return original(ready, position)

    monkeypatch.setattr(Ready, "wire_with", counted)
    paths = ["/v1/feeds/alpha/stream"] * 4 + ["/v1/stream?feed=alpha&feed=beta"] * 4
    streams = [await gateway.stream(path) for path in paths]
    for stream, path in zip(streams, paths, strict=True):
        await stream.until("live", times=2 if "feed=" in path else 1)
    await newsroom.say("alpha", "e1")
    for stream in streams:
        assert (await stream.next()).kind == "entry"
        stream.close()
    assert calls == 2


async def test_a_quarantined_position_is_told_as_live(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream, await gateway.stream(f"{STREAM}?last_event_id=1-1") as other:
        await stream.until("live")
        await other.until("live")
        await newsroom.publish(FEED, "broken")
        await newsroom.publish(FEED, "e2")
        await newsroom.commit(FEED, broken=["1-3"])
        for reader in (stream, other):
            assert [(event.kind, event.id) for event in [await reader.next(), await reader.next()]] == [
                ("live", "1-3"),
                ("entry", "1-4"),
            ]
        async with await gateway.stream(f"{STREAM}?last_event_id=1-2") as resumed:
            assert [(event.kind, event.id) for event in (await resumed.until("live"))[1:]] == [
                ("entry", "1-4"),
                ("live", "1-4"),
            ]


# Slow and stuck


async def test_a_reader_that_stops_reading_delays_nobody(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED)
    stuck = await stuck_reader(newsroom, gateway)
    async with await gateway.stream(STREAM) as other:
        await other.until("live")
        for i in range(20):
            await newsroom.say(FEED, f"fresh-{i}")
            assert (await other.next()).data["id"] == f"fresh-{i}"
    stuck.cut()


async def test_what_waits_for_a_stuck_reader_is_bounded(newsroom: Newsroom, gateway: Running, both_ways: str) -> None:
    """Some kernel buffers and one frame: a hundred frames and a hundred more make no difference."""
    await newsroom.story(FEED)
    stuck = await stuck_reader(newsroom, gateway)
    reader = gateway.reader
    assert waiting_bytes(reader) < 20_000 + (TRANSPORT_BYTES if both_ways == "transport" else 0)
    # Linux doubles what was asked for.
    assert send_buffer_bytes(reader) <= 2 * SEND_BUFFER_BYTES
    before = waiting_bytes(reader)
    await flood(newsroom, 100, name="y")
    await gateway.gateway._tail._sweep()
    assert waiting_bytes(reader) == before
    assert not reader.live
    stuck.cut()


async def test_a_stuck_reader_that_reads_again_ends_in_the_state_of_the_page(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch, both_ways: str
) -> None:
    monkeypatch.setattr(ring_module, "FRAMES_MAX", 20)
    await newsroom.story(FEED)
    stuck = await gateway.stream(f"{STREAM}?last_event_id=1-1", receive_buffer_bytes=SMALL_WINDOW)
    held = Held(at="1-1")
    held.take(await stuck.until("live"))
    reader = gateway.reader
    await flood(newsroom, 200)
    await eventually(lambda: reader.connection.full)
    await newsroom.correct(FEED, "x0", revision=1, headline="Corrected while nobody read")
    await newsroom.retract(FEED, "x1")
    await newsroom.revise(FEED, title="New title")
    await newsroom.commit_all(FEED)
    held.take(await stuck.until("live"))
    assert held.feed_document is not None and held.feed_document["title"] == "New title"
    await assert_equals_page(gateway, FEED, held)
    await eventually(lambda: reader.live)
    await newsroom.say(FEED, "e-last")
    assert (await stuck.next()).data["id"] == "e-last"
    stuck.close()


async def test_a_reader_that_is_a_little_behind_is_brought_up_by_the_ring(
    newsroom: Newsroom, gateway: Running, both_ways: str
) -> None:
    """One frame for each position and no `live`: what the ring still has is not folded."""
    await newsroom.story(FEED)
    stream = await gateway.stream(f"{STREAM}?last_event_id=1-1", receive_buffer_bytes=SMALL_WINDOW)
    await stream.until("live")
    reader = gateway.reader
    await flood(newsroom, 120)
    await eventually(lambda: reader.connection.full)
    reads_before = gateway.metrics.registry.get_sample_value("dateline_catch_ups_total")
    events = await stream.until_n(121)
    assert [event.n for event in events] == list(range(2, 122))
    assert {event.kind for event in events} == {"entry"}
    assert gateway.metrics.registry.get_sample_value("dateline_catch_ups_total") == reads_before
    stream.close()


async def test_of_a_difference_nothing_waits_for_a_slow_reader_but_the_rest_of_one_frame(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED)
    await flood(newsroom, 200)  # 1.6 MB
    stream = await gateway.stream(f"{STREAM}?last_event_id=1-1", receive_buffer_bytes=SMALL_WINDOW)
    held = Held(at="1-1")
    most = 0
    while held.last < 201 or held.gap:
        held.take_one(await stream.next())
        if held.last == 80:
            await asyncio.sleep(0.2)  # in the middle of its second chunk: time in which all the others would be sent
        most = max(most, waiting_bytes(gateway.reader))
    assert 0 < most < 10_000
    await assert_equals_page(gateway, FEED, held)
    stream.close()


async def test_a_reader_of_many_feeds_that_does_not_read_is_owed_one_beginning_at_most(
    newsroom: Newsroom, gateway: Running
) -> None:
    feeds = [f"feed-{i}" for i in range(3)]
    for feed in feeds:
        await newsroom.story(feed)
        for i in range(3):
            await newsroom.say(feed, f"e{i}", body=large("x", 9_000) * 20)  # half a megabyte each
    query = "/v1/stream?" + "&".join(f"feed={feed}" for feed in feeds)
    stream = await gateway.stream(f"{query}&snapshot=10", receive_buffer_bytes=SMALL_WINDOW)
    await eventually(lambda: gateway.reader.connection.full)
    await asyncio.sleep(0.2)  # long enough for all that would be sent
    assert waiting_bytes(gateway.reader) <= 600_000
    events = await stream.until("live", times=3)
    assert [event.data["feed"] for event in events if event.kind == "live"] == feeds
    for feed in feeds:
        await newsroom.say(feed, "fresh")
        assert (await stream.next()).data["feed"] == feed
    stream.close()


async def test_a_reader_cut_at_random_ends_in_the_state_of_the_page(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty times: in its head, in the middle of a frame or a difference, or while it was slow; its last whole id goes on."""
    monkeypatch.setattr(reads, "DIFFERENCE_BYTES_MAX", 4_000)
    monkeypatch.setattr(ring_module, "FRAMES_MAX", 5)
    chance = random.Random(1)
    await newsroom.story(FEED, 3)
    held = Held(at="1-1")
    lives = {f"e{i}": 1 for i in range(1, 4)}
    for cut in range(50):
        stream = await gateway.stream(
            STREAM, headers={"Last-Event-ID": str(held.id)}, receive_buffer_bytes=SMALL_WINDOW
        )
        for i in range(chance.randrange(4)):
            entry = f"c{cut}-{i}"
            await newsroom.publish(FEED, entry, body=large("x", chance.choice([10, 500, 3_000])))
            lives[entry] = 1
            if chance.random() < 0.4:
                changed = chance.choice(sorted(lives))
                await newsroom.correct(FEED, changed, revision=lives[changed], headline=f"at {cut}-{i}")
                lives[changed] += 1
            if chance.random() < 0.2:
                retracted = chance.choice(sorted(lives))
                await newsroom.retract(FEED, retracted)
                del lives[retracted]
            await newsroom.commit_all(FEED, one_by_one=chance.random() < 0.5, frames=chance.random() < 0.9)
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(chance.choice([0, 0, 0.002]))
            held.take(stream.at_hand(bytes_max=chance.choice([1, 100, 3_000, 20_000])))
        held.gap = False  # a difference that was cut: the next one says where it ends
        stream.cut()
    async with await gateway.stream(STREAM, headers={"Last-Event-ID": str(held.id)}) as stream:
        held.take(await stream.until("live"))
        await held.follow(stream, (await newsroom.head(FEED)).n)
        await assert_equals_page(gateway, FEED, held)


# Frames that are lost


async def test_a_frame_that_never_came_is_fetched_when_the_next_one_shows_the_gap(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        await newsroom.publish(FEED, "lost")
        await newsroom.commit_all(FEED, frames=False)
        await newsroom.say(FEED, "came")
        held = Held(at="1-2")
        await held.follow(stream, 4)
        assert [document["id"] for document in held.entries] == ["came", "lost"]


@pytest.mark.parametrize("size", [17_000, 200_000])
async def test_a_frame_over_16_kib_arrives_whole_and_in_its_place(
    newsroom: Newsroom, gateway: Running, size: int
) -> None:
    await newsroom.story(FEED)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        blocks = large("x", 8_500) * (size // 8_500)
        await newsroom.publish(FEED, "small-1")
        await newsroom.publish(FEED, "big-1", body=blocks)
        await newsroom.publish(FEED, "big-2", body=blocks)
        await newsroom.publish(FEED, "small-2")
        await newsroom.commit_all(FEED)
        events = [await stream.next() for _ in range(4)]
        assert [(event.n, event.data["id"]) for event in events] == [
            (2, "small-1"),
            (3, "big-1"),
            (4, "big-2"),
            (5, "small-2"),
        ]
        assert len(events[1].data["body"]) == len(blocks)


async def test_a_large_frame_that_was_overtaken_becomes_a_folded_difference(
    newsroom: Newsroom, gateway: Running
) -> None:
    """The very state of that position is gone when it is fetched: the latest comes, once, and `live` says so."""
    await newsroom.story(FEED)
    async with await gateway.stream(STREAM) as stream:
        held = Held(at="1-1")
        held.take(await stream.until("live"))
        lives = held.lives
        await newsroom.publish(FEED, "big", body=large("x", 9_000) * 3)
        await newsroom.correct(FEED, "big", revision=1, headline="second")
        await newsroom.commit_all(FEED)
        await held.follow(stream, 3)
        assert held.entries[0]["headline"] == "second"
        assert held.lives == lives + 1
        await newsroom.say(FEED, "next")
        assert (await stream.next()).n == 4


async def test_a_large_feed_document_arrives_whole(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        await newsroom.revise(FEED, summary="\U0001f4f0" * 5_000)
        await newsroom.commit_all(FEED)
        event = await stream.next()
        assert (event.kind, event.n, len(event.data["summary"])) == ("feed", 3, 5_000)


async def test_a_frame_that_the_read_models_do_not_hold_is_dropped_and_not_asked_for_again_and_again(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint may be anything, also one of a history that is gone."""
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        calls = 0
        original = Differences.since

        async def counted(self: Differences, *args: Any, **kwargs: Any) -> Folded | None:
            nonlocal calls
            calls += 1
            return await original(self, *args, **kwargs)

        monkeypatch.setattr(Differences, "since", counted)
        for n in (3, 900):
            gateway.readers.following.deliver(Ready(FEED, Position(1, n), "entry", b""))
        await asyncio.sleep(0.3)  # time in which a loop would turn hundreds of times
        assert calls <= 4
        await newsroom.say(FEED, "e2")
        held = Held(at="1-2")
        await held.follow(stream, 3)
        assert [document["id"] for document in held.entries] == ["e2"]


async def test_a_frame_that_comes_while_a_gap_is_mended_is_not_taken_for_another_historys(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is newer than what was read, and only because it came after the read."""
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        gate = Gate(monkeypatch, "difference")
        await newsroom.publish(FEED, "lost")
        await newsroom.commit_all(FEED, frames=False)
        (followed,) = gateway.readers.following.feeds()
        gateway.readers.following.missed(followed)
        await gate.reached()
        await newsroom.say(FEED, "next")
        await eventually(lambda: followed.backlog, what="the tail has brought the next frame")
        gate.open()
        held = Held(at="1-2")
        held.take(await stream.until("live"))
        assert [document["id"] for document in held.entries] == ["next", "lost"]
        # Nothing is missing any more: what follows comes as a frame, not as another folded difference.
        await newsroom.say(FEED, "after")
        assert (await stream.next()).n == 5
        await stream.silence(0.15)


async def test_one_who_stands_before_what_the_read_models_have_lost_waits_for_it(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames told of more than there is now: nothing is said again and again until there is something to say."""
    monkeypatch.setattr(catch_ups, "LOOK_AGAIN_SECONDS", 0.01)
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as first, await gateway.stream(STREAM) as second:
        await first.until("live")
        await second.until("live")
        (followed,) = gateway.readers.following.feeds()
        gateway.readers.following.jump(followed, Position(1, 4))
        await newsroom.say(FEED, "e2")
        await newsroom.say(FEED, "e3")
        for stream in (first, second):
            events = await stream.until("entry")
            while events[-1].n != 4:
                events += await stream.until("entry")
            assert [event.n for event in events if event.kind == "entry"] == [3, 4]
            assert len(events) <= 3, "but for a live between them nothing else was told"


async def test_a_new_epoch_that_a_crowd_reads_of_before_a_frame_tells_is_jumped_to_once(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story(FEED, 1)
    streams = [await gateway.stream(STREAM) for _ in range(5)]
    for stream in streams:
        await stream.until("live")
    epochs = Epochs(newsroom.redis, newsroom.keys)
    [standing] = await epochs.standings([FEED])
    await epochs.raise_all([Raise(standing, "repaired", "tried")], server=(await epochs.process()).server)
    await newsroom.commit_all(FEED, frames=False)
    await eventually(lambda: all(reader.live for reader in gateway.readers))
    jumps: list[Position] = []
    jump = gateway.readers.following.jump

    def counted(followed: Followed, position: Position) -> None:
        jumps.append(position)
        jump(followed, position)

    monkeypatch.setattr(gateway.readers.following, "jump", counted)
    for reader in gateway.readers:
        reader.live = False
        reader.folding = frozenset({0})
        gateway.readers.on_writable(reader)
    for stream in streams:
        assert [event.kind for event in await stream.until("live")] == ["reset", "snapshot", "live"]
        stream.cut()
    assert len(jumps) == 1


async def test_a_gap_that_cannot_be_mended_now_is_mended_later(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "MEND_AGAIN_SECONDS", 0.02)
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        failures: list[Exception] = [Unavailable("down"), RuntimeError("a bug"), Unavailable("still down")]
        original = Differences.since

        async def failing(self: Differences, *args: Any, **kwargs: Any) -> Folded | None:
            if failures:
                raise failures.pop()
            return await original(self, *args, **kwargs)

        monkeypatch.setattr(Differences, "since", failing)
        await newsroom.publish(FEED, "lost")
        await newsroom.commit_all(FEED, frames=False)
        await newsroom.say(FEED, "came")
        held = Held(at="1-2")
        await held.follow(stream, 4)
        assert not failures


@pytest.mark.parametrize("error", [Unavailable("down"), RuntimeError("a bug")], ids=["unavailable", "a bug"])
async def test_a_reader_that_cannot_be_brought_up_is_sent_away_and_not_kept_with_pings(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    await newsroom.story(FEED)
    stuck = await stuck_reader(newsroom, gateway)

    async def failing(self: Differences, *args: Any, **kwargs: Any) -> Folded | None:
        raise error

    gateway.readers.following._followed[FEED].ring.clear()
    monkeypatch.setattr(Differences, "since", failing)
    last = (await stuck.rest())[-1]
    assert (last.kind, last.data["reason"]) == ("bye", "unavailable")


# Privacy


async def turn_private(newsroom: Newsroom, *, frames: bool = True) -> None:
    await newsroom.revise(FEED, visibility="private", title="Nobody may know")
    await newsroom.publish(FEED, "secret")
    await newsroom.commit_all(FEED, frames=frames)


def assert_shown_nothing(events: list[Event]) -> None:
    assert (events[-1].kind, events[-1].data["reason"]) == ("bye", "expired")
    assert "Nobody may know" not in repr(events) and "secret" not in repr(events)


async def test_a_live_reader_is_sent_away_before_the_private_document(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream, await gateway.stream(STREAM, headers=SIGNED) as signed:
        await stream.until("live")
        await signed.until("live")
        await turn_private(newsroom)
        assert_shown_nothing(await stream.rest())
        assert [(await signed.next()).kind, (await signed.next()).kind] == ["feed", "entry"]


async def test_a_reader_of_several_feeds_is_sent_away_too(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    await newsroom.story("other", 1)
    async with await gateway.stream(f"/v1/stream?feed={FEED}&feed=other") as stream:
        await stream.until("live", times=2)
        await turn_private(newsroom)
        assert_shown_nothing(await stream.rest())


async def test_a_reader_of_several_feeds_whose_second_turned_private_before_its_turn_is_sent_away(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newsroom.story("other", 1)
    await newsroom.story(FEED, 1)
    gate = Gate(monkeypatch, "page", when=lambda feed, *args, **kwargs: feed == "other")
    async with await gateway.stream(f"/v1/stream?feed=other&feed={FEED}&snapshot=5") as stream:
        await gate.reached()
        await turn_private(newsroom, frames=False)
        gate.open()
        assert_shown_nothing(await stream.rest())


async def test_a_live_reader_is_sent_away_when_the_private_frame_was_lost(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        await turn_private(newsroom, frames=False)
        await newsroom.say(FEED, "secret-2")
        assert_shown_nothing(await stream.rest())


async def test_a_live_reader_is_sent_away_when_the_private_document_is_too_large_for_a_frame(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        await newsroom.revise(FEED, visibility="private", title="Nobody may know", summary="\U0001f4f0" * 5_000)
        await newsroom.commit_all(FEED)
        assert_shown_nothing(await stream.rest())


@pytest.mark.parametrize("frames", [True, False], ids=["by its frame", "by the difference"])
async def test_a_stuck_reader_is_sent_away_and_never_brought_up_with_what_is_private(
    newsroom: Newsroom, gateway: Running, frames: bool
) -> None:
    await newsroom.story(FEED)
    stuck = await stuck_reader(newsroom, gateway)
    if not frames:
        await turn_private(newsroom, frames=False)
        await newsroom.say(FEED, "secret-2")
        await eventually(
            lambda: gateway.reader.feeds and gateway.readers.following._followed[FEED].position == (1, 104)
        )
    else:
        await turn_private(newsroom)
    assert_shown_nothing(await stuck.rest())


async def test_a_private_feed_that_is_public_again_shows_only_what_it_is_now(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 1)
    await newsroom.revise(FEED, visibility="private", title="Nobody may know")
    await newsroom.commit_all(FEED)
    await newsroom.revise(FEED, visibility="public", title="All may know")
    await newsroom.commit_all(FEED)
    async with await gateway.stream(f"{STREAM}?last_event_id=1-2") as stream:
        events = await stream.until("live")
        assert "Nobody may know" not in repr(events)
        assert events[1].data["title"] == "All may know"


# Storms


async def test_what_a_crowd_that_comes_back_needs_is_read_once(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stand at the same position of a feed that does not move."""
    await newsroom.story(FEED, 5)
    calls: list[str] = []

    def count(name: str) -> None:
        original = getattr(Reads, name)

        async def counted(self: Reads, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return await original(self, *args, **kwargs)

        monkeypatch.setattr(Reads, name, counted)

    count("document")
    count("difference")
    streams = await asyncio.gather(*(gateway.stream(f"{STREAM}?last_event_id=1-1") for _ in range(100)))
    for stream in streams:
        assert [event.kind for event in await stream.until("live")][1:] == ["entry"] * 5 + ["live"]
    assert sorted(calls) == ["difference", "document"]
    await newsroom.say(FEED, "e6")
    for stream in streams:
        assert (await stream.next()).data["id"] == "e6"
        stream.cut()


async def test_a_gateway_that_stops_in_a_storm_ends_in_time_and_turns_nobody_away_without_a_word(
    newsroom: Newsroom, server: RunningServer, keys: Keys
) -> None:
    await newsroom.story(FEED, 5)
    loop = asyncio.get_running_loop()

    async def come(gateway: Running) -> list[Event]:
        async with await gateway.stream(f"{STREAM}?last_event_id=1-1") as stream:
            return await stream.rest()

    async with running_gateway(server.url, keys, drain_seconds=3.0) as gateway:
        storm = [asyncio.create_task(come(gateway)) for _ in range(150)]
        await eventually(lambda: len(gateway.readers) >= 50)
        start = loop.time()
    assert loop.time() - start < 4.5
    ends = [task.result()[-1] for task in storm if task.done() and task.exception() is None]
    assert len(ends) >= 50
    assert {(end.kind, end.data["reason"]) for end in ends} == {("bye", "draining")}
    await asyncio.gather(*storm, return_exceptions=True)


async def test_the_goodbyes_of_a_drain_are_spread_over_its_time(
    newsroom: Newsroom, server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GOODBYES_PER_SECOND", 40)
    await newsroom.story(FEED)
    loop = asyncio.get_running_loop()

    async def came_to_its_end(stream: Stream) -> float:
        await stream.rest()
        return loop.time()

    async with running_gateway(server.url, keys, drain_seconds=10.0) as gateway:
        streams = [await gateway.stream(STREAM) for _ in range(48)]
        ends = [asyncio.create_task(came_to_its_end(stream)) for stream in streams]
        await eventually(lambda: all(reader.live for reader in gateway.readers))
        draining = asyncio.create_task(gateway.readers.drain(seconds=1.0))
        times = sorted(await asyncio.gather(*ends))
        assert 0.3 < times[-1] - times[0] < 2.0, "over six tenths of a second, were there time enough"
        for stream in streams:
            stream.close()
        await draining


# The end


async def test_a_reader_that_was_ended_in_the_middle_of_its_beginning_fails_nothing(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read for it meanwhile comes to a reader that has left."""
    for feed in ("alpha", "beta"):
        await newsroom.story(feed)
    gate = Gate(monkeypatch, "page", when=lambda feed, *args, **kwargs: feed == "beta")
    with capture_logs() as logs:
        stream = await gateway.stream("/v1/stream?feed=alpha&feed=beta&snapshot=9", receive_buffer_bytes=SMALL_WINDOW)
        await gate.reached()
        gateway.readers.end(gateway.reader, "expired")
        gate.open()
        events = await stream.rest()
        assert [event.kind for event in events][-1] == "bye"
        assert "beta" not in repr(events)
    assert not [entry for entry in logs if entry["log_level"] in ("error", "critical")], logs
    stream.close()


async def test_draining_says_bye_to_everyone_and_ends(
    newsroom: Newsroom, server: RunningServer, keys: Keys, both_ways: str
) -> None:
    await newsroom.story(FEED)
    streams: list[Stream] = []
    async with running_gateway(server.url, keys, drain_seconds=5) as gateway:
        for _ in range(5):
            streams.append(await gateway.stream(STREAM))
            await streams[-1].until("live")
        loop = asyncio.get_running_loop()
        start = loop.time()
    assert loop.time() - start < 2, "nobody had to be waited for"
    for stream in streams:
        events = await stream.rest()
        assert [(event.kind, event.data["reason"]) for event in events] == [("bye", "draining")]
        stream.close()


async def test_a_draining_gateway_refuses_inside_a_200(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED)
    await gateway.readers.drain(seconds=2)
    async with await gateway.stream(STREAM) as stream:
        events = await stream.rest()
        assert [event.kind for event in events] == ["retry", "bye"]
        assert events[1].data["reason"] == "draining"


async def test_readers_that_take_nothing_do_not_hold_up_the_end(
    newsroom: Newsroom, server: RunningServer, keys: Keys
) -> None:
    """One is live and stuck, one is stuck in the middle of its beginning: the gateway stops when its time is over."""
    for feed in ("alpha", FEED):
        await newsroom.story(feed)
    for i in range(3):
        await newsroom.say("alpha", f"e{i}", body=large("x", 9_000) * 20)
    loop = asyncio.get_running_loop()
    async with running_gateway(server.url, keys, drain_seconds=0.5) as gateway:
        stuck = await stuck_reader(newsroom, gateway)
        path = f"/v1/stream?feed=alpha&feed={FEED}&snapshot=9"
        beginning = await gateway.stream(path, receive_buffer_bytes=SMALL_WINDOW)
        await eventually(lambda: all(reader.connection.full for reader in gateway.readers))
        assert len(gateway.readers) == 2
        start = loop.time()
    assert loop.time() - start < 3
    stuck.close()
    beginning.close()


async def test_a_reader_that_does_not_take_its_goodbye_is_cut_off(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch, both_ways: str
) -> None:
    monkeypatch.setattr(module, "GOODBYE_SECONDS_MAX", 0.3)
    await newsroom.story(FEED)
    stuck = await stuck_reader(newsroom, gateway)
    async with asyncio.timeout(30):
        await gateway.readers.drain(seconds=2)
    await gateway.at_rest()
    stuck.close()


async def test_nothing_is_left_of_readers_that_came_and_went(
    newsroom: Newsroom, gateway: Running, both_ways: str
) -> None:
    for feed in ("alpha", "beta"):
        await newsroom.story(feed, 3)
    paths = ["/v1/feeds/alpha/stream", "/v1/feeds/beta/stream?snapshot=2", "/v1/stream?feed=alpha&feed=beta"]
    streams = [await gateway.stream(paths[i % 3]) for i in range(30)]
    for stream in streams:
        await stream.until("live")
    assert gateway.metrics.registry.get_sample_value("dateline_readers") == 30
    for i, stream in enumerate(streams):
        stream.cut() if i % 2 else stream.close()
    await gateway.at_rest()
    assert gateway.metrics.registry.get_sample_value("dateline_readers") == 0


# Time


async def test_pings_come_and_a_reader_that_takes_them_is_not_judged(
    newsroom: Newsroom, server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOT_SECONDS", 0.01)
    monkeypatch.setattr(module, "GIVEN_UP_SECONDS", 0.5)
    await newsroom.story(FEED, 1)
    async with running_gateway(server.url, keys) as gateway, await gateway.stream(STREAM) as stream:
        await stream.until("live")
        while stream.pings < 2:
            await stream.read()


def test_pings_come_every_15_seconds_and_readers_are_given_up_after_10_minutes() -> None:
    assert module.PING_SECONDS == 15
    assert module.GIVEN_UP_SECONDS == 600


class FakeConnection:
    """As a socket whose acknowledged bytes a test sets."""

    def __init__(self) -> None:
        self.full = True
        self.acknowledged: int | None = 0

    def bytes_acknowledged(self) -> int | None:
        return self.acknowledged


@pytest.mark.parametrize("platform_tells", [True, False])
async def test_a_reader_is_given_up_only_when_acknowledged_bytes_stand_still(
    gateway: Running, platform_tells: bool
) -> None:
    connection: Any = FakeConnection()
    reader: Any = SimpleNamespace(connection=connection, stalled_since=None, acknowledged=None)
    stalled = gateway.readers._stalled
    connection.acknowledged = 0 if platform_tells else None
    assert not stalled(reader, 1_000.0)
    assert not stalled(reader, 1_599.0)
    if platform_tells:
        connection.acknowledged = 1  # one byte in ten minutes is a sign of life
        assert not stalled(reader, 1_600.0)
        assert not stalled(reader, 2_199.0)
        assert stalled(reader, 2_200.0)
    else:
        assert stalled(reader, 1_600.0)


async def test_a_stuck_reader_is_given_up_and_a_slow_one_is_kept(
    newsroom: Newsroom, server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOT_SECONDS", 0.01)
    monkeypatch.setattr(module, "GIVEN_UP_SECONDS", 2.0)
    await newsroom.story(FEED)
    async with running_gateway(server.url, keys) as gateway:
        slow = await gateway.stream(f"{STREAM}?last_event_id=1-1", receive_buffer_bytes=SMALL_WINDOW)
        await slow.until("live")
        slow_reader = gateway.reader
        stuck = await gateway.stream(f"{STREAM}?last_event_id=1-1", receive_buffer_bytes=SMALL_WINDOW)
        await stuck.until("live")
        (stuck_reader_,) = set(gateway.readers) - {slow_reader}
        await flood(newsroom, 150)
        await eventually(lambda: slow_reader.connection.full and stuck_reader_.connection.full)
        async with asyncio.timeout(30):
            while stuck_reader_ in gateway.readers:
                for _ in range(4):
                    await slow.read(bytes_max=2_000)
                await asyncio.sleep(0.1)
        assert slow_reader in gateway.readers
        slow.cut()
        stuck.close()
        await gateway.at_rest()

"""The fan-out's parts without sockets: what of a write is kept, what a channel gives, and that turns are shared."""

import asyncio
import os
import selectors
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import channel as channel_module
from services.gateway import fan_out as fan_out_module
from services.gateway import turns as turns_module
from services.gateway.channel import Channel
from services.gateway.connection import NONE
from services.gateway.fan_out import FanOut
from services.gateway.followed import Followed
from services.gateway.frames import PING, broken_off
from services.gateway.hub import Descriptor, Hub
from services.gateway.reader import Reader, Wish
from services.gateway.ring import FRAMES_MAX, Ready
from services.gateway.shared_bytes import SOCKETS_MIN
from services.gateway.turns import Turns
from shared.metrics import Metrics
from shared.position import Position

WIRES = st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=8)


@given(wires=WIRES, data=st.data())
def test_what_a_socket_took_and_the_rest_of_the_frame_in_progress_end_at_the_end_of_a_frame(
    wires: list[bytes], data: st.DataObject
) -> None:
    joined = b"".join(wires)
    taken = data.draw(st.integers(0, len(joined)))
    whole, part = broken_off(wires, taken)
    rest = wires[whole][part:] if part else b""
    assert joined[:taken] + rest == b"".join(wires[: whole + bool(part)])
    assert 0 <= len(rest) < max(map(len, wires))


def channel_of(*feeds: str, joined: bool) -> tuple[Channel, list[Followed]]:
    followed = [Followed(feed) for feed in feeds]
    for feed in followed:
        feed.position = Position(1, 1)
    return Channel(followed, joined=joined), followed


def next_frame(followed: Followed, *, recorded_at: int | None = None) -> Ready:
    assert followed.position is not None
    followed.position = followed.position.next()
    ready = Ready(followed.feed, followed.position, "entry", b'{"n":%d}' % followed.position.n, recorded_at)
    followed.ring.append(ready)
    return ready


def test_readers_at_the_same_number_get_the_very_same_bytes() -> None:
    channel, (feed,) = channel_of("story", joined=False)
    for _ in range(3):
        next_frame(feed)
    assert channel.take() == 3
    first, again = channel.after(1), channel.after(1)
    assert first is not None and again is not None
    assert first[1] is again[1]
    assert first[1] == b"".join(first[0])
    assert [wire.split(b"\n")[1] for wire in first[0]] == [b"id: 1-3", b"id: 1-4"]


def test_ids_of_a_joined_channel_name_where_all_its_feeds_stand() -> None:
    channel, (a, b) = channel_of("a", "b", joined=True)
    next_frame(b)
    channel.take()
    next_frame(a)
    channel.take()
    batch = channel.after(0)
    assert batch is not None
    assert [wire.split(b"\n")[1] for wire in batch[0]] == [b"id: a:1-1,b:1-2", b"id: a:1-2,b:1-2"]
    assert channel.positions_after(1) == (Position(1, 1), Position(1, 2))
    assert channel.positions_after(2) == channel.positions


def test_frames_that_all_readers_have_are_not_kept() -> None:
    channel, (feed,) = channel_of("story", joined=False)
    next_frame(feed, recorded_at=5)
    next_frame(feed, recorded_at=7)
    swept_to = channel.take()
    next_frame(feed, recorded_at=9)
    channel.take()
    assert list(channel.swept(swept_to)) == [5, 7]
    assert channel.after(0) is None, "who stands before what is kept is behind"
    batch = channel.after(swept_to)
    assert batch is not None and len(batch[0]) == 1
    assert list(channel.swept(channel.end)) == [9]
    assert channel.start == channel.end == 3
    batch = channel.after(3)
    assert batch is not None and batch[1] == b""


@pytest.mark.parametrize("bound", ["frames", "bytes"])
def test_frames_of_a_long_sweep_are_bounded(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    channel, (feed,) = channel_of("story", joined=False)
    next_frame(feed)
    size = len(b'{"n":2}')
    if bound == "frames":
        monkeypatch.setattr(channel_module, "FRAMES_MAX", 3)
    else:
        monkeypatch.setattr(channel_module, "BYTES_MAX", 3 * size)
    for _ in range(5):
        next_frame(feed)
    channel.take()
    assert channel.after(2) is None
    batch = channel.after(3)
    assert batch is not None and len(batch[0]) == 3


def test_frames_before_all_feeds_are_known_are_for_nobody() -> None:
    _, (a, b) = channel_of("a", "b", joined=True)
    b.position = None
    channel = Channel([a, b], joined=True)
    next_frame(a)
    assert channel.take() == 0
    b.position = Position(1, 5)
    assert (channel.take(), channel.positions) == (0, (Position(1, 2), Position(1, 5)))
    next_frame(b)
    assert channel.take() == 1


@pytest.mark.parametrize("lost", ["too many", "dropped", "another history"])
def test_who_is_live_before_frames_that_the_ring_has_no_more_is_behind(lost: str) -> None:
    channel, (a, b) = channel_of("a", "b", joined=True)
    next_frame(a)
    seen = channel.take()
    next_frame(a)
    for _ in range(FRAMES_MAX + 1 if lost == "too many" else 1):
        next_frame(b)
    if lost == "dropped":
        b.ring.clear()
    elif lost == "another history":
        b.ring.clear()
        b.position = Position(2, 1)
    end = channel.take()
    assert channel.after(seen) is None
    assert channel.positions == (a.position, b.position)
    batch = channel.after(end)
    assert batch is not None and not batch[0], "who comes to where the feeds are is live"
    assert list(channel.swept(end)) == []


class Narrow:
    """A connection that takes `room` bytes."""

    def __init__(self) -> None:
        self.fd = NONE
        self.full = False
        self.reader: Reader | None = None
        self.room = 0
        self.written = b""

    def write(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.written += taken
        return len(taken)

    def finish(self, rest: bytes | memoryview) -> None:
        self.full = True

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def bytes_acknowledged(self) -> int | None:
        return None


def reader_of(channel: Channel) -> tuple[Reader, Narrow]:
    """A live one."""
    connection = Narrow()
    nothing = (None,) * len(channel.feeds)
    wish = Wish(channel.feeds, channel.joined, nothing, None, "newest", None, nothing, sees_private=False)
    reader = Reader(channel, connection, wish, snapshot=20)
    channel.readers[reader] = None
    reader.positions, reader.live, reader.slot = channel.positions, True, 0
    return reader, connection


class Swept:
    """A fan-out whose sweeps run when they are told to; `behind` are the readers that it gave up to be brought up."""

    def __init__(self) -> None:
        self.behind: list[Reader] = []
        self.metrics = Metrics()
        self._sweeps: list[Coroutine[Any, Any, None]] = []
        self._fan_out = FanOut(
            Turns(),
            self.metrics,
            on_behind=self.behind.append,
            on_private=lambda followed: None,
            spawn=self._sweeps.append,
        )

    async def frames(self, channel: Channel, followed: Followed, count: int = 1) -> None:
        followed.channels = {channel: None}
        for _ in range(count):
            self._fan_out.frame(followed, next_frame(followed))
        while self._sweeps:
            await self._sweeps.pop()


async def test_a_frame_does_not_go_out_in_the_middle_of_a_ping() -> None:
    """A socket takes bytes again long before it tells that it does."""
    channel, (feed,) = channel_of("story", joined=False)
    reader, connection = reader_of(channel)
    connection.room = len(PING) - 5
    reader.send(PING)
    assert connection.full
    connection.room = 10_000
    await Swept().frames(channel, feed)
    assert connection.written == PING[:-5]
    assert not reader.live, "it is brought up when the ping has gone out"


async def test_a_bare_descriptor_that_takes_nothing_or_is_broken_holds_up_nobody_else() -> None:
    channel, (feed,) = channel_of("story", joined=False)
    gone: list[Reader] = []
    hub = Hub(on_writable=lambda reader: None, on_gone=gone.append)
    readers: list[Reader] = []
    peers: list[socket.socket] = []
    for _ in range(3):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        reader, _ = reader_of(channel)
        reader.connection = descriptor = Descriptor(hub, ours.detach())
        descriptor.reader = reader
        hub._open_selector().register(descriptor.fd, selectors.EVENT_READ, descriptor)
        readers.append(reader)
        peers.append(theirs)
    full, broken, well = readers
    with suppress(BlockingIOError):
        while os.write(full.connection.fd, b"x" * 65536):
            pass
    peers[1].close()
    swept = Swept()
    await swept.frames(channel, feed)
    assert swept.behind == [full] and (full.seen, full.positions) == (0, (Position(1, 1),))
    assert gone == [broken]
    assert peers[2].recv(1000) == b'event: entry\nid: 1-2\ndata: {"n":2}\n\n'
    assert well.live and (well.seen, well.positions) == (1, (Position(1, 2),))
    hub.close()
    for peer in peers:
        peer.close()


async def test_a_large_burst_goes_to_many_sockets_as_shared_bytes_and_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.gateway.shared_bytes.BYTES_MIN", 100)
    channel, (feed,) = channel_of("story", joined=False)
    hub = Hub(on_writable=lambda reader: None, on_gone=lambda reader: None)
    peers: list[socket.socket] = []
    for _ in range(SOCKETS_MIN):
        ours, theirs = socket.socketpair()
        reader, _ = reader_of(channel)
        reader.connection = Descriptor(hub, ours.detach())
        peers.append(theirs)
    plain: list[int] = []
    written = os.write

    def write(fd: int, data: bytes) -> int:
        if fd in {reader.connection.fd for reader in channel.readers}:
            plain.append(fd)
        return written(fd, data)

    monkeypatch.setattr("services.gateway.fan_out.os.write", write)
    await Swept().frames(channel, feed, 5)
    assert not plain
    expected = b"".join(b'event: entry\nid: 1-%d\ndata: {"n":%d}\n\n' % (n, n) for n in range(2, 7))
    for reader, peer in zip(channel.readers, peers, strict=True):
        assert peer.recv(10_000) == expected
        assert reader.live and reader.seen == 5
        os.close(reader.connection.fd)
        peer.close()


async def test_a_delivery_is_counted_once_where_readers_stand_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "FRAMES_MAX", 2)
    channel, (feed,) = channel_of("story", joined=False)
    readers = [reader_of(channel) for _ in range(3)]
    channel.start = channel.end = 5
    for (reader, connection), seen in zip(readers, (5, 1, 6), strict=True):
        reader.seen, connection.room = seen, 10_000
    swept = Swept()
    await swept.frames(channel, feed, 2)
    assert swept.behind == [readers[1][0]]
    assert swept.metrics.deliveries._value.get() == 3


async def test_works_that_take_turns_never_hold_the_loop_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is counted in steps here: each piece of work takes one, a turn has three of them."""
    now = 100.0
    monkeypatch.setattr("services.gateway.turns.time.monotonic", lambda: now)
    monkeypatch.setattr(turns_module, "TURN_SECONDS", 3.0)
    turns = Turns()
    done: list[int] = []

    async def work(number: int) -> None:
        nonlocal now
        for _ in range(10):
            await turns.take()
            done.append(number)
            now += 1

    tasks = [asyncio.get_running_loop().create_task(work(number)) for number in range(5)]
    most = before = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        most, before = max(most, len(done) - before), len(done)
    assert len(done) == 50
    assert most <= 3


async def test_who_waited_for_a_turn_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long others held the loop before it went on."""
    monkeypatch.setattr(turns_module, "TURN_SECONDS", 0.02)
    turns = Turns()
    await turns.take()
    time.sleep(0.021)
    waiting = asyncio.get_running_loop().create_task(turns.take())
    await asyncio.sleep(0)
    time.sleep(0.03)
    async with asyncio.timeout(5):
        await waiting


async def test_many_channels_of_one_feed_are_rendered_in_turns_by_a_few_tasks() -> None:
    story = Followed("story")
    story.position = Position(1, 1)
    channels = []
    for number in range(200):
        other = Followed(f"other-{number}")
        other.position = Position(1, 7)
        channel = Channel([story, other], joined=True)
        story.channels[channel] = None
        reader, connection = reader_of(channel)
        connection.room = 10_000
        channels.append((channel, reader, connection))
    spawned: list[Coroutine[Any, Any, None]] = []
    fan_out = FanOut(
        Turns(),
        Metrics(),
        on_behind=lambda reader: None,
        on_private=lambda followed: None,
        spawn=spawned.append,
    )
    for _ in range(2):
        fan_out.frame(story, next_frame(story))
    assert len(spawned) == fan_out_module.SWEEPS_AT_ONCE
    assert not any(channel.end or connection.written for channel, _, connection in channels)
    await asyncio.gather(*spawned)
    for number, (channel, reader, connection) in enumerate(channels):
        assert connection.written.count(b"event: entry") == 2
        assert f"id: story:1-3,other-{number}:1-7".encode() in connection.written or (
            f"id: other-{number}:1-7,story:1-3".encode() in connection.written
        )
        assert reader.seen == channel.end == channel.start and not channel.sweeping

"""The fan-out's parts without sockets: what of a write is kept, what a channel gives, and that turns are shared."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import channel as channel_module
from services.gateway import turns as turns_module
from services.gateway.channel import Channel
from services.gateway.followed import Followed
from services.gateway.frames import broken_off
from services.gateway.ring import Ready
from services.gateway.turns import Turns
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


def next_frame(channel: Channel, followed: Followed, *, recorded_at: int | None = None) -> None:
    assert followed.position is not None
    followed.position = followed.position.next()
    data = b'{"n":%d}' % followed.position.n
    channel.append(Ready(followed.feed, followed.position, "entry", data, recorded_at))


def test_readers_at_the_same_number_get_the_very_same_bytes() -> None:
    channel, (feed,) = channel_of("story", joined=False)
    for _ in range(3):
        next_frame(channel, feed)
    first, again = channel.after(1), channel.after(1)
    assert first is not None and again is not None
    assert first[1] is again[1]
    assert first[1] == b"".join(first[0])
    assert [wire.split(b"\n")[1] for wire in first[0]] == [b"id: 1-3", b"id: 1-4"]


def test_ids_of_a_joined_channel_name_where_all_its_feeds_stand() -> None:
    channel, (a, b) = channel_of("a", "b", joined=True)
    next_frame(channel, b)
    next_frame(channel, a)
    batch = channel.after(0)
    assert batch is not None
    assert [wire.split(b"\n")[1] for wire in batch[0]] == [b"id: a:1-1,b:1-2", b"id: a:1-2,b:1-2"]
    assert channel.positions_after(1) == (Position(1, 1), Position(1, 2))
    assert channel.positions_after(2) == channel.positions


def test_frames_that_all_readers_have_are_not_kept() -> None:
    channel, (feed,) = channel_of("story", joined=False)
    next_frame(channel, feed, recorded_at=5)
    next_frame(channel, feed, recorded_at=7)
    swept_to = channel.end
    next_frame(channel, feed, recorded_at=9)
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
    next_frame(channel, feed)
    size = len((channel.after(0) or ((), b""))[1])
    if bound == "frames":
        monkeypatch.setattr(channel_module, "FRAMES_MAX", 3)
    else:
        monkeypatch.setattr(channel_module, "BYTES_MAX", 3 * size)
    for _ in range(5):
        next_frame(channel, feed)
    assert channel.after(2) is None
    batch = channel.after(3)
    assert batch is not None and len(batch[0]) == 3


def test_frames_before_all_feeds_are_known_are_for_nobody() -> None:
    channel, (a, b) = channel_of("a", "b", joined=True)
    b.position = None
    next_frame(channel, a)
    assert channel.end == 0


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

"""The ring: which positions it covers, that it is bounded, and that a frame is encoded once."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import ring as module
from services.gateway.frames import frame
from services.gateway.ring import BYTES_MAX, FRAMES_MAX, Ready, Ring
from shared.position import Position


def ready(n: int, *, epoch: int = 1, data: bytes = b'{"a":1}', kind: str = "entry") -> Ready:
    return Ready("story", Position(epoch, n), kind, data)


def filled(numbers: Sequence[int], *, data: bytes = b'{"a":1}') -> Ring:
    ring = Ring()
    for n in numbers:
        ring.append(ready(n, data=data))
    return ring


def numbers_of(frames: Sequence[Ready] | None) -> list[int] | None:
    return None if frames is None else [item.position.n for item in frames]


def test_an_empty_ring_reaches_back_to_nothing() -> None:
    assert Ring().after(Position(1, 1)) is None


def test_the_ring_gives_all_frames_after_a_position_that_it_covers() -> None:
    ring = filled(range(5, 10))
    assert numbers_of(ring.after(Position(1, 6))) == [7, 8, 9]
    assert numbers_of(ring.after(Position(1, 9))) == []


def test_the_frame_right_after_the_position_must_be_there() -> None:
    ring = filled(range(5, 10))
    assert numbers_of(ring.after(Position(1, 4))) == [5, 6, 7, 8, 9]
    assert ring.after(Position(1, 3)) is None


def test_a_reader_ahead_of_the_ring_gets_nothing_from_it() -> None:
    assert numbers_of(filled(range(5, 10)).after(Position(1, 50))) == []


def test_after_a_gap_the_ring_begins_anew() -> None:
    ring = filled([1, 2, 3, 7, 8])
    assert numbers_of(ring.after(Position(1, 6))) == [7, 8]
    assert ring.after(Position(1, 2)) is None


def test_positions_go_on_across_epochs() -> None:
    ring = filled([1, 2])
    ring.append(ready(3, epoch=2))
    assert numbers_of(ring.after(Position(1, 1))) == [2, 3]


def test_a_cleared_ring_covers_nothing_and_begins_anew() -> None:
    ring = filled(range(1, 5))
    ring.clear()
    assert ring.after(Position(1, 2)) is None
    ring.append(ready(9))
    assert numbers_of(ring.after(Position(1, 8))) == [9]


def test_a_cleared_ring_has_its_whole_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES_MAX", 100)
    ring = filled([1], data=b"x" * 90)
    ring.clear()
    for n in (2, 3):
        ring.append(ready(n, data=b"x" * 45))
    assert numbers_of(ring.after(Position(1, 1))) == [2, 3]


def test_the_ring_keeps_the_latest_frames_only() -> None:
    ring = filled(range(1, FRAMES_MAX + 11))
    assert ring.after(Position(1, 9)) is None
    frames = ring.after(Position(1, 10))
    assert frames is not None and len(frames) == FRAMES_MAX


def test_the_ring_is_bounded_in_bytes() -> None:
    size = 100 * 1024
    ring = filled(range(1, 100), data=b"x" * size)
    kept = next(
        frames for n in range(1, 100) if (frames := ring.after(Position(1, n))) is not None
    )  # from the farthest back that it covers
    assert 0 < sum(len(item.data) for item in kept) <= BYTES_MAX
    assert len(kept) == BYTES_MAX // size


def test_one_frame_larger_than_the_ring_is_still_kept() -> None:
    ring = filled([1, 2], data=b"x" * (BYTES_MAX + 1))
    assert numbers_of(ring.after(Position(1, 1))) == [2]


@given(
    steps=st.lists(st.integers(1, 3), min_size=1, max_size=60),
    sizes=st.lists(st.integers(0, 60), min_size=60, max_size=60),
    asked=st.integers(0, 200),
)
def test_what_the_ring_gives_is_always_gapless_from_the_next_position_to_the_last(
    steps: list[int], sizes: list[int], asked: int
) -> None:
    """A step of 1 is the next position, a longer one a gap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BYTES_MAX", 200)
        patch.setattr(module, "FRAMES_MAX", 10)
        ring, n = Ring(), 0
        for step, size in zip(steps, sizes, strict=False):
            n += step
            ring.append(ready(n, data=b"x" * size))
        frames = ring.after(Position(1, asked))
        numbers = numbers_of(frames)
        if asked >= n:
            assert numbers == []
        elif numbers is not None:
            assert numbers == list(range(asked + 1, n + 1))
            assert len(numbers) <= 10
            assert len(numbers) == 1 or sum(len(item.data) for item in frames or ()) <= 200
        else:
            # None only where the next position is not there: too old, or before the last gap.
            run_start = n
            for step in reversed(steps[1:]):
                if step != 1:
                    break
                run_start -= 1
            farthest = max(run_start, n - 9)
            total = [size for size, _ in zip(sizes, steps, strict=False)]
            while sum(total[len(steps) - (n - farthest + 1) :]) > 200 and farthest < n:
                farthest += 1
            assert asked + 1 < farthest


def test_a_frame_is_encoded_once_for_all_readers() -> None:
    item = ready(7)
    assert item.wire is item.wire
    assert item.wire == frame("entry", b'{"a":1}', position="1-7")


def test_the_same_frame_goes_under_another_id_to_a_stream_of_several_feeds() -> None:
    assert ready(7).wire_with("a:1-3,story:1-7") == frame("entry", b'{"a":1}', position="a:1-3,story:1-7")


def test_a_skipped_position_is_told_as_live() -> None:
    item = ready(7, kind="skipped", data=b"")
    assert item.wire == b'event: live\nid: 1-7\ndata: {"feed":"story"}\n\n'
    assert item.wire_with("story:1-7") == b'event: live\nid: story:1-7\ndata: {"feed":"story"}\n\n'

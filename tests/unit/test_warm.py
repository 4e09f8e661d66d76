"""Warm feeds: whatever comes of a log and whoever commits, what is taken goes on exactly where the commit before ended."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.projector import warm as module
from services.projector.commit import Pending, prepare
from services.projector.warm import EVENTS_MAX, Warm
from shared.events import EntryPinned, FeedOpened
from shared.keys import Keys
from shared.ndjson import StreamEntry
from shared.position import Position
from tests.integration.builders import FIELDS, damaged, encoded, published

KEYS = Keys("dl")


def stream_entry(n: int, event: Any) -> StreamEntry:
    one = event if hasattr(event, "envelope") else encoded(event)
    fields = {b"envelope": one.envelope, b"content": one.content, b"recorded_at": b"1000"}
    return StreamEntry(f"1-{n}".encode(), fields)


def opened(warm: Warm, feed: str = "final") -> Pending:
    """The feed's first commit, of a log with one event."""
    pending = Pending(
        feed, None, Position(0, 0), (), None, [stream_entry(1, FeedOpened(FIELDS))], frozenset(), False, {}
    )
    warm.committed(pending, prepare(pending), 1)
    return pending


def new(n: int) -> StreamEntry:
    return stream_entry(n, published(f"e{n}"))


def ids(pending: Pending | None) -> list[str] | None:
    return None if pending is None else [entry.id.decode() for entry in pending.entries]


@given(st.lists(st.one_of(st.integers(1, 3), st.sampled_from(["take", "lose", "commit of another", "read by itself"]))))
def test_what_is_taken_follows_the_last_commit_without_a_gap(steps: list[Any]) -> None:
    warm, known = Warm(KEYS), opened(Warm(KEYS))
    opened(warm)
    read = committed = 1
    for step in steps:
        if isinstance(step, int):
            warm.came("final", [new(read + i + 1) for i in range(step)])
            read += step
        elif step == "lose":
            read += 1
        elif step == "commit of another":
            committed = max(committed, read)
        else:
            pending = warm.take("final") if step == "take" else None
            if pending is not None and pending.checkpoint.n == committed:
                assert ids(pending) == [f"1-{n}" for n in range(committed + 1, pending.entries[-1].position.n + 1)]
                assert pending.unread and pending.feed is not None
                warm.committed(pending, prepare(pending), 1)
                committed = pending.entries[-1].position.n
            elif step == "read by itself" and committed < read:
                entries = [new(n) for n in range(committed + 1, read + 1)]
                whole = Pending("final", 1, Position(1, committed), (), known.feed, entries, frozenset(), False, {})
                done = prepare(whole)
                if done.feed is not None:
                    warm.committed(whole, done, 1)
                committed = read


@pytest.mark.parametrize("what", ["of another kind", "unreadable", "after a gap", "of another epoch", "too many"])
def test_anything_but_entries_that_are_new_is_left_to_be_read(what: str) -> None:
    warm = Warm(KEYS)
    opened(warm)
    come = {
        "of another kind": [new(2), stream_entry(3, EntryPinned("e2"))],
        "unreadable": [StreamEntry(b"1-2", {b"envelope": b"{"})],
        "after a gap": [new(3)],
        "of another epoch": [StreamEntry(b"2-2", new(2).fields)],
        "too many": [new(n) for n in range(2, EVENTS_MAX + 2)],
    }[what]
    warm.came("final", come)
    assert warm.take("final") is None
    # Nor is the rest of it taken for all that came.
    assert warm.take("final") is None
    assert bool(warm.logs()) == warm.has_read("final", come[-1].id) == (what != "too many")


def test_a_damaged_publication_is_set_aside_as_it_would_be_after_reading() -> None:
    warm = Warm(KEYS)
    opened(warm)
    warm.came("final", [stream_entry(2, damaged(published("e2")))])
    pending = warm.take("final")
    assert pending is not None
    assert list(prepare(pending).quarantine) == [Position(1, 2)]


def test_what_a_commit_of_another_brought_already_is_not_taken_again() -> None:
    warm = Warm(KEYS)
    first = opened(warm)
    warm.came("final", [new(2), new(3)])
    warm.committed(
        first,
        prepare(Pending("final", 1, Position(0, 0), (), None, [*first.entries, new(2)], frozenset(), False, {})),
        1,
    )
    assert ids(warm.take("final")) == ["1-3"]
    warm.came("final", [new(1)])
    assert warm.take("final") is None


def test_what_came_is_read_again_after_a_commit_that_was_refused() -> None:
    warm = Warm(KEYS)
    opened(warm)
    warm.came("final", [new(2)])
    warm.moved("final")
    assert warm.take("final") is None
    warm.came("final", [new(3)])
    assert warm.take("final") is None
    warm.moved("of-another")


def test_a_feed_of_which_more_waits_is_not_followed_before_all_is_committed() -> None:
    warm = Warm(KEYS)
    first = opened(warm)
    done = prepare(msgspec.structs.replace(first, more=True))
    warm.committed(first, done, 1)
    assert not warm.logs()
    opened(warm)
    assert warm.logs()


def test_a_ring_tells_nothing_new_of_what_was_read() -> None:
    warm = Warm(KEYS)
    assert not warm.has_read("final", b"1-1")
    opened(warm)
    assert warm.has_read("final", b"1-1")
    assert not warm.has_read("final", b"1-2") and not warm.has_read("final", None)
    warm.came("final", [new(2)])
    assert warm.has_read("final", b"1-2")


def test_only_the_feeds_that_were_committed_last_are_followed_and_none_of_a_shard_that_was_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FEEDS_MAX", 2)
    warm = Warm(KEYS)
    for feed in ("a", "b", "a", "c"):
        opened(warm, feed)
    assert dict(warm.logs().values()) == {"a": "1-1", "c": "1-1"}
    warm.forget_shard(KEYS.shard_of("a"))
    assert [feed for feed, _ in warm.logs().values()] == ["c"]

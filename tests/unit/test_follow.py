"""Following: the SSE parser after WHATWG HTML 9.2.6, what a reader holds, and when it connects again."""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cli.client import DatelineClient
from services.cli.follow import (
    EventStreamParser,
    Frame,
    Interruption,
    Pauses,
    Reader,
    ReaderState,
    follow,
    frame_of,
)
from services.cli.problem import Problem
from services.cli.reader import Document, Order, sort_key
from services.cli.sse import SentEvent
from shared.position import Position

# The parser


def parsed(*pieces: bytes) -> list[SentEvent]:
    parser = EventStreamParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def test_fields_make_an_event_and_a_blank_line_ends_it() -> None:
    assert parsed(b'retry: 2000\nevent: entry\nid: 1-7\ndata: {"a":1}\n\n') == [
        SentEvent(event="entry", data='{"a":1}', id="1-7", last_event_id="1-7")
    ]


def test_several_data_lines_are_joined_and_only_one_space_is_taken_off() -> None:
    assert [event.data for event in parsed(b"data:one\ndata:  two\ndata\n\n")] == ["one\n two\n"]


def test_an_event_without_data_is_none_but_its_id_counts() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"event: entry\nid: 1-7\n\n") == []
    assert parser.last_event_id == "1-7"
    assert parser.feed(b"data: x\n\n") == [SentEvent(event="message", data="x", id=None, last_event_id="1-7")]


def test_an_empty_id_forgets_the_last_one() -> None:
    assert parsed(b"id: 1-7\ndata: a\n\nid\ndata: b\n\n")[1] == SentEvent("message", "b", id="", last_event_id="")


def test_an_id_with_nul_and_a_retry_that_is_no_number_are_ignored() -> None:
    parser = EventStreamParser("1-6")
    assert parser.feed(b"id: 1\x00-7\nretry: 1e3\nretry: -5\nretry: \xd9\xa3\ndata: x\n\n")[0].last_event_id == "1-6"
    assert parser.retry_ms is None
    parser.feed(b"retry: 0250\n")
    assert parser.retry_ms == 250


def test_comments_and_unknown_fields_are_ignored() -> None:
    assert [event.data for event in parsed(b": a comment\n:\nfoo: bar\ndata: x\n data: y\n\n")] == ["x"]


def test_one_byte_order_mark_at_the_start_is_taken_off_and_no_other() -> None:
    assert [event.data for event in parsed(b"\xef\xbb", b"\xbfdata: x\n\n\xef\xbb\xbfdata: y\n\n")] == ["x"]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_end_is_one_even_when_it_comes_in_two_pieces(end: bytes) -> None:
    stream = b"data: a" + end + b"data: b" + end + end + b"data: c" + end + end
    for size in (1, 2, 3, len(stream)):
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert [event.data for event in parsed(*pieces)] == ["a\nb", "c"]


def test_what_is_unfinished_at_the_end_is_no_event() -> None:
    assert parsed(b"data: x\n\ndata: y\n") == parsed(b"data: x\n\n")


PIECES = [
    "data",
    "data:x",
    "id",
    "id:7",
    "event",
    "event:e",
    "retry",
    "foo",
    ":",
    ":",
    " ",
    "\r",
    "\n",
    "\r\n",
    "\n\n",
    "\0",
    "7",
    "é",
    "漢",
    "\ufeff",
    "x",
]


@given(st.lists(st.sampled_from(PIECES), max_size=40), st.data())
@settings(max_examples=300, deadline=None)
def test_however_the_bytes_are_cut_the_events_are_those_of_the_whole(pieces: list[str], data: st.DataObject) -> None:
    stream = "".join(pieces).encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=12)))
    chunks = [stream[start:end] for start, end in itertools.pairwise([0, *cuts, len(stream)])]
    assert parsed(*chunks) == by_the_book(stream.decode())


def by_the_book(text: str) -> list[SentEvent]:
    """9.2.6 read on the whole text at once, without any state between pieces."""
    *lines, _unfinished = re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))
    events: list[SentEvent] = []
    last_id, name, own_id = "", "", None
    data: list[str] = []
    for line in lines:
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if line == "":
            last_id = own_id if own_id is not None else last_id
            if data:
                events.append(SentEvent(name or "message", "\n".join(data), own_id, last_id))
            name, own_id, data = "", None, []
        elif field == "data":
            data.append(value)
        elif field == "event":
            name = value
        elif field == "id" and "\0" not in value:
            own_id = value
    return events


# What a reader holds


def entry(entry_id: str, n: int, *, first: int | None = None, at: int = 0, **fields: Any) -> dict[str, Any]:
    document = {
        "id": entry_id,
        "feed": "f",
        "status": "published",
        "revision": 1,
        "published_at": f"2022-01-10T18:{at:02}:00.000Z",
        "pinned": False,
        "pinned_position": None,
        "key_event": False,
        "first_position": f"1-{first or n}",
        "position": f"1-{n}",
    }
    return {**document, **fields}


def tombstone(entry_id: str, n: int, *, first: int, at: int = 0) -> dict[str, Any]:
    return {
        "id": entry_id,
        "feed": "f",
        "status": "retracted",
        "revision": 1,
        "published_at": f"2022-01-10T18:{at:02}:00.000Z",
        "first_position": f"1-{first}",
        "position": f"1-{n}",
    }


def page(n: int, entries: Sequence[Document], *, pinned: Sequence[Document] = (), after: str | None = None) -> Document:
    return {
        "feed": "f",
        "position": f"1-{n}",
        "pinned": list(pinned),
        "entries": list(entries),
        "next": after,
        "feed_document": {"id": "f", "title": "T"},
    }


def take(state: ReaderState, event: str, data: Document, n: int | None) -> None:
    state.apply(event, data, position=None if n is None else Position(1, n))


def ids(documents: Iterable[Document]) -> list[str]:
    return [document["id"] for document in documents]


def test_the_greatest_position_wins_and_a_tombstone_is_remembered() -> None:
    state = ReaderState("f")
    take(state, "entry", entry("a", 2), 2)
    take(state, "retraction", tombstone("a", 3, first=2), 3)
    # A page that was rendered earlier and arrives later must not bring it back.
    state.load(page(2, [entry("a", 2)]))
    assert state.visible() == []
    assert ids(state.tombstones()) == ["a"]


def test_positions_compare_as_integers_also_at_equal_times() -> None:
    state = ReaderState("f")
    for n in (9, 10, 11):
        take(state, "entry", entry(f"e{n}", n), n)
    assert ids(state.visible()) == ["e11", "e10", "e9"]
    state.order = "oldest"
    assert ids(state.visible()) == ["e9", "e10", "e11"]


def test_what_sorts_beyond_the_last_loaded_entry_is_hidden_while_there_is_a_next() -> None:
    state = ReaderState("f", order="oldest")
    take(state, "snapshot", page(3, [entry("a", 2, at=1), entry("b", 3, at=5)], after="cursor"), 3)
    take(state, "live", {"feed": "f"}, 3)
    take(state, "entry", entry("c", 4, at=9), 4)
    take(state, "entry", entry("d", 5, at=3), 5)
    assert ids(state.visible()) == ["a", "d", "b"]
    state.load(page(5, [entry("c", 4, at=9)]))
    assert ids(state.visible()) == ["a", "d", "b", "c"]


def test_a_reset_discards_everything_tombstones_too() -> None:
    state = ReaderState("f")
    take(state, "snapshot", page(3, [entry("a", 2)], after="cursor"), 3)
    take(state, "retraction", tombstone("b", 3, first=1), 3)
    take(state, "reset", {"feed": "f", "reason": "epoch"}, None)
    assert state.documents == {} and state.feed_document is None and state.next is None
    take(state, "snapshot", page(2, [entry("b", 2)]), 2)
    assert ids(state.visible()) == ["b"]


def test_pins_are_listed_by_their_own_position_the_latest_first() -> None:
    state = ReaderState("f")
    take(state, "entry", entry("a", 9, first=2, pinned=True, pinned_position="1-9"), 9)
    take(state, "entry", entry("b", 10, first=3, pinned=True, pinned_position="1-10"), 10)
    take(state, "entry", entry("c", 11, first=4), 11)
    assert ids(state.pinned()) == ["b", "a"]


def test_events_that_nobody_knows_change_nothing() -> None:
    state = ReaderState("f")
    take(state, "poll", {"feed": "f", "id": "a"}, 7)
    assert state.documents == {} and state.position == Position(0, 0)


def live_state(n: int) -> ReaderState:
    state = ReaderState("f")
    state.connected(resumed=False)
    take(state, "live", {"feed": "f"}, n)
    return state


def test_a_missing_position_while_live_is_a_fault() -> None:
    state = live_state(2)
    take(state, "entry", entry("a", 3), 3)
    take(state, "entry", entry("c", 5), 5)
    assert state.order_check.faults == ["nothing between 1-3 and 1-5"]


def test_a_live_after_a_gap_explains_it_as_a_folded_difference() -> None:
    state = live_state(2)
    take(state, "entry", entry("c", 5), 5)
    take(state, "live", {"feed": "f"}, 5)
    take(state, "entry", entry("d", 6), 6)
    assert state.order_check.faults == [] and state.order_check.differences == 1


def test_a_position_without_a_frame_comes_as_live_and_leaves_no_gap() -> None:
    state = live_state(2)
    take(state, "live", {"feed": "f"}, 3)
    take(state, "entry", entry("a", 4), 4)
    assert state.order_check.faults == []


def test_a_position_that_comes_twice_is_a_fault_also_across_a_resumed_connection() -> None:
    state = live_state(2)
    take(state, "entry", entry("a", 3), 3)
    state.connected(resumed=True)
    take(state, "entry", entry("a", 3), 3)
    assert state.order_check.faults == ["entry at 1-3 after 1-3"]


def test_positions_may_be_missing_in_the_difference_that_a_connection_begins_with() -> None:
    state = live_state(2)
    state.connected(resumed=True)
    take(state, "entry", entry("a", 7, first=3), 7)
    take(state, "entry", entry("b", 9, first=4), 9)
    take(state, "live", {"feed": "f"}, 9)
    assert state.order_check.faults == []


class Feed:
    """A feed as the server holds it: the documents after every position."""

    def __init__(self) -> None:
        self.states: list[dict[str, dict[str, Any]]] = [{}]
        self.changed: list[str | None] = [None]

    @property
    def head(self) -> int:
        return len(self.states) - 1

    def append(self, document: dict[str, Any]) -> None:
        self.states.append({**self.states[-1], document["id"]: document})
        self.changed.append(document["id"])

    def do(self, what: str, which: int, at: int) -> None:
        n = self.head + 1
        live = [document for document in self.states[-1].values() if document["status"] == "published"]
        if what == "publish" or not live:
            self.append(entry(f"e{n}", n, at=at))
            return
        held = live[which % len(live)]
        moved = {**held, "position": f"1-{n}"}
        if what == "retract":
            first = Position.parse(held["first_position"]).n
            self.append({**tombstone(held["id"], n, first=first), "published_at": held["published_at"]})
        elif what == "retime":
            self.append(
                {**moved, "revision": held["revision"] + 1, "published_at": entry("x", 1, at=at)["published_at"]}
            )
        elif what == "correct":
            self.append({**moved, "revision": held["revision"] + 1})
        else:
            on = not held["pinned"]
            self.append({**moved, "pinned": on, "pinned_position": f"1-{n}" if on else None})

    def page(self, n: int, order: Order, limit: int, *, after: Document | None = None) -> Document:
        live = [document for document in self.states[n].values() if document["status"] == "published"]
        ordered = sorted(live, key=sort_key, reverse=order == "newest")
        if after is not None:
            beyond = sort_key(after)
            ordered = [
                each
                for each in ordered
                if (sort_key(each) < beyond) == (order == "newest") and sort_key(each) != beyond
            ]
        entries = ordered[:limit]
        pins = sorted((each for each in live if each["pinned"]), key=pin_position, reverse=True)
        more = len(ordered) > limit
        pinned = pins if order == "newest" and after is None else []
        return page(n, entries, pinned=pinned, after=json.dumps(entries[-1]) if more else None)

    def frame(self, n: int) -> tuple[str, dict[str, Any]]:
        document = self.states[n][cast(str, self.changed[n])]
        return ("entry" if document["status"] == "published" else "retraction"), document

    def difference(self, after: int) -> list[int]:
        latest: dict[str, int] = {}
        for n in range(after + 1, self.head + 1):
            latest[cast(str, self.changed[n])] = n
        return sorted(latest.values())


def pin_position(document: Document) -> Position:
    return Position.parse(document["pinned_position"])


ACTS = st.tuples(
    st.sampled_from(["publish", "publish", "publish", "correct", "retime", "retract", "pin"]),
    st.integers(0, 20),
    st.integers(0, 4),
)
SURROUNDINGS = st.sampled_from(["receive", "receive", "receive", "cut", "load"])


@given(
    before=st.lists(ACTS, max_size=12),
    during=st.lists(st.tuples(ACTS, SURROUNDINGS), max_size=25),
    order=st.sampled_from(["newest", "oldest"]),
    limit=st.integers(1, 6),
)
@settings(max_examples=300, deadline=None)
def test_a_readers_state_equals_the_page_whatever_it_missed_and_whenever_it_loaded(
    before: list[tuple[str, int, int]],
    during: list[tuple[tuple[str, int, int], str]],
    order: Order,
    limit: int,
) -> None:
    feed = Feed()
    for act in before:
        feed.do(*act)
    state = ReaderState("f", order=order)
    state.connected(resumed=False)
    at = feed.head
    take(state, "snapshot", feed.page(at, order, limit), at)
    take(state, "live", {"feed": "f"}, at)
    connected = True
    for act, surrounding in during:
        feed.do(*act)
        if surrounding == "load" and state.next is not None:
            # A page is read at the head, whether or not the stream has come that far.
            state.load(feed.page(feed.head, order, limit, after=json.loads(state.next)))
        if surrounding == "cut":
            connected = False
        elif connected:
            assert at == feed.head - 1
            at = feed.head
            take(state, *feed.frame(at), at)
        elif surrounding == "receive":
            state.connected(resumed=True)
            for n in feed.difference(at):
                take(state, *feed.frame(n), n)
            at, connected = feed.head, True
            take(state, "live", {"feed": "f"}, at)
    state.connected(resumed=True)
    for n in feed.difference(at):
        take(state, *feed.frame(n), n)
    take(state, "live", {"feed": "f"}, feed.head)

    whole = feed.page(feed.head, order, 1000)["entries"]
    visible = state.visible()
    assert visible == whole[: len(visible)]
    assert state.next is not None or visible == whole
    while state.next is not None:
        state.load(feed.page(feed.head, order, limit, after=json.loads(state.next)))
    assert state.visible() == whole
    assert state.pinned() == feed.page(feed.head, "newest", 1000)["pinned"]
    assert state.order_check.faults == []


# Frames


def test_a_frame_knows_its_feed_and_position_on_a_stream_of_one_and_of_several() -> None:
    one = frame_of(SentEvent("entry", '{"id":"a","feed":"f"}', id="1-7", last_event_id="1-7"))
    assert (one.feed, one.position) == ("f", Position(1, 7))
    several = frame_of(SentEvent("feed", '{"id":"g"}', id="f:1-7,g:2-9", last_event_id="f:1-7,g:2-9"))
    assert (several.feed, several.position) == ("g", Position(2, 9))
    ping = frame_of(SentEvent("ping", "{}", id=None, last_event_id="1-7"))
    assert (ping.feed, ping.position) == (None, None)


def test_frames_of_another_feed_leave_a_readers_states_alone() -> None:
    reader = Reader(["f"])
    assert reader.apply(frame_of(SentEvent("entry", json.dumps({**entry("a", 2), "feed": "g"}), "1-2", "1-2"))) is None
    assert reader.states["f"].documents == {}


# Connecting again


class Scripted(DatelineClient):
    """A client whose connections bring what the script says; an exception stands for a connection that fails."""

    def __init__(self, *connections: bytes | Exception) -> None:
        super().__init__("http://example.org")
        self._connections = list(connections)
        self.resumed_from: list[str | None] = []
        self.snapshots: list[Any] = []

    @asynccontextmanager
    async def stream(
        self,
        feeds: Sequence[str],
        *,
        last_event_id: str | None = None,
        query: Mapping[str, str | int | None] | None = None,
    ) -> AsyncIterator[aiohttp.StreamReader]:
        self.resumed_from.append(last_event_id or None)
        self.snapshots.append((query or {}).get("snapshot"))
        if not self._connections:
            raise Problem(404, "feed-not-found", "the script is at its end")
        connection = self._connections.pop(0)
        if isinstance(connection, Exception):
            raise connection
        yield cast(aiohttp.StreamReader, Content(connection))


class Content:
    """What aiohttp's reader does; `...` at the end keeps the connection open and silent."""

    def __init__(self, data: bytes) -> None:
        self._silent = data.endswith(b"...")
        self._pieces = [data.removesuffix(b"...")]

    async def readany(self) -> bytes:
        if self._pieces:
            return self._pieces.pop()
        if self._silent:
            await asyncio.Event().wait()
        return b""


def sent(event: str, data: Any, event_id: str | None = None) -> bytes:
    lines = [f"event: {event}", *([f"id: {event_id}"] if event_id else []), f"data: {json.dumps(data)}"]
    return "\n".join(lines).encode() + b"\n\n"


async def followed(client: Scripted, **options: Any) -> tuple[list[Frame], list[Interruption]]:
    """Follow to the end of the script, which answers 404."""
    frames: list[Frame] = []
    interruptions: list[Interruption] = []
    options = {"pauses": Pauses(limit_seconds=0), **options}

    async def take_all() -> None:
        async with aclosing(follow(client, ["f"], on_interruption=interruptions.append, **options)) as stream:
            async for frame in stream:
                frames.append(frame)  # noqa: PERF401 - the frames before the end count, and the end is an exception

    with pytest.raises(Problem, match="the script is at its end"):
        await take_all()
    return frames, interruptions


async def test_a_follower_goes_on_from_the_last_id_that_it_got_whole() -> None:
    client = Scripted(
        sent("entry", entry("a", 2), "1-2") + sent("entry", entry("b", 3), "1-3")[:-3],
        sent("entry", entry("b", 3), "1-3"),
    )
    frames, _ = await followed(client, snapshot=20)
    assert [(frame.id, frame.connection, frame.resumed) for frame in frames] == [("1-2", 1, False), ("1-3", 2, True)]
    assert client.resumed_from == [None, "1-2", "1-3"]
    assert client.snapshots == [20, 20, 20]


async def test_a_given_last_event_id_is_where_the_first_connection_begins() -> None:
    client = Scripted(sent("live", {"feed": "f"}, "1-9"))
    frames, _ = await followed(client, last_event_id="1-7")
    assert client.resumed_from == ["1-7", "1-9"] and frames[0].resumed


async def test_what_comes_after_goodbye_is_not_read_and_its_wish_is_honoured() -> None:
    goodbye = sent("bye", {"reason": "draining", "reconnect_ms": 7000})
    client = Scripted(sent("live", {"feed": "f"}, "1-2") + goodbye + sent("entry", entry("a", 3), "1-3"))
    pauses = Recording()
    frames, interruptions = await followed(client, pauses=pauses)
    assert [frame.event for frame in frames] == ["live", "bye"]
    assert pauses.waits == [7.0]
    assert interruptions[0].reason == "the server said goodbye: draining"


class Recording(Pauses):
    """Computes the waits and does not wait."""

    def __init__(self) -> None:
        super().__init__(fraction=lambda: 0.0)
        self.waits: list[float] = []

    def next_seconds(self, *, served: bool) -> float:
        self.waits.append(super().next_seconds(served=served))
        return 0.0


async def test_retry_sets_every_later_wait_and_failures_make_them_longer() -> None:
    client = Scripted(
        b"retry: 500\n" + sent("live", {"feed": "f"}, "1-2"),
        aiohttp.ClientConnectionError("refused"),
        Problem(503, "unavailable", "later"),
        sent("live", {"feed": "f"}, "1-2"),
    )
    pauses = Recording()
    await followed(client, pauses=pauses)
    assert pauses.waits == [0.5, 0.5, 1.0, 0.5]


async def test_silence_ends_a_connection() -> None:
    client = Scripted(sent("live", {"feed": "f"}, "1-2") + b"...")
    _, interruptions = await followed(client, silence_seconds=0.01)
    assert interruptions[0].reason == "the server is silent"
    assert client.resumed_from == [None, "1-2"]


async def test_a_frame_that_cannot_be_read_is_asked_for_again() -> None:
    client = Scripted(sent("live", {"feed": "f"}, "1-2") + b"event: entry\nid: 1-3\ndata: {\n\n")
    _, interruptions = await followed(client)
    assert interruptions[0].reason.startswith("an unreadable frame")
    assert client.resumed_from == [None, "1-2"]


def test_waits_are_jittered_upwards_and_bounded() -> None:
    pauses = Pauses(fraction=lambda: 1.0)
    pauses.asked(4000)
    assert pauses.next_seconds(served=True) == 5.0
    assert [pauses.next_seconds(served=False) for _ in range(20)][-1] == 75.0
    assert Pauses(limit_seconds=0.25, fraction=lambda: 1.0).next_seconds(served=True) == 0.25

"""The past equals the fold: for every history and every position, the page that the file gives is the one that readers got."""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.cursor import Filters
from services.gateway.past import Past, PastPage
from shared.documents import Entry, TextBlock, render
from shared.errors import CannotFold, NewerLog
from shared.events import (
    Encoded,
    EntryChanges,
    EntryContent,
    EntryCorrected,
    EntryPinned,
    EntryPublished,
    EntryRedacted,
    EntryRetracted,
    EntryUnpinned,
    EpochRaised,
    Event,
    FeedChanges,
    FeedFields,
    FeedOpened,
    FeedRevised,
    KeyEventMarked,
    KeyEventUnmarked,
    RetractionReason,
    decode,
    encode,
)
from shared.fold import Documents, fold
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.read_models import READ_MODELS, index_for, members

FEED = "story"
SECRET = "a name that no one may print"
IDS = [f"e{i}" for i in range(6)]
TIMES = ["2022-01-10T18:38:00.000Z", "2022-01-10T18:38:00.001Z", "2021-12-31T23:59:59.999Z"]
TAGS = ["live", "été", "a:b"]
START = 1_641_800_000_000

ids = st.sampled_from(IDS)
times = st.none() | st.sampled_from(TIMES)
tags = st.lists(st.sampled_from(TAGS), unique=True, max_size=3)
reasons = st.none() | st.just(SECRET)

OPENED = FeedOpened(FeedFields("t", None, "en", "UTC", [], None, None, "public"))


def published(
    entry: str, *, at: str | None = None, tags: Sequence[str] = (), key_event: bool = False
) -> EntryPublished:
    content = EntryContent(f"{SECRET} {entry}", [TextBlock(html=SECRET)], [], list(tags))
    return EntryPublished(entry=entry, published_at=at, key_event=key_event, content=content)


def corrected(entry: str, revision: int, *, at: str | None = None, **changes: Any) -> EntryCorrected:
    return EntryCorrected(entry=entry, revision=revision, published_at=at, content=EntryChanges(**changes))


# Events that need not fit: what cannot be folded is skipped by everybody alike.
histories = st.lists(
    st.one_of(
        st.builds(published, ids, at=times, tags=tags, key_event=st.booleans()),
        st.builds(corrected, ids, st.integers(2, 3), at=times, tags=tags, correction_note=reasons),
        st.builds(lambda entry, reason: EntryRetracted(entry, RetractionReason(reason)), ids, reasons),
        st.sampled_from([EntryPinned, EntryUnpinned, KeyEventMarked, KeyEventUnmarked]).flatmap(
            lambda kind: st.builds(kind, ids)
        ),
        st.builds(lambda title: FeedRevised(FeedChanges(title=title)), st.sampled_from(["t", "u"])),
        st.just(EpochRaised("epoch", "a test")),
        st.builds(lambda entry: EntryRedacted(entry, "court", []), ids),
        st.just(Encoded(b"no envelope", b"")),
    ),
    max_size=40,
)


def log_of(events: Sequence[Event | Encoded]) -> list[StreamEntry]:
    """The events as a log, two of them recorded at each instant."""
    entries = []
    epoch = 1
    for n, event in enumerate(events, start=1):
        epoch += isinstance(event, EpochRaised)
        whole = event if isinstance(event, Encoded) else encode(event, command="c", by="desk", causation="request-1")
        stamp = str(START + 10 * (n // 2)).encode()
        fields = {b"envelope": whole.envelope, b"content": whole.content, b"recorded_at": stamp}
        entries.append(StreamEntry(f"{epoch}-{n}".encode(), fields))
    return entries


@contextmanager
def past_of(log: Sequence[StreamEntry], *, quarantined: Collection[Position] = (), slice_: int = 7) -> Iterator[Past]:
    past = Past(FEED)
    try:
        for start in range(0, len(log), slice_):
            past.fold(log[start : start + slice_], quarantined=quarantined)
        yield past
    finally:
        past.close()


class Plain:
    """The oracle: every moment of a plain fold, kept whole."""

    def __init__(self, log: Sequence[StreamEntry], quarantined: Collection[Position]) -> None:
        self.moments: dict[Position, dict[str, Any]] = {}
        self.open: dict[Position, bool] = {}
        self.redacted: set[str] = set()
        state = Documents(None, {})
        for entry in log:
            if entry.position not in quarantined:
                try:
                    recorded = decode(entry.id, entry.fields)
                    state.apply(fold(state, recorded, feed_id=FEED))
                    if isinstance(recorded.event, EntryRedacted):
                        self.redacted.add(recorded.event.entry)
                except CannotFold:
                    pass
            self.moments[entry.position] = dict(state.entries)
            self.open[entry.position] = state.feed is not None

    def page(self, position: Position, filters: Filters, *, limit: int, after: str | None) -> PastPage:
        live = [
            document
            for document in self.moments[position].values()
            if isinstance(document, Entry) and document.id not in self.redacted
        ]
        index = index_for(tag=filters.tag, key_events=filters.key_events)
        found = {member: d for d in live for name, member in members(d, READ_MODELS.values()) if name == index}
        kept = [m for m in found if (filters.since or "") <= m < (filters.until or "~")]
        newest = filters.order == "newest"
        keys = sorted(kept, reverse=newest)
        left = [m for m in keys if after is None or (m < after if newest else m > after)]
        pins = {m: d for d in live for name, m in members(d, READ_MODELS.values()) if name == "pinned"}
        return PastPage(
            total=len(kept),
            pinned=[render(pins[m]) for m in sorted(pins, reverse=True)] if newest and after is None else [],
            entries=[render(found[m]) for m in left[:limit]],
            last=left[limit - 1] if len(left) > limit else None,
        )


FILTERS = [
    Filters(),
    Filters(order="oldest"),
    Filters(tag="été"),
    Filters(order="oldest", tag="a:b", key_events=True),
    Filters(key_events=True),
    Filters(since=TIMES[0]),
    Filters(order="oldest", since=TIMES[2], until=TIMES[1]),
]


@given(histories, st.sets(st.integers(2, 41), max_size=3), st.integers(1, 9), st.sampled_from([1, 3, 100]))
@settings(max_examples=120, deadline=None)
def test_every_page_of_every_position_is_the_plain_folds(
    events: list[Event | Encoded], ns: set[int], slice_: int, limit: int
) -> None:
    log = log_of([OPENED, *events])
    quarantined = {entry.position for entry in log if entry.position.n in ns}
    plain = Plain(log, quarantined)
    with past_of(log, quarantined=quarantined, slice_=slice_) as past:
        assert past.agrees(quarantined)
        for position in plain.moments:
            assert past.open_at(position)
            for filters in FILTERS:
                after: str | None = None
                while True:
                    page = past.page(position, filters, limit=limit, after=after)
                    assert page == plain.page(position, filters, limit=limit, after=after), (position, filters)
                    after = page.last
                    if after is None:
                        break


@given(histories, st.sampled_from(IDS))
@settings(max_examples=80, deadline=None)
def test_a_redaction_that_comes_late_leaves_what_one_that_stood_from_the_first_fold_on_leaves(
    events: list[Event | Encoded], entry: str
) -> None:
    """Content that was folded before its redaction is gone from everywhere, byte for byte as if it had never been read."""
    log = log_of([OPENED, published(entry), *events, EntryRedacted(entry, "court", [])])
    removed = [without_content(item) if about(item) == entry else item for item in log]
    with past_of(log) as late, past_of(removed) as fresh:
        assert dump(late, entry) == dump(fresh, entry)
        assert SECRET not in dump(late, entry)
        for moment in {item.position for item in log}:
            for filters in FILTERS:
                assert late.page(moment, filters, limit=100, after=None) == fresh.page(
                    moment, filters, limit=100, after=None
                )


def about(item: StreamEntry) -> str | None:
    try:
        event = decode(item.id, item.fields).event
    except CannotFold:
        return None
    return None if isinstance(event, EntryRedacted) else getattr(event, "entry", None)


def without_content(item: StreamEntry) -> StreamEntry:
    return StreamEntry(item.id, {**item.fields, b"content": b""})


def dump(past: Past, entry: str) -> str:
    """All that the file holds of one entry."""
    versions = past._file.execute("SELECT * FROM versions WHERE entry = ? ORDER BY n", (entry,)).fetchall()
    listed = past._file.execute("SELECT * FROM members WHERE substr(member, -2) = ? ORDER BY 1, 2, 3", (entry,))
    return repr([versions, listed.fetchall()])


def test_content_that_is_forgotten_is_in_no_page_of_the_file(tmp_path: Any) -> None:
    log = log_of([OPENED, *(published(f"x{i}") for i in range(300)), published("e1"), EntryPinned("e1")])
    with past_of(log) as past:
        past.forget("e1")
        file = sqlite3.connect(tmp_path / "copy")
        # Pages are copied as they are, free ones included.
        past._file.backup(file)
        file.close()
    data = (tmp_path / "copy").read_bytes()
    assert f"{SECRET} e2".encode() not in data and f"{SECRET} x7".encode() in data
    assert f"{SECRET} e1".encode() not in data


def test_an_entry_forgotten_before_its_redaction_is_folded_goes_on_to_be_folded() -> None:
    events: list[Event | Encoded] = [
        OPENED,
        published("e1", tags=["live"]),
        EntryPinned("e1"),
        published("e2"),
        EntryRedacted("e1", "court", []),
    ]
    log = log_of(events)
    with past_of(log[:4]) as past:
        past.forget("e1")
        position = log[3].position
        page = past.page(position, Filters(), limit=10, after=None)
        assert (page.total, page.pinned, len(page.entries)) == (1, [], 1)
        assert SECRET not in dump(past, "e1")
        past.fold(log[4:], quarantined=())
        past.forget("e1")
        history = history_of(past, "e1")
        assert [event["removed"] for event in history] == [True, True, False]
        assert history[-1]["document"]["status"] == "retracted" and history[-1]["why"] == "court"


def history_of(past: Past, entry: str, *, at_once: int = 100) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = 0
    while events := past.history(entry, after_n=after, to_n=10_000, events_max=at_once):
        found += [msgspec.json.decode(event) for _, event in events]
        after = events[-1][0]
    return found


def test_a_history_says_who_when_and_why_and_what_stood_after_it() -> None:
    events: list[Event | Encoded] = [
        OPENED,
        published("e1"),
        published("e2"),
        EpochRaised("epoch", "a test"),
        corrected("e1", 2, headline="h", correction_note="a name was wrong"),
        EntryPinned("e1"),
        corrected("e1", 9, headline="i"),
        EntryRetracted("e1", RetractionReason("withdrawn")),
    ]
    log = log_of(events)
    with past_of(log) as past:
        history = history_of(past, "e1")
        assert history == history_of(past, "e1", at_once=1)
    facts = [(e["position"], e["type"], e["revision"], e["why"], e["quarantined"]) for e in history]
    assert facts == [
        ("1-2", "EntryPublished", 1, None, False),
        ("2-5", "EntryCorrected", 2, "a name was wrong", False),
        ("2-6", "EntryPinned", 2, None, False),
        ("2-7", "EntryCorrected", None, None, True),
        ("2-8", "EntryRetracted", 2, "withdrawn", False),
    ]
    assert {(e["by"], e["causation"], e["removed"]) for e in history} == {("desk", "request-1", False)}
    assert [e["document"] and e["document"]["position"] for e in history] == ["1-2", "2-5", "2-6", None, "2-8"]
    assert history[0]["recorded_at"] == "2022-01-10T07:33:20.010Z"
    assert history[-1]["document"]["status"] == "retracted"


def test_an_instant_means_the_last_event_recorded_at_or_before_it() -> None:
    log = log_of([OPENED, *(published(entry) for entry in IDS)])
    with past_of(log) as past:
        for milliseconds in range(START - 1, START + 50):
            recorded = [e.position for e in log if int(e.fields[b"recorded_at"]) <= milliseconds]
            assert past.position_at(milliseconds) == (recorded[-1] if recorded else None)


def test_a_feed_is_not_there_before_the_event_that_opened_it() -> None:
    log = log_of([OPENED, OPENED, published("e1")])
    with past_of(log, quarantined=[Position(1, 1)]) as past:
        assert [past.open_at(entry.position) for entry in log] == [False, True, True]


def test_what_was_skipped_is_compared_with_what_must_be() -> None:
    log = log_of([OPENED, published("e1"), published("e1"), published("e2")])
    second, third, beyond = Position(1, 2), Position(1, 3), Position(1, 9)
    with past_of(log, quarantined=[second]) as past:
        assert past.agrees([second]) and past.agrees([second, beyond])
        assert not past.agrees([]), "its record was removed: the event is to be folded in its place"
        assert not past.agrees([second, third]), "it was folded, and must be skipped"
    with past_of(log) as past:
        assert past.agrees([]), "the projector has not come to what cannot be folded"
        assert past.agrees([third]), "it has"


def test_a_log_of_a_newer_release_is_left_to_it_and_the_past_stays_as_it_was() -> None:
    newer = msgspec.json.encode(
        {
            "type": "EntryTranslated",
            "version": 1,
            "command": "c",
            "by": "b",
            "causation": None,
            "digest": None,
            "facts": {},
        }
    )
    log = log_of([OPENED, published("e1"), published("e2"), Encoded(newer, b"")])
    with past_of(log[:2]) as past:
        with pytest.raises(NewerLog):
            past.fold(log[2:], quarantined=())
        assert past.last == log[1]
        past.fold(log[2:3], quarantined=())
        assert past.page(log[2].position, Filters(), limit=10, after=None).total == 2


def test_flags_that_go_to_and_fro_cost_no_more_each_time() -> None:
    """A member that came and went a thousand times is closed by its last row, not by looking at all of them."""
    flags = [kind("e1") for _ in range(1_000) for kind in (KeyEventMarked, KeyEventUnmarked)]
    log = log_of([OPENED, published("e1"), *flags])
    with past_of(log, slice_=100) as past:
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        past._file.set_progress_handler(step, 100)
        past.fold(log_of([OPENED, published("e1"), *flags, KeyEventMarked("e1")])[-1:], quarantined=())
        past.page(log[-1].position, Filters(), limit=10, after=None)
        assert steps < 20

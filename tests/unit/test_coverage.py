"""The demo's coverage: enough of everything, sound, and a verdict that can be no."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from services.cli.demo.coverage import (
    Changed,
    Correct,
    Coverage,
    FeedCoverage,
    Outcome,
    Pin,
    Publish,
    Retract,
    ReviseFeed,
    Unpin,
    faults,
    load,
    outcome,
    prerequisites,
)
from services.cli.demo.verdict import Truth, compare, compare_tombstones, differences, mirror_faults, outcome_faults
from services.cli.reader import Order, ReaderState
from shared.documents import EmbedBlock, ImageBlock, LinkCardBlock, ListBlock, QuoteBlock, TextBlock
from shared.position import Position

COVERAGE = load()
each_feed = pytest.mark.parametrize("feed", COVERAGE.feeds, ids=lambda feed: feed.id)


def published(feed: FeedCoverage) -> list[Publish]:
    return [step for step in feed.steps if isinstance(step, Publish)]


def test_one_story_in_three_feeds_one_language_each() -> None:
    assert [feed.document.language for feed in COVERAGE.feeds] == ["en", "fr", "es"]
    assert sum(len(published(feed)) for feed in COVERAGE.feeds) >= 48


@each_feed
def test_every_step_is_sound(feed: FeedCoverage) -> None:
    assert faults(feed) == []


@each_feed
def test_three_desks_publish_concurrently_and_in_the_same_minute(feed: FeedCoverage) -> None:
    assert len(feed.desks) == 3
    assert {step.desk for step in published(feed)} == set(feed.desks)
    at_once = Counter(step.after_seconds for step in published(feed))
    assert at_once[0] == 3
    assert 50 <= feed.seconds <= 60
    assert len(published(feed)) >= 16
    # Before its end at least sixteen entries stay on the page.
    assert len(outcome(feed).live) >= 16


@each_feed
def test_it_holds_every_kind_of_act_and_of_content(feed: FeedCoverage) -> None:
    kinds = {type(step) for step in feed.steps}
    assert kinds >= {Publish, Correct, Retract, Pin, Unpin, ReviseFeed}
    blocks = {type(block) for step in published(feed) for block in step.entry.body}
    assert blocks >= {TextBlock, QuoteBlock, LinkCardBlock, ListBlock, ImageBlock} and blocks <= {
        TextBlock,
        QuoteBlock,
        LinkCardBlock,
        ListBlock,
        ImageBlock,
        EmbedBlock,
    }
    assert any(not step.entry.body for step in published(feed)), "a flash is a headline alone"
    assert any(step.entry.headline is None for step in published(feed))
    assert any(step.entry.key_event for step in published(feed))
    assert any(step.entry.authors for step in published(feed))
    assert any(step.entry.tags for step in published(feed))
    quotes = [block for step in published(feed) for block in step.entry.body if isinstance(block, QuoteBlock)]
    assert quotes and all(quote.attribution for quote in quotes)
    images = [block for step in published(feed) for block in step.entry.body if isinstance(block, ImageBlock)]
    assert all(image.alt for image in images)


@each_feed
def test_entries_are_dated_back_some_to_the_very_same_minute(feed: FeedCoverage) -> None:
    dated = Counter(step.entry.minutes_before for step in published(feed) if step.entry.minutes_before is not None)
    assert max(dated.values()) >= 2
    assert all(minutes > 0 for minutes in dated)


@each_feed
def test_corrections_have_notes_and_two_desks_correct_one_entry_at_once(feed: FeedCoverage) -> None:
    corrections = [step for step in feed.steps if isinstance(step, Correct)]
    assert all(step.note for step in corrections)
    racing = Counter((step.ref, step.after_seconds) for step in corrections if step.seen_revision is not None)
    assert list(racing.values()) == [2]
    pair = [step for step in corrections if step.seen_revision is not None]
    assert pair[0].desk != pair[1].desk
    # The desk that comes second puts its change on top: so they must touch different fields.
    changed = [set(msgspec.to_builtins(step.changes)) for step in pair]
    assert not changed[0] & changed[1]


@each_feed
def test_retractions_give_a_reason(feed: FeedCoverage) -> None:
    retractions = [step for step in feed.steps if isinstance(step, Retract)]
    assert retractions and all(len(step.reason) > 20 for step in retractions)


def test_every_address_is_an_example() -> None:
    addresses = re.findall(r"https?://[^/\"]+", msgspec.json.encode(COVERAGE).decode())
    assert set(addresses) == {"https://example.org"}


STEP: dict[str, Any] = {"after_seconds": 1, "desk": "a", "do": "publish", "ref": "x", "entry": {"headline": "X"}}


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        ([{**STEP, "do": "pin"}], "x is not published yet"),
        ([STEP, {"after_seconds": 1, "desk": "a", "do": "pin", "ref": "x"}], "x is not published yet"),
        ([STEP, {**STEP, "after_seconds": 2}], "x is published twice"),
        ([{**STEP, "desk": "b"}], "there is no such desk"),
        ([{**STEP, "entry": {}}], "x has neither headline nor body"),
        ([{**STEP, "after_seconds": 2}, {**STEP, "ref": "y"}], "not in order of time"),
        ([STEP, {"after_seconds": 2, "desk": "a", "do": "correct", "ref": "x", "changes": {}}], "changes nothing"),
        (
            [
                STEP,
                {"after_seconds": 2, "desk": "a", "do": "retract", "ref": "x", "reason": "r"},
                {"after_seconds": 3, "desk": "a", "do": "pin", "ref": "x"},
            ],
            "x is retracted already",
        ),
    ],
)
def test_an_unsound_script_is_found_out(steps: list[dict[str, Any]], fault: str) -> None:
    for step in steps:
        if step["do"] == "pin":
            step.pop("entry", None)
    feed = script(steps)
    assert any(fault in found for found in faults(feed)), faults(feed)


@pytest.mark.parametrize("spoilt", [{"do": "delete"}, {"entry": {"headlin": "X"}}, {"after_seconds": "soon"}])
def test_a_step_that_does_not_exist_is_refused(spoilt: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        script([{**STEP, **spoilt}])


def test_steps_wait_for_those_on_the_same_entry_but_not_for_their_rivals() -> None:
    change = {"desk": "a", "do": "correct", "ref": "x", "changes": {"headline": "Y"}}
    steps = [
        STEP,
        {**STEP, "ref": "y"},
        {**change, "after_seconds": 2},
        {**change, "after_seconds": 2},
        {"after_seconds": 3, "desk": "a", "do": "pin", "ref": "x"},
        {"after_seconds": 4, "desk": "a", "do": "revise_feed", "fields": {"title": "T"}},
    ]
    assert prerequisites(script(steps).steps) == [[], [], [0], [0], [0, 2, 3], [0, 1, 2, 3, 4]]


def script(steps: list[dict[str, Any]]) -> FeedCoverage:
    document = {"title": "T", "summary": "S", "language": "en", "timezone": "UTC", "topics": []}
    feed = {"id": "f", "document": document, "desks": {"a": "A"}, "steps": steps}
    return msgspec.convert(feed, FeedCoverage)


def test_a_correction_that_changes_nothing_is_the_empty_one() -> None:
    assert Changed() == msgspec.convert({}, Changed)
    assert isinstance(COVERAGE, Coverage)


# The verdict


def document(entry_id: str, n: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": entry_id,
        "status": "published",
        "revision": 1,
        "published_at": "2022-01-10T18:38:00.000Z",
        "headline": "X",
        "key_event": False,
        "pinned": False,
        "pinned_position": None,
        "first_position": f"1-{n}",
        "position": f"1-{n}",
        **fields,
    }


ENTRIES = [document(f"e{n}", n) for n in (4, 3, 2)]
TOMBSTONE = {**document("gone", 5), "status": "retracted", "reason": "wrong"}
TRUTH = Truth(
    feed={"id": "f", "title": "T", "position": "1-5", "entry_count": 3, "updated_at": "later"},
    position="1-5",
    newest=ENTRIES,
    pinned=[],
    tombstones=[TOMBSTONE],
)


def state_of_a_reader() -> ReaderState:
    state = ReaderState("f")
    state.apply("feed", {"id": "f", "title": "T", "position": "1-1", "entry_count": 0}, position=Position(1, 1))
    for each in reversed(ENTRIES):
        state.apply("entry", each, position=Position.parse(each["position"]))
    state.apply("retraction", TOMBSTONE, position=Position(1, 5))
    state.apply("live", {"feed": "f"}, position=Position(1, 5))
    return state


def test_a_reader_who_holds_what_the_pages_show_is_exact() -> None:
    state = state_of_a_reader()
    assert compare(state, TRUTH) == [] and compare_tombstones(state, TRUTH) == []


def lose(state: ReaderState) -> None:
    state.documents.pop("e3")


def resurrect(state: ReaderState) -> None:
    state.documents["gone"] = document("gone", 5)


def keep_an_old_revision(state: ReaderState) -> None:
    state.documents["e2"] = document("e2", 2, headline="Y")


def keep_an_old_title(state: ReaderState) -> None:
    state.feed_document = {**TRUTH.feed, "title": "Old"}


def stop_early(state: ReaderState) -> None:
    state.position = Position(1, 4)


def miss_a_frame(state: ReaderState) -> None:
    state.apply("entry", document("e9", 9), position=Position(1, 9))


def pin_on_its_own(state: ReaderState) -> None:
    state.documents["e2"] = document("e2", 2, pinned=True, pinned_position="1-5")


@pytest.mark.parametrize(
    ("doctor", "fault"),
    [
        (lose, "e3 is missing"),
        (resurrect, "gone should not be there"),
        (keep_an_old_revision, 'e2: headline "Y" instead of "X"'),
        (keep_an_old_title, 'feed: title "Old" instead of "T"'),
        (stop_early, "stands at 1-4, the feed at 1-5"),
        (miss_a_frame, "nothing between 1-5 and 1-9"),
        (pin_on_its_own, "pinned: e2 should not be there"),
    ],
)
def test_a_doctored_state_is_found_out(doctor: Callable[[ReaderState], None], fault: str) -> None:
    state = state_of_a_reader()
    doctor(state)
    assert fault in compare(state, TRUTH)


def test_a_reader_who_forgot_a_retraction_is_found_out() -> None:
    state = state_of_a_reader()
    state.documents.pop("gone")
    assert compare(state, TRUTH) == []
    assert compare_tombstones(state, TRUTH) == ["retractions: gone is missing"]


def test_the_same_entries_in_another_order_are_a_difference() -> None:
    assert differences(ENTRIES, ENTRIES[::-1]) == ["the same entries in another order"]
    assert differences([*ENTRIES, ENTRIES[0]], ENTRIES) == ["e4 is there twice"]


def test_orders_that_are_no_mirrors_are_found_out() -> None:
    walks: dict[tuple[Order, int], list[dict[str, Any]]] = {("newest", 2): ENTRIES, ("oldest", 2): ENTRIES}
    assert mirror_faults(walks, expected=ENTRIES) == ["oldest by 2: the same entries in another order"]


def expected(**changes: Any) -> Outcome:
    right = Outcome(
        live=frozenset({"e4", "e3", "e2"}),
        retracted=frozenset({"gone"}),
        corrected=frozenset(),
        pinned=frozenset(),
        key_events=frozenset(),
        revisions={"e4": 1, "e3": 1, "e2": 1, "gone": 1},
        positions=5,
    )
    return msgspec.structs.replace(right, **changes)


IDS = {entry_id: entry_id for entry_id in ("e4", "e3", "e2", "gone")}


def test_pages_that_show_what_the_script_led_to_are_right() -> None:
    assert outcome_faults(TRUTH, expected(), IDS) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"live": frozenset({"e4", "e3"})}, "live: the pages and the script differ in e2"),
        ({"retracted": frozenset()}, "retracted: the pages and the script differ in gone"),
        ({"key_events": frozenset({"e2"})}, "key events: the pages and the script differ in e2"),
        ({"pinned": frozenset({"e2"})}, "pinned: the pages and the script differ in e2"),
        ({"revisions": {"e4": 2, "e3": 1, "e2": 1}}, "e4: revision 1, not 2"),
        ({"positions": 6}, "the feed stands at 1-5; 6 events were due"),
    ],
)
def test_pages_that_show_something_else_are_found_out(changes: dict[str, Any], fault: str) -> None:
    assert fault in outcome_faults(TRUTH, expected(**changes), IDS)

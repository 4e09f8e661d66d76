"""What a redaction and a raised epoch do to documents: the same, whether contents still stand in the log or are gone."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.projector.commit import Pending, prepare
from shared.documents import Author, Entry, TextBlock, Tombstone
from shared.errors import CannotFold
from shared.events import (
    EntryChanges,
    EntryContent,
    EntryCorrected,
    EntryPinned,
    EntryPublished,
    EntryRedacted,
    EntryRetracted,
    EntryUnpinned,
    EpochRaised,
    EpochReason,
    Event,
    FeedChanges,
    FeedFields,
    FeedOpened,
    FeedRevised,
    KeyEventMarked,
    Removed,
    RetractionReason,
    decode,
    encode,
)
from shared.fold import Documents, fold
from shared.ndjson import StreamEntry, line_of
from shared.position import ORIGIN, Position
from shared.read_models import READ_MODELS, members

FEED = "story"
SECRET = "the secret"
FIELDS = FeedFields("t", None, "en", "UTC", [], None, None, "public")


class History:
    """A log that grows event by event."""

    def __init__(self) -> None:
        self.log: list[StreamEntry] = []
        self.epoch = 1
        self.add(FeedOpened(FIELDS))

    def add(self, event: Event) -> Position:
        position = Position(self.epoch, len(self.log) + 1)
        encoded = encode(event, command="c", by="desk", causation=None)
        at = str(1_641_800_000_000 + len(self.log)).encode()
        fields = {b"envelope": encoded.envelope, b"content": encoded.content, b"recorded_at": at}
        self.log.append(StreamEntry(str(position).encode(), fields))
        return position

    def redact(self, entry: str) -> Position:
        return self.add(EntryRedacted(entry, "a court's order", removed_of(self.log, entry)))

    def raise_epoch(self, reason: EpochReason = "repaired") -> Position:
        self.epoch += 1
        return self.add(EpochRaised(reason, "the operators' words"))


def removed_of(log: Sequence[StreamEntry], entry: str) -> list[Removed]:
    recorded = [decode(item.id, item.fields) for item in log]
    return [
        Removed(str(found.position), found.envelope.digest)
        for found in recorded
        if getattr(found.event, "entry", None) == entry and found.envelope.digest is not None
    ]


def emptied(log: Sequence[StreamEntry], *, to: int | None = None) -> list[StreamEntry]:
    """The log as it is when the contents that its redactions name are gone, from those before index `to` alone."""
    redactions = [decode(item.id, item.fields).event for item in log]
    gone = {one.position for event in redactions if isinstance(event, EntryRedacted) for one in event.removed}
    return [
        StreamEntry(item.id, {**item.fields, b"content": b""}) if item.id.decode() in gone and index < to else item
        for to in [len(log) if to is None else to]
        for index, item in enumerate(log)
    ]


def folded(log: Sequence[StreamEntry]) -> Documents:
    state = Documents(None, {})
    for item in log:
        state.apply(fold(state, decode(item.id, item.fields), feed_id=FEED))
    return state


def content(headline: str | None = SECRET) -> EntryContent:
    return EntryContent(headline, [TextBlock(html=SECRET)], [Author(SECRET)], ["t"])


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["publish", "correct", "retime", "pin", "unpin", "key", "retract", "redact", "revise", "epoch"]
        ),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=30,
)


def history_of(steps: Sequence[tuple[str, str]]) -> History:
    """A history that the writer could have written: steps that do not fit are left out."""
    history = History()
    for step, entry in steps:
        before = folded(history.log).entries.get(entry)
        events: dict[str, Event] = {}
        if before is None:
            events = {"publish": EntryPublished(entry, None, False, content())}
        elif isinstance(before, Entry):
            corrected: Any = {"entry": entry, "revision": before.revision + 1}
            note = EntryChanges(headline=f"{SECRET} {before.revision}", correction_note=SECRET)
            events = {
                "correct": EntryCorrected(**corrected, published_at=None, content=note),
                "retime": EntryCorrected(
                    **corrected, published_at="2022-01-10T18:38:00.000Z", content=EntryChanges(tags=[SECRET])
                ),
                "pin": EntryPinned(entry),
                "unpin": EntryUnpinned(entry),
                "key": KeyEventMarked(entry),
                "retract": EntryRetracted(entry, RetractionReason(SECRET)),
            }
        events["revise"] = FeedRevised(FeedChanges(title=f"t{len(history.log)}"))
        if step == "epoch":
            history.raise_epoch()
        elif step == "redact" and before is not None:
            history.redact(entry)
        elif step in events:
            history.add(events[step])
    return history


@given(steps, st.integers(0, 40))
def test_a_redacted_history_folds_to_the_same_documents_with_and_without_the_contents(
    steps: list[tuple[str, str]], to: int
) -> None:
    history = history_of([*steps, ("publish", "a"), ("redact", "a")])
    whole = folded(history.log)
    # Gone altogether, and half way: contents go event by event.
    for log in (emptied(history.log), emptied(history.log, to=to)):
        assert folded(log) == whole
    live = [document for document in whole.entries.values() if isinstance(document, Entry)]
    assert whole.feed is not None
    assert whole.feed.entry_count == len(live)
    assert isinstance(whole.entries["a"], Tombstone)


@given(steps)
def test_nothing_of_the_content_is_left_in_documents_indexes_or_lines(steps: list[tuple[str, str]]) -> None:
    history = history_of([*steps, *(("publish", entry) for entry in "abc"), *(("redact", entry) for entry in "abc")])
    log = emptied(history.log)
    for document in folded(history.log).entries.values():
        assert SECRET.encode() not in msgspec.json.encode(document)
        assert {index for index, _ in members(document, READ_MODELS.values())} == {"changed"}
    assert all(SECRET.encode() not in line_of(item) for item in log)
    assert all(
        decode(item.id, item.fields).removed for item in log if item.id.decode() in
        {one.position for entry in "abc" for one in removed_of(history.log, entry)}
    )  # fmt: skip


def test_a_live_entry_becomes_a_tombstone_without_reason_and_leaves_the_count_the_pins_and_the_key_events() -> None:
    history = History()
    history.add(EntryPublished("a", None, True, content()))
    history.add(EntryPublished("b", None, False, content("stays")))
    history.add(EntryPinned("a"))
    before = folded(history.log)
    position = history.redact("a")
    after = folded(history.log)
    assert after.entries["a"] == Tombstone(
        id="a",
        feed=FEED,
        revision=1,
        retracted_at="2022-01-10T07:33:20.004Z",
        reason=None,
        published_at="2022-01-10T07:33:20.001Z",
        first_position="1-2",
        position=str(position),
    )
    assert after.entries["b"] == before.entries["b"]
    assert before.feed is not None
    assert after.feed is not None
    assert (before.feed.entry_count, after.feed.entry_count, after.feed.position) == (2, 1, "1-5")


def test_a_retracted_entry_loses_its_reason_and_keeps_when_it_was_retracted() -> None:
    history = History()
    history.add(EntryPublished("a", None, False, content()))
    history.add(EntryRetracted("a", RetractionReason(SECRET)))
    before = folded(history.log).entries["a"]
    assert isinstance(before, Tombstone)
    assert before.reason == SECRET
    history.redact("a")
    state = folded(history.log)
    assert state.entries["a"] == msgspec.structs.replace(before, reason=None, position="1-4")
    assert state.feed is not None
    assert state.feed.entry_count == 0


def test_an_entry_may_be_redacted_twice() -> None:
    history = History()
    history.add(EntryPublished("a", None, False, content()))
    history.redact("a")
    once = folded(history.log).entries["a"]
    history.redact("a")
    assert folded(history.log).entries["a"] == msgspec.structs.replace(once, position="1-4")


def test_what_was_never_published_cannot_be_redacted() -> None:
    history = History()
    history.redact("a")
    with pytest.raises(CannotFold, match="no such entry"):
        folded(history.log)


def test_only_a_redactions_emptiness_passes_for_content_that_is_gone() -> None:
    history = History()
    history.add(FeedRevised(FeedChanges(title=SECRET)))
    history.add(EntryPublished("a", None, False, content()))
    empty = [StreamEntry(item.id, {**item.fields, b"content": b""}) for item in history.log]
    for item in empty[:2]:
        # A feed's own fields are no entry's content: no redaction takes them.
        with pytest.raises(CannotFold, match="digest"):
            decode(item.id, item.fields)
    found = decode(empty[2].id, empty[2].fields)
    assert found.removed
    assert found.event == EntryPublished("a", None, False, EntryContent(None, [], [], []))
    assert not decode(history.log[2].id, history.log[2].fields).removed


@given(steps, st.sampled_from(["epoch", "repaired"]))
def test_a_raised_epoch_moves_the_position_and_nothing_else(steps: list[tuple[str, str]], reason: EpochReason) -> None:
    history = history_of(steps)
    before = folded(history.log)
    position = history.raise_epoch(reason)
    recorded = decode(history.log[-1].id, history.log[-1].fields)
    change = fold(before, recorded, feed_id=FEED)
    after = folded(history.log)
    assert after.entries == before.entries
    assert before.feed is not None
    assert after.feed == change.feed
    assert after.feed == msgspec.structs.replace(before.feed, position=str(position), updated_at=change.feed.updated_at)
    assert (change.raised, change.of_feed, change.before, change.after) == (reason, False, None, None)
    assert str(position) == f"{history.epoch}-{len(history.log)}"


def test_an_epoch_of_a_feed_that_is_not_open_cannot_be_folded() -> None:
    history = History()
    history.raise_epoch()
    with pytest.raises(CannotFold, match="not open"):
        folded(history.log[1:])


def test_commits_tell_readers_of_a_raised_epoch_and_of_a_redaction_as_of_a_retraction() -> None:
    history = History()
    history.add(EntryPublished("a", None, False, content()))
    history.raise_epoch("epoch")
    history.redact("a")
    pending = Pending(
        feed_id=FEED,
        generation=None,
        checkpoint=ORIGIN,
        models=tuple(READ_MODELS.values()),
        feed=None,
        entries=emptied(history.log),
        quarantined=frozenset(),
        more=False,
        documents={},
    )
    commit = prepare(pending)
    assert [(str(frame.position), frame.kind) for frame in commit.frames] == [
        ("1-1", "feed"), ("1-2", "entry"), ("2-3", "epoch"), ("2-4", "retraction")
    ]  # fmt: skip
    assert commit.frames[2].data == b"epoch"
    # The epoch is no change of the feed's own fields: `changes` need not tell of the feed.
    assert commit.feed_position == Position(1, 1)
    assert commit.quarantine == {}

"""Decide: whether a command may happen, and the events that it makes. Pure: state and command in, events out.

Owns the rules of the contract's Writing table. Where the state comes from and how events get into the log is `desk`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from msgspec import UNSET, Struct

from services.writer.commands import (
    FEED_COMMANDS,
    ChangeCommand,
    Command,
    CorrectEntry,
    FeedCommand,
    MarkKeyEvent,
    OpenFeed,
    PinEntry,
    PublishEntry,
    RetractEntry,
    UnmarkKeyEvent,
    UnpinEntry,
)
from shared.documents import Document, Entry, Feed, Tombstone
from shared.errors import (
    EntryExists,
    EntryNotFound,
    EntryRetracted,
    FeedClosed,
    FeedExists,
    FeedNotFound,
    FieldError,
    Invalid,
    PreconditionRequired,
    Refused,
    RevisionConflict,
    TooManyPins,
)
from shared.events import (
    EntryChanges,
    EntryCorrected,
    EntryEvent,
    EntryPinned,
    EntryPublished,
    EntryUnpinned,
    Event,
    FeedChanges,
    FeedOpened,
    FeedRevised,
    FeedStatusChanged,
    KeyEventMarked,
    KeyEventUnmarked,
    RetractionReason,
)
from shared.events import (
    EntryRetracted as EntryRetractedEvent,
)
from shared.fold import fold_entry, fold_feed, touched
from shared.position import Position

PINS_MAX = 10


class State(Struct):
    """What a decision rests on. `status` is None while there is no feed; `feed` is looked up for feed commands only."""

    feed_id: str
    status: str | None
    feed: Feed | None
    entries: dict[str, Document]
    fingerprints: dict[str, str]
    pinned: set[str]

    def copied(self) -> "State":
        """One to fold on without changing this one; documents are never changed in place."""
        return State(
            feed_id=self.feed_id,
            status=self.status,
            feed=self.feed,
            entries=dict(self.entries),
            fingerprints=dict(self.fingerprints),
            pinned=set(self.pinned),
        )


def decide(state: State, command: Command) -> list[Event]:
    """The events of a command, none where there is nothing to change; raises what the command is refused with."""
    if type(command) in FEED_COMMANDS:
        return _feed(state, cast("FeedCommand", command))
    if state.status is None:
        raise FeedNotFound(state.feed_id)
    if isinstance(command, PublishEntry):
        return _publish(state, command)
    return _change(state, cast("ChangeCommand", command))


class Plan(Struct, frozen=True):
    """The events of a request's commands in order; `ends[i]` counts the events up to and with command i.

    `after` is the state that they make, at the positions that stood in for theirs.
    """

    events: list[Event]
    ends: list[int]
    after: State


def plan(state: State, commands: Sequence[Command], *, head: Position, recorded_at: int, batch: bool) -> Plan:
    """Decide commands one after the other, each on what those before it made; a refusal of one is a refusal of all.

    Folds the events into `state`. `head` and `recorded_at` stand in for what the append script will say; a batch's refusal
    names its command.
    """
    events: list[Event] = []
    ends: list[int] = []
    for i, command in enumerate(commands):
        try:
            decided = decide(state, command)
        except Refused as error:
            if batch:
                _name_command(error, f"/commands/{i}")
            raise
        for event in decided:
            head = head.next()
            evolve(state, event, position=head, recorded_at=recorded_at)
        if isinstance(command, PublishEntry) and decided:
            state.fingerprints[command.entry] = command.fingerprint
        events += decided
        ends.append(len(events))
    return Plan(events, ends, state)


def evolve(state: State, event: Event, *, position: Position, recorded_at: int) -> None:
    """Bring the state up by one event that was decided on it."""
    entry = touched(event)
    if entry is not None:
        of_entry = cast("EntryEvent", event)
        document = fold_entry(
            state.entries.get(entry), of_entry, feed_id=state.feed_id, position=position, recorded_at=recorded_at
        )
        state.entries[entry] = document
        if isinstance(document, Entry) and document.pinned:
            state.pinned.add(entry)
        else:
            state.pinned.discard(entry)
    elif isinstance(event, FeedOpened | FeedRevised | FeedStatusChanged):
        state.feed = fold_feed(state.feed, event, feed_id=state.feed_id, position=position, recorded_at=recorded_at)
        state.status = state.feed.status


def _name_command(error: Refused, path: str) -> None:
    if isinstance(error, Invalid):
        error.errors[:] = [FieldError(path + at, problem) for at, problem in error.errors]
    else:
        field = "/revision" if isinstance(error, RevisionConflict) else "" if isinstance(error, FeedClosed) else "/id"
        error.facts["errors"] = [FieldError(path + field, error.detail)]


def _feed(state: State, command: FeedCommand) -> list[Event]:
    if isinstance(command, OpenFeed):
        if state.feed is None:
            return [FeedOpened(content=command.fields)]
        if command.only_open:
            raise FeedExists(f"the feed {state.feed_id!r} exists already", feed=state.feed_id)
        return _revised(state.feed, msgspec.structs.asdict(command.fields))
    if state.feed is None:
        raise FeedNotFound(state.feed_id)
    events = _revised(state.feed, _given(command.changes))
    if command.status is not None and command.status != state.feed.status:
        events.append(FeedStatusChanged(status=command.status))
    return events


def _revised(feed: Feed, wanted: Mapping[str, Any]) -> list[Event]:
    changes = {name: value for name, value in wanted.items() if getattr(feed, name) != value}
    return [FeedRevised(content=FeedChanges(**changes))] if changes else []


def _publish(state: State, command: PublishEntry) -> list[Event]:
    existing = state.entries.get(command.entry)
    if isinstance(existing, Tombstone):
        raise _retracted(existing)
    if existing is not None:
        if state.fingerprints[command.entry] != command.fingerprint:
            raise EntryExists(f"the entry {command.entry!r} was first published with other content", current=existing)
        return []
    if state.status == "closed":
        raise FeedClosed(f"the feed {state.feed_id!r} is closed and takes no new entries", feed=state.feed_id)
    return [
        EntryPublished(
            entry=command.entry,
            published_at=command.published_at,
            key_event=command.key_event,
            content=command.content,
        )
    ]


def _change(state: State, command: ChangeCommand) -> list[Event]:
    existing = state.entries.get(command.entry)
    if existing is None:
        raise EntryNotFound(state.feed_id, command.entry)
    if isinstance(existing, Tombstone):
        if isinstance(command, RetractEntry):
            return []
        raise _retracted(existing)
    _check_revision(existing, command)
    match command:
        case CorrectEntry():
            return _correct(existing, command)
        case RetractEntry():
            return [EntryRetractedEvent(entry=existing.id, content=RetractionReason(reason=command.reason))]
        case PinEntry():
            if existing.pinned:
                return []
            if len(state.pinned) >= PINS_MAX:
                raise TooManyPins(
                    f"{PINS_MAX} entries are pinned already", pins_max=PINS_MAX, pinned=sorted(state.pinned)
                )
            return [EntryPinned(entry=existing.id)]
        case UnpinEntry():
            return [EntryUnpinned(entry=existing.id)] if existing.pinned else []
        case MarkKeyEvent():
            return [] if existing.key_event else [KeyEventMarked(entry=existing.id)]
        case UnmarkKeyEvent():
            return [KeyEventUnmarked(entry=existing.id)] if existing.key_event else []


def _correct(entry: Entry, command: CorrectEntry) -> list[Event]:
    wanted = _given(command.changes)
    note = wanted.pop("correction_note", UNSET)
    changes = {name: value for name, value in wanted.items() if getattr(entry, name) != value}
    if note is not UNSET and note != (entry.correction.note if entry.correction else None):
        changes["correction_note"] = note
    retimed = command.published_at if command.published_at not in (None, entry.published_at) else None
    if changes.get("headline", entry.headline) is None and not changes.get("body", entry.body):
        raise Invalid([FieldError("/headline", "a headline or a body block is required")])
    if not changes and retimed is None:
        return []
    # A note that stood already still belongs to the correction that repeats it: it is dated anew.
    if note is not UNSET and note is not None:
        changes["correction_note"] = note
    return [
        EntryCorrected(
            entry=entry.id, revision=entry.revision + 1, published_at=retimed, content=EntryChanges(**changes)
        )
    ]


def _check_revision(entry: Entry, command: ChangeCommand) -> None:
    allowed = command.revisions
    if allowed is None:
        if isinstance(command, CorrectEntry):
            raise PreconditionRequired("send the entry's ETag, or its revision in quotes, as If-Match", current=entry)
        return
    if entry.revision not in allowed:
        expected = ", ".join(map(str, sorted(allowed)))
        raise RevisionConflict(
            f"the entry {entry.id!r} is at revision {entry.revision}, the request expects {expected}",
            entry=entry.id,
            expected=sorted(allowed),
            actual=entry.revision,
            current=entry,
        )


def _retracted(tombstone: Tombstone) -> EntryRetracted:
    return EntryRetracted(
        f"the entry {tombstone.id!r} was retracted for good; publish again under a new id", current=tombstone
    )


def _given(changes: Struct) -> dict[str, Any]:
    return {name: value for name in changes.__struct_fields__ if (value := getattr(changes, name)) is not UNSET}

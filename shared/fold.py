"""The fold: what one event does to a feed's documents. Pure, and the only place that knows.

Owns `documents + event -> change`. Reading events and storing documents is left to the edges; the projector, the writer's
decisions and every proof that a generation equals its log use this one function.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from shared.documents import Correction, Document, Entry, Feed, Tombstone
from shared.errors import CannotFold
from shared.events import (
    EntryCorrected,
    EntryEvent,
    EntryPinned,
    EntryPublished,
    EntryRedacted,
    EntryRetracted,
    EntryUnpinned,
    EpochRaised,
    EpochReason,
    Event,
    FeedEvent,
    FeedOpened,
    FeedRevised,
    FeedStatusChanged,
    KeyEventMarked,
    KeyEventUnmarked,
    Recorded,
)
from shared.instants import instant_of
from shared.position import Position

_OF_FEED = (FeedOpened, FeedRevised, FeedStatusChanged)

# Raised when the same log comes to fold into other documents: generations of another version are built anew.
FOLD_VERSION = 1


class Documents(Struct):
    """What a fold works on: the feed's document and those of its entries that the events at hand touch."""

    feed: Feed | None
    entries: dict[str, Document]

    def apply(self, change: "Change") -> None:
        self.feed = change.feed
        if change.after is not None:
            self.entries[change.after.id] = change.after


class Change(Struct, frozen=True):
    """What one event did: `feed` as of this position, and the entry before and after when the event is an entry's.

    `raised` is why the epoch grew, None for every other event.
    """

    position: Position
    feed: Feed
    before: Document | None
    after: Document | None
    raised: EpochReason | None = None

    @property
    def of_feed(self) -> bool:
        """Whether the feed's own fields changed."""
        return self.after is None and self.raised is None


def fold(documents: Documents, recorded: Recorded, *, feed_id: str) -> Change:
    """Apply one event; raises CannotFold with the facts when it does not fit the documents. Changes nothing itself."""
    event, position = recorded.event, recorded.position
    if isinstance(event, _OF_FEED):
        feed = fold_feed(documents.feed, event, feed_id=feed_id, position=position, recorded_at=recorded.recorded_at)
        return Change(position, feed, None, None)
    if documents.feed is None:
        raise _misfit(event, position, "the feed is not open")
    at = instant_of(recorded.recorded_at)
    if isinstance(event, EpochRaised):
        return Change(position, _moved(documents.feed, position, at), None, None, event.reason)
    before = documents.entries.get(event.entry)
    text = str(position)
    after = _folded_entry(before, event, feed_id, position, text, at)
    entry_count = documents.feed.entry_count + isinstance(after, Entry) - isinstance(before, Entry)
    feed = msgspec.structs.replace(documents.feed, position=text, updated_at=at, entry_count=entry_count)
    return Change(position, feed, before, after)


def touched(event: Event) -> str | None:
    """The entry that an event is about, if it is about one."""
    return getattr(event, "entry", None)


def fold_feed(feed: Feed | None, event: FeedEvent, *, feed_id: str, position: Position, recorded_at: int) -> Feed:
    """The feed's document after one of its own events; `recorded_at` in milliseconds since 1970."""
    at = instant_of(recorded_at)
    if isinstance(event, FeedOpened):
        if feed is not None:
            raise _misfit(event, position, "the feed is open already")
        return Feed(
            id=feed_id,
            **_set_fields(event.content),
            status="open",
            opened_at=at,
            updated_at=at,
            closed_at=None,
            position=str(position),
            entry_count=0,
        )
    if feed is None:
        raise _misfit(event, position, "the feed is not open")
    if isinstance(event, FeedRevised):
        return _moved(feed, position, at, **_set_fields(event.content))
    closed_at = None if event.status != "closed" else feed.closed_at or at
    return _moved(feed, position, at, status=event.status, closed_at=closed_at)


def fold_entry(
    before: Document | None, event: EntryEvent, *, feed_id: str, position: Position, recorded_at: int
) -> Document:
    """An entry's document after one of its events; `recorded_at` in milliseconds since 1970."""
    return _folded_entry(before, event, feed_id, position, str(position), instant_of(recorded_at))


def _folded_entry(
    before: Document | None, event: EntryEvent, feed_id: str, position: Position, text: str, at: str
) -> Document:
    if isinstance(event, EntryPublished):
        if before is not None:
            raise _misfit(event, position, "the entry exists already")
        return _published(event, feed_id, text, at)
    if before is None:
        raise _misfit(event, position, "there is no such entry")
    if isinstance(event, EntryRedacted):
        return _redacted(before, text, at)
    if isinstance(before, Tombstone):
        raise _misfit(event, position, "the entry is retracted")
    if isinstance(event, EntryCorrected) and event.revision != before.revision + 1:
        raise _misfit(event, position, f"it makes revision {event.revision} of an entry at {before.revision}")
    return _HANDLERS[type(event)](before, event, text, at)


def _moved(feed: Feed, position: Position, at: str, **changes: Any) -> Feed:
    return msgspec.structs.replace(feed, position=str(position), updated_at=at, **changes)


def _published(event: EntryPublished, feed_id: str, position: str, at: str) -> Entry:
    return Entry(
        id=event.entry,
        feed=feed_id,
        revision=1,
        published_at=event.published_at or at,
        updated_at=None,
        headline=event.content.headline,
        body=event.content.body,
        authors=event.content.authors,
        tags=event.content.tags,
        key_event=event.key_event,
        pinned=False,
        pinned_position=None,
        correction=None,
        first_position=position,
        position=position,
    )


def _corrected(before: Entry, event: EntryCorrected, position: str, at: str) -> Document:
    fields = _set_fields(event.content)
    note = fields.pop("correction_note", UNSET)
    if note is not UNSET:
        fields["correction"] = None if note is None else Correction(note=note, at=at)
    return msgspec.structs.replace(
        before,
        revision=event.revision,
        published_at=event.published_at or before.published_at,
        updated_at=at,
        position=position,
        **fields,
    )


def _retracted(before: Entry, event: EntryRetracted, position: str, at: str) -> Document:
    return Tombstone(
        id=before.id,
        feed=before.feed,
        revision=before.revision,
        retracted_at=at,
        reason=event.content.reason,
        published_at=before.published_at,
        first_position=before.first_position,
        position=position,
    )


def _redacted(before: Document, position: str, at: str) -> Document:
    """Nothing of the content, a retraction's reason included: the same, whether folded before the content went or after."""
    if isinstance(before, Tombstone):
        return msgspec.structs.replace(before, reason=None, position=position)
    return Tombstone(
        id=before.id,
        feed=before.feed,
        revision=before.revision,
        retracted_at=at,
        reason=None,
        published_at=before.published_at,
        first_position=before.first_position,
        position=position,
    )


def _pinned(before: Entry, event: EntryPinned, position: str, at: str) -> Document:
    return msgspec.structs.replace(before, pinned=True, pinned_position=position, position=position)


def _unpinned(before: Entry, event: EntryUnpinned, position: str, at: str) -> Document:
    return msgspec.structs.replace(before, pinned=False, pinned_position=None, position=position)


def _key_event_marked(before: Entry, event: KeyEventMarked, position: str, at: str) -> Document:
    return msgspec.structs.replace(before, key_event=True, position=position)


def _key_event_unmarked(before: Entry, event: KeyEventUnmarked, position: str, at: str) -> Document:
    return msgspec.structs.replace(before, key_event=False, position=position)


_HANDLERS: Mapping[type[EntryEvent], Callable[[Entry, Any, str, str], Document]] = {
    EntryCorrected: _corrected,
    EntryRetracted: _retracted,
    EntryPinned: _pinned,
    EntryUnpinned: _unpinned,
    KeyEventMarked: _key_event_marked,
    KeyEventUnmarked: _key_event_unmarked,
}


def _set_fields(changes: Struct) -> dict[str, Any]:
    return {name: value for name in changes.__struct_fields__ if (value := getattr(changes, name)) is not UNSET}


def _misfit(event: Event, position: Position, why: str) -> CannotFold:
    entry = touched(event)
    about = f" of entry {entry!r}" if entry else ""
    name = type(event).__name__
    return CannotFold(f"{name}{about} at {position}: {why}", position=str(position), type=name, entry=entry)

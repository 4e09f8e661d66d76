"""The write side of a feed as its events tell it: what head and records become when a recorded event is taken over.

Pure. Appends keep the same beside the log as they are decided; here it is told from events that were recorded elsewhere, those
that cannot be folded included. Where it is stored is `restoring`'s.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from shared.errors import CannotFold
from shared.events import (
    EntryCorrected,
    EntryPinned,
    EntryPublished,
    EntryRedacted,
    EntryRetracted,
    EntryUnpinned,
    EpochRaised,
    EpochReason,
    FeedOpened,
    FeedRevised,
    FeedStatusChanged,
    Recorded,
    decode,
)
from shared.fingerprints import publication_fingerprint
from shared.ndjson import CHAIN_START, StreamEntry, chained
from shared.position import ORIGIN, Position

# Stands for a fingerprint that the log does not tell, because the content is gone or damaged; none is spelled so.
NO_FINGERPRINT = "-"


class Note(NamedTuple):
    """An entry's record, as the write side spells it: `<status> <revision> <position> <fingerprint>`."""

    status: Literal["published", "retracted"]
    revision: int
    position: Position
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.status} {self.revision} {self.position} {self.fingerprint}"

    @classmethod
    def parse(cls, text: str) -> "Note":
        status, revision, position, fingerprint = text.split(" ")
        return cls(
            "published" if status == "published" else "retracted", int(revision), Position.parse(position), fingerprint
        )


class Raised(Struct, frozen=True):
    """Why the epoch was last raised, and when; `lost_epoch` is the last one that was raised for lost history, 0 for none."""

    reason: EpochReason
    because: str
    at: int
    lost_epoch: int

    def fields(self) -> dict[str, str | int]:
        """As a feed's head keeps it."""
        kept: dict[str, str | int] = {
            "raised_reason": self.reason,
            "raised_because": self.because,
            "raised_at": self.at,
        }
        return kept | ({"lost_epoch": self.lost_epoch} if self.lost_epoch else {})

    @classmethod
    def parse(cls, head: Mapping[str, str]) -> "Raised | None":
        """From a head's fields; None for a feed whose epoch was never raised."""
        if "raised_reason" not in head:
            return None
        return cls(
            reason="epoch" if head["raised_reason"] == "epoch" else "repaired",
            because=head["raised_because"],
            at=int(head["raised_at"]),
            lost_epoch=int(head.get("lost_epoch", 0)),
        )


class Standing(Struct, frozen=True):
    """The head's fields at `position`, and the chain over all events up to there."""

    position: Position = ORIGIN
    recorded_at: int = 0
    status: str = "open"
    version: int = 0
    pins: int = 0
    live: int = 0
    chain: str = CHAIN_START
    raised: Raised | None = None


class Told(Struct, frozen=True):
    """What the write side takes from an event: from the whole event, or from the envelope of one that cannot be read."""

    type: str
    entry: str | None = None
    revision: int | None = None
    status: str | None = None
    fingerprint: str = NO_FINGERPRINT
    raised: EpochRaised | None = None


def after(standing: Standing, entry: StreamEntry, told: Told, note: Note | None) -> tuple[Standing, Note | None]:
    """The standing after one more event, and the record of the entry that it is about, if it is; `note` is that before."""
    n, name = entry.position.n, told.type
    status, live, changed = standing.status, standing.live, None
    if name in _OF_FEED:
        status = told.status or ("open" if name == FeedOpened.__name__ else status)
    elif told.entry is not None:
        changed = _note(note, told, entry.position)
        live += (changed.status == "published") - (note is not None and note.status == "published")
    recorded_at, raised = int(entry.fields[b"recorded_at"]), standing.raised
    if told.raised is not None:
        lost_epoch = entry.position.epoch if told.raised.reason == "epoch" else raised.lost_epoch if raised else 0
        raised = Raised(told.raised.reason, told.raised.because, recorded_at, lost_epoch)
    return Standing(
        position=entry.position,
        recorded_at=recorded_at,
        status=status,
        version=n if name in _OF_FEED or n == 1 else standing.version,
        pins=n if name in _OF_PINS or n == 1 else standing.pins,
        live=live,
        chain=chained(standing.chain, entry),
        raised=raised,
    ), changed


_OF_FEED = {FeedOpened.__name__, FeedRevised.__name__, FeedStatusChanged.__name__}
# A retraction may take a pin with it.
_OF_PINS = {EntryPinned.__name__, EntryUnpinned.__name__, EntryRetracted.__name__, EntryRedacted.__name__}


class _Facts(Struct, frozen=True):
    entry: str | None = None
    revision: int | None = None
    status: str | None = None


class _Envelope(Struct, frozen=True):
    type: str
    facts: _Facts


_envelope = msgspec.json.Decoder(_Envelope)


def told_by(entry: StreamEntry) -> Told:
    """What an event tells; NewerLog for one of a newer release."""
    try:
        recorded = decode(entry.id, entry.fields)
    except CannotFold:
        try:
            read = _envelope.decode(entry.fields[b"envelope"])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return Told(type="")
        return Told(read.type, read.facts.entry, read.facts.revision, read.facts.status)
    event = recorded.event
    return Told(
        type=type(event).__name__,
        entry=getattr(event, "entry", None),
        revision=event.revision if isinstance(event, EntryCorrected) else None,
        status=event.status if isinstance(event, FeedStatusChanged) else None,
        fingerprint=_fingerprint(recorded),
        raised=event if isinstance(event, EpochRaised) else None,
    )


def _fingerprint(recorded: Recorded) -> str:
    event = recorded.event
    if not isinstance(event, EntryPublished) or recorded.removed:
        return NO_FINGERPRINT
    return publication_fingerprint(published_at=event.published_at, key_event=event.key_event, content=event.content)


def _note(before: Note | None, told: Told, position: Position) -> Note:
    if told.type == EntryPublished.__name__ or before is None:
        return Note("published", 1, position, told.fingerprint)
    match told.type:
        case EntryCorrected.__name__:
            return before._replace(revision=told.revision or before.revision + 1, position=position)
        case EntryRetracted.__name__:
            return before._replace(status="retracted", position=position)
        case EntryRedacted.__name__:
            return before._replace(status="retracted", position=position, fingerprint=NO_FINGERPRINT)
    return before._replace(position=position)

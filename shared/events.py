"""Events: the immutable facts in a feed's log, and how they stand in a stream entry.

Owns the log's format: three fields, `envelope`, `content` and `recorded_at` (which the append script stamps). The envelope
holds what must outlive a redaction (who, when, which entry, a salted digest of the content); the content may be removed later
and every check over positions, envelopes and digests still holds. Any change of a shape, that of a block included, raises
the version of the events that hold it. What events do to documents is `fold`'s.
"""

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType

from shared.documents import Author, Block, FeedStatus, Image, Visibility
from shared.errors import CannotFold, Corrupted, NewerLog
from shared.ndjson import UNREADABLE
from shared.position import Position
from shared.upcasters import UPCASTERS, Parts

SALT_BYTES = 16


class FeedFields(Struct, frozen=True):
    """A feed's editable fields but its status."""

    title: str
    summary: str | None
    language: str
    timezone: str
    topics: list[str]
    image: Image | None
    url: str | None
    visibility: Visibility


class FeedChanges(Struct, frozen=True, omit_defaults=True):
    """The editable fields that a revision sets; the others keep their value."""

    title: str | UnsetType = UNSET
    summary: str | None | UnsetType = UNSET
    language: str | UnsetType = UNSET
    timezone: str | UnsetType = UNSET
    topics: list[str] | UnsetType = UNSET
    image: Image | None | UnsetType = UNSET
    url: str | None | UnsetType = UNSET
    visibility: Visibility | UnsetType = UNSET


class EntryContent(Struct, frozen=True):
    headline: str | None
    body: list[Block]
    authors: list[Author]
    tags: list[str]


class EntryChanges(Struct, frozen=True, omit_defaults=True):
    """What a correction sets; the others keep their value. A `correction_note` of null removes the note."""

    headline: str | None | UnsetType = UNSET
    body: list[Block] | UnsetType = UNSET
    authors: list[Author] | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    correction_note: str | None | UnsetType = UNSET


class RetractionReason(Struct, frozen=True):
    reason: str | None


class FeedOpened(Struct, frozen=True):
    version: ClassVar[int] = 1
    content: FeedFields


class FeedRevised(Struct, frozen=True):
    version: ClassVar[int] = 1
    content: FeedChanges


class FeedStatusChanged(Struct, frozen=True):
    version: ClassVar[int] = 1
    status: FeedStatus


class EntryPublished(Struct, frozen=True):
    """`published_at` of null is the instant of the append."""

    version: ClassVar[int] = 1
    entry: str
    published_at: str | None
    key_event: bool
    content: EntryContent


class EntryCorrected(Struct, frozen=True):
    """`revision` is the one that this correction makes; `published_at` of null leaves the time."""

    version: ClassVar[int] = 1
    entry: str
    revision: int
    published_at: str | None
    content: EntryChanges


class EntryRetracted(Struct, frozen=True):
    version: ClassVar[int] = 1
    entry: str
    content: RetractionReason


class EntryPinned(Struct, frozen=True):
    version: ClassVar[int] = 1
    entry: str


class EntryUnpinned(Struct, frozen=True):
    version: ClassVar[int] = 1
    entry: str


class KeyEventMarked(Struct, frozen=True):
    version: ClassVar[int] = 1
    entry: str


class KeyEventUnmarked(Struct, frozen=True):
    version: ClassVar[int] = 1
    entry: str


class Removed(Struct, frozen=True):
    """One event whose content a redaction removed, and the digest that its envelope keeps of it."""

    position: str
    digest: str


class EntryRedacted(Struct, frozen=True):
    """The entry's content is gone from every event named in `removed`. `reason` is the operators', never the readers'."""

    version: ClassVar[int] = 1
    entry: str
    reason: str
    removed: list[Removed]


EpochReason = Literal["epoch", "repaired"]


class EpochRaised(Struct, frozen=True):
    """The first position of a new epoch. `reason` is what readers are told, `because` what operators are."""

    version: ClassVar[int] = 1
    reason: EpochReason
    because: str


FeedEvent = FeedOpened | FeedRevised | FeedStatusChanged
EntryEvent = (
    EntryPublished
    | EntryCorrected
    | EntryRetracted
    | EntryPinned
    | EntryUnpinned
    | KeyEventMarked
    | KeyEventUnmarked
    | EntryRedacted
)
Event = FeedEvent | EntryEvent | EpochRaised


class Envelope(Struct, frozen=True):
    """Who and why, the same for every type: `command` and `causation` (the request) are ids, `by` a token's name.

    `digest` is the SHA-256 of the content field's bytes in hex, null for an event that has no content. `facts` are the
    event's own fields but its content, in a member of their own: no future field can pass for who or why.
    """

    type: str
    version: int
    command: str
    by: str
    causation: str | None
    digest: str | None
    facts: dict[str, Any]


class Encoded(Struct, frozen=True):
    """An event as the append script takes it."""

    envelope: bytes
    content: bytes


class Recorded(Struct, frozen=True):
    """An event as it stands in the log; `recorded_at` in milliseconds since 1970, never running backwards in a feed.

    `removed`: its content is gone by a redaction; the event then holds what is left, which is no content.
    """

    position: Position
    recorded_at: int
    envelope: Envelope
    event: Event
    removed: bool = False


_TYPES: Mapping[str, type[Event]] = {cls.__name__: cls for cls in get_args(Event)}

# What stands for a content that a redaction removed. A live entry has a headline or a body, so an entry that has neither is
# one whose content is gone.
_REMOVED: Mapping[str, Struct] = {
    EntryPublished.__name__: EntryContent(headline=None, body=[], authors=[], tags=[]),
    EntryCorrected.__name__: EntryChanges(),
    EntryRetracted.__name__: RetractionReason(reason=None),
}


_encoder = msgspec.json.Encoder()
_envelopes = msgspec.json.Decoder(Envelope)


def encode(event: Event, *, command: str, by: str, causation: str | None) -> Encoded:
    """Split an event into envelope and salted content."""
    names = event.__struct_fields__
    facts: dict[str, Any] = {name: getattr(event, name) for name in names if name != "content"}
    content = b""
    digest = None
    if "content" in names:
        content = _salted(event.content)  # type: ignore[union-attr]
        digest = hashlib.sha256(content).hexdigest()
    envelope = Envelope(type(event).__name__, event.version, command, by, causation, digest, facts)
    return Encoded(_encoder.encode(envelope), content)


def _salted(content: Struct) -> bytes:
    """The salt keeps the digest of a short text from being guessed once the text is removed. It stands first."""
    fields = _encoder.encode(content)
    comma = b"" if fields == b"{}" else b","
    return b'{"salt":%b%b%b' % (_encoder.encode(secrets.token_hex(SALT_BYTES)), comma, fields[1:])


def decode(entry_id: bytes, fields: Mapping[bytes, bytes], *, position: Position | None = None) -> Recorded:
    """Read one stream entry; `position` spares reading the id again.

    Raises NewerLog for a type or version that this release does not know, CannotFold for an event whose bytes do not hold
    together, Corrupted for a stream entry that is no event at all.
    """
    try:
        position = position or Position.parse(entry_id.decode())
        raw_envelope, content = fields[b"envelope"], fields[b"content"]
        recorded_at = int(fields[b"recorded_at"])
    except (KeyError, ValueError) as error:
        raise Corrupted(f"the stream entry {entry_id!r} is no event", fields=sorted(map(repr, fields))) from error
    try:
        envelope = _envelopes.decode(raw_envelope)
    except UNREADABLE as error:
        raise CannotFold(f"the envelope cannot be read: {error}", position=str(position)) from error
    event_type = _TYPES.get(envelope.type)
    if event_type is None or envelope.version > event_type.version:
        raise NewerLog(
            f"{envelope.type} version {envelope.version} at {position} is newer than this release",
            position=str(position),
            type=envelope.type,
            version=envelope.version,
        )
    removed = envelope.digest is not None and content == b"" and envelope.type in _REMOVED
    if envelope.digest is not None and not removed and hashlib.sha256(content).hexdigest() != envelope.digest:
        raise CannotFold("the content does not match its digest", position=str(position), type=envelope.type)
    try:
        parts = dict(envelope.facts)
        if removed:
            parts["content"] = msgspec.to_builtins(_REMOVED[envelope.type])
        elif envelope.digest is not None:
            parts["content"] = msgspec.json.decode(content)
        for version in range(envelope.version, event_type.version):
            parts = _upcast(parts, envelope.type, version, position)
        event = msgspec.convert(parts, event_type)
    except UNREADABLE as error:
        raise CannotFold(f"the event cannot be read: {error}", position=str(position), type=envelope.type) from error
    return Recorded(position, recorded_at, envelope, event, removed)


def _upcast(parts: Parts, name: str, version: int, position: Position) -> Parts:
    try:
        return UPCASTERS[name, version](parts)
    # Nobody has checked the parts of an old event: an upcaster meets what is not there, or of another type.
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        detail = f"{name} version {version} cannot be brought to version {version + 1}: {error!r}"
        raise CannotFold(detail, position=str(position), type=name) from error


class About(Struct, frozen=True):
    """What an event is about, read without its content; `digest` is null for an event that has none."""

    type: str
    entry: str | None
    digest: str | None = None


class _Facts(Struct, frozen=True):
    entry: str | None = None


class _AboutEnvelope(Struct, frozen=True):
    type: str
    facts: _Facts
    digest: str | None = None


_about = msgspec.json.Decoder(_AboutEnvelope)


def about(fields: Mapping[bytes, bytes]) -> About:
    """The type and entry of a stream entry; CannotFold when its envelope cannot be read."""
    try:
        envelope = _about.decode(fields[b"envelope"])
    except (KeyError, *UNREADABLE) as error:
        raise CannotFold(f"the envelope cannot be read: {error}") from error
    return About(envelope.type, envelope.facts.entry, envelope.digest)

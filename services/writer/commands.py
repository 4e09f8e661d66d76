"""Commands: the imperatives that a desk may send, as `decide` understands them, and the request that they come in.

Owns their shapes. How they come out of a request is `requests`' business, whether they may happen `decide`'s.
"""

from collections.abc import Sequence

from msgspec import Struct

from shared.documents import FeedStatus
from shared.durability import Confirmation
from shared.events import EntryChanges, EntryContent, FeedChanges, FeedFields


class OpenFeed(Struct, frozen=True):
    """Open the feed or, unless `only_open`, replace its editable fields."""

    fields: FeedFields
    only_open: bool


class ReviseFeed(Struct, frozen=True):
    changes: FeedChanges
    status: FeedStatus | None


class PublishEntry(Struct, frozen=True):
    """`chosen`: the client chose the id, and may send the same content under it again, which `fingerprint` tells."""

    entry: str
    chosen: bool
    published_at: str | None
    key_event: bool
    content: EntryContent
    fingerprint: str


class CorrectEntry(Struct, frozen=True):
    """`revisions` are those that If-Match allows, None without one."""

    entry: str
    revisions: frozenset[int] | None
    published_at: str | None
    changes: EntryChanges


class RetractEntry(Struct, frozen=True):
    entry: str
    reason: str | None
    revisions: frozenset[int] | None = None


class PinEntry(Struct, frozen=True):
    entry: str
    revisions: frozenset[int] | None = None


class UnpinEntry(Struct, frozen=True):
    entry: str
    revisions: frozenset[int] | None = None


class MarkKeyEvent(Struct, frozen=True):
    entry: str
    revisions: frozenset[int] | None = None


class UnmarkKeyEvent(Struct, frozen=True):
    entry: str
    revisions: frozenset[int] | None = None


FeedCommand = OpenFeed | ReviseFeed
# Kinds are told by the type itself: an `isinstance` that says no costs as much as a whole decision.
FEED_COMMANDS: frozenset[type] = frozenset({OpenFeed, ReviseFeed})
ChangeCommand = CorrectEntry | RetractEntry | PinEntry | UnpinEntry | MarkKeyEvent | UnmarkKeyEvent
EntryCommand = PublishEntry | ChangeCommand
Command = FeedCommand | EntryCommand


class Request(Struct, frozen=True):
    """A request's commands and where they come from; `key` is the client's Idempotency-Key.

    `confirmation` is what must confirm that the write is as durable as promised.
    """

    feed: str
    commands: Sequence[Command]
    batch: bool
    by: str
    causation: str
    key: str | None
    fingerprint: str
    confirmation: Confirmation | None = None

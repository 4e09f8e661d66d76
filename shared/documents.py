"""Documents: what readers get of a feed and its entries, field for field as the contract names them.

Owns the shapes and their JSON. How events become documents is `fold`'s business, which of them a page lists `read_models`'.
"""

import re
from typing import Literal

import msgspec
from msgspec import Struct

# Also what makes an id safe in a key: "story:g1:i:tag" would spell a key of another kind.
_FEED_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_ENTRY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

# Part of every page's and feed's ETag: raised when the same log comes to render other bytes.
SCHEMA = 1

Visibility = Literal["public", "private"]
FeedStatus = Literal["open", "paused", "closed"]


def is_feed_id(text: str) -> bool:
    return _FEED_ID.fullmatch(text) is not None


def is_entry_id(text: str) -> bool:
    return _ENTRY_ID.fullmatch(text) is not None


class Image(Struct, frozen=True, forbid_unknown_fields=True):
    url: str
    alt: str
    credit: str | None = None


class Author(Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class TextBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    html: str


class QuoteBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="quote"):
    html: str
    attribution: str | None = None


class ImageBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="image"):
    url: str
    alt: str
    caption: str | None = None
    credit: str | None = None


class LinkCardBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="link_card"):
    url: str
    title: str
    topic: str | None = None
    image: str | None = None
    published_at: str | None = None


class EmbedBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="embed"):
    url: str
    provider: str | None = None


class ListBlock(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="list"):
    items: list[str]


Block = TextBlock | QuoteBlock | ImageBlock | LinkCardBlock | EmbedBlock | ListBlock


class Correction(Struct, frozen=True):
    note: str
    at: str


class Feed(Struct, frozen=True):
    """A feed's document. `entry_count` counts live entries; `updated_at` is when the log last grew, at `position`."""

    id: str
    title: str
    summary: str | None
    language: str
    timezone: str
    topics: list[str]
    image: Image | None
    url: str | None
    visibility: Visibility
    status: FeedStatus
    opened_at: str
    updated_at: str
    closed_at: str | None
    position: str
    entry_count: int


class Entry(Struct, frozen=True, tag_field="status", tag="published"):
    """A live entry's document."""

    id: str
    feed: str
    revision: int
    published_at: str
    updated_at: str | None
    headline: str | None
    body: list[Block]
    authors: list[Author]
    tags: list[str]
    key_event: bool
    pinned: bool
    pinned_position: str | None
    correction: Correction | None
    first_position: str
    position: str


class Tombstone(Struct, frozen=True, tag_field="status", tag="retracted"):
    """What is left of a retracted entry: nothing of its content."""

    id: str
    feed: str
    revision: int
    retracted_at: str
    reason: str | None
    published_at: str
    first_position: str
    position: str


Document = Entry | Tombstone

_encoder = msgspec.json.Encoder()
_documents: msgspec.json.Decoder[Document] = msgspec.json.Decoder(Document)
_feeds = msgspec.json.Decoder(Feed)


def render(document: Document | Feed) -> bytes:
    """The JSON that readers get; the same document always gives the same bytes."""
    return _encoder.encode(document)


def parse_document(data: bytes) -> Document:
    return _documents.decode(data)


def parse_feed(data: bytes) -> Feed:
    return _feeds.decode(data)

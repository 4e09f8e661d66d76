"""Cursors: where a walk over pages goes on, as an opaque text. Pure.

Owns the text and its checks. A cursor holds the last sort key that was given out, so it outlives every change and epoch, and
the order and filters of its walk, so that it cannot be continued as another.
"""

import base64
import binascii
import re
from typing import Literal

import msgspec
from msgspec import Struct

Order = Literal["newest", "oldest"]

_FORMAT = 1
_KEY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{12}Z[0-9]{20}[A-Za-z0-9_-]{1,64}")


class Filters(Struct, frozen=True, forbid_unknown_fields=True):
    """What a page is about. `since` is inclusive, `until` exclusive, both in Dateline's text of an instant."""

    order: Order = "newest"
    since: str | None = None
    until: str | None = None
    tag: str | None = None
    key_events: bool = False


class _Cursor(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    feed: str
    filters: Filters
    key: str


def write_cursor(feed: str, filters: Filters, *, key: str) -> str:
    """`key` is the sort key and id of the last entry given out."""
    raw = msgspec.json.encode(_Cursor(_FORMAT, feed, filters, key))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read_cursor(text: str, feed: str, filters: Filters) -> str:
    """The key after which the walk goes on; ValueError for what is no cursor of this feed, order and filters."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = msgspec.json.decode(raw, type=_Cursor)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise ValueError("is no cursor") from error
    if cursor.format != _FORMAT or not _KEY.fullmatch(cursor.key):
        raise ValueError("is no cursor")
    if cursor.feed != feed or cursor.filters != filters:
        raise ValueError("belongs to a walk with another feed, order or filter")
    return cursor.key

"""Cursors: where a walk over pages goes on, as an opaque text. Pure.

Owns the text and its checks. A cursor holds the last sort key that was given out, so it outlives every change and epoch, and
the order and filters of its walk, so that it cannot be continued as another. One of a past page holds its moment too.
"""

import base64
import binascii
import re
from typing import Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from shared.position import Position

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


class _Moment(Struct, frozen=True, forbid_unknown_fields=True):
    """The moment of a past page: `at` as it was asked for, and the position that it meant when the walk began."""

    at: str
    position: str


class _PastCursor(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    feed: str
    filters: Filters
    key: str
    past: _Moment


class PastPlace(NamedTuple):
    """Where a walk over past pages goes on: at the position that it began at, after a key."""

    position: Position
    key: str


_C = TypeVar("_C", _Cursor, _PastCursor)


def write_cursor(feed: str, filters: Filters, *, key: str) -> str:
    """`key` is the sort key and id of the last entry given out."""
    return _write(_Cursor(_FORMAT, feed, filters, key))


def write_past_cursor(feed: str, filters: Filters, *, key: str, at: str, position: Position) -> str:
    return _write(_PastCursor(_FORMAT, feed, filters, key, _Moment(at, str(position))))


def read_cursor(text: str, feed: str, filters: Filters) -> str:
    """The key after which the walk goes on; ValueError for what is no cursor of this feed, order and filters."""
    raw = _bytes(text)
    cursor = _decoded(raw, _Cursor)
    if cursor is None and _decoded(raw, _PastCursor) is not None:
        raise ValueError("belongs to a walk over the past: send its `at` too")
    return _checked(cursor, feed, filters).key


def read_past_cursor(text: str, feed: str, filters: Filters, *, at: str) -> PastPlace:
    """ValueError for what is no cursor of this feed, order, filters and `at`."""
    raw = _bytes(text)
    cursor = _decoded(raw, _PastCursor)
    if cursor is None and _decoded(raw, _Cursor) is not None:
        raise ValueError("belongs to a walk over the present: it has no `at`")
    cursor = _checked(cursor, feed, filters)
    if cursor.past.at != at:
        raise ValueError("belongs to a walk over another past")
    return PastPlace(Position.parse(cursor.past.position), cursor.key)


def _write(cursor: "_Cursor | _PastCursor") -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("is no cursor") from error


def _decoded(raw: bytes, kind: type[_C]) -> _C | None:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, msgspec.MsgspecError):
        return None


def _checked(cursor: _C | None, feed: str, filters: Filters) -> _C:
    if cursor is None or cursor.format != _FORMAT or not _KEY.fullmatch(cursor.key):
        raise ValueError("is no cursor")
    if cursor.feed != feed or cursor.filters != filters:
        raise ValueError("belongs to a walk with another feed, order or filter")
    return cursor

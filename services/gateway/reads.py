"""Reads: pages, differences and documents, each one read-only script, so that all it returns is of one moment.

Owns the way from read models to ready bytes; documents are joined, never decoded and encoded again. Several round trips
would tear: a retraction between two of them, and the bytes stand under the wrong position.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from services.gateway.cursor import Filters, write_cursor
from shared.documents import Visibility, is_feed_id
from shared.errors import Corrupted
from shared.events import EpochReason
from shared.keys import Keys
from shared.position import ORIGIN, Position
from shared.read_models import index_for
from shared.redis import Redis, Script

DIFFERENCE_DOCUMENTS_MAX = 200
DIFFERENCE_BYTES_MAX = 512 * 1024

_page = Script(__file__, "page.lua", read_only=True)
_difference = Script(__file__, "difference.lua", read_only=True)
_document = Script(__file__, "document.lua", read_only=True)


class Moment(Struct, frozen=True):
    """What every read of a feed is of: a generation at a checkpoint, the feed's document there, and the log's head.

    `lost_epoch` is the last epoch that was raised because history may have been lost, 0 if none was.
    """

    generation: int
    checkpoint: Position
    head: Position
    lost_epoch: int
    feed: bytes
    visibility: Visibility

    def reason_for(self, epoch: int) -> EpochReason:
        """Why one who holds positions of an older epoch must forget them."""
        return "epoch" if self.lost_epoch > epoch else "repaired"


class Page(Struct, frozen=True):
    """A page's JSON and, for its Link header, the cursor of the next one; `rendered` is what streams made of it."""

    moment: Moment
    body: bytes
    next: str | None
    rendered: dict[tuple[str | None, str], bytes] = msgspec.field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return 1_024 + len(self.body) + len(self.moment.feed)

    def snapshot(self) -> bytes:
        """The page document plus `feed_document`."""
        return b'%s,"feed_document":%s}' % (self.body[:-1], self.moment.feed)


class Changed(Struct, frozen=True):
    """One changed document's place and kind, read out of its JSON."""

    status: str
    position: str


class Difference(Struct, frozen=True):
    """Documents changed since a position, in order of position; `changed` counts all, `more` says that some are left.

    `feed_position` is where the feed's own fields changed last.
    """

    moment: Moment
    documents: Sequence[bytes]
    places: Sequence[Changed]
    more: bool
    changed: int
    feed_position: Position

    @property
    def position(self) -> Position:
        """Where the next difference goes on."""
        return Position.parse(self.places[-1].position) if self.more else self.moment.checkpoint


class Found(Struct, frozen=True):
    moment: Moment
    document: bytes | None

    @property
    def size_bytes(self) -> int:
        return 1_024 + len(self.moment.feed) + len(self.document or b"")


class Reads:
    """Reads of the active generations of one installation; None for a feed that is not readable (yet)."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def page(
        self, feed: str, filters: Filters, *, limit: int, after: str | None = None, unread_since: Position | None = None
    ) -> Page | None:
        """`after` is a cursor's key; `unread_since` counts the live entries first published after it."""
        if not is_feed_id(feed):
            return None
        keys = self._keys.feed(feed)
        first = after is None and filters.order == "newest"
        args: list[str | int] = [
            keys.generation,
            index_for(tag=filters.tag, key_events=filters.key_events),
            filters.order,
            # Members go on after the instant: one bound includes all of that instant, the other none.
            "[" + filters.since if filters.since else "-",
            "(" + filters.until if filters.until else "+",
            after or "",
            limit,
            "1" if first else "",
            f"({unread_since.n:020d}~" if unread_since else "",
        ]
        answer = await _page(self._redis, (keys.active, keys.head), args)
        if not answer[0] or answer[2] is None:
            return None
        generation, checkpoint, document, total, documents, last, pinned, unread, head = answer
        moment = _moment(feed, generation, checkpoint, document, head)
        cursor = write_cursor(feed, filters, key=last.decode()) if last else None
        body = page_body(
            feed,
            filters,
            position=moment.checkpoint,
            total=total,
            pinned=_all(feed, pinned),
            entries=_all(feed, documents),
            cursor=cursor,
            unread=unread,
        )
        return Page(moment, body, cursor)

    async def difference(
        self, feed: str, *, after: Position, documents_max: int = DIFFERENCE_DOCUMENTS_MAX
    ) -> Difference | None:
        if not is_feed_id(feed):
            return None
        keys = self._keys.feed(feed)
        key = "" if after == ORIGIN else f"{after.n:020d}"
        args = (keys.generation, key, documents_max, DIFFERENCE_BYTES_MAX)
        answer = await _difference(self._redis, (keys.active, keys.head), args)
        if not answer[0] or answer[2] is None:
            return None
        generation, checkpoint, document, feed_position, documents, more, changed, head = answer
        return Difference(
            moment=_moment(feed, generation, checkpoint, document, head),
            documents=documents,
            places=[_changed.decode(raw) for raw in documents],
            more=bool(more),
            changed=changed,
            feed_position=Position.parse(feed_position.decode()),
        )

    async def document(self, feed: str, entry: str | None = None) -> Found | None:
        if not is_feed_id(feed):
            return None
        keys = self._keys.feed(feed)
        answer = await _document(self._redis, (keys.active, keys.head), (keys.generation, entry or ""))
        if not answer[0] or answer[2] is None:
            return None
        generation, checkpoint, document, found, head = answer
        return Found(_moment(feed, generation, checkpoint, document, head), found)


class _Visible(Struct, frozen=True):
    visibility: Visibility


_visible = msgspec.json.Decoder(_Visible)
_changed = msgspec.json.Decoder(Changed)


def _moment(feed: str, generation: bytes, checkpoint: bytes, document: bytes, head: Sequence[bytes]) -> Moment:
    if None in head[:2]:
        raise Corrupted(f"the feed {feed!r} has a generation and no head", feed=feed)
    return Moment(
        generation=int(generation),
        checkpoint=Position.parse(checkpoint.decode()),
        head=Position(int(head[0]), int(head[1])),
        lost_epoch=int(head[2] or 0),
        feed=document,
        visibility=_visible.decode(document).visibility,
    )


def _all(feed: str, documents: Sequence[Any]) -> Sequence[bytes]:
    if None in documents:
        raise Corrupted(f"an index of {feed!r} names an entry that has no document", feed=feed)
    return documents


def page_body(
    feed: str,
    filters: Filters,
    *,
    position: Position,
    total: int,
    pinned: Sequence[bytes],
    entries: Sequence[bytes],
    cursor: str | None,
    unread: int | None,
) -> bytes:
    """A page's JSON, the same for the present and for the past."""
    return (
        b'{"feed":"%s","order":"%s","position":"%s","total":%d,"pinned":[%s],"entries":[%s],"next":%s,"unread":%s}'
        % (
            feed.encode(),
            filters.order.encode(),
            str(position).encode(),
            total,
            b",".join(pinned),
            b",".join(entries),
            b'"%s"' % cursor.encode() if cursor else b"null",
            b"null" if unread is None else b"%d" % unread,
        )
    )

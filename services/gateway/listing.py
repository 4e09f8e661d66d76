"""The list of feeds, most recently active first, merged from all shards.

Owns its cursor and filters. A feed that becomes active while somebody walks the list moves to its front.
"""

import base64
import heapq
from collections.abc import AsyncIterator
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from shared.documents import Feed, is_feed_id, parse_feed
from shared.keys import SHARDS, Keys
from shared.redis import Redis, Script, run_pipeline

# A filter that matches little must not make one request look at everything: it goes on with the next cursor.
LOOKED_AT_MAX = 1_000

_feeds = Script(__file__, "feeds.lua", read_only=True)


class FeedFilters(Struct, frozen=True, forbid_unknown_fields=True):
    topic: str | None = None
    status: str | None = None
    language: str | None = None

    def match(self, feed: Feed) -> bool:
        return (
            (self.topic is None or self.topic in feed.topics)
            and (self.status is None or self.status == feed.status)
            and (self.language is None or self.language.lower() == feed.language.lower())
        )


class Place(NamedTuple):
    """Where a feed stands in the list: its activity in milliseconds since 1970, and its id among equals."""

    activity: int
    feed: str


class _Cursor(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    filters: FeedFilters
    activity: Annotated[int, Meta(ge=0, lt=10**15)]
    feed: str


class Listed(NamedTuple):
    body: bytes
    next: str | None


class Listing:
    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def page(self, filters: FeedFilters, *, limit: int, after: Place | None, private: bool) -> Listed:
        """`private`: whether private feeds are listed too."""
        documents: list[bytes] = []
        looked_at = 0
        last = after
        more = False
        async for place, document in self._walk(after, chunk=limit + 1):
            feed = parse_feed(document)
            looked_at += 1
            if feed.visibility == "private" and not private:
                continue  # neither a cursor nor the lack of one tells of it
            if filters.match(feed):
                if len(documents) == limit:
                    more = True
                    break
                documents.append(document)
            last = place
            if looked_at >= LOOKED_AT_MAX:
                more = True
                break
        cursor = _write(filters, last) if more and last is not None else None
        body = b'{"feeds":[%s],"next":%s}' % (b",".join(documents), b'"%s"' % cursor.encode() if cursor else b"null")
        return Listed(body, cursor)

    async def _walk(self, after: Place | None, *, chunk: int) -> AsyncIterator[tuple[Place, bytes]]:
        """All feeds with a document after a place, latest activity first, read from every shard chunk by chunk."""
        while True:
            shards = await self._chunks(after, chunk)
            merged = heapq.merge(*shards, key=lambda item: item[0], reverse=True)
            # Beyond the end of a full chunk its shard may have feeds that belong before those of the others.
            ends = [shard[-1][0] for shard in shards if len(shard) >= chunk]
            bound = max(ends, default=None)
            for place, document in merged:
                if bound is not None and place < bound:
                    break
                if document is not None:
                    yield place, document
            if bound is None:
                return
            after = bound

    async def _chunks(self, after: Place | None, chunk: int) -> list[list[tuple[Place, bytes | None]]]:
        pipeline = self._redis.pipeline(transaction=False)
        for shard in range(SHARDS):
            keys = self._keys.shard(shard)
            prefix = keys.feeds.removesuffix("feeds") + "f:"
            args: tuple[Any, ...] = (prefix, after.activity if after else "+inf", after.feed if after else "", chunk)
            _feeds.queue(pipeline, (keys.feeds,), args)
        answers = await run_pipeline(self._redis, pipeline, (_feeds,))
        return [
            [(Place(int(float(activity)), feed.decode()), document) for feed, activity, document in answer]
            for answer in answers
        ]


def read_listing_cursor(text: str, filters: FeedFilters) -> Place:
    """ValueError for what is no cursor of this list."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = msgspec.json.decode(raw, type=_Cursor)
    except (ValueError, msgspec.MsgspecError) as error:
        raise ValueError("is no cursor") from error
    if not is_feed_id(cursor.feed):
        raise ValueError("is no cursor")
    if cursor.filters != filters:
        raise ValueError("belongs to a list with another filter")
    return Place(cursor.activity, cursor.feed)


def _write(filters: FeedFilters, place: Place) -> str:
    raw = msgspec.json.encode(_Cursor(filters, place.activity, place.feed))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")

"""The reading calls: feeds, entries, pages and changes over HTTP, with their validators and caching rules.

Owns parameters, status codes and headers. What stands in the bodies is `reads`', for how long they are kept `kept`'s, streams
are `streams`'.
"""

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, get_args

import msgspec
from aiohttp import hdrs, web

from services.gateway import params
from services.gateway.cursor import read_cursor
from services.gateway.kept import Kept
from services.gateway.listing import FeedFilters, Listing, read_listing_cursor
from services.gateway.past_pages import PastPages
from services.gateway.reads import Difference, Found, Moment, Reads
from services.gateway.representation import PRIVATE, PUBLIC, Representation
from services.gateway.waiting import Arrivals, check_history, read_at
from shared.documents import SCHEMA, FeedStatus
from shared.errors import EntryNotFound, FeedNotFound
from shared.http import json_response
from shared.position import ORIGIN, Position
from shared.redis import redis_errors
from shared.tokens import Tokens


class Pages:
    def __init__(
        self, reads: Reads, kept: Kept, listing: Listing, arrivals: Arrivals, tokens: Tokens, past_pages: PastPages
    ) -> None:
        self._reads = reads
        self._kept = kept
        self._listing = listing
        self._arrivals = arrivals
        self._tokens = tokens
        self._past_pages = past_pages

    async def feeds(self, request: web.Request) -> web.Response:
        holder = self._tokens.holder(request)
        query = request.query
        params.only(query, "topic", "status", "language", "cursor", "limit")
        status = query.get("status")
        if status is not None and status not in get_args(FeedStatus):
            raise params.refuse("status", "is open, paused or closed")
        filters = FeedFilters(topic=query.get("topic"), status=status, language=query.get("language"))
        after = params.cursor(query, lambda text: read_listing_cursor(text, filters))
        async with redis_errors("the feeds were not read"):
            listed = await self._listing.page(
                filters, limit=params.limit(query), after=after, private=holder is not None
            )
        headers: dict[str, str] = {hdrs.CACHE_CONTROL: PRIVATE if holder else PUBLIC, hdrs.VARY: hdrs.ACCEPT_ENCODING}
        if listed.next:
            headers[hdrs.LINK] = _next(request, listed.next)
        return json_response(listed.body, headers=headers)

    async def feed(self, request: web.Request) -> web.Response:
        feed = request.match_info["feed"]
        params.only(request.query, "min_position")

        async def read() -> Representation | None:
            found = await self._reads.document(feed)
            return None if found is None else Representation(found.moment, found.moment.feed, etag=_weak(found.moment))

        return await (await self._read(request, ("feed",), read)).answer(request)

    async def entry(self, request: web.Request) -> web.Response:
        feed, entry = request.match_info["feed"], request.match_info["entry"]
        params.only(request.query, "min_position")

        async def read() -> Representation | None:
            found = await self._reads.document(feed, entry)
            return None if found is None else _entry(found)

        shown = await self._read(request, ("entry", entry), read)
        if shown.status == 404:
            raise EntryNotFound(feed, entry)
        return await shown.answer(request)

    async def entries(self, request: web.Request) -> web.Response:
        feed, query = request.match_info["feed"], request.query
        if "at" in query:
            return await self._past_pages.entries(request)
        params.only(
            query, "order", "limit", "cursor", "since", "until", "tag", "key_events", "min_position", "unread_since"
        )
        filters = params.filters(query)
        limit = params.limit(query)
        after = params.cursor(query, lambda text: read_cursor(text, feed, filters))
        unread_since = params.position(query, "unread_since")

        async def read() -> Representation | None:
            page = await self._reads.page(feed, filters, limit=limit, after=after, unread_since=unread_since)
            if page is None:
                return None
            return Representation(page.moment, page.body, etag=_weak(page.moment), cursor=page.next)

        shown = await self._read(request, ("page", filters, limit, after, unread_since), read, held=unread_since)
        return await shown.answer(
            request,
            private=unread_since is not None,
            link=_next(request, shown.cursor) if shown.cursor is not None else None,
        )

    async def changes(self, request: web.Request) -> web.Response:
        feed, query = request.match_info["feed"], request.query
        params.only(query, "after", "limit", "min_position")
        after = params.position(query, "after")
        limit = params.limit(query)

        async def read() -> Representation | None:
            difference = await self._reads.difference(feed, after=after or ORIGIN, documents_max=limit)
            return None if difference is None else _changes(feed, after or ORIGIN, difference)

        shown = await self._read(request, ("changes", after, limit), read, held=after)
        if after is not None and shown.moment.checkpoint < after:
            # What the client holds came from a gateway whose Redis was ahead of this one's.
            shown = await self._read(request, ("changes", after, limit), read, min_position=after)
        return await shown.answer(request)

    async def _read(
        self,
        request: web.Request,
        key: Hashable,
        read: Callable[[], Coroutine[Any, Any, Representation | None]],
        *,
        min_position: Position | None = None,
        held: Position | None = None,
    ) -> Representation:
        """What `read` gives, of `min_position` or later; a private feed is not there for those who may not see it.

        StalePosition for a position that the client says to hold and that is none of this history.
        """
        feed = request.match_info["feed"]
        sees_private = self._tokens.holder(request) is not None
        min_position = min_position or params.position(request.query, "min_position")
        # Whether the log holds a position that is ahead of what is kept, only the log can say.
        at_least = max((position for position in (min_position, held) if position is not None), default=None)

        async def visible() -> Representation | None:
            found = await self._kept.read(feed, key, read, at_least=at_least)
            hidden = found is not None and found.moment.visibility == "private" and not sees_private
            return None if hidden else found

        async with redis_errors("nothing was read"):
            found = await read_at(self._arrivals, feed, visible, min_position=min_position)
        if found is None:
            raise FeedNotFound(feed)
        if held is not None:
            check_history(held, found.moment)
        return found


class _Place(msgspec.Struct, frozen=True):
    status: str
    revision: int
    position: str


_place = msgspec.json.Decoder(_Place)


def _entry(found: Found) -> Representation:
    if found.document is None:
        return Representation(found.moment, b"", etag="", status=404)
    place = _place.decode(found.document)
    return Representation(
        found.moment,
        found.document,
        etag=f'"{place.revision}.{place.position}"',
        status=200 if place.status == "published" else 410,
    )


def _changes(feed: str, after: Position, difference: Difference) -> Representation:
    body = b'{"feed":"%s","position":"%s","more":%s,"feed_document":%s,"documents":[%s]}' % (
        feed.encode(),
        str(difference.position).encode(),
        b"true" if difference.more else b"false",
        difference.moment.feed if difference.feed_position.n > after.n else b"null",
        b",".join(difference.documents),
    )
    return Representation(difference.moment, body, etag=_weak(difference.moment))


def _weak(moment: Moment) -> str:
    return f'W/"{moment.checkpoint}.{SCHEMA}"'


def _next(request: web.Request, cursor: str) -> str:
    return params.next_link(request.path, request.query.items(), cursor)

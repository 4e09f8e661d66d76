"""The reading calls: feeds, entries, pages and changes over HTTP, with their validators and caching rules.

Owns parameters, status codes and headers. What stands in the bodies is `reads`', streams are `streams`'.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar, get_args

import msgspec
from aiohttp import hdrs, web

from services.gateway import params
from services.gateway.cursor import read_cursor
from services.gateway.listing import FeedFilters, Listing, read_listing_cursor
from services.gateway.past_pages import PastPages
from services.gateway.reads import Difference, Found, Moment, Reads
from services.gateway.waiting import Arrivals, OfAMoment, check_history, read_at
from shared.documents import SCHEMA, FeedStatus
from shared.errors import EntryNotFound, FeedNotFound
from shared.http import json_response, not_modified
from shared.position import ORIGIN, Position
from shared.redis import redis_errors
from shared.tokens import Tokens

PUBLIC = "public, max-age=0, s-maxage=1"
PRIVATE = "private, no-store"

_R = TypeVar("_R", bound=OfAMoment)


class Pages:
    def __init__(
        self, reads: Reads, listing: Listing, arrivals: Arrivals, tokens: Tokens, past_pages: PastPages
    ) -> None:
        self._reads = reads
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
        found = await self._found(request, None)
        return self._answer(request, found.moment, found.moment.feed, etag=_weak(found.moment))

    async def entry(self, request: web.Request) -> web.Response:
        entry = request.match_info["entry"]
        found = await self._found(request, entry)
        if found.document is None:
            raise EntryNotFound(request.match_info["feed"], entry)
        place = _place.decode(found.document)
        return self._answer(
            request,
            found.moment,
            found.document,
            etag=f'"{place.revision}.{place.position}"',
            status=200 if place.status == "published" else 410,
        )

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
        page = await self._read(
            request, lambda: self._reads.page(feed, filters, limit=limit, after=after, unread_since=unread_since)
        )
        if unread_since is not None:
            check_history(unread_since, page.moment)
        headers: dict[str, str] = {hdrs.LINK: _next(request, page.next)} if page.next else {}
        return self._answer(
            request, page.moment, page.body, etag=_weak(page.moment), headers=headers, own=unread_since is not None
        )

    async def changes(self, request: web.Request) -> web.Response:
        feed, query = request.match_info["feed"], request.query
        params.only(query, "after", "limit", "min_position")
        after = params.position(query, "after")
        limit = params.limit(query)

        def read() -> Awaitable[Difference | None]:
            return self._reads.difference(feed, after=after or ORIGIN, documents_max=limit)

        difference = await self._read(request, read)
        if after is not None:
            check_history(after, difference.moment)
            if difference.moment.checkpoint < after:
                # What the client holds came from a gateway whose Redis was ahead of this one's.
                difference = await self._read(request, read, min_position=after)
        own = difference.feed_position.n > (after or ORIGIN).n
        body = b'{"feed":"%s","position":"%s","more":%s,"feed_document":%s,"documents":[%s]}' % (
            feed.encode(),
            str(difference.position).encode(),
            b"true" if difference.more else b"false",
            difference.moment.feed if own else b"null",
            b",".join(difference.documents),
        )
        return self._answer(request, difference.moment, body, etag=_weak(difference.moment))

    async def _found(self, request: web.Request, entry: str | None) -> Found:
        feed = request.match_info["feed"]
        params.only(request.query, "min_position")
        return await self._read(request, lambda: self._reads.document(feed, entry))

    async def _read(
        self,
        request: web.Request,
        read: Callable[[], Awaitable[_R | None]],
        *,
        min_position: Position | None = None,
    ) -> _R:
        """What `read` gives, of `min_position` or later; a private feed is not there for those who may not see it."""
        feed = request.match_info["feed"]
        sees_private = self._tokens.holder(request) is not None

        async def visible() -> _R | None:
            found = await read()
            hidden = found is not None and found.moment.visibility == "private" and not sees_private
            return None if hidden else found

        min_position = min_position or params.position(request.query, "min_position")
        async with redis_errors("nothing was read"):
            found = await read_at(self._arrivals, feed, visible, min_position=min_position)
        if found is None:
            raise FeedNotFound(feed)
        return found

    def _answer(
        self,
        request: web.Request,
        moment: Moment,
        body: bytes,
        *,
        etag: str,
        status: int = 200,
        headers: dict[str, str] | None = None,
        own: bool = False,
    ) -> web.Response:
        """`own`: the body is one reader's, not everybody's."""
        private = own or moment.visibility == "private" or hdrs.AUTHORIZATION in request.headers
        headers = {
            **(headers or {}),
            hdrs.ETAG: etag,
            "Dateline-Position": str(moment.checkpoint),
            hdrs.CACHE_CONTROL: PRIVATE if private else PUBLIC,
            hdrs.VARY: hdrs.ACCEPT_ENCODING,
        }
        if not_modified(request, etag) and status == 200:
            return web.Response(status=304, headers=headers)
        return json_response(body, status=status, headers=headers)


class _Place(msgspec.Struct, frozen=True):
    status: str
    revision: int
    position: str


_place = msgspec.json.Decoder(_Place)


def _weak(moment: Moment) -> str:
    return f'W/"{moment.checkpoint}.{SCHEMA}"'


def _next(request: web.Request, cursor: str) -> str:
    return params.next_link(request.path, request.query.items(), cursor)

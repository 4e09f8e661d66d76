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

# Request targets whose parts are remembered.
TARGETS_MAX = 1_024

_READS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})


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
        self._asked: dict[str, _Asked] = {}

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
            headers[hdrs.LINK] = params.next_link(request.path, query.items(), listed.next)
        return json_response(listed.body, headers=headers)

    async def feed(self, request: web.Request) -> web.Response:
        asked = self._asked.get(request.raw_path)
        if asked is None:
            feed = request.match_info["feed"]
            params.only(request.query, "min_position")

            async def read() -> Representation | None:
                found = await self._reads.document(feed)
                return (
                    None if found is None else Representation(found.moment, found.moment.feed, etag=_weak(found.moment))
                )

            asked = self._remember(request, ("feed",), read)
        return await self._answer(request, asked)

    async def entry(self, request: web.Request) -> web.Response:
        asked = self._asked.get(request.raw_path)
        if asked is None:
            feed, entry = request.match_info["feed"], request.match_info["entry"]
            params.only(request.query, "min_position")

            async def read() -> Representation | None:
                found = await self._reads.document(feed, entry)
                return None if found is None else _entry(found)

            asked = self._remember(request, ("entry", entry), read)
        return await self._answer(request, asked)

    async def entries(self, request: web.Request) -> web.Response:
        asked = self._asked.get(request.raw_path)
        if asked is None:
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

            key = ("page", filters, limit, after, unread_since)
            asked = self._remember(request, key, read, holds=unread_since, private=unread_since is not None)
        return await self._answer(request, asked)

    async def changes(self, request: web.Request) -> web.Response:
        asked = self._asked.get(request.raw_path)
        if asked is None:
            feed, query = request.match_info["feed"], request.query
            params.only(query, "after", "limit", "min_position")
            after = params.position(query, "after")
            limit = params.limit(query)

            async def read() -> Representation | None:
                difference = await self._reads.difference(feed, after=after or ORIGIN, documents_max=limit)
                return None if difference is None else _changes(feed, after or ORIGIN, difference)

            asked = self._remember(request, ("changes", after, limit), read, holds=after, waits=True)
        return await self._answer(request, asked)

    def _remember(
        self,
        request: web.Request,
        key: Hashable,
        read: Callable[[], Coroutine[Any, Any, Representation | None]],
        *,
        holds: Position | None = None,
        waits: bool = False,
        private: bool = False,
    ) -> "_Asked":
        """What a request is taken for, and the next one with the same target without a look at its parts."""
        asked = _Asked(request, key, read, holds=holds, waits=waits, private=private)
        if len(self._asked) >= TARGETS_MAX:
            self._asked.clear()
        self._asked[request.raw_path] = asked
        return asked

    def at_hand(self, request: web.Request) -> web.StreamResponse | None:
        """The answer to a request without a token, if all of it is kept: no route, no parameter has to be looked at."""
        asked = self._asked.get(request.raw_path)
        if asked is None or asked.at_least is not None or request.method not in _READS:
            return None
        shown = self._kept.find(asked.feed, asked.key)
        if shown is None or shown.status == 404 or shown.moment.visibility == "private":
            return None
        return None if hdrs.AUTHORIZATION in request.headers else shown.at_hand(request, link=asked.link(shown))

    async def _answer(self, request: web.Request, asked: "_Asked") -> web.Response:
        holder = self._tokens.holder(request)
        shown = await self._read(asked, sees_private=holder is not None)
        if shown.status == 404:
            raise EntryNotFound(asked.feed, request.match_info["entry"])
        private = asked.private or holder is not None
        while (answer := shown.answer(request, private=private, link=asked.link(shown))) is None:
            await shown.code(request)
        return answer

    async def _read(self, asked: "_Asked", *, sees_private: bool) -> Representation:
        """A private feed is not there for those who may not see it; StalePosition for positions of another history."""

        async def visible() -> Representation | None:
            found = await self._kept.read(asked.feed, asked.key, asked.read, at_least=asked.at_least)
            hidden = found is not None and found.moment.visibility == "private" and not sees_private
            return None if hidden else found

        async with redis_errors("nothing was read"):
            found = await read_at(self._arrivals, asked.feed, visible, min_position=asked.min_position)
            if found is not None and asked.holds is not None:
                check_history(asked.holds, found.moment)
                if asked.waits and found.moment.checkpoint < asked.holds:
                    # What the client holds came from a gateway whose Redis was ahead of this one's.
                    found = await read_at(self._arrivals, asked.feed, visible, min_position=asked.holds)
        if found is None:
            raise FeedNotFound(asked.feed)
        return found


class _Asked:
    """What a request's target asks for.

    `holds` is a position that the client says to hold: the log's history must have it, and with `waits` the answer too.
    `private`: what is given is one reader's, not everybody's.
    """

    def __init__(
        self,
        request: web.Request,
        key: Hashable,
        read: Callable[[], Coroutine[Any, Any, Representation | None]],
        *,
        holds: Position | None,
        waits: bool,
        private: bool,
    ) -> None:
        self.feed = request.match_info["feed"]
        self.key = key
        self.read = read
        self.min_position = params.position(request.query, "min_position")
        self.holds = holds
        self.waits = waits
        self.private = private
        # Whether the log has a position that is ahead of what is kept, only the log can say.
        self.at_least = max((at for at in (self.min_position, holds) if at is not None), default=None)
        self._path = request.path
        self._query = tuple(request.query.items())
        self._link = ("", "")

    def link(self, shown: Representation) -> str | None:
        """To the page after `shown`, put together once while that is the same."""
        if shown.cursor is None:
            return None
        if self._link[0] != shown.cursor:
            self._link = (shown.cursor, params.next_link(self._path, self._query, shown.cursor))
        return self._link[1]


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

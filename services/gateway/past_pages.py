"""The past over HTTP: `entries` as they were at a position or an instant, and the `history` of one entry.

Owns parameters and bodies. What stood at a position is `past`'s business, when it can be asked `pasts`'.
"""

from collections.abc import AsyncGenerator, Callable

from aiohttp import hdrs, web

from services.gateway import params
from services.gateway.cursor import read_past_cursor, write_past_cursor
from services.gateway.events import log_head
from services.gateway.past import Past, PastPage
from services.gateway.pasts import Pasts
from services.gateway.reads import Reads, page_body
from services.gateway.streamed import streamed
from services.gateway.waiting import Arrivals
from shared.documents import is_entry_id
from shared.errors import EntryNotFound, FeedNotFound
from shared.http import json_response
from shared.log import Head, Log
from shared.position import Position
from shared.redis import redis_errors
from shared.tokens import Tokens

PRIVATE = "private, no-store"
EVENTS_PER_QUERY = 50


class PastPages:
    def __init__(self, log: Log, reads: Reads, arrivals: Arrivals, tokens: Tokens, pasts: Pasts) -> None:
        self._log = log
        self._reads = reads
        self._arrivals = arrivals
        self._tokens = tokens
        self._pasts = pasts

    async def entries(self, request: web.Request) -> web.Response:
        """The page that readers got when the checkpoint was the position of `at`."""
        self._tokens.require(request)
        feed, query = request.match_info["feed"], request.query
        params.only(query, "at", "order", "limit", "cursor", "since", "until", "tag", "key_events", "min_position")
        filters, limit, at = params.filters(query), params.limit(query), params.at(query)
        place = params.cursor(query, lambda text: read_past_cursor(text, feed, filters, at=at.text))
        head = await self._head(request, feed)
        # A walk stays at the position that its first page was of, even if an instant of the present came to mean another.
        asked = place.position if place is not None else at.position
        if asked is not None:
            async with redis_errors("nothing was read"):
                await self._log.check_held(feed, asked, head=head)

        def look(past: Past) -> tuple[Position, PastPage] | None:
            position = asked or past.position_at(at.milliseconds or 0)
            if position is None or not past.open_at(position):
                return None
            return position, past.page(position, filters, limit=limit, after=place.key if place is not None else None)

        async with self._pasts.of(feed, head=head) as query_past:
            found = await query_past(look)
        if found is None:
            raise FeedNotFound(feed)
        position, page = found
        cursor = None
        if page.last is not None:
            cursor = write_past_cursor(feed, filters, key=page.last, at=at.text, position=position)
        headers: dict[str, str] = {"Dateline-Position": str(position), hdrs.CACHE_CONTROL: PRIVATE}
        if cursor is not None:
            headers[hdrs.LINK] = params.next_link(request.path, query.items(), cursor)
        body = page_body(
            feed,
            filters,
            position=position,
            total=page.total,
            pinned=page.pinned,
            entries=page.entries,
            cursor=cursor,
            unread=None,
        )
        return json_response(body, headers=headers)

    async def history(self, request: web.Request) -> web.StreamResponse:
        """Every event about an entry, with the document after it: who, when, why."""
        self._tokens.require(request)
        feed, entry = request.match_info["feed"], request.match_info["entry"]
        params.only(request.query, "min_position")
        head = await self._head(request, feed)
        if not is_entry_id(entry):
            raise EntryNotFound(feed, entry)
        headers = {
            hdrs.CONTENT_TYPE: "application/json; charset=utf-8",
            hdrs.CACHE_CONTROL: PRIVATE,
            "Dateline-Position": str(head.position),
        }
        return await streamed(request, web.StreamResponse(headers=headers), self._history(feed, entry, head))

    async def _history(self, feed: str, entry: str, head: Head) -> AsyncGenerator[bytes, None]:
        to_n = head.position.n

        def after(n: int) -> Callable[[Past], list[tuple[int, bytes]]]:
            return lambda past: past.history(entry, after_n=n, to_n=to_n, events_max=EVENTS_PER_QUERY)

        last_n, before = 0, b'{"feed":"%s","entry":"%s","position":"%s","events":['
        before %= (feed.encode(), entry.encode(), str(head.position).encode())
        async with self._pasts.of(feed, head=head) as query_past:
            while events := await query_past(after(last_n)):
                for _, event in events:
                    yield before + event
                    before = b","
                last_n = events[-1][0]
        if last_n == 0:
            raise EntryNotFound(feed, entry)
        yield b"]}"

    async def _head(self, request: web.Request, feed: str) -> Head:
        min_position = params.position(request.query, "min_position")
        async with redis_errors("nothing was read"):
            return await log_head(self._log, self._reads, self._arrivals, feed, min_position=min_position)

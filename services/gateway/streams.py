"""Streams: stream requests, from HTTP to a reader.

Owns what may be asked for, whether it can be served now, and the point where aiohttp lets go of the connection. What the
reader is sent from then on is `readers`'; the wire format is `frames`'.
"""

import asyncio
from collections.abc import Sequence

import structlog
from aiohttp import hdrs, web

from services.gateway import params
from services.gateway.connection import TransportConnection
from services.gateway.door import Door
from services.gateway.frames import bye, retry
from services.gateway.moments import Moments
from services.gateway.reader import MALFORMED, Wish
from services.gateway.readers import Readers
from shared.documents import is_feed_id
from shared.errors import StalePosition, Unavailable
from shared.http import PUBLIC_READ, cors
from shared.position import Position
from shared.tokens import Tokens

log = structlog.get_logger()

FEEDS_MAX = 16
# Requests whose parts are remembered.
WISHES_MAX = 1_024

HEADERS = {
    hdrs.CONTENT_TYPE: "text/event-stream",
    hdrs.CACHE_CONTROL: "no-store",
    hdrs.SERVER: "Dateline",
    "X-Accel-Buffering": "no",
    # Close-delimited, never chunked: the same bytes serve every reader, HTTP/1.0 proxies included.
    hdrs.CONNECTION: "close",
}


class EventStream(web.StreamResponse):
    """A response whose body ends with its connection."""

    # aiohttp would chunk a body of unknown length; this is how its own WebSocketResponse prevents it.
    _length_check = False
    # The head goes out with the first words, as its own Response does it.
    _send_headers_immediately = False

    def __init__(self) -> None:
        super().__init__(headers=HEADERS)
        self.force_close()


class Streams:
    def __init__(self, moments: Moments, readers: Readers, tokens: Tokens) -> None:
        self._moments = moments
        self._readers = readers
        self._tokens = tokens
        self._wishes: dict[tuple[str, str | None, bool], Wish] = {}
        # What it answers is what `_serve` does, of a GET without a token.
        self.door = Door(
            moments,
            readers,
            known=lambda path, last: self._wishes.get((path, last, False)),
            headers={**HEADERS, **PUBLIC_READ},
        )

    async def of_feed(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, self._wish(request))

    async def of_feeds(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, self._wish(request))

    def _wish(self, request: web.Request) -> Wish:
        """What is asked for; a crowd asks for the same, and who waits for its beginning keeps no wish of its own."""
        key = (request.raw_path, request.headers.get("Last-Event-ID"), self._tokens.holder(request) is not None)
        wish = self._wishes.get(key)
        if wish is None:
            feed = request.match_info.get("feed")
            wish = _wish(
                request, _feeds(request) if feed is None else (feed,), joined=feed is None, sees_private=key[2]
            )
            if len(self._wishes) >= WISHES_MAX:
                self._wishes.clear()
            self._wishes[key] = wish
        return wish

    async def _serve(self, request: web.Request, wish: Wish) -> web.StreamResponse:
        refusal = await self._refusal(wish)
        response = EventStream()
        cors(request, response)
        await response.prepare(request)
        if request.method == hdrs.METH_HEAD:
            return response
        if refusal is not None:
            await response.write(retry(refusal) + bye(refusal))
            return response
        await response.write(retry())
        descriptor = self._readers.hub.take(request)
        if descriptor is not None:
            # From here on the reader is not aiohttp's any more, which finds its connection closed.
            self._readers.join(descriptor, wish)
            return response
        if request.transport is not None:
            await self._through_transport(request.transport, wish)
        return response

    async def _through_transport(self, transport: asyncio.Transport, wish: Wish) -> None:
        connection = TransportConnection(
            transport, on_writable=self._readers.on_writable, on_gone=self._readers.on_gone
        )
        if connection.gone.done():
            return
        self._readers.join(connection, wish)
        try:
            await connection.gone
        finally:
            connection.abort()

    async def _refusal(self, wish: Wish) -> str | None:
        """Why the stream cannot begin now; waits for what the reader knows, and FeedNotFound where there is nothing for it."""
        try:
            for feed, last, min_position in zip(wish.feeds, wish.lasts, wish.min_positions, strict=True):
                known = last if isinstance(last, Position) else None
                moment = await self._moments.of(
                    feed, at_least=min_position, sees_private=wish.sees_private, known=known
                )
                if known is not None and moment.checkpoint < known <= moment.head:
                    # Another gateway was ahead, or the reader knows a write that is not folded yet.
                    await self._moments.of(feed, at_least=known, sees_private=wish.sees_private)
        except (Unavailable, StalePosition) as error:
            log.info("stream_not_begun", feeds=wish.feeds, error=repr(error))
            return "unavailable"
        return "draining" if self._readers.draining else "capacity" if self._readers.full else None


def _feeds(request: web.Request) -> tuple[str, ...]:
    feeds = tuple(sorted(set(request.query.getall("feed", []))))
    if not 1 <= len(feeds) <= FEEDS_MAX:
        raise params.refuse("feed", f"names 1 to {FEEDS_MAX} feeds")
    return feeds


def _wish(request: web.Request, feeds: tuple[str, ...], *, joined: bool, sees_private: bool) -> Wish:
    query = request.query
    known = ("last_event_id", "snapshot", "order", "catch_up", "min_position", *(("feed",) if joined else ()))
    params.only(query, *known)
    min_positions: Sequence[Position | None]
    if joined:
        pairs = _pairs(query["min_position"]) if "min_position" in query else {}
        if pairs is None:
            raise params.refuse("min_position", "is feed:position pairs joined by commas")
        min_positions = [pairs.get(feed) for feed in feeds]
    else:
        min_positions = [params.position(query, "min_position")]
    last = request.headers.get("Last-Event-ID") or query.get("last_event_id") or None
    return Wish(
        feeds=feeds,
        joined=joined,
        lasts=tuple(_last_positions(last, feeds, joined=joined)),
        snapshot=params.snapshot(query),
        order=params.order(query),
        catch_up=params.catch_up(query),
        min_positions=tuple(min_positions),
        sees_private=sees_private,
    )


def _last_positions(last: str | None, feeds: Sequence[str], *, joined: bool) -> Sequence[Position | str | None]:
    """Where each feed goes on, by a Last-Event-ID."""
    if last is None:
        return [None] * len(feeds)
    if not joined:
        try:
            return [Position.parse(last)]
        except ValueError:
            return [MALFORMED]
    pairs = _pairs(last)
    if pairs is None:
        return [MALFORMED] * len(feeds)
    return [pairs.get(feed) for feed in feeds]


def _pairs(text: str) -> dict[str, Position] | None:
    """`feed:position` pairs joined by `,`; None when they are not."""
    pairs = {}
    for pair in text.split(","):
        feed, _, at = pair.partition(":")
        if not is_feed_id(feed):
            return None
        try:
            pairs[feed] = Position.parse(at)
        except ValueError:
            return None
    return pairs

"""Streams: the first words of an SSE response, from the request to the point where the reader is live.

Owns what the contract says of beginning, resuming and resetting. From then on `readers` sends; the wire format is `frames`'.
"""

import asyncio
from collections.abc import Sequence

import structlog
from aiohttp import hdrs, web
from msgspec import Struct

from services.gateway import params
from services.gateway.connection import Connection
from services.gateway.cursor import Order
from services.gateway.differences import Differences, Folded
from services.gateway.frames import bye, live, retry
from services.gateway.reader import Reader
from services.gateway.readers import Readers
from services.gateway.reads import Found, Moment, Page, Reads
from services.gateway.snapshots import Snapshots
from services.gateway.waiting import Arrivals, read_at
from shared.documents import is_feed_id
from shared.errors import Corrupted, FeedNotFound, StalePosition, Unavailable
from shared.http import cors
from shared.metrics import Metrics
from shared.position import Position
from shared.redis import redis_errors
from shared.tokens import Tokens

log = structlog.get_logger()

FEEDS_MAX = 16
SNAPSHOT_DEFAULT = 20

HEADERS = {
    hdrs.CONTENT_TYPE: "text/event-stream",
    hdrs.CACHE_CONTROL: "no-store",
    hdrs.SERVER: "Dateline",
    "X-Accel-Buffering": "no",
    # Close-delimited, never chunked: the same bytes serve every reader, HTTP/1.0 proxies included.
    hdrs.CONNECTION: "close",
}


class Wish(Struct, frozen=True):
    """What a stream request asks for; `last` is the Last-Event-ID or its parameter, None where there is neither."""

    feeds: tuple[str, ...]
    joined: bool
    last: str | None
    snapshot: int | None
    order: Order
    catch_up: int | None
    min_positions: tuple[Position | None, ...]


class EventStream(web.StreamResponse):
    """A response whose body ends with its connection."""

    # aiohttp would chunk a body of unknown length; this is how its own WebSocketResponse prevents it.
    _length_check = False

    def __init__(self) -> None:
        super().__init__(headers=HEADERS)
        self.force_close()


class Streams:
    def __init__(
        self,
        reads: Reads,
        differences: Differences,
        snapshots: Snapshots,
        readers: Readers,
        arrivals: Arrivals,
        tokens: Tokens,
        metrics: Metrics,
    ) -> None:
        self._reads = reads
        self._differences = differences
        self._snapshots = snapshots
        self._readers = readers
        self._arrivals = arrivals
        self._tokens = tokens
        self._metrics = metrics

    async def of_feed(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, _wish(request, (request.match_info["feed"],), joined=False))

    async def of_feeds(self, request: web.Request) -> web.StreamResponse:
        feeds = tuple(sorted(set(request.query.getall("feed", []))))
        if not 1 <= len(feeds) <= FEEDS_MAX:
            raise params.refuse("feed", f"names 1 to {FEEDS_MAX} feeds")
        return await self._serve(request, _wish(request, feeds, joined=True))

    async def _serve(self, request: web.Request, wish: Wish) -> web.StreamResponse:
        sees_private = self._tokens.holder(request) is not None
        try:
            for feed, min_position in zip(wish.feeds, wish.min_positions, strict=True):
                await self._moment(feed, min_position, sees_private=sees_private)
            refusal = "draining" if self._readers.draining else "capacity" if self._readers.full else None
        except (Unavailable, StalePosition):
            refusal = "unavailable"
        response = EventStream()
        cors(request, response)
        if request.method == hdrs.METH_HEAD:
            return response
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            return response
        if refusal is not None:
            transport.write(retry() + bye(refusal))
            transport.close()
            return response
        await self._follow(transport, wish, sees_private=sees_private)
        return response

    async def _follow(self, transport: asyncio.Transport, wish: Wish, *, sees_private: bool) -> None:
        connection = Connection(transport, on_writable=lambda: self._readers.bring_up(reader))
        reader = Reader(
            connection,
            wish.feeds,
            joined=wish.joined,
            sees_private=sees_private,
            order=wish.order,
            snapshot=wish.snapshot or SNAPSHOT_DEFAULT,
        )
        self._readers.join(reader)
        try:
            reader.send(retry())
            try:
                await self._begin(reader, wish)
            except FeedNotFound:
                self._readers.end(reader, "expired")
            except (Unavailable, StalePosition) as error:
                log.info("stream_not_begun", feeds=wish.feeds, error=repr(error))
                self._readers.end(reader, "unavailable")
            except Corrupted as error:
                self._readers.break_off(error)
                self._readers.end(reader, "unavailable")
            except Exception:
                # The head is sent: there is no other answer to give.
                log.exception("stream_failed", feeds=wish.feeds)
                self._readers.end(reader, "unavailable")
            else:
                reader.begun = True
                self._readers.bring_up(reader)
            await connection.gone
        finally:
            self._readers.leave(reader)
            connection.close()

    async def _begin(self, reader: Reader, wish: Wish) -> None:
        """Say for each feed where the reader stands: after its position, after a snapshot, or from now on."""
        lasts = _last_positions(wish)
        for i, last in enumerate(lasts):
            if isinstance(last, Position):
                reader.positions = (*reader.positions[:i], last, *reader.positions[i + 1 :])
        for i, last in enumerate(lasts):
            # One feed's beginning waits in memory at most, however many there are.
            await reader.connection.drained()
            if last is _MALFORMED:
                await self._reset(reader, i, "position", wish)
            elif isinstance(last, Position):
                await self._resume(reader, i, last, wish)
            elif wish.snapshot is not None:
                await self._snapshot(reader, i, wish)
            else:
                moment = await self._moment(reader.feeds[i], wish.min_positions[i], sees_private=reader.sees_private)
                self._readers.begin(reader, i, moment.checkpoint)
                reader.send(live(reader.feeds[i], position=reader.at(i, moment.checkpoint)))

    async def _resume(self, reader: Reader, i: int, last: Position, wish: Wish) -> None:
        feed = reader.feeds[i]

        async def read() -> Folded:
            difference = await self._differences.since(feed, last)
            if difference is None or _hidden(difference.moment, reader.sees_private):
                raise FeedNotFound(feed)
            return difference

        difference = await read()
        head = difference.moment.head
        if last.epoch < head.epoch:
            await self._reset(reader, i, difference.moment.reason_for(last.epoch), wish)
        elif last > head:
            await self._reset(reader, i, "position", wish)
        elif wish.catch_up is not None and difference.changed > wish.catch_up:
            await self._reset(reader, i, "behind", wish)
        else:
            if difference.moment.checkpoint < last:
                # Another gateway was ahead, or the reader knows a write that is not folded yet.
                waited = await read_at(self._arrivals, feed, read, min_position=last)
                difference = waited or difference
            self._readers.send_difference(reader, i, difference)

    async def _reset(self, reader: Reader, i: int, reason: str, wish: Wish) -> None:
        self._readers.send_reset(reader, i, await self._page(reader, i, wish), reason=reason)

    async def _snapshot(self, reader: Reader, i: int, wish: Wish) -> None:
        self._readers.send_snapshot(reader, i, await self._page(reader, i, wish))

    async def _page(self, reader: Reader, i: int, wish: Wish) -> Page:
        feed = reader.feeds[i]
        page = await self._snapshots.of(feed, order=reader.order, limit=reader.snapshot, at_least=wish.min_positions[i])
        if page is None or _hidden(page.moment, reader.sees_private):
            raise FeedNotFound(feed)
        return page

    async def _moment(self, feed: str, min_position: Position | None, *, sees_private: bool) -> Moment:
        async def read() -> Found | None:
            found = await self._reads.document(feed)
            return None if found is not None and _hidden(found.moment, sees_private) else found

        async with redis_errors("the stream cannot begin"):
            found = await read_at(self._arrivals, feed, read, min_position=min_position)
        if found is None:
            raise FeedNotFound(feed)
        return found.moment


def _hidden(moment: Moment, sees_private: bool) -> bool:
    return moment.visibility == "private" and not sees_private


_MALFORMED = "malformed"


def _wish(request: web.Request, feeds: tuple[str, ...], *, joined: bool) -> Wish:
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
    return Wish(
        feeds=feeds,
        joined=joined,
        last=request.headers.get("Last-Event-ID") or query.get("last_event_id") or None,
        snapshot=params.snapshot(query),
        order=params.order(query),
        catch_up=params.catch_up(query),
        min_positions=tuple(min_positions),
    )


def _last_positions(wish: Wish) -> list[Position | str | None]:
    """Where each feed goes on: a position, `_MALFORMED`, or None for a feed that begins anew."""
    if wish.last is None:
        return [None] * len(wish.feeds)
    if not wish.joined:
        try:
            return [Position.parse(wish.last)]
        except ValueError:
            return [_MALFORMED]
    pairs = _pairs(wish.last)
    if pairs is None:
        return [_MALFORMED] * len(wish.feeds)
    return [pairs.get(feed) for feed in wish.feeds]


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

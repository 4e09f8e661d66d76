"""`events` and `quarantine`: the raw log of a feed over HTTP, as NDJSON, and which of its events are set aside.

Owns the request and its range. The line is `shared.ndjson`'s, reading archive and stream as one the log's.
"""

from collections.abc import AsyncGenerator

import msgspec
from aiohttp import hdrs, web
from msgspec import Raw

from services.gateway import params
from services.gateway.reads import Reads
from services.gateway.streamed import streamed
from services.gateway.waiting import Arrivals, read_at
from shared.documents import is_feed_id
from shared.errors import FeedNotFound
from shared.http import json_response
from shared.log import Head, Log
from shared.ndjson import line_of
from shared.position import ORIGIN, Position
from shared.redis import redis_errors
from shared.tokens import Tokens

# An event has 256 KiB at most: what one reader makes this process hold stays bounded, whatever the events are.
EVENTS_PER_READ = 64


class Events:
    def __init__(self, log: Log, reads: Reads, arrivals: Arrivals, tokens: Tokens) -> None:
        self._log = log
        self._reads = reads
        self._arrivals = arrivals
        self._tokens = tokens

    async def of_feed(self, request: web.Request) -> web.StreamResponse:
        """The events after `after`, up to the head as it is when the request comes."""
        self._tokens.require(request)
        feed, query = request.match_info["feed"], request.query
        params.only(query, "after", "min_position")
        after = params.position(query, "after")
        async with redis_errors("no event was read"):
            head = await log_head(
                self._log, self._reads, self._arrivals, feed, min_position=params.position(query, "min_position")
            )
            if after is not None:
                await self._log.check_held(feed, after, head=head)
        headers = {
            hdrs.CONTENT_TYPE: "application/x-ndjson",
            hdrs.CACHE_CONTROL: "private, no-store",
            "Dateline-Position": str(head.position),
        }
        lines = self._lines(feed, after=after or ORIGIN, to=head.position)
        return await streamed(request, web.StreamResponse(headers=headers), lines)

    async def quarantine(self, request: web.Request) -> web.StreamResponse:
        """The records of the feed's events in quarantine, by position: with the events they make the feed."""
        self._tokens.require(request)
        feed, query = request.match_info["feed"], request.query
        params.only(query, "min_position")
        async with redis_errors("no record was read"):
            await log_head(
                self._log, self._reads, self._arrivals, feed, min_position=params.position(query, "min_position")
            )
            records = await self._log.quarantined(feed)
        body = {"feed": feed, "records": {str(position): Raw(record) for position, record in sorted(records.items())}}
        return json_response(msgspec.json.encode(body), headers={hdrs.CACHE_CONTROL: "private, no-store"})

    async def _lines(self, feed: str, *, after: Position, to: Position) -> AsyncGenerator[bytes, None]:
        # Only around the reading: a reader's own connection that breaks is no failure of the server's.
        async with redis_errors("the events were not all read"):
            async for entry in self._log.read(feed, after=after, to=to, chunk_events=EVENTS_PER_READ):
                yield line_of(entry)


async def log_head(log: Log, reads: Reads, arrivals: Arrivals, feed: str, *, min_position: Position | None) -> Head:
    """The head of the feed's log, once the read models hold `min_position`; FeedNotFound for a feed that is not there."""
    if not is_feed_id(feed):
        raise FeedNotFound(feed)
    if min_position is not None:
        await read_at(arrivals, feed, lambda: reads.document(feed), min_position=min_position)
    head = await log.head(feed)
    if head is None:
        raise FeedNotFound(feed)
    return head

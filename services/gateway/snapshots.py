"""Snapshots: the page that a stream begins with, read once for all who begin or are reset at the same moment.

Owns that. What stands in a page is `reads`', for how long it is shared `kept`'s, what a reader is told with it `readers`'.
"""

from services.gateway.cursor import Filters, Order
from services.gateway.kept import Kept
from services.gateway.reads import Page, Reads
from services.gateway.waiting import Arrivals, read_at
from shared.position import Position
from shared.redis import redis_errors


class Snapshots:
    def __init__(self, reads: Reads, kept: Kept, arrivals: Arrivals) -> None:
        self._reads = reads
        self._kept = kept
        self._arrivals = arrivals

    async def of(self, feed: str, *, order: Order, limit: int, at_least: Position | None) -> Page | None:
        """The first page at `at_least` or later; None when the feed is not readable.

        StalePosition or NotYet where the read models do not come to that position, Unavailable where the server does not
        answer.
        """

        async def read() -> Page | None:
            async with redis_errors("the snapshot was not read"):
                return await self._reads.page(feed, Filters(order=order), limit=limit)

        return await read_at(
            self._arrivals,
            feed,
            lambda: self._kept.read(feed, ("snapshot", order, limit), read, at_least=at_least),
            min_position=at_least,
        )

"""Snapshots: the page that a stream begins with, read once for all who are reset at the same moment.

Owns that. What stands in a page is `reads`', what a reader is told with it `readers`'.
"""

from services.gateway.cursor import Filters, Order
from services.gateway.reads import Page, Reads
from services.gateway.single_flight import SingleFlight
from services.gateway.waiting import Arrivals, read_at
from shared.position import Position
from shared.redis import redis_errors


class Snapshots:
    def __init__(self, reads: Reads, arrivals: Arrivals) -> None:
        self._reads = reads
        self._arrivals = arrivals
        self._under_way: SingleFlight[tuple[str, Order, int, Position | None], Page | None] = SingleFlight()

    async def of(self, feed: str, *, order: Order, limit: int, at_least: Position | None) -> Page | None:
        """The first page at `at_least` or later; None when the feed is not readable.

        StalePosition or NotYet where the read models do not come to that position, Unavailable where the server does not
        answer. Reads of an earlier position are not shared: they may have begun before it was there.
        """

        async def read() -> Page | None:
            async with redis_errors("the snapshot was not read"):
                return await read_at(
                    self._arrivals,
                    feed,
                    lambda: self._reads.page(feed, Filters(order=order), limit=limit),
                    min_position=at_least,
                )

        return await self._under_way.read((feed, order, limit, at_least), read)

"""Waiting: a read that asks for `min_position` waits until the read models hold it, for 2 s at most.

Owns the wait. Frames tell early; a look each tenth of a second makes it right.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from services.gateway.reads import Moment
from shared.errors import NotYet, StalePosition
from shared.position import Position

WAIT_SECONDS = 2.0
LOOK_SECONDS = 0.1


class OfAMoment(Protocol):
    @property
    def moment(self) -> Moment: ...


_R = TypeVar("_R", bound=OfAMoment)


class Arrivals:
    """Wakes those who wait for a feed to move."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    def moved(self, feed: str) -> None:
        for waiter in self._waiting.pop(feed, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, feed: str, *, seconds: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(feed, set())
        waiters.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            pass
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiting.get(feed) is waiters:
                del self._waiting[feed]


async def read_at(
    arrivals: Arrivals,
    feed: str,
    read: Callable[[], Awaitable[_R | None]],
    *,
    min_position: Position | None,
) -> _R | None:
    """`read`, again and again until it is of `min_position` or later.

    StalePosition when the log's history does not hold that position, NotYet when the time is over.
    """
    if min_position is None:
        return await read()
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while True:
        found = await read()
        if found is not None:
            check_history(min_position, found.moment)
            if found.moment.checkpoint >= min_position:
                return found
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise NotYet(f"the read models of {feed!r} do not hold {min_position} yet", feed=feed)
        await arrivals.wait(feed, seconds=min(left, LOOK_SECONDS))


def check_history(position: Position, moment: Moment) -> None:
    """StalePosition unless the log's present epoch holds `position`."""
    if position.epoch != moment.head.epoch or position.n > moment.head.n:
        raise StalePosition(
            f"{position} is no position of this feed's present history, which has come to {moment.head}",
            position=str(position),
            head=str(moment.head),
        )

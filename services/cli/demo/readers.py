"""The readers: each follows by SSE and folds what it gets, as a live page does.

Owns following until told to stop, and when which position arrived. Whether the result is right `verdict` decides.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import NamedTuple

from services.cli.client import DatelineClient
from services.cli.demo.cuts import Relay
from services.cli.follow import Interruption, Pauses, Reader, follow
from services.cli.reader import Order
from shared.position import Position

# A reader that was cut comes back soon, so that the coverage goes on meanwhile.
RECONNECT_SECONDS_MAX = 0.25
# Room for the head of the answer and a few entries, so that a cut meets the middle of a frame.
BYTES_BEFORE_CUT = 4500
CUTS_MAX = 5
LATE_SNAPSHOT = 5


class Seat(NamedTuple):
    """What kind of reader it is. `cut` readers lose their connection again and again, `late` ones come half-way."""

    name: str
    feeds: tuple[str, ...]
    order: Order = "newest"
    snapshot: int = 20
    cut: bool = False
    late: bool = False


def seats(feeds: Sequence[str]) -> list[Seat]:
    """For each feed a reader in both orders, one in both orders that comes late, one that is cut; and one for all feeds."""
    taken: list[Seat] = []
    for feed in feeds:
        taken += [
            Seat("newest first", (feed,)),
            Seat("oldest first", (feed,), order="oldest"),
            Seat("newest first, cut again and again", (feed,), cut=True),
            Seat("newest first, came half-way", (feed,), snapshot=LATE_SNAPSHOT, late=True),
            Seat("oldest first, came half-way", (feed,), order="oldest", snapshot=LATE_SNAPSHOT, late=True),
        ]
    return [*taken, Seat("all feeds on one stream", tuple(feeds))]


class Spectator:
    """One reader in its seat."""

    def __init__(self, seat: Seat, *, clock: Callable[[], float]) -> None:
        self.seat = seat
        self.reader = Reader(seat.feeds, order=seat.order)
        self.frames = 0
        self.interruptions: list[str] = []
        self.cuts = 0
        self.arrivals: dict[tuple[str, str], float] = {}
        self._clock = clock
        self._moved = asyncio.Condition()

    @property
    def resumes(self) -> int:
        return max(self.reader.connections - 1, 0)

    async def follow(self, url: str, *, halfway: asyncio.Event) -> None:
        """Read until cancelled; raises Problem when the server refuses for good."""
        if self.seat.late:
            await halfway.wait()
        async with AsyncExitStack() as stack:
            relay: Relay | None = None
            if self.seat.cut:
                relay = Relay(url, bytes_before_cut=BYTES_BEFORE_CUT, cuts_max=CUTS_MAX)
                url = await stack.enter_async_context(relay.running())
            client = await stack.enter_async_context(DatelineClient(url))
            frames = follow(
                client,
                self.seat.feeds,
                snapshot=self.seat.snapshot,
                order=self.seat.order,
                pauses=Pauses(limit_seconds=RECONNECT_SECONDS_MAX if self.seat.cut else None),
                on_interruption=self._interrupted,
            )
            await stack.enter_async_context(aclosing(frames))
            async for frame in frames:
                arrived = self._clock()
                state = self.reader.apply(frame)
                self.cuts = relay.cuts if relay is not None else 0
                if state is None or frame.position is None:
                    continue
                if frame.event in {"entry", "retraction", "feed"}:
                    self.frames += 1
                    self.arrivals.setdefault((state.feed, str(frame.position)), arrived)
                async with self._moved:
                    self._moved.notify_all()

    async def live(self) -> None:
        """Wait until this reader has caught up with all its feeds."""
        await self._until(lambda: all(state.live for state in self.reader.states.values()))

    async def reached(self, feed: str, position: Position) -> None:
        await self._until(lambda: self.reader.states[feed].position >= position and self.reader.states[feed].live)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._moved:
            await self._moved.wait_for(condition)

    def _interrupted(self, interruption: Interruption) -> None:
        self.interruptions.append(interruption.reason)


@asynccontextmanager
async def following(spectators: Sequence[Spectator], url: str, *, halfway: asyncio.Event) -> AsyncIterator[None]:
    """Let the spectators follow while the body runs; a reader that fails ends it with the reason."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(spectator.follow(url, halfway=halfway), name=spectator.seat.name)
            for spectator in spectators
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

"""The performance: desks and readers on one server at once, and what came of it.

Owns the order of things: readers take their seats, desks begin, everyone is waited for, the verdict is taken.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from services.cli.client import DatelineClient, Written
from services.cli.demo.coverage import Coverage, FeedCoverage, Outcome, Step, outcome
from services.cli.demo.desks import Newsroom
from services.cli.demo.readers import Seat, Spectator, following, seats
from services.cli.demo.verdict import Truth, compare, compare_tombstones, outcome_faults, read_truth
from services.cli.reader import ReaderState
from shared.position import Position

# How long readers may take to get what was acknowledged; in ordinary life it is milliseconds.
ARRIVAL_SECONDS = 30.0

# Told of every write, for a progress display: which feed, what was done, what the server answered.
Observer = Callable[[FeedCoverage, Step, Written], None]


class FeedReport(NamedTuple):
    coverage: FeedCoverage
    outcome: Outcome
    truth: Truth
    conflicts: int
    faults: list[str]


class ReaderReport(NamedTuple):
    seat: Seat
    frames: int
    cuts: int
    resumes: int
    faults: list[str]


class Report(NamedTuple):
    feeds: list[FeedReport]
    readers: list[ReaderReport]
    delivery_ms: list[float]

    @property
    def faults(self) -> list[str]:
        of_feeds = [f"{report.coverage.id}: {fault}" for report in self.feeds for fault in report.faults]
        of_readers = [
            f"{', '.join(report.seat.feeds)}, {report.seat.name}: {fault}"
            for report in self.readers
            for fault in report.faults
        ]
        return of_feeds + of_readers


class Performance:
    """One coverage on one server. `clock` counts seconds, as time.monotonic does."""

    def __init__(
        self,
        coverage: Coverage,
        *,
        url: str,
        token: str,
        speed: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._observe: Observer = _unobserved
        self._clock = clock
        self._coverages = {feed.id: feed for feed in coverage.feeds}
        self._newsrooms = [
            Newsroom(feed, url=url, token=token, speed=speed, clock=clock, acknowledged=self._acknowledged)
            for feed in coverage.feeds
        ]
        self._spectators = [Spectator(seat, clock=clock) for seat in seats([feed.id for feed in coverage.feeds])]
        self._sent: dict[tuple[str, str], float] = {}
        self._heads: dict[str, Position] = {}
        self._halfway = asyncio.Event()
        self._half_of_the_steps = sum(len(feed.steps) for feed in coverage.feeds) // 2

    async def open(self) -> None:
        """Open the feeds."""
        await asyncio.gather(*(newsroom.open() for newsroom in self._newsrooms))

    async def run(self, *, observe: Observer) -> None:
        """Perform the coverage before all readers. Raises what desks or readers could not go on with."""
        self._observe = observe
        async with following(self._spectators, self._url, halfway=self._halfway):
            async with asyncio.timeout(ARRIVAL_SECONDS):
                await asyncio.gather(*(each.live() for each in self._spectators if not each.seat.late))
            started_at = datetime.now(UTC)
            async with asyncio.TaskGroup() as desks:
                for newsroom in self._newsrooms:
                    desks.create_task(newsroom.perform(started_at=started_at))
            await self._arrived()

    async def report(self) -> Report:
        """Take the verdict, once nobody writes any more."""
        async with DatelineClient(self._url) as client:
            truths: dict[str, Truth] = {}
            feeds: list[FeedReport] = []
            for newsroom in self._newsrooms:
                feed = newsroom.coverage
                truth, faults = await read_truth(client, feed.id, position=str(self._heads[feed.id]))
                expected = outcome(feed)
                faults += outcome_faults(truth, expected, newsroom.ids)
                truths[feed.id] = truth
                feeds.append(FeedReport(feed, expected, truth, newsroom.conflicts, faults))
            readers = [await self._reader_report(client, spectator, truths) for spectator in self._spectators]
        return Report(feeds, readers, self.deliveries_ms())

    def deliveries_ms(self) -> list[float]:
        """From the sending of each write to its arrival at each reader who was there all the time, in order of size."""
        return sorted(
            (arrived - self._sent[at]) * 1000
            for spectator in self._spectators
            if not spectator.seat.cut and not spectator.seat.late
            for at, arrived in spectator.arrivals.items()
            if at in self._sent
        )

    def _acknowledged(self, feed: str, step: Step, written: Written, sent: float) -> None:
        position = Position.parse(written.position)
        self._sent[feed, written.position] = sent
        self._heads[feed] = max(self._heads.get(feed, position), position)
        if len(self._sent) >= self._half_of_the_steps:
            self._halfway.set()
        self._observe(self._coverages[feed], step, written)

    async def _arrived(self) -> None:
        """Wait until every reader stands at the end of its feeds. Who does not get there is the verdict's to say."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ARRIVAL_SECONDS):
                await asyncio.gather(*(self._at_the_end(spectator) for spectator in self._spectators))

    async def _at_the_end(self, spectator: Spectator) -> None:
        for feed in spectator.seat.feeds:
            await spectator.reached(feed, self._heads[feed])

    async def _reader_report(
        self, client: DatelineClient, spectator: Spectator, truths: dict[str, Truth]
    ) -> ReaderReport:
        seat = spectator.seat
        faults: list[str] = []
        for feed, state in spectator.reader.states.items():
            faults += compare(state, truths[feed])
            if seat.late:
                await _load_the_rest(client, state, limit=seat.snapshot)
                faults += [f"all pages loaded: {fault}" for fault in compare(state, truths[feed])]
            else:
                faults += compare_tombstones(state, truths[feed])
        if seat.cut and spectator.resumes == 0:
            faults.append("was never cut, so that nothing was tried")
        return ReaderReport(seat, spectator.frames, spectator.cuts, spectator.resumes, faults)


async def _load_the_rest(client: DatelineClient, state: ReaderState, *, limit: int) -> None:
    while state.next is not None:
        state.load(await client.page(state.feed, order=state.order, limit=limit, cursor=state.next))


def _unobserved(feed: FeedCoverage, step: Step, written: Written) -> None:
    return

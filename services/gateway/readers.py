"""Readers: who is connected, since when nothing was heard of them, and how they are let go.

Owns coming and going, pings and goodbyes; puts the parts of the fan-out together. No queue, no task and no timer for a reader
that keeps up. Frames come from `tail`, requests from `streams`.
"""

import asyncio
import random
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import Any

import structlog

from services.gateway.catch_ups import CatchUps
from services.gateway.channel import Channel
from services.gateway.connection import Connection
from services.gateway.differences import Differences
from services.gateway.fan_out import READERS_PER_LOOK, FanOut
from services.gateway.followed import Followed
from services.gateway.following import Following
from services.gateway.frames import PING, bye
from services.gateway.hub import Hub
from services.gateway.moments import Moments
from services.gateway.reader import Reader, Wish
from services.gateway.snapshots import Snapshots
from services.gateway.turns import Turns
from shared.errors import Corrupted
from shared.metrics import Metrics

log = structlog.get_logger()

PING_SECONDS = 15
# One slot of the wheel of pings.
SLOT_SECONDS = 1.0
# After this time without a single acknowledged byte a reader that has bytes waiting is given up.
GIVEN_UP_SECONDS = 600
# A reader that does not even take its goodbye is cut off.
GOODBYE_SECONDS_MAX = 10
# Goodbyes of a drain are spread: slowly enough that those who leave do not all come back to the next gateway at once, and
# over so much of the drain's time at most.
GOODBYES_PER_SECOND = 500
DRAIN_SHARE = 0.6
SNAPSHOT_DEFAULT = 20


class Readers:
    """All readers of one gateway process."""

    def __init__(
        self, differences: Differences, snapshots: Snapshots, moments: Moments, metrics: Metrics, *, readers_max: int
    ) -> None:
        self._metrics = metrics
        self._readers_max = readers_max
        self._channels: dict[tuple[tuple[str, ...], bool], Channel] = {}
        self._wheel: list[dict[Reader, None]] = [{} for _ in range(PING_SECONDS)]
        self._last_slot = 0
        self._count = 0
        # Those who had their goodbye too, until their connections have ended.
        self._connected = 0
        self._none_connected = asyncio.Event()
        self._none_connected.set()
        self._leaving: deque[tuple[float, Connection]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = Turns()
        self._broken = asyncio.Event()
        self._corruption: Corrupted | None = None
        self.draining = False
        fan_out = FanOut(
            self._turns,
            metrics,
            on_behind=lambda reader: self._catch_ups.add(reader),
            on_private=self._end_of_public,
            spawn=self._spawn,
        )
        self.following = Following(differences, fan_out, spawn=self._spawn, on_corruption=self.break_off)
        self._catch_ups = CatchUps(
            self.following,
            differences,
            snapshots,
            moments,
            self._turns,
            metrics,
            spawn=self._spawn,
            on_end=self.end,
            on_corruption=self.break_off,
        )
        self.hub = Hub(on_writable=self.on_writable, on_gone=self.on_gone)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Reader]:
        for slot in self._wheel:
            yield from slot

    @property
    def full(self) -> bool:
        return self._count >= self._readers_max

    # Coming and going

    def join(self, connection: Connection, wish: Wish, *, lead: bytes = b"") -> None:
        """Follow the wish's feeds from now on; what it is told first comes behind `lead`."""
        key = (wish.feeds, wish.joined)
        channel = self._channels.get(key)
        if channel is None:
            channel = Channel([self.following.of(feed) for feed in wish.feeds], joined=wish.joined)
            self._channels[key] = channel
            for feed in wish.feeds:
                self.following.of(feed).channels[channel] = None
        reader = Reader(channel, connection, wish, snapshot=wish.snapshot or SNAPSHOT_DEFAULT, lead=lead)
        channel.readers[reader] = None
        self._last_slot = reader.slot = (self._last_slot + 1) % PING_SECONDS
        self._wheel[reader.slot][reader] = None
        self._count += 1
        self._metrics.readers.set(self._count)
        connection.reader = reader
        self._connected += 1
        self._none_connected.clear()
        if self.draining:
            self.end(reader, "draining")
        else:
            self._catch_ups.begin(reader)

    def on_writable(self, reader: Reader) -> None:
        self._catch_ups.add(reader)

    def on_gone(self, reader: Reader) -> None:
        """Its connection has ended: nothing of it is kept."""
        self._leave(reader)
        self._connected -= 1
        if not self._connected:
            self._none_connected.set()

    def _leave(self, reader: Reader) -> None:
        reader.live = False
        slot, reader.slot = reader.slot, None
        if slot is None:
            return
        del self._wheel[slot][reader]
        self._count -= 1
        self._metrics.readers.set(self._count)
        channel = reader.channel
        del channel.readers[reader]
        if channel.readers:
            return
        del self._channels[channel.feeds, channel.joined]
        for feed in channel.feeds:
            followed = self.following.of(feed)
            del followed.channels[channel]
            if not followed.channels:
                self.following.leave(followed)

    def end(self, reader: Reader, reason: str) -> None:
        """Say goodbye and close once that has gone out."""
        if reader.slot is None:
            return
        self._leave(reader)
        connection = reader.connection
        if connection.full:
            connection.finish(bye(reason))
        else:
            reader.send(bye(reason))
        connection.close()
        self._leaving.append((asyncio.get_running_loop().time() + GOODBYE_SECONDS_MAX, connection))

    def _end_of_public(self, followed: Followed) -> None:
        """Those who may not see the feed any more get nothing more of it; their goodbyes go out in turns."""
        readers = [reader for reader in followed.readers() if not reader.sees_private]
        for reader in readers:
            reader.live = False
            reader.ending = "expired"
        self._spawn(self._say_goodbye(readers))

    async def _say_goodbye(self, readers: list[Reader]) -> None:
        for number, reader in enumerate(readers):
            if number % READERS_PER_LOOK == 0:
                await self._turns.take()
            self.end(reader, reader.ending or "draining")

    # Time

    async def keep_time(self) -> None:
        """One wheel for all pings: each second one slot of readers, and those of them that take nothing are judged."""
        loop = asyncio.get_running_loop()
        while True:
            for slot in range(PING_SECONDS):
                await asyncio.sleep(SLOT_SECONDS)
                self._cut_off(loop.time())
                self._metrics.readers_behind.set(sum(not reader.live for reader in self))
                for number, reader in enumerate(list(self._wheel[slot])):
                    if number % READERS_PER_LOOK == 0:
                        await self._turns.take()
                    if self._stalled(reader, loop.time()):
                        log.info("reader_given_up", feeds=reader.feeds)
                        reader.connection.abort()
                    elif reader.takes:
                        reader.send(PING)

    def _stalled(self, reader: Reader, now: float) -> bool:
        """Whether bytes have waited so long without one being acknowledged; a slow but living reader is kept.

        A ping went out at the last look: where nothing was acknowledged since, something waits, even if the socket has room.
        """
        acknowledged = reader.connection.bytes_acknowledged()
        waits = reader.connection.full or acknowledged is not None
        if reader.stalled_since is None or acknowledged != reader.acknowledged or not waits:
            reader.stalled_since, reader.acknowledged = now, acknowledged
            return False
        return now - reader.stalled_since >= GIVEN_UP_SECONDS

    def _cut_off(self, now: float) -> None:
        """Close what had its goodbye long ago."""
        while self._leaving and self._leaving[0][0] <= now:
            _, connection = self._leaving.popleft()
            connection.abort()

    async def drain(self, *, seconds: float) -> None:
        """Say goodbye to all, spread over a part of `seconds`, and wait until they have gone; the caller bounds the time."""
        loop = asyncio.get_running_loop()
        self.draining = True
        leaving = list(self)
        random.shuffle(leaving)
        begun = loop.time()
        window = min(DRAIN_SHARE * seconds, len(leaving) / GOODBYES_PER_SECOND)
        for number, reader in enumerate(leaving):
            if number % READERS_PER_LOOK == 0:
                await asyncio.sleep(max(0.0, begun + window * number / len(leaving) - loop.time()))
            self.end(reader, "draining")
        try:
            async with asyncio.timeout(GOODBYE_SECONDS_MAX):
                await self._none_connected.wait()
        except TimeoutError:
            self._cut_off(float("inf"))

    # Corruption

    def break_off(self, corruption: Corrupted) -> None:
        """Our own data is broken: whoever runs `watch` stops the process."""
        log.critical("corrupted", detail=corruption.detail)
        self._corruption = corruption
        self._broken.set()

    async def watch(self) -> None:
        """Returns never; raises Corrupted when a reader met it."""
        await self._broken.wait()
        if self._corruption is not None:
            raise self._corruption

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

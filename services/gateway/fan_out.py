"""The fan-out: the next frame of a feed to every reader that is live, the same bytes for all, in one write what waits for each.

Owns the sweeps over readers. One that cannot take its frame is marked behind and skipped; `catch_ups` brings it up when it
can take more.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from services.gateway.channel import Channel
from services.gateway.followed import Followed
from services.gateway.reader import Reader
from services.gateway.ring import Ready
from services.gateway.shared_bytes import SharedBytes
from services.gateway.turns import Turns
from shared.metrics import Metrics

log = structlog.get_logger()

# A write takes about 10 us: this many readers are served between two looks at the clock.
READERS_PER_LOOK = 32
# So many channels with many readers go on at once; small ones do not wait for them.
SWEEPS_AT_ONCE = 8


class FanOut:
    """`on_behind` is told of a reader that has to be brought up, `on_private` of a feed that the public may not see any more."""

    def __init__(
        self,
        turns: Turns,
        metrics: Metrics,
        *,
        on_behind: Callable[[Reader], None],
        on_private: Callable[[Followed], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._turns = turns
        self._metrics = metrics
        self._on_behind = on_behind
        self._on_private = on_private
        self._spawn = spawn
        self._waiting: deque[Channel] = deque()
        self._at_work = 0
        # Counted here, and told once a pass over a channel's readers.
        self._deliveries = 0
        self._bytes = 0
        self._shared = SharedBytes()

    def frame(self, followed: Followed, ready: Ready) -> None:
        if ready.kind == "feed" and b'"visibility":"private"' in ready.data:
            self._on_private(followed)
        for channel in followed.channels:
            # The rest is done when its turn comes: thousands of channels may follow one feed.
            if not channel.sweeping:
                channel.sweeping = True
                self._waiting.append(channel)
                if self._at_work < SWEEPS_AT_ONCE:
                    self._at_work += 1
                    self._spawn(self._sweep_all())

    def gap(self, followed: Followed) -> None:
        for reader in followed.readers():
            reader.live = False
            self._on_behind(reader)

    async def _sweep_all(self) -> None:
        """A pass over each channel that waits for one, until none does."""
        try:
            while self._waiting:
                await self._turns.take()
                if self._waiting:
                    await self._sweep(self._waiting.popleft())
        finally:
            self._at_work -= 1

    async def _sweep(self, channel: Channel) -> None:
        """Give all live readers of a channel what has come; what came meanwhile waits for the next pass."""
        try:
            swept = channel.take()
            readers = list(channel.readers)
            served = self._give(channel, readers, 0)
            while served < len(readers):
                await self._turns.take()
                served = self._give(channel, readers, served)
            self._metrics.deliveries.inc(self._deliveries)
            self._metrics.bytes_sent.inc(self._bytes)
            self._deliveries = self._bytes = 0
            now = time.time()
            for recorded_at in channel.swept(swept):
                self._metrics.publish_seconds.observe(max(0.0, now - recorded_at / 1000))
        except Exception:
            log.exception("sweep_broken_off", feeds=channel.feeds)
            channel.sweeping = False
            for reader in list(channel.readers):
                self._behind(reader)
            return
        if channel.take() != swept and channel.readers:
            self._waiting.append(channel)
        else:
            channel.sweeping = False

    def _give(self, channel: Channel, readers: Sequence[Reader], first: int) -> int:
        """Everything that waits for these readers, each in one write; up to which of them this turn lasted.

        This is what a delivery costs: little else is done.
        """
        end, positions = channel.take(), channel.positions
        write: Callable[[int, bytes], int] = os.write
        seen, data, size, frames, served = -1, b"", -1, 0, 0
        while True:
            for reader in readers[first : first + READERS_PER_LOOK]:
                if not reader.live:
                    if reader.ahead:
                        self._on_behind(reader)
                    continue
                if reader.seen != seen:
                    if reader.seen == end:
                        continue
                    batch = channel.after(reader.seen)
                    if batch is None:
                        self._behind(reader)
                        continue
                    self._count(served, frames, size)
                    seen, data = reader.seen, batch[1]
                    size, frames, served = len(data), len(batch[0]), 0
                    held = self._shared.hold(data, sockets=len(readers) - first)
                    write = self._shared.write if held else os.write
                connection = reader.connection
                fd = connection.fd
                try:
                    # A call less: what may go wrong here goes wrong there again.
                    taken = write(fd, data) if fd >= 0 else connection.write(data)
                except OSError:
                    taken = connection.write(data)
                if taken != size:
                    self._broke_off(channel, reader, taken)
                    continue
                reader.seen = end
                reader.positions = positions
                served += 1
                if connection.full:
                    self._behind(reader)
            first += READERS_PER_LOOK
            if first >= len(readers) or self._turns.over():
                break
        self._shared.close()
        self._count(served, frames, size)
        return first

    def _broke_off(self, channel: Channel, reader: Reader, taken: int) -> None:
        """Its socket is full: of what it did not take nothing is kept but the rest of the frame in progress."""
        batch = channel.after(reader.seen)
        if batch is not None:
            frames = reader.keep_rest(batch[0], taken)
            if frames:
                reader.seen += frames
                reader.positions = channel.positions_after(reader.seen)
                self._deliveries += frames
                self._bytes += sum(map(len, batch[0][:frames]))
        self._behind(reader)

    def _behind(self, reader: Reader) -> None:
        reader.live = False
        self._on_behind(reader)

    def _count(self, readers: int, frames: int, size: int) -> None:
        self._deliveries += readers * frames
        self._bytes += readers * size

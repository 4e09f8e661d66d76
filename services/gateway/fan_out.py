"""The fan-out: the next frame of a feed to every reader that is live, the same bytes for all, in one write what waits for each.

Owns the sweeps over readers. One that cannot take its frame is marked behind and skipped; `catch_ups` brings it up when it
can take more.
"""

import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from services.gateway.channel import Channel
from services.gateway.followed import Followed
from services.gateway.reader import Reader
from services.gateway.ring import Ready
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

    def frame(self, followed: Followed, ready: Ready) -> None:
        if ready.kind == "feed" and b'"visibility":"private"' in ready.data:
            self._on_private(followed)
        for channel in followed.channels:
            channel.append(ready)
            if not channel.sweeping:
                channel.sweeping = True
                self._waiting.append(channel)
        self._set_to_work()

    def gap(self, followed: Followed) -> None:
        for reader in followed.readers():
            reader.live = False
            self._on_behind(reader)

    def _set_to_work(self) -> None:
        for _ in range(min(SWEEPS_AT_ONCE - self._at_work, len(self._waiting))):
            self._at_work += 1
            self._spawn(self._sweep_all())

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
            end = channel.end
            readers = list(channel.readers)
            for first in range(0, len(readers), READERS_PER_LOOK):
                if first:
                    await self._turns.take()
                self._give(channel, readers[first : first + READERS_PER_LOOK])
            self._metrics.deliveries.inc(self._deliveries)
            self._metrics.bytes_sent.inc(self._bytes)
            self._deliveries = self._bytes = 0
            now = time.time()
            for recorded_at in channel.swept(end):
                self._metrics.publish_seconds.observe(max(0.0, now - recorded_at / 1000))
        except Exception:
            log.exception("sweep_broken_off", feeds=channel.feeds)
            channel.sweeping = False
            for reader in list(channel.readers):
                self._behind(reader)
            return
        if channel.start < channel.end and channel.readers:
            self._waiting.append(channel)
        else:
            channel.sweeping = False

    def _give(self, channel: Channel, readers: Sequence[Reader]) -> None:
        """Everything that waits for these readers, each in one write. This is what a delivery costs: little else is done."""
        end, positions = channel.end, channel.positions
        seen, data, size, served = -1, b"", -1, 0
        for reader in readers:
            if reader.live and reader.seen != end:
                if reader.seen != seen:
                    self._count(channel, seen, served)
                    served = 0
                    batch = channel.after(reader.seen)
                    if batch is None:
                        self._behind(reader)
                        continue
                    seen, data = reader.seen, batch[1]
                    size = len(data)
                taken = reader.connection.write(data)
                if taken != size:
                    self._broke_off(channel, reader, taken)
                    continue
                reader.seen = end
                reader.positions = positions
                served += 1
                if reader.connection.full:
                    self._behind(reader)
            elif reader.ahead and not reader.live:
                self._on_behind(reader)
        self._count(channel, seen, served)

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

    def _count(self, channel: Channel, seen: int, served: int) -> None:
        if served and (batch := channel.after(seen)) is not None:
            self._deliveries += served * len(batch[0])
            self._bytes += served * len(batch[1])

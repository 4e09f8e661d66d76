"""The fan-out: the next frame of a feed to every reader that is live, the same bytes for all, in one write what waits for each.

Owns the sweeps over readers. One that cannot take its frame is marked behind and skipped; `catch_ups` brings it up when it
can take more.
"""

import time
from collections.abc import Callable, Coroutine
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
READERS_PER_LOOK = 16


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

    def frame(self, followed: Followed, ready: Ready) -> None:
        if ready.kind == "feed" and b'"visibility":"private"' in ready.data:
            self._on_private(followed)
        for channel in followed.channels:
            channel.append(ready)
            if not channel.sweeping:
                channel.sweeping = True
                self._spawn(self._sweep(channel))

    def gap(self, followed: Followed) -> None:
        for reader in followed.readers():
            reader.live = False
            self._on_behind(reader)

    async def _sweep(self, channel: Channel) -> None:
        """Give all live readers of a channel what has come, until there is nothing new."""
        try:
            while channel.start < channel.end and channel.readers:
                end = channel.end
                deliveries = sent = 0
                positions = channel.positions
                for number, reader in enumerate(list(channel.readers)):
                    if number % READERS_PER_LOOK == 0:
                        await self._turns.take()
                        positions = channel.positions
                    if not reader.live:
                        if reader.ahead:
                            self._on_behind(reader)
                        continue
                    if reader.seen == channel.end:
                        continue
                    batch = channel.after(reader.seen)
                    frames = 0 if batch is None else reader.send_frames(*batch)
                    if batch is not None and frames == len(batch[0]):
                        reader.seen = channel.end
                        reader.positions = positions
                        deliveries += frames
                        sent += len(batch[1])
                        if not reader.connection.full:
                            continue
                    elif batch is not None and frames:
                        reader.seen += frames
                        reader.positions = channel.positions_after(reader.seen)
                        deliveries += frames
                        sent += sum(map(len, batch[0][:frames]))
                    reader.live = False
                    self._on_behind(reader)
                self._metrics.deliveries.inc(deliveries)
                self._metrics.bytes_sent.inc(sent)
                now = time.time()
                for recorded_at in channel.swept(end):
                    self._metrics.publish_seconds.observe(max(0.0, now - recorded_at / 1000))
        except Exception:
            log.exception("sweep_broken_off", feeds=channel.feeds)
            for reader in list(channel.readers):
                reader.live = False
                self._on_behind(reader)
        finally:
            channel.sweeping = False

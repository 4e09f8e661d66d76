"""The tail: the one reader of `frames` in a gateway process, and the sweep that finds what frames did not bring.

Owns the way from Redis to `readers` and `kept`. Frames are hints: XREAD below a trim point skips silently, and with a cursor
ahead of a stream that was made anew it waits for ever, so once a second the checkpoints of all followed feeds are compared
with what was sent, and twice a second those of feeds that have kept pages with what is given of them.
"""

import asyncio
from contextlib import suppress
from typing import Any

import structlog

from services.gateway.kept import Kept
from services.gateway.purges import Purges
from services.gateway.readers import Readers
from services.gateway.ring import Ready
from services.gateway.waiting import Arrivals
from shared.epochs.witness import Witness
from shared.errors import Unavailable
from shared.keys import SHARDS, Keys
from shared.position import Position
from shared.redis import UNREACHABLE, Redis, ask, packed_command, read_streams

log = structlog.get_logger()

BLOCK_SECONDS = 1.0
FRAMES_PER_READ_MAX = 200
SWEEP_SECONDS = 1.0
# Well within the time for which `kept` trusts what it was told: only a server that does not answer lets that lapse.
KEPT_SWEEP_SECONDS = 0.4
BACKOFF_SECONDS = 0.3
# A tail that has heard nothing from the server for so long cannot promise readers anything.
STALE_SECONDS = 5.0


class Tail:
    def __init__(
        self,
        redis: Redis,
        blocking: Redis,
        keys: Keys,
        readers: Readers,
        kept: Kept,
        arrivals: Arrivals,
        purges: Purges,
        witness: Witness,
    ) -> None:
        self._redis = redis
        self._blocking = blocking
        self._keys = keys
        self._readers = readers
        self._kept = kept
        self._arrivals = arrivals
        self._purges = purges
        self._witness = witness
        self._streams = [keys.shard(shard).frames for shard in range(SHARDS)]
        self._last_of_each = [packed_command("XREVRANGE", stream, "+", "-", "COUNT", 1) for stream in self._streams]
        self._cursors: dict[str, str] = {}
        self._heard = float("-inf")
        self._swept = float("-inf")

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._sweep_often())
            group.create_task(self._sweep_kept_often())

    def forget(self) -> None:
        """Another server process may answer: where its streams end is found anew."""
        self._cursors.clear()

    async def check(self) -> dict[str, Any]:
        """Facts for readiness; Unavailable when frames or sweeps have stopped coming."""
        now = asyncio.get_running_loop().time()
        age = now - min(self._heard, self._swept)
        if age > STALE_SECONDS:
            raise Unavailable(f"the tail of frames has heard nothing from the server for over {STALE_SECONDS:.0f} s")
        return {"tail_age_seconds": round(age, 3)}

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        interrupted = True
        while True:
            try:
                if interrupted:
                    # Before anything is asked of a server that may be another than before.
                    await self._witness.check()
                    interrupted = False
                if not self._cursors:
                    await self._find_ends()
                came = await read_streams(
                    self._blocking, self._cursors, count=FRAMES_PER_READ_MAX, block_seconds=BLOCK_SECONDS
                )
                self._heard = loop.time()
                if not self._cursors:
                    continue  # forgotten meanwhile: what came is of the server before
                for stream, entries in came:
                    self._cursors[stream] = entries[-1][0]
                    for _, fields in entries:
                        self._deliver(fields)
                # Readers first: to ask again takes as long as to serve some of them.
                await asyncio.sleep(0)
            except (Unavailable, *UNREACHABLE) as error:
                log.warning("tail_interrupted", error=repr(error))
                self._kept.forget_all()
                interrupted = True
                await asyncio.sleep(BACKOFF_SECONDS)

    def _deliver(self, fields: dict[bytes, bytes]) -> None:
        feed = fields[b"f"].decode()
        if fields[b"k"] == b"purge":
            self._purges.purge(feed, fields[b"d"])
            return
        if fields[b"k"] == b"flip":
            # Another generation at the same checkpoint: no reader holds anything else because of it.
            self._kept.forget(feed)
            return
        position = Position.parse(fields[b"p"].decode())
        self._witness.saw(feed, position)
        self._kept.moved(feed, position)
        # A projector of an older release does not say when.
        recorded_at = int(fields[b"r"]) if b"r" in fields else None
        self._readers.following.deliver(Ready(feed, position, fields[b"k"].decode(), fields[b"d"], recorded_at))
        self._arrivals.moved(feed)

    async def _find_ends(self) -> None:
        for stream, end in zip(self._streams, await self._ends(), strict=True):
            # A cursor ahead of a stream that was made anew would wait for ever.
            if stream not in self._cursors or _stream_id(end) < _stream_id(self._cursors[stream]):
                self._cursors[stream] = end

    async def _ends(self) -> list[str]:
        return [last[0][0].decode() if last else "0-0" for last in await ask(self._redis, self._last_of_each)]

    async def _sweep_often(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._purges.announce()
                await self._sweep()
                await self._find_ends()
                self._swept = loop.time()
            except UNREACHABLE as error:
                log.warning("sweep_interrupted", error=repr(error))
            await asyncio.sleep(SWEEP_SECONDS)

    async def _sweep(self) -> None:
        followed = [feed for feed in self._readers.following.feeds() if feed.position is not None]
        for start in range(0, len(followed), 100):
            part = followed[start : start + 100]
            for feed, checkpoint in zip(part, await self._checkpoints([feed.feed for feed in part]), strict=True):
                # What one sweep saw and no frame has brought until the next was missed, not merely on its way.
                if feed.swept is not None and feed.position is not None and feed.position < feed.swept:
                    log.info("frames_missed", feed=feed.feed, position=str(feed.position), checkpoint=str(feed.swept))
                    self._readers.following.missed(feed)
                feed.swept = checkpoint

    async def _sweep_kept_often(self) -> None:
        while True:
            feeds = self._kept.used()
            # What is kept lapses by itself where this fails; the other sweep tells of it.
            with suppress(*UNREACHABLE):
                for start in range(0, len(feeds), 100):
                    await self._checkpoints(feeds[start : start + 100])
            await asyncio.sleep(KEPT_SWEEP_SECONDS)

    async def _checkpoints(self, feeds: list[str]) -> list[Position | None]:
        """Where the feeds' active generations stand, which what is kept of them must not be behind."""
        began = self._kept.now()
        active = [packed_command("GET", self._keys.feed(feed).active) for feed in feeds]
        generations = [int(generation or 0) for generation in await ask(self._redis, active)]
        stands = [
            packed_command("HGET", self._keys.feed(feed).of_generation(generation).meta, "checkpoint")
            for feed, generation in zip(feeds, generations, strict=True)
        ]
        checkpoints = [Position.parse(raw.decode()) if raw else None for raw in await ask(self._redis, stands)]
        for feed, generation, checkpoint in zip(feeds, generations, checkpoints, strict=True):
            if checkpoint is not None:
                self._kept.saw(feed, checkpoint, generation, as_of=began)
        return checkpoints


def _stream_id(text: str) -> tuple[int, int]:
    milliseconds, _, n = text.partition("-")
    return int(milliseconds), int(n)

"""The projector's work: hints and sweeps wake it, and each shard that it owns is folded by one task of its own.

Owns when and which; `lease` owns whether, `commit` what. Doorbells may lose anything, and so may the logs of `warm` feeds:
what was missed is found in the sweep of the shard's dirty feeds, once a second.
"""

import asyncio
from contextlib import suppress

import structlog

from services.projector.builder import Builder
from services.projector.commit import Commit, Commits, Pending, prepare
from services.projector.gauges import Gauges
from services.projector.lease import RENEW_SECONDS, Leases
from services.projector.shard import Shard
from services.projector.warm import EVENTS_MAX, Warm
from shared.epochs.witness import Witness
from shared.errors import NewerLog, Unavailable
from shared.keys import Keys
from shared.metrics import Metrics
from shared.ndjson import StreamEntry
from shared.redis import UNREACHABLE, Redis, ask, packed_command, read_streams

log = structlog.get_logger()

BLOCK_SECONDS = 1.0
SWEEP_SECONDS = 1.0
BACKOFF_SECONDS = 0.5
# How long a shard whose log is of a newer release is left to others.
REFUSED_SECONDS = 30.0


class Projector:
    """Folds the shards that it holds leases of, until cancelled; then lets go. A commit under way happens whole or not at all."""

    def __init__(self, redis: Redis, blocking: Redis, keys: Keys, metrics: Metrics, *, owner: str) -> None:
        self._redis = redis
        self._blocking = blocking
        self._keys = keys
        self._metrics = metrics
        self._leases = Leases(redis, keys, owner=owner)
        self._commits = Commits(redis, keys)
        self._shards: dict[int, Shard] = {}
        self._warm = Warm(keys)
        self._builder = Builder(redis, keys, self._leases, self._shards, self._refuse)
        self._gauges = Gauges(redis, keys, metrics, self._shards)
        self._witness = Witness(redis, keys, on_restart=lambda: self._cursors.clear())
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._refused: dict[int, float] = {}
        self._cursors: dict[int, str] = {}
        self.last_renewal = 0.0

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_leases(group))
                group.create_task(self._hear_doorbells())
                group.create_task(self._gauges.run())
                group.create_task(self._witness.watch())
                group.create_task(self._builder.run())
        finally:
            try:
                await self._leases.leave()
            except UNREACHABLE:
                log.warning("leases_not_released", shards=sorted(self._leases.held))

    @property
    def shards(self) -> list[int]:
        return sorted(self._leases.held)

    async def _keep_leases(self, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._refused = {shard: until for shard, until in self._refused.items() if until > loop.time()}
            try:
                await self._leases.renew(refused=self._refused)
                self.last_renewal = loop.time()
            except UNREACHABLE as error:
                # Owned shards go on being folded: the fence in each commit decides whether they are still ours.
                log.warning("leases_not_renewed", error=repr(error))
            self._follow_leases(group)
            await asyncio.sleep(RENEW_SECONDS)

    def _follow_leases(self, group: asyncio.TaskGroup) -> None:
        held = self._leases.held
        # One that was refused and taken again since the last look has an owner, but nobody who folds it.
        unfolded = [number for number, task in self._tasks.items() if task.done() and number not in self._refused]
        left = [number for number in self._shards if number not in held or number in unfolded]
        for number in left:
            del self._shards[number]
            self._cursors.pop(number, None)
            self._warm.forget_shard(number)
            self._tasks.pop(number).cancel()
        taken = {number: fence for number, fence in held.items() if number not in self._shards}
        for number in taken:
            self._shards[number] = shard = Shard(number)
            self._tasks[number] = group.create_task(self._fold_shard(shard))
            self._builder.look_through(number)
        if left or taken:
            log.info("shards_changed", left=left, taken_with_fence=taken, held=sorted(held))
        self._metrics.shards.set(len(held))

    async def _hear_doorbells(self) -> None:
        """Wake the feeds that writers ring for, and sweep for those whose bell was lost."""
        loop = asyncio.get_running_loop()
        swept = 0.0
        while True:
            try:
                if loop.time() - swept >= SWEEP_SECONDS or set(self._shards) - set(self._cursors):
                    await self._sweep()
                    swept = loop.time()
                if not self._cursors:
                    await asyncio.sleep(RENEW_SECONDS / 5)
                    continue
                await self._listen()
                # What was heard goes first: to ask again takes as long as to fold an event.
                await asyncio.sleep(0)
            except UNREACHABLE as error:
                log.warning("doorbells_not_heard", error=repr(error))
                await asyncio.sleep(BACKOFF_SECONDS)

    async def _listen(self) -> None:
        doorbells = {self._keys.shard(number).doorbell: number for number in self._cursors}
        logs = self._warm.logs()
        cursors = {stream: self._cursors[number] for stream, number in doorbells.items()}
        cursors |= {stream: read for stream, (_, read) in logs.items()}
        found = await read_streams(self._blocking, cursors, count=EVENTS_MAX, block_seconds=BLOCK_SECONDS)
        for stream, entries in found:
            if stream in logs:
                feed, _ = logs[stream]
                self._warm.came(feed, [StreamEntry(entry.encode(), fields) for entry, fields in entries])
                self._wake(feed)
        for stream, rings in found:
            number = doorbells.get(stream)
            if number is None or number not in self._shards:
                continue
            self._cursors[number] = rings[-1][0]
            for _, fields in rings:
                feed = fields[b"feed"].decode()
                if b"build" in fields:
                    self._builder.wake(feed)
                elif not self._warm.has_read(feed, fields.get(b"position")):
                    self._wake(feed)

    def _wake(self, feed: str) -> None:
        shard = self._shards.get(self._keys.shard_of(feed))
        if shard is not None:
            shard.wake(feed)

    async def _sweep(self) -> None:
        """State makes it right: every feed whose log is ahead of its checkpoint is dirty until a commit says otherwise."""
        shards = list(self._shards.values())
        asked = []
        for shard in shards:
            keys = self._keys.shard(shard.number)
            asked.append(packed_command("XREVRANGE", keys.doorbell, "+", "-", "COUNT", 1))
            asked += [packed_command("SMEMBERS", key) for key in (keys.dirty, keys.builds)]
        answers = await ask(self._redis, asked) if shards else []
        for shard, last, dirty, builds in zip(shards, answers[::3], answers[1::3], answers[2::3], strict=True):
            if self._shards.get(shard.number) is not shard:
                continue  # lost meanwhile
            # A cursor ahead of a stream that was made anew would wait for ever.
            end = last[0][0].decode() if last else "0-0"
            if shard.number not in self._cursors or _stream_id(end) < _stream_id(self._cursors[shard.number]):
                self._cursors[shard.number] = end
            for feed in dirty:
                shard.wake(feed.decode())
            for feed in builds:
                self._builder.wake(feed.decode())

    async def _fold_shard(self, shard: Shard) -> None:
        while True:
            await shard.bell.wait()
            feeds = shard.take()
            try:
                async with shard.committing:
                    more = await self._fold(shard, feeds)
                for feed in more:
                    shard.wake(feed)
            except (Unavailable, *UNREACHABLE) as error:
                log.warning("commit_not_done", shard=shard.number, error=repr(error))
                for feed in feeds:
                    shard.wake(feed)
                await asyncio.sleep(BACKOFF_SECONDS)
            except NewerLog as error:
                await self._refuse(shard, error)
                return

    async def _fold(self, shard: Shard, feeds: list[str]) -> list[str]:
        """One commit for each feed; gives the feeds that may have more."""
        fence = self._leases.held.get(shard.number)
        if fence is None:
            return []
        pending = [item for feed in feeds if (item := self._warm.take(feed))]
        warm = {item.feed_id for item in pending}
        if unread := [feed for feed in feeds if feed not in warm]:
            found = await self._commits.pending(unread)
            await self._rebuild_outdated(found)
            pending += [item for item in found if item.entries]
        items = []
        for item in pending:
            generation = item.generation or await self._commits.new_generation(item.feed_id)
            items.append((item, prepare(item), generation))
        if not items:
            return []
        # Cancelled in the middle, the commit takes effect or not, as a whole; the next owner reads which.
        answers = await self._commits.commit(items, fence=fence)
        for (item, done, generation), answer in zip(items, answers, strict=True):
            if answer == "committed":
                self._witness.saw(item.feed_id, done.checkpoint)
                self._metrics.folded.inc(done.folded)
                self._warm.committed(item, done, generation)
            else:
                self._warm.moved(item.feed_id)
                log.info("commit_refused", feed=item.feed_id, why=answer, fence=fence)
            if answer != "fenced":
                # "moved" may be our own commit whose answer was lost: its alarm must ring all the same.
                self._ring_alarm(item.feed_id, done)
        if "fenced" in answers:
            self._leases.held.pop(shard.number, None)
            return []
        return [
            item.feed_id
            for (item, done, _), answer in zip(items, answers, strict=True)
            if done.more or answer == "moved"
        ]

    async def _rebuild_outdated(self, found: list[Pending]) -> None:
        for item in found:
            if item.outdated:
                await self._builder.ask_for_release(item.feed_id)

    def _ring_alarm(self, feed: str, done: Commit) -> None:
        for position, record in done.quarantine.items():
            self._metrics.quarantined.inc()
            log.error("event_quarantined", feed=feed, position=str(position), record=record.decode())

    async def _refuse(self, shard: Shard, error: NewerLog) -> None:
        """Leave the shard to a projector of the release that wrote what this one does not know."""
        log.error("log_is_newer", shard=shard.number, detail=error.detail, left_seconds=REFUSED_SECONDS)
        self._refused[shard.number] = asyncio.get_running_loop().time() + REFUSED_SECONDS
        with suppress(*UNREACHABLE):
            # Not released, the lease runs out by itself.
            await self._leases.release([shard.number])


def _stream_id(text: str) -> tuple[int, int]:
    milliseconds, _, n = text.partition("-")
    return int(milliseconds), int(n)

"""Readers: who follows which feeds, how far each has come, and what each is sent next.

Owns the fan-out: a live reader gets every frame, one that cannot take it is marked behind and skipped, and when it can take
more it is brought up, by the ring where that reaches back far enough, else by the folded difference. No queue, no task and no
timer for a reader that keeps up. Frames come from `tail`, the first words of a stream are `streams`'.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any

import structlog

from services.gateway.differences import Differences, Folded
from services.gateway.followed import Followed
from services.gateway.frames import PING, bye, frame, live, reset
from services.gateway.reader import Positions, Reader, moved, stream_id
from services.gateway.reads import Page
from services.gateway.ring import Ready
from services.gateway.snapshots import Snapshots
from shared.errors import Corrupted, StalePosition, Unavailable
from shared.metrics import Metrics
from shared.position import Position

log = structlog.get_logger()

PING_SECONDS = 15
# One slot of the wheel of pings.
SLOT_SECONDS = 1.0
# After this time without a single acknowledged byte a reader that has bytes waiting is given up.
GIVEN_UP_SECONDS = 600
# A reader that does not even take its goodbye is cut off.
GOODBYE_SECONDS_MAX = 10
BACKLOG_FRAMES_MAX = 1_000
BRING_UPS_MAX = 32
MEND_AGAIN_SECONDS = 0.2


class Readers:
    """All readers of one gateway process."""

    def __init__(self, differences: Differences, snapshots: Snapshots, metrics: Metrics, *, readers_max: int) -> None:
        self._differences = differences
        self._snapshots = snapshots
        self._metrics = metrics
        self._readers_max = readers_max
        self._followed: dict[str, Followed] = {}
        self._wheel: list[dict[Reader, None]] = [{} for _ in range(PING_SECONDS)]
        self._slot_of: dict[Reader, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._bring_ups = asyncio.Semaphore(BRING_UPS_MAX)
        self._broken = asyncio.Event()
        self._corruption: Corrupted | None = None
        self.draining = False

    @property
    def full(self) -> bool:
        return len(self._slot_of) >= self._readers_max

    def feeds(self) -> Iterable[Followed]:
        return self._followed.values()

    # Coming and going

    def join(self, reader: Reader) -> None:
        """Follow the reader's feeds from now on: frames that come are kept until the reader's own beginning is known."""
        for i, feed in enumerate(reader.feeds):
            followed = self._followed.setdefault(feed, Followed(feed))
            followed.readers[reader] = i
        slot = min(range(PING_SECONDS), key=lambda i: len(self._wheel[i]))
        self._wheel[slot][reader] = None
        self._slot_of[reader] = slot
        self._metrics.readers.set(len(self._slot_of))

    def leave(self, reader: Reader) -> None:
        reader.live = False
        slot = self._slot_of.pop(reader, None)
        if slot is None:
            return
        del self._wheel[slot][reader]
        for feed in reader.feeds:
            followed = self._followed[feed]
            del followed.readers[reader]
            if not followed.readers:
                del self._followed[feed]
        self._metrics.readers.set(len(self._slot_of))

    def begin(self, reader: Reader, i: int, position: Position) -> None:
        """The reader's first read of feed i was of `position`: what a feed without a position is known up to as well."""
        followed = self._followed.get(reader.feeds[i])
        # A reader that was ended while it read has left already.
        if followed is not None and followed.position is None:
            followed.position = position
            self._run_backlog(followed)

    # Frames

    def deliver(self, ready: Ready) -> None:
        """The next frame of a feed; gaps and frames without their data are mended by the folded difference."""
        followed = self._followed.get(ready.feed)
        if followed is None:
            return
        followed.backlog.append(ready)
        if len(followed.backlog) > BACKLOG_FRAMES_MAX:
            followed.backlog.popleft()  # the gap that this makes is mended like any other
        self._run_backlog(followed)

    def _run_backlog(self, followed: Followed) -> None:
        while followed.backlog and followed.position is not None and not followed.mending:
            ready = followed.backlog[0]
            if ready.position <= followed.position:
                followed.backlog.popleft()
            elif ready.position.epoch > followed.position.epoch and ready.kind == "epoch":
                # n may lie below what was sent: that is then what was lost.
                followed.backlog.popleft()
                self._raised(followed, ready)
            elif ready.position == followed.position.next() and (ready.data or ready.kind == "skipped"):
                followed.backlog.popleft()
                self._dispatch(followed, ready)
            else:
                self._mend(followed)

    def _raised(self, followed: Followed, ready: Ready) -> None:
        """A new epoch: every reader forgets what it holds, and gets a snapshot."""
        if ready.data == b"epoch":
            followed.lost_epoch = max(followed.lost_epoch, ready.position.epoch)
        followed.position = ready.position
        followed.ring.clear()
        for reader in list(followed.readers):
            self._behind(reader)

    def _dispatch(self, followed: Followed, ready: Ready) -> None:
        followed.ring.append(ready)
        followed.position = ready.position
        if ready.kind == "feed" and b'"visibility":"private"' in ready.data:
            self._end_of_public(followed)
        rendered: dict[tuple[tuple[str, ...], Positions], tuple[bytes, Positions]] = {}
        delivered = 0
        # A copy: a write may end a reader, and an ended reader leaves.
        for reader, i in list(followed.readers.items()):
            at = reader.positions[i]
            if not reader.live or at is None or ready.position <= at:
                continue
            if ready.position != at.next():
                self._behind(reader)
                continue
            if reader.joined:
                same = (reader.feeds, reader.positions)
                known = rendered.get(same)
                if known is None:
                    after = moved(reader.positions, i, ready.position)
                    known = (ready.wire_with(stream_id(reader.feeds, after)), after)
                    rendered[same] = known
                data, reader.positions = known
            else:
                data = ready.wire
                reader.positions = (ready.position,)
            reader.send(data)
            delivered += 1
            if reader.connection.full:
                self._behind(reader)
        self._metrics.deliveries.inc(delivered)

    def _end_of_public(self, followed: Followed) -> None:
        for reader in [reader for reader in followed.readers if not reader.sees_private]:
            self.end(reader, "expired")

    def _mend(self, followed: Followed) -> None:
        followed.mending = True
        self._spawn(self._mended(followed))

    async def _mended(self, followed: Followed) -> None:
        """Take what the frames did not bring: the very frame that is missing where it can still be had, else all of it."""
        try:
            position = followed.position
            if position is None:
                return
            asked_for = followed.backlog[0] if followed.backlog else None
            difference = await self._differences.since(followed.feed, position, documents_max=1)
            missing = followed.backlog[0] if followed.backlog else None
            exact = missing is not None and missing.position == position.next()
            if difference is None:
                followed.backlog.clear()
                return
            followed.learn(difference.moment)
            if exact and missing is not None and (ready := difference.frame_at(missing.position)) is not None:
                followed.backlog.popleft()
                self._dispatch(followed, ready)
                return
            if missing is not None and missing is asked_for and missing.position > difference.moment.checkpoint:
                # A frame of what the read models do not hold is none of this history.
                followed.backlog.popleft()
            # Readers take the difference each from where it stands; the ring begins anew after it.
            followed.position = max(position, difference.moment.checkpoint)
            followed.ring.clear()
            for reader in list(followed.readers):
                self._behind(reader)
        except Unavailable as error:
            # The sweep finds the gap again.
            log.warning("gap_not_mended", feed=followed.feed, error=repr(error))
            await asyncio.sleep(MEND_AGAIN_SECONDS)
        except Corrupted as error:
            self.break_off(error)
        except Exception:
            log.exception("gap_not_mended", feed=followed.feed)
            await asyncio.sleep(MEND_AGAIN_SECONDS)
        finally:
            followed.mending = False
            self._run_backlog(followed)

    def forget_frames(self, feed: str) -> None:
        """Drop every frame that is held of a feed: what readers lack of them they take from the read models."""
        followed = self._followed.get(feed)
        if followed is None:
            return
        followed.ring.clear()
        if followed.backlog:
            followed.backlog.clear()
            self.missed(followed)

    def forget_all(self) -> None:
        """Another server process answers: what frames brought from the last one is no more than a memory."""
        for followed in list(self._followed.values()):
            followed.ring.clear()
            followed.backlog.clear()
            followed.swept = None
            if followed.position is not None:
                self.missed(followed)

    def missed(self, followed: Followed) -> None:
        """The sweep saw a checkpoint that no frame has brought."""
        if not followed.mending:
            self._mend(followed)

    # Bringing up

    def _behind(self, reader: Reader) -> None:
        reader.live = False
        if not reader.connection.full:
            self.bring_up(reader)

    def bring_up(self, reader: Reader) -> None:
        """Bring a reader up to its feeds' positions and make it live; does nothing while its socket is full."""
        if (
            not reader.begun
            or reader.live
            or reader.bringing_up
            or reader not in self._slot_of
            or reader.connection.full
        ):
            return
        if not reader.folding and self._next_step(reader) is None:
            reader.live = True
            return
        reader.bringing_up = True
        self._spawn(self._brought_up(reader))

    async def _brought_up(self, reader: Reader) -> None:
        try:
            async with self._bring_ups:
                while reader in self._slot_of and not reader.connection.full:
                    i = self._next_step(reader)
                    if i is None:
                        reader.live = True
                        return
                    await self._step(reader, i)
        except (Unavailable, StalePosition) as error:
            log.info("reader_not_brought_up", error=repr(error))
            self.end(reader, "unavailable")
        except Corrupted as error:
            self.break_off(error)
        except Exception:
            # A reader that is neither live nor ended would get pings and nothing else, for ever.
            log.exception("reader_not_brought_up", feeds=reader.feeds)
            self.end(reader, "unavailable")
        finally:
            reader.bringing_up = False

    def _next_step(self, reader: Reader) -> int | None:
        """A feed in which the reader stands before the frames, None when it has caught up with all of them."""
        for i, feed in enumerate(reader.feeds):
            at, position = reader.positions[i], self._followed[feed].position
            if i in reader.folding or (at is not None and position is not None and at < position):
                return i
        return None

    async def _step(self, reader: Reader, i: int) -> None:
        followed = self._followed[reader.feeds[i]]
        at = reader.positions[i]
        if at is None:
            raise RuntimeError("a reader that has not begun cannot be brought up")
        if followed.position is not None and at.epoch < followed.position.epoch:
            await self._reset(reader, i, followed)
            return
        frames = None if i in reader.folding else followed.ring.after(at)
        if frames is not None:
            reader.send(b"".join(ready.wire_with(reader.at(i, ready.position)) for ready in frames))
            self._metrics.deliveries.inc(len(frames))
            return
        difference = await self._differences.since(followed.feed, at)
        if reader not in self._slot_of:
            return
        if difference is None or (difference.moment.visibility == "private" and not reader.sees_private):
            self.end(reader, "expired")
            return
        if at.epoch < difference.moment.checkpoint.epoch:
            # No frame has told of it yet; the reader is reset in the next step.
            followed.learn(difference.moment)
            followed.ring.clear()
            followed.position = max(followed.position or at, difference.moment.checkpoint)
            return
        self._metrics.catch_ups.inc()
        self.send_difference(reader, i, difference)

    async def _reset(self, reader: Reader, i: int, followed: Followed) -> None:
        """A reader in an older epoch forgets what it holds and begins again with a snapshot."""
        at, position = reader.positions[i], followed.position
        if at is None or position is None:
            raise RuntimeError("a reader that has not begun holds nothing to forget")
        page = await self._snapshots.of(followed.feed, order=reader.order, limit=reader.snapshot, at_least=position)
        if reader not in self._slot_of:
            return
        if page is None or (page.moment.visibility == "private" and not reader.sees_private):
            self.end(reader, "expired")
            return
        followed.learn(page.moment)
        reader.folding.discard(i)
        self.send_reset(reader, i, page, reason=followed.reason_for(at.epoch))

    def send_reset(self, reader: Reader, i: int, page: Page, *, reason: str) -> None:
        """`reset`, and all that follows it: the snapshot and `live`."""
        self._metrics.resets.labels(reason).inc()
        reader.send(reset(reader.feeds[i], reason))
        self.send_snapshot(reader, i, page)

    def send_snapshot(self, reader: Reader, i: int, page: Page) -> None:
        """A page to begin from, and `live`: what comes next follows it without a gap."""
        feed = reader.feeds[i]
        self.begin(reader, i, page.moment.checkpoint)
        position = reader.at(i, page.moment.checkpoint)
        reader.send(frame("snapshot", page.snapshot(), position=position) + live(feed, position=position))

    def send_difference(self, reader: Reader, i: int, difference: Folded) -> None:
        """One chunk of the folded difference from where the reader stands, and `live` after the last one."""
        feed = reader.feeds[i]
        self.begin(reader, i, difference.moment.checkpoint)
        parts = [
            ready.wire_with(reader.at(i, ready.position)) if reader.joined else ready.wire
            for ready in difference.frames
        ]
        if difference.more:
            reader.folding.add(i)
            reader.positions = moved(reader.positions, i, difference.position)
        else:
            reader.folding.discard(i)
            parts.append(live(feed, position=reader.at(i, difference.position)))
        self._metrics.deliveries.inc(len(difference.frames))
        reader.send(b"".join(parts))

    # Time

    async def keep_time(self) -> None:
        """One wheel for all pings: each second one slot of readers, and those of them that take nothing are judged."""
        loop = asyncio.get_running_loop()
        while True:
            for slot in range(PING_SECONDS):
                await asyncio.sleep(SLOT_SECONDS)
                for reader in list(self._wheel[slot]):
                    if not reader.connection.full:
                        reader.stalled_since = None
                        reader.send(PING)
                    elif self._stalled(reader, loop.time()):
                        log.info("reader_given_up", feeds=reader.feeds)
                        reader.connection.abort()

    def _stalled(self, reader: Reader, now: float) -> bool:
        """Whether bytes have waited so long without one being acknowledged; a slow but living reader is kept."""
        acknowledged = reader.connection.bytes_acknowledged()
        if reader.stalled_since is None or acknowledged != reader.acknowledged:
            reader.stalled_since, reader.acknowledged = now, acknowledged
        return now - reader.stalled_since >= GIVEN_UP_SECONDS

    def end(self, reader: Reader, reason: str) -> None:
        """Say goodbye and close once that has gone out."""
        if reader in self._slot_of:
            self.leave(reader)
            reader.send(bye(reason))
            reader.connection.close()
            asyncio.get_running_loop().call_later(GOODBYE_SECONDS_MAX, reader.connection.abort)

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

    async def drain(self) -> None:
        """Say goodbye to all, in slices, and wait until they have gone; the caller bounds the time."""
        self.draining = True
        leaving = list(self._slot_of)
        for part in _slices(leaving, 500):
            for reader in part:
                self.end(reader, "draining")
            await asyncio.sleep(0)
        if leaving:
            await asyncio.wait([reader.connection.gone for reader in leaving])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _slices(readers: list[Reader], size: int) -> Iterator[list[Reader]]:
    for start in range(0, len(readers), size):
        yield readers[start : start + size]

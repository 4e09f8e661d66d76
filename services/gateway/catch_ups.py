"""Catch-ups: readers that begin, and readers that are behind, brought to where the frames are.

Owns what each is told on the way: its beginning as the contract says it, the frames of the ring where that reaches back far
enough, else the folded difference; a reset where it holds what is no more. Few at a time, in turns: a storm of readers waits
in a queue, and what many need is read once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, TypeVar

import structlog

from services.gateway.differences import Differences, Folded
from services.gateway.following import Following
from services.gateway.frames import frame, live, reset
from services.gateway.moments import Moments, hidden
from services.gateway.reader import MALFORMED, Reader, Wish
from services.gateway.reads import Moment, Page
from services.gateway.ring import Ready
from services.gateway.snapshots import Snapshots
from services.gateway.turns import Turns
from shared.errors import Corrupted, FeedNotFound, StalePosition, Unavailable
from shared.metrics import Metrics
from shared.position import Position

log = structlog.get_logger()

AT_ONCE_MAX = 32
# How often one looks again who stands before what the read models have lost.
LOOK_AGAIN_SECONDS = 1.0
# Streams of several feeds each have ids of their own: so many renderings of one read are kept beside it.
RENDERED_MAX = 2


class CatchUps:
    """`on_end` says goodbye to a reader for a reason, `on_corruption` stops the process."""

    def __init__(
        self,
        following: Following,
        differences: Differences,
        snapshots: Snapshots,
        moments: Moments,
        turns: Turns,
        metrics: Metrics,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        on_end: Callable[[Reader, str], None],
        on_corruption: Callable[[Corrupted], None],
    ) -> None:
        self._following = following
        self._differences = differences
        self._snapshots = snapshots
        self._moments = moments
        self._turns = turns
        self._metrics = metrics
        self._spawn = spawn
        self._on_end = on_end
        self._on_corruption = on_corruption
        self._waiting: deque[Reader] = deque()
        self._at_work = 0

    def begin(self, reader: Reader) -> None:
        """Bring up a reader that has just come: at once where all that it needs is at hand, else when its turn comes."""
        try:
            while reader.takes and reader.wish is not None and self._begin_at_hand(reader, reader.wish):
                pass
            if reader.takes and reader.wish is None and self._behind_in(reader) is None:
                self._stand(reader)
                return
        except Exception as error:
            self._failed(reader, error)
            return
        if reader.lead:
            reader.send(b"")
        self.add(reader)

    def add(self, reader: Reader) -> None:
        """Bring the reader up to its channel; does nothing while its socket is full, which tells when it is not."""
        if reader.queued or reader.live or not reader.takes:
            return
        reader.queued = True
        self._waiting.append(reader)
        if self._at_work < AT_ONCE_MAX:
            self._at_work += 1
            self._spawn(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._turns.take()
                if not self._waiting:
                    break
                reader = self._waiting.popleft()
                try:
                    await self._bring_up(reader)
                finally:
                    reader.queued = False
                # Its socket may have filled up and taken all again meanwhile.
                if reader.takes and not reader.live and not reader.ahead:
                    self.add(reader)
        finally:
            self._at_work -= 1

    async def _bring_up(self, reader: Reader) -> None:
        try:
            while reader.takes:
                if reader.wish is not None:
                    await self._begin_next(reader, reader.wish)
                elif (i := self._behind_in(reader)) is not None:
                    if not await self._step(reader, i):
                        # An epoch will tell what became of it; frames of it were lost if none does.
                        reader.ahead = True
                        asyncio.get_running_loop().call_later(LOOK_AGAIN_SECONDS, self.add, reader)
                        return
                else:
                    self._stand(reader)
                    return
        except Exception as error:
            self._failed(reader, error)

    def _stand(self, reader: Reader) -> None:
        """It has all that the frames have brought. Come by a difference to where they are not yet, it waits for them."""
        reader.ahead = reader.positions != reader.channel.positions
        if not reader.ahead:
            reader.seen = reader.channel.end
            reader.live = True

    def _failed(self, reader: Reader, error: Exception) -> None:
        """A reader that is neither live nor ended would get pings and nothing else, for ever."""
        if isinstance(error, FeedNotFound):
            self._on_end(reader, "expired")
            return
        if isinstance(error, Corrupted):
            self._on_corruption(error)
        elif isinstance(error, Unavailable | StalePosition):
            log.info("reader_not_brought_up", feeds=reader.feeds, error=repr(error))
        else:
            log.error("reader_not_brought_up", feeds=reader.feeds, exc_info=error)
        self._on_end(reader, "unavailable")

    # Beginning

    def _begin_at_hand(self, reader: Reader, wish: Wish) -> bool:
        """As `_begin_next` without waiting for anything; False where it has to: for a read, or for a turn with a page."""
        i = reader.begun
        feed, last = reader.feeds[i], wish.lasts[i]
        if isinstance(last, Position):
            difference = self._differences.at_hand(feed, last)
            if difference is None or hidden(difference.moment, sees_private=reader.sees_private):
                return False
            if self._reason_against(difference, last, wish) is not None:
                return False
            self._begin_after(reader, i, difference)
        elif last is None and wish.snapshot is None and wish.min_positions[i] is None:
            moment = self._moments.at_hand(feed, sees_private=reader.sees_private)
            if moment is None:
                return False
            self._begin_now(reader, i, moment)
        else:
            return False
        return True

    async def _begin_next(self, reader: Reader, wish: Wish) -> None:
        """Say of the next feed where the reader stands: after its position, after a snapshot, or from now on."""
        i = reader.begun
        last = wish.lasts[i]
        if last == MALFORMED:
            await self._begin_anew(reader, wish, i, "position")
        elif isinstance(last, Position):
            await self._resume(reader, wish, i, last)
        elif wish.snapshot is not None:
            await self._begin_anew(reader, wish, i, None)
        else:
            moment = await self._moments.of(
                reader.feeds[i], at_least=wish.min_positions[i], sees_private=reader.sees_private
            )
            if reader.takes:
                self._begin_now(reader, i, moment)

    async def _resume(self, reader: Reader, wish: Wish, i: int, last: Position) -> None:
        difference = self._visible(reader, i, await self._differences.since(reader.feeds[i], last))
        reason = self._reason_against(difference, last, wish)
        if reason is not None:
            await self._begin_anew(reader, wish, i, reason)
        elif reader.takes:
            self._begin_after(reader, i, difference)

    def _reason_against(self, difference: Folded, last: Position, wish: Wish) -> str | None:
        """Why one who holds what there was at `last` has to forget it."""
        moment = difference.moment
        if last.epoch < moment.head.epoch:
            return moment.reason_for(last.epoch)
        if last > moment.head:
            return "position"
        return "behind" if wish.catch_up is not None and difference.changed > wish.catch_up else None

    async def _begin_anew(self, reader: Reader, wish: Wish, i: int, reason: str | None) -> None:
        page = await self._page(reader, i, wish.min_positions[i])
        if reader.takes:
            self._begun(reader)
            self._send_page(reader, i, page, reason=reason)

    def _begin_after(self, reader: Reader, i: int, difference: Folded) -> None:
        self._begun(reader)
        self._send_difference(reader, i, difference)

    def _begin_now(self, reader: Reader, i: int, moment: Moment) -> None:
        feed, position = reader.feeds[i], moment.checkpoint
        self._begun(reader)
        self._following.begin(feed, position)
        reader.move(i, position)
        reader.send(live(feed, position=reader.id_at(i, position)))

    def _begun(self, reader: Reader) -> None:
        """One more of its feeds has begun."""
        reader.begun += 1
        if reader.begun == len(reader.feeds):
            reader.wish = None

    # Going on

    def _behind_in(self, reader: Reader) -> int | None:
        """A feed in which the reader stands before the frames, None when it has caught up with all of them."""
        for i, (at, position) in enumerate(zip(reader.positions, reader.channel.positions, strict=True)):
            if i in reader.folding or (at is not None and position is not None and at < position):
                return i
        return None

    async def _step(self, reader: Reader, i: int) -> bool:
        """Bring the reader further in one feed; False where the read models have lost what the frames brought."""
        followed = self._following.of(reader.feeds[i])
        at, position = reader.positions[i], followed.position
        if at is None:
            raise RuntimeError("a reader that has not begun cannot be brought up")
        if position is not None and at.epoch < position.epoch:
            page = await self._page(reader, i, position)
            followed.learn(page.moment)
            if reader.takes:
                self._send_page(reader, i, page, reason=followed.reason_for(at.epoch))
            return True
        frames = None if i in reader.folding else followed.ring.after(at)
        if frames:
            self._send_ring(reader, i, frames)
            return True
        difference = self._visible(reader, i, await self._differences.since(followed.feed, at))
        if at.epoch < difference.moment.checkpoint.epoch:
            # No frame has told of it yet; the reader is reset in the next step.
            followed.learn(difference.moment)
            # Once for all who read it.
            if followed.position is None or followed.position < difference.moment.checkpoint:
                self._following.jump(followed, difference.moment.checkpoint)
        elif difference.position <= at and i not in reader.folding:
            return False
        elif reader.takes:
            self._metrics.catch_ups.inc()
            self._send_difference(reader, i, difference)
        return True

    def _visible(self, reader: Reader, i: int, difference: Folded | None) -> Folded:
        if difference is None or hidden(difference.moment, sees_private=reader.sees_private):
            raise FeedNotFound(reader.feeds[i])
        return difference

    async def _page(self, reader: Reader, i: int, at_least: Position | None) -> Page:
        feed = reader.feeds[i]
        page = await self._snapshots.of(feed, order=reader.order, limit=reader.snapshot, at_least=at_least)
        if page is None or hidden(page.moment, sees_private=reader.sees_private):
            raise FeedNotFound(feed)
        return page

    # Sending

    def _send_page(self, reader: Reader, i: int, page: Page, *, reason: str | None) -> None:
        """A page to begin from, and `live`: what comes next follows it without a gap; `reset` before it for a reason."""
        feed, position = reader.feeds[i], page.moment.checkpoint
        self._following.begin(feed, position)
        reader.folding -= {i}
        reader.move(i, position)
        if reason is not None:
            self._metrics.resets.labels(reason).inc()

        def render() -> bytes:
            at = reader.id_at(i, position)
            words = b"" if reason is None else reset(feed, reason)
            return words + frame("snapshot", page.snapshot(), position=at) + live(feed, position=at)

        data = rendered_once(page.rendered, (reason, reader.id_at(i, position)), render)
        self._metrics.bytes_sent.inc(len(data))
        reader.send(data)

    def _send_ring(self, reader: Reader, i: int, frames: Sequence[Ready]) -> None:
        wires = [wire_for(reader, i, ready) for ready in frames]
        taken = reader.send_frames(wires, b"".join(wires))
        if taken:
            reader.move(i, frames[taken - 1].position)
        self._count(wires[:taken], taken)

    def _send_difference(self, reader: Reader, i: int, difference: Folded) -> None:
        """One chunk of the folded difference from where the reader stands, and `live` after the last one."""
        feed, end = reader.feeds[i], difference.position
        self._following.begin(feed, difference.moment.checkpoint)

        def render() -> tuple[Sequence[bytes], bytes]:
            wires = [wire_for(reader, i, ready) for ready in difference.frames]
            if not difference.more:
                wires.append(live(feed, position=reader.id_at(i, end)))
            return wires, b"".join(wires)

        # Readers of one channel who stand at the same positions get the same bytes.
        wires, data = rendered_once(
            difference.rendered, (reader.feeds, reader.channel.joined, reader.positions), render
        )
        taken = reader.send_frames(wires, data)
        if taken == len(wires) and not difference.more:
            reader.folding -= {i}
        else:
            reader.folding |= {i}
        if taken == len(wires):
            reader.move(i, end)
        elif taken:
            reader.move(i, difference.frames[taken - 1].position)
        self._count(wires[:taken], min(taken, len(difference.frames)))

    def _count(self, wires: Sequence[bytes], frames: int) -> None:
        self._metrics.deliveries.inc(frames)
        self._metrics.bytes_sent.inc(sum(map(len, wires)))


_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


def rendered_once(known: dict[_K, _V], key: _K, render: Callable[[], _V]) -> _V:
    """What `render` gives, the same object for all who ask under one key."""
    value = known.get(key)
    if value is None:
        if len(known) >= RENDERED_MAX:
            known.clear()
        value = known[key] = render()
    return value


def wire_for(reader: Reader, i: int, ready: Ready) -> bytes:
    return ready.wire_with(reader.id_at(i, ready.position)) if reader.channel.joined else ready.wire

"""Following: the frames of all followed feeds, put in order.

Owns the order: a frame goes on to the fan-out only as the next one of its feed. What the frames did not bring is taken from
the read models. Frames come from `tail`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

import structlog

from services.gateway.differences import Differences
from services.gateway.followed import Followed
from services.gateway.ring import Ready
from shared.errors import Corrupted, Unavailable
from shared.position import Position

log = structlog.get_logger()

BACKLOG_FRAMES_MAX = 1_000
MEND_AGAIN_SECONDS = 0.2


class Fanned(Protocol):
    """Who sends: the next frame of a feed, or that its readers stand before what the frames go on after."""

    def frame(self, followed: Followed, ready: Ready) -> None: ...

    def gap(self, followed: Followed) -> None: ...


class Following:
    def __init__(
        self,
        differences: Differences,
        fanned: Fanned,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        on_corruption: Callable[[Corrupted], None],
    ) -> None:
        self._differences = differences
        self._fanned = fanned
        self._spawn = spawn
        self._on_corruption = on_corruption
        self._followed: dict[str, Followed] = {}

    def feeds(self) -> Iterable[Followed]:
        return self._followed.values()

    def of(self, feed: str) -> Followed:
        """The feed, followed from now on: frames that come are kept until its position is known."""
        return self._followed.setdefault(feed, Followed(feed))

    def leave(self, followed: Followed) -> None:
        del self._followed[followed.feed]

    def begin(self, feed: str, position: Position) -> None:
        """The first read of the feed was of `position`: its frames go on after it."""
        followed = self._followed.get(feed)
        # A reader that was ended while it read has left already.
        if followed is not None and followed.position is None:
            followed.position = position
            self._run_backlog(followed)

    def deliver(self, ready: Ready) -> None:
        """The next frame of a feed; gaps and frames without their data are mended by the folded difference."""
        followed = self._followed.get(ready.feed)
        if followed is None:
            return
        if not followed.backlog and not followed.mending and followed.goes_on_with(ready):
            self._next(followed, ready)
            return
        followed.backlog.append(ready)
        if len(followed.backlog) > BACKLOG_FRAMES_MAX:
            followed.backlog.popleft()  # the gap that this makes is mended like any other
        self._run_backlog(followed)

    def jump(self, followed: Followed, position: Position) -> None:
        """The frames go on after `position`: readers take what lies before it each from where it stands."""
        followed.position = position
        followed.ring.clear()
        self._fanned.gap(followed)

    def forget_frames(self, feed: str) -> None:
        """Drop every frame that is held of a feed: what readers lack of them they take from the read models."""
        followed = self._followed.get(feed)
        if followed is None:
            return
        followed.ring.clear()
        self._fanned.gap(followed)
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

    def _run_backlog(self, followed: Followed) -> None:
        while followed.backlog and followed.position is not None and not followed.mending:
            ready = followed.backlog[0]
            if ready.position <= followed.position:
                followed.backlog.popleft()
            elif ready.position.epoch > followed.position.epoch and ready.kind == "epoch":
                # n may lie below what was sent: that is then what was lost.
                followed.backlog.popleft()
                if ready.data == b"epoch":
                    followed.lost_epoch = max(followed.lost_epoch, ready.position.epoch)
                self.jump(followed, ready.position)
            elif followed.goes_on_with(ready):
                followed.backlog.popleft()
                self._next(followed, ready)
            else:
                self._mend(followed)

    def _next(self, followed: Followed, ready: Ready) -> None:
        followed.ring.append(ready)
        followed.position = ready.position
        self._fanned.frame(followed, ready)

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
                ready.recorded_at = missing.recorded_at
                self._next(followed, ready)
                return
            if missing is not None and missing is asked_for and missing.position > difference.moment.checkpoint:
                # A frame of what the read models do not hold is none of this history.
                followed.backlog.popleft()
            self.jump(followed, max(position, difference.moment.checkpoint))
        except Unavailable as error:
            # The sweep finds the gap again.
            log.warning("gap_not_mended", feed=followed.feed, error=repr(error))
            await asyncio.sleep(MEND_AGAIN_SECONDS)
        except Corrupted as error:
            self._on_corruption(error)
        except Exception:
            log.exception("gap_not_mended", feed=followed.feed)
            await asyncio.sleep(MEND_AGAIN_SECONDS)
        finally:
            followed.mending = False
            self._run_backlog(followed)

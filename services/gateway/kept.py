"""Kept: what was read of feeds, given again for as long as it is known to be current, and read once for all who ask at once.

Owns when that is. All that is kept of a feed is of one moment: it goes as soon as a frame, a read or a look at the feed tells
of a later one. Frames are hints, so it is trusted for a second after Redis last said that this moment is the present one, and
with the second that shared caches have, nobody gets what is older than two. What is read, and how it is shown, is the caller's.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, NamedTuple, Protocol, TypeVar

from services.gateway.reads import Moment
from shared.position import Position

TRUSTED_SECONDS = 1.0
# Feeds as well: one without a value and without a read under way is not remembered.
VALUES_MAX = 4_096
BYTES_MAX = 64 * 1024 * 1024
VALUE_BYTES_MAX = BYTES_MAX // 8


class Keepable(Protocol):
    @property
    def moment(self) -> Moment: ...

    @property
    def size_bytes(self) -> int: ...


_V = TypeVar("_V", bound=Keepable)


class _At(NamedTuple):
    """A moment of a feed, as later ones are told from it: another generation may show the same checkpoint otherwise."""

    checkpoint: Position
    generation: int


class _Reading(NamedTuple):
    task: asyncio.Task[Any]
    began: float


class _Feed:
    """What is held of a feed: its latest known moment, when that was the present one, what is kept of it and being read."""

    __slots__ = ("as_of", "at", "keys", "under_way", "used")

    def __init__(self) -> None:
        self.at: _At | None = None
        self.as_of = float("-inf")
        self.keys: set[Hashable] = set()
        self.under_way: dict[Hashable, _Reading] = {}
        self.used = False


class Kept:
    """What one gateway process keeps of all feeds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._feeds: dict[str, _Feed] = {}
        # In order of use, the latest last.
        self._values: OrderedDict[tuple[str, Hashable], Any] = OrderedDict()
        self._bytes = 0

    async def read(
        self,
        feed: str,
        key: Hashable,
        read: Callable[[], Coroutine[Any, Any, _V | None]],
        *,
        at_least: Position | None = None,
    ) -> _V | None:
        """What `read` gives of the feed: kept, under way, or read now; never of before what was known when this is called.

        `key` says what is read. What is kept is given to one who asks for `at_least` only if its checkpoint is there; what
        is read for them may still come short of it. Errors, and None for a feed that is not readable, go to all who wait
        and are not kept.
        """
        kept: _V | None = self.find(feed, key, at_least=at_least)
        if kept is not None:
            return kept
        under_way = self._under_way(feed, key)
        if under_way is not None:
            joined: _V | None = await asyncio.shield(under_way)
            if at_least is None or (joined is not None and joined.moment.checkpoint >= at_least):
                return joined
            # It may have begun before that position was there. One that is under way now began after this call.
            under_way = self._under_way(feed, key)
        # One who leaves must not take the answer from the others.
        return await asyncio.shield(under_way or self._begin(feed, key, read))

    def find(self, feed: str, key: Hashable, *, at_least: Position | None = None) -> Any:
        """What is kept under the key, None where it has to be read."""
        value = self._values.get((feed, key))
        if value is None or (at_least is not None and value.moment.checkpoint < at_least):
            return None
        held = self._feeds[feed]
        if not self._trusted(held):
            return None
        held.used = True
        self._values.move_to_end((feed, key))
        return value

    # What is known of feeds

    def moved(self, feed: str, position: Position) -> None:
        """A frame of the feed: nothing of before `position` is given from now on."""
        held = self._feeds.get(feed)
        if held is not None:
            self._advance(feed, held, _At(position, held.at.generation if held.at is not None else 0))

    def saw(self, feed: str, checkpoint: Position, generation: int, *, as_of: float) -> None:
        """Redis was asked at `as_of`, by this object's clock, and said that the feed is at this moment."""
        held = self._feeds.get(feed)
        if held is not None:
            at = _At(checkpoint, generation)
            self._advance(feed, held, at)
            if held.at == at:
                held.as_of = max(held.as_of, as_of)

    def forget(self, feed: str) -> None:
        """Drop what is kept of a feed, and keep and share nothing that is being read of it now."""
        held = self._feeds.pop(feed, None)
        if held is not None:
            self._drop(feed, held)

    def forget_all(self) -> None:
        self._feeds.clear()
        self._values.clear()
        self._bytes = 0

    def now(self) -> float:
        return self._clock()

    def used(self) -> list[str]:
        """The feeds whose kept values were given since this was called last: those to be looked after with `saw`.

        What nobody asks for is left to lapse, and dropped here when it has.
        """
        feeds = [feed for feed, held in self._feeds.items() if held.used]
        for feed, held in list(self._feeds.items()):
            if not held.used and (held.keys or not held.under_way) and not self._trusted(held):
                self.forget(feed)
            held.used = False
        return feeds

    @property
    def reading(self) -> bool:
        """Whether anything is being read now."""
        return any(held.under_way for held in self._feeds.values())

    # Reading

    def _under_way(self, feed: str, key: Hashable) -> asyncio.Task[Any] | None:
        """A read that may be joined: one that has taken too long began too long ago for those who come now."""
        held = self._feeds.get(feed)
        reading = held.under_way.get(key) if held is not None else None
        if reading is None or self._clock() - reading.began > TRUSTED_SECONDS:
            return None
        return reading.task

    def _begin(
        self, feed: str, key: Hashable, read: Callable[[], Coroutine[Any, Any, _V | None]]
    ) -> asyncio.Task[_V | None]:
        held = self._feeds.setdefault(feed, _Feed())
        reading = _Reading(asyncio.get_running_loop().create_task(read()), self._clock())
        held.under_way[key] = reading
        reading.task.add_done_callback(lambda _: self._done(feed, held, key, reading))
        return reading.task

    def _done(self, feed: str, held: _Feed, key: Hashable, reading: _Reading) -> None:
        if held.under_way.get(key) is reading:
            del held.under_way[key]
        value: Keepable | None = None
        # Whoever still waits gets the error; nobody may be left to.
        if not reading.task.cancelled() and reading.task.exception() is None:
            value = reading.task.result()
        if value is not None:
            moment = value.moment
            # Whoever waited knows of this moment now, even if it is not kept.
            self.saw(feed, moment.checkpoint, moment.generation, as_of=reading.began)
        if self._feeds.get(feed) is not held:
            return  # forgotten since it began
        if value is not None and held.at == (value.moment.checkpoint, value.moment.generation):
            self._keep(feed, held, key, value)
        self._tidy(feed, held)

    # Keeping

    def _trusted(self, held: _Feed) -> bool:
        return self._clock() - held.as_of <= TRUSTED_SECONDS

    def _keep(self, feed: str, held: _Feed, key: Hashable, value: Keepable) -> None:
        if value.size_bytes > VALUE_BYTES_MAX:
            return
        before = self._values.pop((feed, key), None)
        self._bytes += value.size_bytes - (before.size_bytes if before is not None else 0)
        self._values[feed, key] = value
        held.keys.add(key)
        while len(self._values) > VALUES_MAX or self._bytes > BYTES_MAX:
            (other, other_key), evicted = self._values.popitem(last=False)
            self._bytes -= evicted.size_bytes
            self._feeds[other].keys.discard(other_key)
            self._tidy(other, self._feeds[other])

    def _advance(self, feed: str, held: _Feed, at: _At) -> None:
        """A later moment: what is kept is of before it, and what is under way may be."""
        if held.at is None or at > held.at:
            self._drop(feed, held)
            held.under_way.clear()
            held.at = at

    def _drop(self, feed: str, held: _Feed) -> None:
        for key in held.keys:
            self._bytes -= self._values.pop((feed, key)).size_bytes
        held.keys.clear()

    def _tidy(self, feed: str, held: _Feed) -> None:
        if not held.keys and not held.under_way:
            self._feeds.pop(feed, None)

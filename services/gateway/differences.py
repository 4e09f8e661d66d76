"""Folded differences as streams send them: each changed entry once, in its latest state, in order of position.

Owns their frames and that a difference asked by thousands at the same moment is read once.
"""

from collections.abc import Hashable, Sequence
from functools import cached_property

from services.gateway.reads import DIFFERENCE_DOCUMENTS_MAX, Difference, Moment, Reads
from services.gateway.ring import Ready
from services.gateway.single_flight import SingleFlight
from shared.position import Position
from shared.redis import redis_errors


class Folded:
    """One chunk of a difference, with its frames."""

    def __init__(self, feed: str, after: Position, difference: Difference) -> None:
        self._feed = feed
        self._after = after
        self._difference = difference
        # By who gets them: feeds and positions of a stream, and whether its ids name every feed.
        self.rendered: dict[tuple[Hashable, ...], tuple[Sequence[bytes], bytes]] = {}

    @property
    def moment(self) -> Moment:
        return self._difference.moment

    @property
    def more(self) -> bool:
        return self._difference.more

    @property
    def changed(self) -> int:
        """How many entries changed since, in this chunk and those after it."""
        return self._difference.changed

    @property
    def position(self) -> Position:
        return self._difference.position

    @cached_property
    def frames(self) -> Sequence[Ready]:
        """Entries, tombstones and the feed's own document where it changed, in order of position."""
        frames = [
            Ready(
                self._feed,
                Position.parse(place.position),
                "entry" if place.status == "published" else "retraction",
                document,
            )
            for place, document in zip(self._difference.places, self._difference.documents, strict=True)
        ]
        at = self._difference.feed_position
        if self._after.n < at.n and (not self.more or at.n < self.position.n):
            frames.append(Ready(self._feed, at, "feed", self.moment.feed))
            frames.sort(key=lambda ready: ready.position)
        return frames

    def frame_at(self, position: Position) -> Ready | None:
        """The frame of just that position, if what changed there has not changed since."""
        return next((ready for ready in self.frames if ready.position == position), None)


class Differences:
    """Reads differences, each once for all who ask while it is under way."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._under_way: SingleFlight[tuple[str, Position, int], Folded | None] = SingleFlight()

    async def since(
        self, feed: str, position: Position, *, documents_max: int = DIFFERENCE_DOCUMENTS_MAX
    ) -> Folded | None:
        """None when the feed is not readable; Unavailable when the log's server is not."""
        key = (feed, position, documents_max)
        return await self._under_way.read(key, lambda: self._read(feed, position, documents_max))

    async def _read(self, feed: str, position: Position, documents_max: int) -> Folded | None:
        async with redis_errors("the difference was not read"):
            difference = await self._reads.difference(feed, after=position, documents_max=documents_max)
        return None if difference is None else Folded(feed, position, difference)

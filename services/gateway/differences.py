"""Folded differences as streams send them: each changed entry once, in its latest state, in order of position.

Owns their frames. That a difference asked by thousands is read once is `kept`'s.
"""

from collections.abc import Hashable, Sequence
from functools import cached_property

from services.gateway.kept import Kept
from services.gateway.reads import DIFFERENCE_DOCUMENTS_MAX, Difference, Moment, Reads
from services.gateway.ring import Ready
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

    @property
    def size_bytes(self) -> int:
        """With its frames, and these as each reader of it alone gets them."""
        return 1_024 + 3 * (len(self.moment.feed) + sum(map(len, self._difference.documents)))

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
    """Reads differences, each once for all who ask while the feed does not move."""

    def __init__(self, reads: Reads, kept: Kept) -> None:
        self._reads = reads
        self._kept = kept

    def at_hand(self, feed: str, position: Position) -> Folded | None:
        """As `since` without waiting for anything; None where it has to be read."""
        found: Folded | None = self._kept.find(feed, _key(position, DIFFERENCE_DOCUMENTS_MAX), at_least=position)
        return found

    async def since(
        self, feed: str, position: Position, *, documents_max: int = DIFFERENCE_DOCUMENTS_MAX
    ) -> Folded | None:
        """None when the feed is not readable; Unavailable when the log's server is not."""

        async def read() -> Folded | None:
            async with redis_errors("the difference was not read"):
                difference = await self._reads.difference(feed, after=position, documents_max=documents_max)
            return None if difference is None else Folded(feed, position, difference)

        # One who stands ahead of what is kept may know of what is in the log and not folded yet.
        return await self._kept.read(feed, _key(position, documents_max), read, at_least=position)


def _key(position: Position, documents_max: int) -> Hashable:
    return "difference", position, documents_max

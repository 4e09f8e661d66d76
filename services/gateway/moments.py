"""Moments: where a feed stands and who may see it, for those who begin to follow it.

Owns that. What a moment is says `reads`, for how long one is shared `kept`.
"""

from services.gateway.kept import Kept
from services.gateway.reads import Found, Moment, Reads
from services.gateway.waiting import Arrivals, read_at
from shared.errors import FeedNotFound
from shared.position import Position
from shared.redis import redis_errors

DOCUMENT = "document"


def hidden(moment: Moment, *, sees_private: bool) -> bool:
    return moment.visibility == "private" and not sees_private


class Moments:
    def __init__(self, reads: Reads, kept: Kept, arrivals: Arrivals) -> None:
        self._reads = reads
        self._kept = kept
        self._arrivals = arrivals

    def at_hand(self, feed: str, *, sees_private: bool, known: Position | None = None) -> Moment | None:
        """As `of` without waiting for anything; None where it has to be read, or where there is none to see."""
        kept: Found | None = self._kept.find(feed, DOCUMENT, at_least=known)
        return None if kept is None or hidden(kept.moment, sees_private=sees_private) else kept.moment

    async def of(
        self, feed: str, *, at_least: Position | None, sees_private: bool, known: Position | None = None
    ) -> Moment:
        """The feed's moment, of `at_least` or later; not one that was kept before the log held what is `known` to the asker.

        FeedNotFound where there is none to see; StalePosition or NotYet where the read models do not come to that position,
        Unavailable where the server does not answer.
        """

        if at_least is None:
            # What most are answered from, without a wait.
            moment = self.at_hand(feed, sees_private=sees_private, known=known)
            if moment is not None:
                return moment

        async def read() -> Found | None:
            found = await self._kept.read(
                feed, DOCUMENT, lambda: self._reads.document(feed), at_least=at_least or known
            )
            return None if found is not None and hidden(found.moment, sees_private=sees_private) else found

        async with redis_errors("the feed was not read"):
            found = await read_at(self._arrivals, feed, read, min_position=at_least)
        if found is None:
            raise FeedNotFound(feed)
        return found.moment

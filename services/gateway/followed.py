"""A followed feed: the channels that follow it here, its latest frames, and up to where they have come.

Owns that state. What is made of it is `following`'s.
"""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from services.gateway.reader import Reader
from services.gateway.reads import Moment
from services.gateway.ring import Ready, Ring
from shared.events import EpochReason
from shared.position import Position

if TYPE_CHECKING:
    from services.gateway.channel import Channel


class Followed:
    """A feed that has readers here. `position` is up to where its frames have come, None before that is known.

    `lost_epoch` is the last epoch that began because history may have been lost, as far as it is known here.
    """

    def __init__(self, feed: str) -> None:
        self.feed = feed
        self.position: Position | None = None
        self.lost_epoch = 0
        self.ring = Ring()
        self.channels: dict[Channel, None] = {}
        self.backlog: deque[Ready] = deque()
        self.mending = False
        self.swept: Position | None = None

    def goes_on_with(self, ready: Ready) -> bool:
        """Whether it is the very next frame, and whole."""
        at, to = self.position, ready.position
        if at is None or to.n != at.n + 1 or to.epoch != at.epoch:
            return False
        return bool(ready.data) or ready.kind == "skipped"

    def readers(self) -> Iterator[Reader]:
        """All of them now: who comes or goes meanwhile does not disturb."""
        for channel in list(self.channels):
            yield from list(channel.readers)

    def learn(self, moment: Moment) -> None:
        """What a read of the feed tells of its epochs."""
        self.lost_epoch = max(self.lost_epoch, moment.lost_epoch)

    def reason_for(self, epoch: int) -> EpochReason:
        """Why a reader in an older epoch must forget what it holds."""
        return "epoch" if self.lost_epoch > epoch else "repaired"

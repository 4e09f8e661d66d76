"""A followed feed: its readers here, its latest frames, and up to where they have come.

Owns that state. What is made of it is `readers`'.
"""

from collections import deque

from services.gateway.reader import Reader
from services.gateway.reads import Moment
from services.gateway.ring import Ready, Ring
from shared.events import EpochReason
from shared.position import Position


class Followed:
    """A feed that has readers here. `position` is up to where its frames have come, None before that is known.

    `lost_epoch` is the last epoch that began because history may have been lost, as far as it is known here.
    """

    def __init__(self, feed: str) -> None:
        self.feed = feed
        self.position: Position | None = None
        self.lost_epoch = 0
        self.ring = Ring()
        self.readers: dict[Reader, int] = {}
        self.backlog: deque[Ready] = deque()
        self.mending = False
        self.swept: Position | None = None

    def learn(self, moment: Moment) -> None:
        """What a read of the feed tells of its epochs."""
        self.lost_epoch = max(self.lost_epoch, moment.lost_epoch)

    def reason_for(self, epoch: int) -> EpochReason:
        """Why a reader in an older epoch must forget what it holds."""
        return "epoch" if self.lost_epoch > epoch else "repaired"

"""One owned shard: the feeds that wait to be folded, and a bell that rings when there are any."""

import asyncio

FEEDS_PER_ROUND_MAX = 32


class Shard:
    """`committing` is held for each round of commits: what must happen between two of them takes it too."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiting: dict[str, None] = {}
        self.bell = asyncio.Event()
        self.committing = asyncio.Lock()

    def wake(self, feed: str) -> None:
        self.waiting[feed] = None
        self.bell.set()

    def take(self) -> list[str]:
        feeds = list(self.waiting)[:FEEDS_PER_ROUND_MAX]
        for feed in feeds:
            del self.waiting[feed]
        if not self.waiting:
            self.bell.clear()
        return feeds

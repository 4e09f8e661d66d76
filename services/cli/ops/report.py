"""The report of `ops status`: which feeds come first, what they sum up to, and what needs a human.

Owns the verdict, which is pure. Its facts are `feed_status` and `installation`; how a person reads them is `overview`'s.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from services.cli.ops.feed_status import FeedStatus
from services.cli.ops.figures import events_text, seconds_text
from services.cli.ops.installation import Installation

MEMORY_SHARE_MAX = 0.9
# Of each kind of trouble so many are told; all are counted.
TOLD_MAX = 10


class Trouble(Struct, frozen=True):
    """One thing that needs a human. `code` is server, projectors, epochs, lag, quarantine or build.

    `feed` and `shard` are null where it is the installation's.
    """

    code: str
    detail: str
    feed: str | None = None
    shard: int | None = None


class Totals(Struct):
    """Sums over all feeds; `lag_seconds` is the greatest."""

    feeds: int = 0
    entries: int = 0
    log_events: int = 0
    log_memory_bytes: int = 0
    lagging_feeds: int = 0
    lag_events: int = 0
    lag_seconds: float = 0.0
    quarantined_feeds: int = 0
    quarantined_events: int = 0
    discarded_events: int = 0
    building_feeds: int = 0
    archived_feeds: int = 0
    archive_bytes: int = 0


class _Ranked(NamedTuple):
    rank: Any
    feed: FeedStatus


class Report:
    """Takes feeds one by one and keeps the worst `limit` of them, sums, and what needs a human: memory is bounded."""

    def __init__(self, installation: Installation, *, limit: int) -> None:
        self.installation = installation
        self.totals = Totals()
        self.troubles: list[Trouble] = list(of_installation(installation))
        self.trouble_counts: dict[str, int] = {}
        self._limit = limit
        self._worst: list[_Ranked] = []
        for trouble in self.troubles:
            self._count(trouble)

    def add(self, feed: FeedStatus) -> None:
        totals = self.totals
        totals.feeds += 1
        totals.entries += feed.entries
        totals.log_events += feed.log.events
        totals.log_memory_bytes += feed.log.memory_bytes
        totals.lagging_feeds += feed.lag_events > 0
        totals.lag_events += feed.lag_events
        totals.lag_seconds = max(totals.lag_seconds, feed.lag_seconds)
        totals.quarantined_feeds += feed.quarantine.open > 0
        totals.quarantined_events += feed.quarantine.open
        totals.discarded_events += feed.quarantine.discarded
        totals.building_feeds += feed.building
        totals.archived_feeds += feed.archive.archived_to is not None
        totals.archive_bytes += feed.archive.bytes or 0
        for trouble in of_feed(feed, self.installation):
            self._count(trouble)
            if self.trouble_counts[trouble.code] <= TOLD_MAX:
                self.troubles.append(trouble)
        item = _Ranked(feed.rank, feed)
        if len(self._worst) < self._limit:
            heapq.heappush(self._worst, item)
        else:
            heapq.heappushpop(self._worst, item)

    @property
    def worst(self) -> list[FeedStatus]:
        """The feeds to show, worst first."""
        return [item.feed for item in sorted(self._worst, reverse=True)]

    @property
    def healthy(self) -> bool:
        return not self.troubles

    @property
    def untold(self) -> Mapping[str, int]:
        """How many troubles of each code there are beyond those that are told."""
        told = {code: sum(trouble.code == code for trouble in self.troubles) for code in self.trouble_counts}
        return {code: count - told[code] for code, count in self.trouble_counts.items() if count > told[code]}

    def _count(self, trouble: Trouble) -> None:
        self.trouble_counts[trouble.code] = self.trouble_counts.get(trouble.code, 0) + 1


def of_installation(found: Installation) -> Sequence[Trouble]:
    """What needs a human whatever the feeds are; a stopped installation needs nobody for being stopped."""
    troubles = []
    server = found.server
    if server.problem is not None:
        troubles.append(Trouble("server", server.problem))
    if server.aof.enabled and server.aof.last_write != "ok":
        troubles.append(Trouble("server", f"the last write to the append-only file failed ({server.aof.last_write})"))
    if server.memory_max_bytes and server.memory_used_bytes > MEMORY_SHARE_MAX * server.memory_max_bytes:
        share = server.memory_used_bytes / server.memory_max_bytes
        troubles.append(Trouble("server", f"{share:.0%} of the server's memory is used: archive and trim, or add some"))
    if found.running and not found.projectors:
        detail = "no projector is alive: what is written does not reach readers until one is started"
        if any(shard.holder is not None for shard in found.shards):
            detail = (
                "every projector that is alive refuses some shards, see why in its log: what is written there waits"
            )
        troubles.append(Trouble("projectors", detail))
    raising = [shard for shard in found.shards if shard.admission.raising is not None]
    if found.running and raising:
        detail = f"{len(raising)} shards take no events until their epochs are raised: {raising[0].admission.raising}"
        troubles.append(Trouble("epochs", detail))
    return troubles


def of_feed(feed: FeedStatus, installation: Installation) -> Sequence[Trouble]:
    """What needs a human in one feed. A lag of a stopped installation is folded when it is started."""
    troubles = []
    if feed.stands and installation.running:
        waits = f"{events_text(feed.lag_events)} not folded, the oldest for {seconds_text(feed.lag_seconds)}"
        detail = f"{waits}; {_held(installation, feed.shard)}"
        troubles.append(Trouble("lag", detail, feed.feed, feed.shard))
    if feed.quarantine.open:
        found = f"{events_text(feed.quarantine.open)} in quarantine, which readers do not get"
        detail = f"{found}: `dateline ops quarantine list {feed.feed}`"
        troubles.append(Trouble("quarantine", detail, feed.feed, feed.shard))
    if feed.build is not None and feed.build_failed:
        detail = f"the build ({feed.build.reason}) failed: {feed.build.detail}"
        troubles.append(Trouble("build", detail, feed.feed, feed.shard))
    return troubles


def _held(installation: Installation, number: int) -> str:
    holder = installation.shards[number].holder
    if holder is not None:
        return f"shard {number} is held by {holder}"
    # What a projector of an older release does with a log that it does not know.
    refused = ", though projectors are alive: see in their logs why they refuse it" if installation.projectors else ""
    return f"nobody holds shard {number}{refused}"

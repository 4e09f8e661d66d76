"""How one feed stands, as `ops status --json` prints it: positions are text, instants RFC 3339, seconds numbers.

Owns the form, and which feed is worse than another; every field is always there. Reading it is `look`'s.
"""

from msgspec import Struct

# A projector that dies is followed by another in under 5 s. What is not folded after twice that is not folded by itself.
LAG_STANDS_SECONDS = 10.0


class Quarantine(Struct, frozen=True):
    open: int
    discarded: int


class LogSize(Struct, frozen=True):
    """The part of the log that stands in the server's memory; `first` is null for an empty stream."""

    events: int
    memory_bytes: int
    first: str | None


class ArchiveStatus(Struct, frozen=True):
    """Where the feed's archive is and how far it reaches, all null for a feed that was never archived.

    `trimmed_to` is the last position that stands in the archive alone, `bytes` the size of the archive's segments.
    """

    url: str | None
    archived_to: str | None
    trimmed_to: str | None
    bytes: int | None


class BuildStatus(Struct, frozen=True):
    """The latest build of a generation; `progress` is from 0 to 1 while it is under way, null before and after."""

    state: str
    reason: str
    by: str
    because: str | None
    generation: int | None
    checkpoint: str | None
    events: int
    progress: float | None
    requested_at: str
    started_at: str | None
    updated_at: str | None
    detail: str | None

    @property
    def under_way(self) -> bool:
        return self.state in ("asked", "building")


class EpochStatus(Struct, frozen=True):
    """The last raise of the epoch; null, all but the number, while the first epoch lasts."""

    number: int
    raised_at: str | None
    reason: str | None
    because: str | None


class FeedStatus(Struct, frozen=True):
    """`lag_seconds` is the age of the oldest event that is not folded yet. `checkpoint` and what comes of the generation are
    null before the first commit, `build` for a feed that was never rebuilt."""

    feed: str
    shard: int
    status: str
    entries: int
    head: str
    recorded_at: str
    checkpoint: str | None
    lag_events: int
    lag_seconds: float
    generation: int | None
    fold_version: int | None
    epoch: EpochStatus
    quarantine: Quarantine
    log: LogSize
    archive: ArchiveStatus
    build: BuildStatus | None

    @property
    def stands(self) -> bool:
        return self.lag_seconds > LAG_STANDS_SECONDS

    @property
    def building(self) -> bool:
        return self.build is not None and self.build.under_way

    @property
    def build_failed(self) -> bool:
        return self.build is not None and self.build.state == "failed"

    @property
    def rank(self) -> tuple[float, bool, bool, bool, str, str]:
        """Greater is worse: what lags, longest first, quarantined, building; then the most recently active."""
        lag = self.lag_seconds if self.stands else 0.0
        build = self.build_failed or self.building
        return lag, self.quarantine.open > 0, build, self.lag_events > 0, self.recorded_at, self.feed

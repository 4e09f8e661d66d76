"""Keys: where each thing stands in Redis. A feed belongs to a shard, and all keys of a shard share one hash tag.

Owns names only. One script therefore touches one slot, and the same code runs on one server and on a cluster.
"""

from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

# Fixed at installation and stored there: another number would look for every feed in the wrong place.
SHARDS = 16

# Names whose CRC16 slots fall one into each sixteenth of the slot space, so that shards spread evenly over 2, 4, 8 or 16
# masters (the plain numbers 0 to 15 leave half of eight masters empty).
SHARD_TAGS = (
    "07", "1ab", "2ce", "3c", "4ee", "5d", "64", "7fe",
    "8d", "9", "a36", "bed", "cd", "dcd", "ef", "fc",
)  # fmt: skip


class GenerationKeys(NamedTuple):
    """One built copy of a feed's read models. `indexes` is a prefix: an index's name follows; `names` are those that exist."""

    meta: str
    documents: str
    feed: str
    indexes: str
    names: str


class FeedKeys(NamedTuple):
    """A feed's keys: the write side, and which generation readers get. `generation`, `commands` and `purged` are prefixes.

    `log_rewrite` is the log that a redaction writes to put in the log's place, `rewriting` who does so, `purged` the gateways
    that confirmed a purge. `archive` says where the feed's archive is and how far it reaches; `restore_log`, `restore_head` and
    `restore_entries` are a feed that is being brought in. `build` is what is known of the feed's latest rebuild, `retired` the
    generations to be removed.
    """

    log: str
    log_rewrite: str
    rewriting: str
    head: str
    entries: str
    commands: str
    active: str
    generations: str
    quarantine: str
    archive: str
    restore_log: str
    restore_head: str
    restore_entries: str
    generation: str
    purged: str
    build: str
    retired: str

    def of_generation(self, generation: int) -> GenerationKeys:
        base = f"{self.generation}{generation}:"
        return GenerationKeys(base + "meta", base + "documents", base + "feed", base + "i:", base + "names")


class ShardKeys(NamedTuple):
    """A shard's keys. `incarnation` is of the server process whose appends are admitted, `witnessed` the highest position of
    each feed that a process reported when the server was another, `builds` the feeds whose generations its owner has to build
    or to remove."""

    incarnation: str
    witnessed: str
    lease: str
    feeds: str
    dirty: str
    builds: str
    doorbell: str
    frames: str
    frames_rewrite: str
    touch: str


class Keys:
    """All key names of one installation, under one prefix."""

    def __init__(self, prefix: str = "dl") -> None:
        self.prefix = prefix
        self.installation = f"{prefix}:installation"
        self.projectors = f"{prefix}:projectors"
        self.gateways = f"{prefix}:gateways"
        bases = [self._base(shard) for shard in range(SHARDS)]
        self._shards = [ShardKeys(*(base + name for name in ShardKeys._fields)) for base in bases]

    @staticmethod
    def shard_of(feed: str) -> int:
        return crc32(feed.encode()) % SHARDS

    def shard(self, shard: int) -> ShardKeys:
        return self._shards[shard]

    def prefix_of_feeds(self, shard: int) -> str:
        """What the keys of every feed of a shard begin with; the feed's id follows, and a colon."""
        return self._base(shard) + "f:"

    def feed(self, feed: str) -> FeedKeys:
        return _feed_keys(f"{self.prefix_of_feeds(self.shard_of(feed))}{feed}:")

    def _base(self, shard: int) -> str:
        return f"{self.prefix}:{{{SHARD_TAGS[shard]}}}:"


# A busy feed's are asked for by every request.
@lru_cache(maxsize=1024)
def _feed_keys(base: str) -> FeedKeys:
    return FeedKeys(
        log=base + "log",
        log_rewrite=base + "log-rewrite",
        rewriting=base + "rewriting",
        head=base + "head",
        entries=base + "entries",
        commands=base + "commands:",
        active=base + "active",
        generations=base + "generations",
        quarantine=base + "quarantine",
        archive=base + "archive",
        restore_log=base + "restore:log",
        restore_head=base + "restore:head",
        restore_entries=base + "restore:entries",
        generation=base + "g",
        purged=base + "purged:",
        build=base + "build",
        retired=base + "retired",
    )

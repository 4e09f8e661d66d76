"""How an installation stands but for its feeds, as `ops status --json` prints it. Every field is always there.

Owns the form. Reading it is `surroundings`'.
"""

from collections.abc import Sequence

from msgspec import Struct


class Aof(Struct, frozen=True):
    """The server's append-only file. `size_bytes` is null where it is off."""

    enabled: bool
    last_write: str
    rewrite_under_way: bool
    size_bytes: int | None


class ServerStatus(Struct, frozen=True):
    """`durability` is the most that the server keeps, null when `problem` says why it must not be used at all."""

    name: str
    version: str
    role: str
    replicas: int
    run_id: str
    up_seconds: int
    durability: str | None
    problem: str | None
    memory_used_bytes: int
    memory_max_bytes: int | None
    aof: Aof


class ProjectorStatus(Struct, frozen=True):
    """A projector that is alive, and what its release folds and keeps."""

    name: str
    fold_version: int | None
    read_models: Sequence[str]


class Admission(Struct, frozen=True):
    """Whether the server process that runs now takes appends to a shard, and since when it or the one before does.

    `raising` is why epochs are being raised before it may; `raised_because` why they last were, null for never.
    """

    admitted: bool
    admitted_at: str | None
    raising: str | None
    raised_at: str | None
    raised_because: str | None


class ShardStatus(Struct, frozen=True):
    """`holder` is null, and `seconds_left` with it, when no projector holds the shard's lease."""

    shard: int
    tag: str
    holder: str | None
    fence: int
    seconds_left: float | None
    feeds: int
    dirty_feeds: int
    builds: int
    admission: Admission


class Installation(Struct, frozen=True):
    """What is not a feed's. `running` is false for an `up` that has stopped, whose server this command started for itself."""

    release: str
    at: str
    running: bool
    data_dir: str | None
    key_prefix: str
    server: ServerStatus
    projectors: Sequence[ProjectorStatus]
    gateways: Sequence[str]
    shards: Sequence[ShardStatus]

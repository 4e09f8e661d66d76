"""A look at an installation for `dateline ops status`: reads only, each feed of one moment, many feeds in one round trip.

Owns the reading. What it means is `report`'s.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from services.cli.ops.report import (
    Admission,
    Aof,
    ArchiveStatus,
    BuildStatus,
    EpochStatus,
    FeedStatus,
    Installation,
    LogSize,
    ProjectorStatus,
    Quarantine,
    ServerStatus,
    ShardStatus,
)
from services.cli.ops.server import Server
from services.projector.builds import parse_build
from services.projector.release import Release
from shared.errors import FeedNotFound, Misconfigured
from shared.instants import instant_of
from shared.keys import SHARD_TAGS, SHARDS, Keys
from shared.members import Members
from shared.position import ORIGIN, Position
from shared.redis import Redis, Script, check_server, command, run_pipeline, server_name

FEEDS_PER_ROUND = 50

_look = Script(__file__, "look.lua", read_only=True)


async def installation_of(server: Server) -> Installation:
    """Server, processes and shards. Of the feeds nothing but their numbers."""
    redis, keys = server.redis, server.keys
    now = await _now(redis)
    info = await redis.info()
    # A server that was started for this look still knows the processes that were killed with its last one.
    alive = [
        [] if server.started_here else sorted(await Members(redis, key).alive())
        for key in (keys.projectors, keys.gateways)
    ]
    return Installation(
        release=version("dateline"),
        at=instant_of(now),
        running=not server.started_here,
        data_dir=str(server.data_dir) if server.data_dir is not None else None,
        key_prefix=keys.prefix,
        server=await _server(redis, info),
        projectors=[_projector(name) for name in alive[0]],
        gateways=alive[1],
        shards=await _shards(redis, keys, now, f"{info['run_id']} {info['master_replid']}"),
    )


async def feeds_of(redis: Redis, keys: Keys, named: Sequence[str]) -> AsyncIterator[FeedStatus]:
    """Every feed, shard by shard, or those named; FeedNotFound for one that is not there."""
    if named:
        for feed, found in zip(named, await _look_at(redis, keys, named), strict=True):
            if found is None:
                raise FeedNotFound(feed)
            yield found
        return
    for shard in range(SHARDS):
        names = await _names(redis, keys, shard)
        for start in range(0, len(names), FEEDS_PER_ROUND):
            for found in await _look_at(redis, keys, names[start : start + FEEDS_PER_ROUND]):
                if found is not None:
                    yield found


async def known_feeds(redis: Redis, keys: Keys) -> list[str]:
    """The id of every feed, shard by shard."""
    return [feed for shard in range(SHARDS) for feed in await _names(redis, keys, shard)]


async def _now(redis: Redis) -> int:
    seconds, microseconds = await command(redis, "TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


def _projector(announced: str) -> ProjectorStatus:
    release = Release.announced(announced)
    return ProjectorStatus(
        name=announced.partition(" ")[0],
        fold_version=release.fold if release else None,
        read_models=release.models if release else (),
    )


async def _server(redis: Redis, info: Mapping[str, Any]) -> ServerStatus:
    name, its_version = server_name(info)
    durability = problem = None
    try:
        durability = await check_server(redis, durability="memory")
    except Misconfigured as error:
        problem = error.detail
    enabled = bool(info["aof_enabled"])
    return ServerStatus(
        name=name,
        version=its_version,
        role="replica" if info["role"] == "slave" else info["role"],
        replicas=int(info.get("connected_slaves", 0)),
        run_id=info["run_id"],
        up_seconds=int(info["uptime_in_seconds"]),
        durability=durability,
        problem=problem,
        memory_used_bytes=int(info["used_memory"]),
        memory_max_bytes=int(info.get("maxmemory", 0)) or None,
        aof=Aof(
            enabled=enabled,
            last_write=str(info.get("aof_last_write_status", "ok")),
            rewrite_under_way=bool(info.get("aof_rewrite_in_progress", 0)),
            size_bytes=int(info["aof_current_size"]) if enabled and "aof_current_size" in info else None,
        ),
    )


async def _shards(redis: Redis, keys: Keys, now: int, server: str) -> list[ShardStatus]:
    """`server` is the process that answers, as incarnations name it."""
    pipeline = redis.pipeline(transaction=False)
    for shard in range(SHARDS):
        names = keys.shard(shard)
        pipeline.hmget(names.lease, ["owner", "fence", "expires"])
        pipeline.zcard(names.feeds)
        pipeline.scard(names.dirty)
        pipeline.scard(names.builds)
        pipeline.hmget(names.incarnation, ["server", "admitted_at", "raising", "raised_at", "raised_because"])
    answers = iter(await run_pipeline(redis, pipeline))
    found = []
    for shard, (lease, feeds, dirty, builds, incarnation) in enumerate(zip(*[answers] * 5, strict=True)):
        owner, fence, expires = lease
        left = int(expires or 0) - now
        held = bool(owner) and left > 0
        found.append(
            ShardStatus(
                shard=shard,
                tag=SHARD_TAGS[shard],
                holder=owner.decode() if held else None,
                fence=int(fence or 0),
                seconds_left=left / 1000 if held else None,
                feeds=feeds,
                dirty_feeds=dirty,
                builds=builds,
                admission=_admission(server, *(raw.decode() if raw else None for raw in incarnation)),
            )
        )
    return found


def _admission(
    server: str,
    admitted: str | None,
    admitted_at: str | None,
    raising: str | None,
    raised_at: str | None,
    raised_because: str | None,
) -> Admission:
    return Admission(
        admitted=admitted == server,
        admitted_at=_instant(admitted_at),
        raising=raising,
        raised_at=_instant(raised_at),
        raised_because=raised_because,
    )


def _instant(milliseconds: str | int | None) -> str | None:
    return None if milliseconds is None else instant_of(int(milliseconds))


async def _names(redis: Redis, keys: Keys, shard: int) -> list[str]:
    """A feed that no projector has seen yet is dirty, and not among the shard's feeds."""
    names = keys.shard(shard)
    feeds = await command(redis, "ZRANGE", names.feeds, 0, -1)
    return sorted({name.decode() for name in [*feeds, *await command(redis, "SMEMBERS", names.dirty)]})


async def _look_at(redis: Redis, keys: Keys, feeds: Sequence[str]) -> list[FeedStatus | None]:
    pipeline = redis.pipeline(transaction=False)
    for feed in feeds:
        names = keys.feed(feed)
        looked_at = (names.head, names.log, names.active, names.quarantine, names.build, names.archive)
        _look.queue(pipeline, looked_at, (names.generation,))
    answers = await run_pipeline(redis, pipeline, (_look,))
    return [_feed(feed, _Looked(*answer)) for feed, answer in zip(feeds, answers, strict=True)]


class _Looked(NamedTuple):
    """What the script gives."""

    now: bytes
    head: Sequence[bytes]
    events: int
    memory_bytes: int
    first: bytes | None
    generation: bytes | None
    meta: Sequence[bytes]
    waiting: bytes | None
    quarantined: int
    discarded: int
    build: Sequence[bytes]
    archive: Sequence[bytes]


def _feed(feed: str, found: _Looked) -> FeedStatus | None:
    head, meta = _fields(found.head), _fields(found.meta)
    if "n" not in head:
        return None
    position = Position(int(head["epoch"]), int(head["n"]))
    checkpoint = Position.parse(meta["checkpoint"]) if "checkpoint" in meta else None
    # An append's stamp may be ahead of a server's clock that was set back.
    waiting_milliseconds = max(0, int(found.now) - int(found.waiting)) if found.waiting else 0
    return FeedStatus(
        feed=feed,
        shard=Keys.shard_of(feed),
        status=head["status"],
        entries=int(head["live"]),
        head=str(position),
        recorded_at=instant_of(int(head["recorded_at"])),
        checkpoint=str(checkpoint) if checkpoint else None,
        lag_events=position.n - (checkpoint or ORIGIN).n,
        lag_seconds=waiting_milliseconds / 1000,
        generation=int(found.generation) if found.generation else None,
        fold_version=int(meta["fold"]) if "fold" in meta else None,
        epoch=EpochStatus(
            number=position.epoch,
            raised_at=_instant(head.get("raised_at")),
            reason=head.get("raised_reason"),
            because=head.get("raised_because"),
        ),
        quarantine=Quarantine(open=found.quarantined - found.discarded, discarded=found.discarded),
        log=LogSize(
            events=found.events, memory_bytes=found.memory_bytes, first=found.first.decode() if found.first else None
        ),
        archive=_archive(_fields(found.archive)),
        build=_build(feed, found.build, position),
    )


def _archive(found: Mapping[str, str]) -> ArchiveStatus:
    return ArchiveStatus(
        url=found.get("url"),
        archived_to=found.get("archived_to"),
        trimmed_to=found.get("trimmed_to"),
        bytes=int(found["bytes"]) if "bytes" in found else None,
    )


def _build(feed: str, raw: Sequence[bytes], head: Position) -> BuildStatus | None:
    build = parse_build(feed, dict(zip(raw[::2], raw[1::2], strict=True)))
    if build is None:
        return None
    return BuildStatus(
        state=build.state,
        reason=build.reason,
        by=build.by,
        because=build.because or None,
        generation=build.generation,
        checkpoint=str(build.checkpoint) if build.checkpoint != ORIGIN else None,
        events=build.events,
        progress=build.checkpoint.n / head.n if build.under_way else None,
        requested_at=instant_of(build.requested_at),
        started_at=_instant(build.started_at),
        updated_at=_instant(build.updated_at),
        detail=build.detail or None,
    )


def _fields(flat: Sequence[bytes]) -> Mapping[str, str]:
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}

"""A look at an installation for `dateline ops status`: reads only, each feed of one moment, many feeds in one round trip.

Owns the reading. What it means is `report`'s.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from services.cli.ops.report import (
    Aof,
    EpochStatus,
    FeedStatus,
    Installation,
    LogSize,
    Quarantine,
    ServerStatus,
    ShardStatus,
)
from services.cli.ops.server import Server
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
    return Installation(
        release=version("dateline"),
        at=instant_of(now),
        running=not server.started_here,
        data_dir=str(server.data_dir) if server.data_dir is not None else None,
        key_prefix=keys.prefix,
        server=await _server(redis),
        projectors=sorted(await Members(redis, keys.projectors).alive()),
        gateways=sorted(await Members(redis, keys.gateways).alive()),
        shards=await _shards(redis, keys, now),
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


async def _now(redis: Redis) -> int:
    seconds, microseconds = await command(redis, "TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


async def _server(redis: Redis) -> ServerStatus:
    info = await redis.info()
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
        role=info["role"],
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


async def _shards(redis: Redis, keys: Keys, now: int) -> list[ShardStatus]:
    pipeline = redis.pipeline(transaction=False)
    for shard in range(SHARDS):
        names = keys.shard(shard)
        pipeline.hmget(names.lease, ["owner", "fence", "expires"])
        pipeline.zcard(names.feeds)
        pipeline.scard(names.dirty)
    answers = iter(await run_pipeline(redis, pipeline))
    found = []
    for shard, (lease, feeds, dirty) in enumerate(zip(answers, answers, answers, strict=True)):
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
            )
        )
    return found


async def _names(redis: Redis, keys: Keys, shard: int) -> list[str]:
    """A feed that no projector has seen yet is dirty, and not among the shard's feeds."""
    names = keys.shard(shard)
    feeds = await command(redis, "ZRANGE", names.feeds, 0, -1)
    return sorted({name.decode() for name in [*feeds, *await command(redis, "SMEMBERS", names.dirty)]})


async def _look_at(redis: Redis, keys: Keys, feeds: Sequence[str]) -> list[FeedStatus | None]:
    pipeline = redis.pipeline(transaction=False)
    for feed in feeds:
        names = keys.feed(feed)
        _look.queue(pipeline, (names.head, names.log, names.active, names.quarantine), (names.generation,))
    answers = await run_pipeline(redis, pipeline, (_look,))
    return [_feed(feed, answer) for feed, answer in zip(feeds, answers, strict=True)]


def _feed(feed: str, answer: Any) -> FeedStatus | None:
    now, raw_head, events, memory_bytes, first, generation, raw_meta, waiting, quarantined, discarded = answer
    head, meta = _fields(raw_head), _fields(raw_meta)
    if "n" not in head:
        return None
    position = Position(int(head["epoch"]), int(head["n"]))
    checkpoint = Position.parse(meta["checkpoint"]) if "checkpoint" in meta else None
    # An append's stamp may be ahead of a server's clock that was set back.
    waiting_milliseconds = max(0, int(now) - int(waiting)) if waiting else 0
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
        generation=int(generation) if generation else None,
        fold_version=int(meta["fold"]) if "fold" in meta else None,
        epoch=EpochStatus(
            number=position.epoch,
            raised_at=instant_of(int(head["raised_at"])) if "raised_at" in head else None,
            reason=head.get("raised_reason"),
            because=head.get("raised_because"),
        ),
        quarantine=Quarantine(open=quarantined - discarded, discarded=discarded),
        log=LogSize(events=events, memory_bytes=memory_bytes, first=first.decode() if first else None),
    )


def _fields(flat: Sequence[bytes]) -> Mapping[str, str]:
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}

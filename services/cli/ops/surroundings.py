"""A look at an installation for `ops status`: its server, the processes that are alive, its shards. Reads only.

Owns the reading of all that is no feed's. What it means is `report`'s.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from services.cli.ops.installation import Admission, Aof, Installation, ProjectorStatus, ServerStatus, ShardStatus
from services.cli.ops.server import Server
from services.projector.release import Release
from shared.errors import Misconfigured
from shared.instants import instant_of, optional_instant
from shared.keys import SHARD_TAGS, SHARDS, Keys
from shared.members import Members
from shared.redis import Redis, check_server, command, run_pipeline, server_name


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
        durability = (await check_server(redis, durability="memory")).kept
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
        admitted_at=optional_instant(admitted_at),
        raising=raising,
        raised_at=optional_instant(raised_at),
        raised_because=raised_because,
    )

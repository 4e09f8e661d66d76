"""What the log's server keeps of a removed content apart from its data: its files, its slow log, its replicas.

Owns clearing them and looking whether they are clear. The data itself is the services'.
"""

import asyncio
from pathlib import Path
from typing import Any, cast

from redis.exceptions import ResponseError

from services.cli.ops.receipt import Place
from shared.redis import Redis, command

REWRITE_SECONDS_MAX = 600.0
LOOK_SECONDS = 0.1
REPLICAS_MILLISECONDS_MAX = 2_000
FILE_CHUNK_BYTES = 4 * 1024 * 1024


async def clear_server(redis: Redis) -> list[Place]:
    """Have the server write its files anew from what it holds now, and empty its slow log."""
    places = [await _rewritten(redis), await _snapshot(redis)]
    try:
        await command(redis, "SLOWLOG", "RESET")
        places.append(Place("slow log", confirmed=True, detail="emptied"))
    except ResponseError as error:
        places.append(Place("slow log", confirmed=False, detail=f"not emptied ({error}); SLOWLOG RESET does it"))
    return places + await _replicas(redis)


async def _rewritten(redis: Redis) -> Place:
    place = "append-only file"
    try:
        if not (await _persistence(redis))["aof_enabled"]:
            return Place(place, confirmed=True, detail="the server has none")
        async with asyncio.timeout(REWRITE_SECONDS_MAX):
            # A rewrite that is under way may have read the content already: only one begun after it counts.
            await _idle(redis, "aof_rewrite_in_progress", "aof_rewrite_scheduled")
            await command(redis, "BGREWRITEAOF")
            await _idle(redis, "aof_rewrite_in_progress", "aof_rewrite_scheduled")
    except ResponseError as error:
        return Place(place, confirmed=False, detail=f"not rewritten ({error}); BGREWRITEAOF does it")
    except TimeoutError:
        return Place(place, confirmed=False, detail=f"not rewritten within {REWRITE_SECONDS_MAX:.0f} s")
    done = (await _persistence(redis))["aof_last_bgrewrite_status"] == "ok"
    return Place(place, confirmed=done, detail="rewritten" if done else "the rewrite failed; the server's log says why")


async def _snapshot(redis: Redis) -> Place:
    place = "snapshot (RDB)"
    try:
        found = cast("dict[Any, Any]", await redis.config_get("save"))
        if not any(value for value in found.values()):
            return Place(place, confirmed=True, detail="the server writes none")
        async with asyncio.timeout(REWRITE_SECONDS_MAX):
            await _idle(redis, "rdb_bgsave_in_progress")
            await command(redis, "BGSAVE")
            await _idle(redis, "rdb_bgsave_in_progress")
    except ResponseError as error:
        return Place(place, confirmed=False, detail=f"not written anew ({error}); BGSAVE does it")
    except TimeoutError:
        return Place(place, confirmed=False, detail=f"not written anew within {REWRITE_SECONDS_MAX:.0f} s")
    done = (await _persistence(redis))["rdb_last_bgsave_status"] == "ok"
    return Place(
        place, confirmed=done, detail="written anew" if done else "writing it failed; the server's log says why"
    )


async def _replicas(redis: Redis) -> list[Place]:
    """Replicas hold the new data once they confirm; their own files are theirs to rewrite."""
    info = await redis.info("replication")
    replicas = [info[f"slave{i}"] for i in range(int(info.get("connected_slaves", 0)))]
    if not replicas:
        return []
    reached = int(await command(redis, "WAIT", len(replicas), REPLICAS_MILLISECONDS_MAX))
    return [
        Place(
            f"replica {replica['ip']}:{replica['port']}",
            confirmed=False,
            detail=("holds the new data" if reached == len(replicas) else "may lag")
            + "; its own files are rewritten by BGREWRITEAOF there",
        )
        for replica in replicas
    ]


async def look_into_files(data_dir: Path, salts: list[bytes]) -> Place:
    """Whether a file under `data_dir` still holds one of the removed contents, found by its salt."""
    wanted = [salt for salt in salts if salt]
    if not wanted:
        return Place("files", confirmed=True, detail="the log had no content left by which to find a copy")
    holding = await asyncio.to_thread(lambda: [str(file) for file in _files(data_dir) if _holds(file, wanted)])
    detail = f"none under {data_dir} holds a removed content" if not holding else f"still in {', '.join(holding)}"
    return Place("files", confirmed=not holding, detail=detail)


def remove_torn_tails(data_dir: Path, salts: list[bytes]) -> None:
    """Torn writes that were cut off the AOF and kept go too where they hold a removed content."""
    for file in data_dir.glob("torn-*"):
        if _holds(file, [salt for salt in salts if salt]):
            file.unlink()


def _files(data_dir: Path) -> list[Path]:
    return [file for file in data_dir.rglob("*") if file.is_file()]


def _holds(file: Path, wanted: list[bytes]) -> bool:
    overlap = max(map(len, wanted), default=0)
    try:
        with file.open("rb") as opened:
            before = b""
            while chunk := opened.read(FILE_CHUNK_BYTES):
                text = before + chunk
                if any(salt in text for salt in wanted):
                    return True
                before = text[-overlap:]
    except FileNotFoundError:
        pass  # removed meanwhile, as old parts of an AOF are
    return False


async def _persistence(redis: Redis) -> dict[str, Any]:
    return await redis.info("persistence")


async def _idle(redis: Redis, *fields: str) -> None:
    while True:
        info = await _persistence(redis)
        if not any(info[field] for field in fields):
            return
        await asyncio.sleep(LOOK_SECONDS)

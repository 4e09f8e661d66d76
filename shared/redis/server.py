"""The server: whether it is one that we can run on, what it can promise, and the record of the installation on it."""

from collections.abc import Mapping
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from shared.durability import Durability, Means
from shared.epochs.incarnation import Kept
from shared.errors import Misconfigured
from shared.keys import SHARDS, Keys

# The format of keys and events. A release that writes another one raises it, and older releases then refuse to start.
LOG_FORMAT = 1


async def check_installation(client: Redis, keys: Keys, *, record: bool = True) -> None:
    """Record the number of shards and the log's format at the first start, and refuse to run beside others.

    Without `record` nothing is written, and a server that has no installation is refused.
    """
    expected = {"shards": SHARDS, "log_format": LOG_FORMAT}
    if record:
        for field, value in expected.items():
            await cast("Any", client.hsetnx(keys.installation, field, str(value)))
    found = await cast("Any", client.hmget(keys.installation, list(expected)))
    if not record and found == [None] * len(expected):
        raise Misconfigured(f"there is no installation under {keys.prefix!r} on this server")
    for (field, value), stored in zip(expected.items(), found, strict=True):
        if stored != str(value).encode():
            raise Misconfigured(
                f"this installation was made with {field} {stored!r}, this release has {value}",
                field=field,
                expected=value,
                actual=repr(stored),
            )


def server_name(info: Mapping[str, Any]) -> tuple[str, str]:
    """Name and version of the server that gave this INFO."""
    name = "Valkey" if info.get("server_name") == "valkey" or "valkey_version" in info else "Redis"
    return name, str(info.get("valkey_version") or info["redis_version"])


async def check_server(client: Redis, *, durability: Durability) -> Means:
    """What the server can do for a write's durability.

    Misconfigured for one that is too old, evicts keys, or can never keep `durability`; replicas may come and go.
    """
    info = await client.info()
    name, version = server_name(info)
    oldest = 8 if name == "Valkey" else 7
    if int(version.partition(".")[0]) < oldest:
        raise Misconfigured(f"{name} {version} is too old: Redis from 7.0 and Valkey from 8 are supported")
    found = await _settings(client, "maxmemory", "maxmemory-policy", *_FSYNC)
    kept, short = _kept(found)
    if found.get("maxmemory-policy", "noeviction") != "noeviction" and found.get("maxmemory", "0") != "0":
        raise Misconfigured("the server may evict keys; set maxmemory-policy noeviction")
    means = Means(kept, _has_waitaof(info, found), int(info.get("connected_slaves", 0)))
    if short and (durability == "fsync" or (durability == "replicated" and not means.waitaof)):
        needed = ", ".join(f"`{setting} {value}`" for setting, value in _FSYNC.items())
        raise Misconfigured(
            f"durability {durability} needs a server with {needed}, and on this one {', '.join(short)}; set that, or set "
            "DATELINE_DURABILITY=memory to acknowledge what is only in the server's memory"
        )
    return means


async def means_of(client: Redis) -> Means:
    """What the server can do for a write's durability, as it is now."""
    info = await client.info()
    found = await _settings(client, *_FSYNC)
    return Means(_kept(found)[0], _has_waitaof(info, found), int(info.get("connected_slaves", 0)))


def _has_waitaof(info: Mapping[str, Any], found: Mapping[str, str]) -> bool:
    """Since Redis 7.2, which every Valkey is after; without an append-only file it has nothing to wait for."""
    name, version = server_name(info)
    since = name == "Valkey" or tuple(map(int, version.split(".")[:2])) >= (7, 2)
    return since and found.get("appendonly") == "yes"


async def durability_kept(client: Redis) -> Kept:
    """What the server keeps of every write that it answers."""
    return _kept(await _settings(client, *_FSYNC))[0]


def _kept(found: Mapping[str, str]) -> tuple[Kept, list[str]]:
    """The durability, and which settings are short of fsync."""
    short = [f"{setting} is {found.get(setting)}" for setting, value in _FSYNC.items() if found.get(setting) != value]
    return ("memory" if short else "fsync"), short


# With no-appendfsync-on-rewrite, `always` is not always: nothing is synced while the AOF is rewritten.
_FSYNC = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}


async def _settings(client: Redis, *names: str) -> dict[str, str]:
    try:
        found = cast("dict[Any, Any]", await client.config_get(*names))
    except (NoPermissionError, ResponseError) as error:
        raise Misconfigured(f"the server does not let us see its settings ({error}); allow CONFIG|GET") from error
    return {_text(name): _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

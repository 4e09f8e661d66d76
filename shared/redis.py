"""Redis: how Dateline connects, how it runs its scripts, and what it demands of the server.

Owns clients, scripts and the installation's record. What the scripts do stands beside the modules that call them.
"""

import asyncio
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hiredis
import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.config import Config
from shared.durability import Durability, Means
from shared.epochs.incarnation import Kept
from shared.errors import Corrupted, Misconfigured, Unavailable
from shared.keys import SHARDS, Keys

COMMAND_TIMEOUT_SECONDS = 3.0
CONNECT_TIMEOUT_SECONDS = 2.0
POOL_WAIT_SECONDS = 3.0
CONNECTIONS_MAX = 64

# The format of keys and events. A release that writes another one raises it, and older releases then refuse to start.
LOG_FORMAT = 1

# What passes once the server is back or has room again: the network, a restart, a promotion, a full memory.
UNREACHABLE = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError, OSError)

Arg = bytes | str | int | float


def needed_url(config: Config) -> str:
    """The server's URL; Misconfigured when none was given."""
    if not config.redis_url:
        raise Misconfigured("no server given: set DATELINE_REDIS_URL or --redis-url", setting="redis_url")
    if not config.redis_url.startswith(("redis://", "rediss://", "unix://")):
        raise Misconfigured(f"{config.redis_url} is no redis://, rediss:// or unix:// URL", setting="redis_url")
    return config.redis_url


def connect(
    url: str, *, connections_max: int = CONNECTIONS_MAX, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
) -> Redis:
    """A client for commands that answer at once. Each command is tried twice: every write of ours is safe to re-send."""
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections_max,
        timeout=POOL_WAIT_SECONDS,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        # RESP2 answers with lists for every command that we use, on every server that we support.
        protocol=2,
        retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), 1),
    )
    pool.connection_class = type("Connection", (_Sending, pool.connection_class), {})
    return Redis.from_pool(pool)


class _Sending:
    """Sends without `asyncio.wait_for`, which on Python 3.11 loses a cancellation that comes with the end of the send.

    A task whose cancellation is lost never ends (python/cpython#86296). `asyncio.timeout` loses none, and makes no task.
    """

    socket_timeout: float | None

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        seconds, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(seconds):
                await super().send_packed_command(command, check_health)  # type: ignore[misc]  # redis-py's connection
        except TimeoutError as error:
            raise RedisTimeoutError("the command was not sent in time") from error
        finally:
            self.socket_timeout = seconds


def connect_for_blocking(url: str, *, block_seconds: float) -> Redis:
    """A client of its own for a reader that blocks up to `block_seconds`: the socket's timeout lies above."""
    return connect(url, connections_max=2, timeout_seconds=block_seconds + COMMAND_TIMEOUT_SECONDS)


class redis_errors:  # noqa: N801  it is used like a function; a generator would cost ten times as much
    """Turn a server that cannot be reached into Unavailable; everything else goes through as it is."""

    def __init__(self, what: str) -> None:
        self._what = what

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, UNREACHABLE):
            detail = f"{self._what}: the log's server cannot be reached; the request may be sent again."
            raise Unavailable(detail) from error


async def command(client: Redis, *args: Arg) -> Any:
    """Run one command whose reply has no useful type of its own."""
    try:
        return await cast("Any", client).execute_command(*args)
    except ResponseError as error:
        raise _meaning(error) from error


class Script:
    """One Lua script, sent once to a server and then called by its digest."""

    def __init__(self, beside: str, name: str, *, read_only: bool = False) -> None:
        """`beside` is the caller's `__file__`; `read_only` scripts may run on a replica."""
        self.text = Path(beside).with_name(name).read_text(encoding="utf-8")
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324  Redis names scripts by SHA-1
        self._by_sha, self._by_text = ("EVALSHA_RO", "EVAL_RO") if read_only else ("EVALSHA", "EVAL")

    async def __call__(self, client: Redis, keys: Sequence[str], args: Iterable[Arg]) -> Any:
        """Run it; Corrupted when the script itself finds an invariant broken."""
        [answer] = await run_scripts(client, [(self, keys, tuple(args))])
        return answer

    def queue(self, pipeline: Pipeline, keys: Sequence[str], args: Iterable[Arg]) -> None:
        """Add it to a pipeline that `run_pipeline` executes."""
        pipeline.execute_command(self._by_sha, self.sha, len(keys), *keys, *args)

    def packed(self, keys: Sequence[str], args: Iterable[Arg], *, by_text: bool = False) -> bytes:
        """Its call as it goes over the wire, for `exchange`; `by_text` also where the server does not have it."""
        called = (self._by_text, self.text) if by_text else (self._by_sha, self.sha)
        return packed_command(*called, len(keys), *keys, *args)


def packed_command(*args: Arg) -> bytes:
    """One command as it goes over the wire: redis-py's own packing costs ten times as much."""
    return cast("bytes", hiredis.pack_command(args))  # type: ignore[arg-type]  # its stub knows tuples of one


async def exchange(client: Redis, commands: Sequence[bytes]) -> list[Any]:
    """Send packed commands on one connection and read an answer to each, in order; a refusal stands in its answer's place.

    As with any command of ours, when the connection is lost they are all sent a second time: each is safe to repeat.
    """
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    try:
        answers: list[Any] = await connection.retry.call_with_retry(
            lambda: _exchange(connection, commands), lambda _: connection.disconnect(nowait=True)
        )
        return answers
    finally:
        await asyncio.shield(pool.release(connection))


async def _exchange(connection: Any, commands: Sequence[bytes]) -> list[Any]:
    answers: list[Any] = []
    await connection.send_packed_command(commands)
    try:
        # redis-py would make a timer for each. It ends a connection whose reading is interrupted: what is still to come
        # would be taken for the answer to another command.
        async with asyncio.timeout(connection.socket_timeout):
            for _ in commands:
                try:
                    answers.append(await connection.read_response(timeout=math.inf))
                except ResponseError as error:
                    answers.append(_meaning(error))
    except TimeoutError as error:
        raise RedisTimeoutError("the server did not answer in time") from error
    return answers


Call = tuple["Script", Sequence[str], Sequence[Arg]]


async def run_scripts(client: Redis, calls: Sequence[Call]) -> list[Any]:
    """Run scripts in one round trip, each safe to repeat; raises what the first of them that failed means.

    Those that the server does not have are sent again with their text.
    """
    answers = await exchange(client, [script.packed(keys, args) for script, keys, args in calls])
    unknown = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    if unknown:
        by_text = [calls[number][0].packed(*calls[number][1:], by_text=True) for number in unknown]
        for number, answer in zip(unknown, await exchange(client, by_text), strict=True):
            answers[number] = answer
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


async def read_streams(
    client: Redis, cursors: Mapping[str, str], *, count: int, block_seconds: float
) -> list[tuple[str, list[tuple[str, dict[bytes, bytes]]]]]:
    """XREAD after each stream's cursor: stream, and the id and fields of each entry; nothing where none came in time."""
    blocking = packed_command(
        "XREAD", "COUNT", count, "BLOCK", int(block_seconds * 1000), "STREAMS", *cursors.keys(), *cursors.values()
    )
    [answer] = await exchange(client, [blocking])
    if isinstance(answer, Exception):
        raise answer
    return [
        (stream.decode(), [(entry.decode(), dict(zip(flat[::2], flat[1::2], strict=True))) for entry, flat in entries])
        for stream, entries in answer or []
    ]


def packed(value: Any) -> bytes:
    """Many texts in one argument, which a script takes apart with `cmsgpack.unpack`: in UTF-8, byte for byte.

    The scripts' MessagePack knows no type for bytes.
    """
    return msgspec.msgpack.encode(value)


async def run_pipeline(client: Redis, pipeline: Pipeline, scripts: Iterable[Script] = ()) -> list[Any]:
    """Execute commands that are each safe to repeat; load `scripts` when the server does not have them."""
    commands = list(pipeline.command_stack)
    try:
        return await pipeline.execute()
    except ResponseError as error:
        if not isinstance(_meaning(error), NoScriptError):
            raise _meaning(error) from error
    for script in scripts:
        await command(client, "SCRIPT LOAD", script.text)
    again = client.pipeline(transaction=False)
    again.command_stack = commands
    try:
        return await again.execute()
    except ResponseError as error:
        raise _meaning(error) from error


def _meaning(error: ResponseError) -> Exception:
    """What a server's refusal means to us: it passes by itself, our data is broken, or just what it says."""
    # In a pipeline redis-py says first which command it was.
    text = str(error).rpartition("caused error: ")[2].lstrip("(\"'")
    code = text.partition(" ")[0]
    if code in _PASSING:
        return RedisConnectionError(str(error))
    # WRONGTYPE: a key of ours holds what no code of ours writes.
    if code in ("CORRUPTED", "WRONGTYPE"):
        return Corrupted(text)
    return error


# The disk is full, a script of another client runs too long, a failover or resharding is under way.
_PASSING = frozenset({"MISCONF", "BUSY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"})


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


__all__ = [
    "UNREACHABLE",
    "AuthenticationError",
    "Call",
    "NoScriptError",
    "Pipeline",
    "Redis",
    "RedisConnectionError",
    "RedisError",
    "Script",
    "check_installation",
    "check_server",
    "command",
    "connect",
    "connect_for_blocking",
    "durability_kept",
    "exchange",
    "means_of",
    "needed_url",
    "packed",
    "packed_command",
    "read_streams",
    "redis_errors",
    "run_pipeline",
    "run_scripts",
    "server_name",
]

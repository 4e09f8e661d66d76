"""Asking: commands and scripts, one round trip at a time or many in one, and what a refusal means to us.

What the scripts do stands beside the modules that call them.
"""

import asyncio
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hiredis
import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import Corrupted
from shared.redis.connecting import Pool

Arg = bytes | str | int | float


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
    pool = cast("Pool", client.connection_pool)
    connection = await pool.take()
    try:
        answers: list[Any] = await connection.retry.call_with_retry(
            lambda: _exchange(connection, commands), lambda _: connection.disconnect(nowait=True)
        )
        return answers
    finally:
        await pool.give_back(connection)


async def _exchange(connection: Any, commands: Sequence[bytes]) -> list[Any]:
    answers: list[Any] = []
    # One time limit for all; redis-py would make a timer for each. It ends a connection whose sending or reading is
    # interrupted: what is still to come would be taken for the answer to another command.
    seconds, connection.socket_timeout = connection.socket_timeout, None
    try:
        async with asyncio.timeout(seconds):
            await connection.send_packed_command(commands, check_health=False)
            for _ in commands:
                try:
                    answers.append(await connection.read_response(timeout=math.inf))
                except ResponseError as error:
                    answers.append(_meaning(error))
    except TimeoutError as error:
        raise RedisTimeoutError("the server did not answer in time") from error
    finally:
        connection.socket_timeout = seconds
    return answers


async def ask(client: Redis, commands: Sequence[bytes]) -> list[Any]:
    """Run packed commands in one round trip; raises what the first of them that failed means."""
    return _given(await exchange(client, commands))


def _given(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
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
    return _given(answers)


async def read_streams(
    client: Redis, cursors: Mapping[str, str], *, count: int, block_seconds: float
) -> list[tuple[str, list[tuple[str, dict[bytes, bytes]]]]]:
    """XREAD after each stream's cursor: stream, and the id and fields of each entry; nothing where none came in time."""
    blocking = packed_command(
        "XREAD", "COUNT", count, "BLOCK", int(block_seconds * 1000), "STREAMS", *cursors.keys(), *cursors.values()
    )
    [answer] = await ask(client, [blocking])
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

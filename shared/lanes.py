"""Lanes: appends on their way to the server; those that wait while one is under way go together, in the order they came in.

Owns one pipeline at a time, and one for each shard where a confirmation is awaited: what goes with it, how each append gets
its own answer, and what becomes of the others when the server is lost. What an append says and is answered is `append`'s.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from shared.append import SCRIPT
from shared.durability import Confirmation
from shared.errors import Unavailable
from shared.redis import Arg, NoScriptError, Redis, RedisConnectionError, exchange, packed_command

# One pipeline holds the server for some milliseconds at most; a larger one costs no less for each append.
APPENDS_MAX = 64
BYTES_MAX = 1024 * 1024


class Answered(NamedTuple):
    """What the script gave and, behind it on the same connection, the confirmation, None where none was asked for."""

    given: Any
    confirmed: Any


class _Sent(Struct, frozen=True):
    """One append; its caller waits for `answer`, or went away and cancelled it."""

    keys: Sequence[str]
    args: Sequence[Arg]
    packed: bytes
    answer: asyncio.Future[Answered]


class _Lane(NamedTuple):
    waiting: deque[_Sent]
    task: asyncio.Task[None]


# Which lane an append takes: that of all, or of one shard and what confirms it.
_Way = tuple[int, Confirmation] | None


class Lanes:
    """The appends of one process. A lane is there while something goes through it, and needs no timer: `exchange` has them.

    Feeds of all shards go together: one server runs their scripts one after the other anyway. Those that ask for different
    confirmations do not, who asked for less does not wait for more; and to wait for one holds up its shard alone.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lanes: dict[_Way, _Lane] = {}

    async def send(
        self, shard: int, keys: Sequence[str], args: Sequence[Arg], *, confirmation: Confirmation | None
    ) -> Answered:
        """Run the append script; raises what it refused this append with, UNREACHABLE when its outcome is not known.

        Unavailable: it was not sent, because those before it were lost. A caller that is cancelled takes none of the others
        with it, and what was sent already may still be appended.
        """
        sent = _Sent(keys, args, SCRIPT.packed(keys, args), asyncio.get_running_loop().create_future())
        way = None if confirmation is None else (shard, confirmation)
        lane = self._lanes.get(way)
        if lane is None:
            waiting = deque([sent])
            # Begins in the next turn of the loop: what else comes in this one goes along.
            task = asyncio.get_running_loop().create_task(self._run(way, waiting))
            self._lanes[way] = _Lane(waiting, task)
        else:
            lane.waiting.append(sent)
        return await sent.answer

    async def close(self) -> None:
        """Give up what is under way."""
        lanes = list(self._lanes.values())
        for lane in lanes:
            lane.task.cancel()
        await asyncio.gather(*[lane.task for lane in lanes], return_exceptions=True)
        # A task that is cancelled before it began does not come to its `finally`.
        self._lanes.clear()
        for lane in lanes:
            _fail(lane.waiting, _not_sent())

    async def _run(self, way: _Way, waiting: deque[_Sent]) -> None:
        confirmation = None if way is None else way[1]
        together: list[_Sent] = []
        try:
            while together := _next(waiting):
                await self._send(together, confirmation)
        except Exception as error:
            _fail(together, error)
        finally:
            del self._lanes[way]
            _fail(together, RedisConnectionError("given up before the server answered"))
            _fail(waiting, _not_sent())

    async def _send(self, together: Sequence[_Sent], confirmation: Confirmation | None) -> None:
        unknown = await self._exchange(together, confirmation, [sent.packed for sent in together])
        if unknown:
            by_text = [SCRIPT.packed(sent.keys, sent.args, by_text=True) for sent in unknown]
            still = await self._exchange(unknown, confirmation, by_text)
            _fail(still, RedisConnectionError("the server has no script though it was sent"))

    async def _exchange(
        self, together: Sequence[_Sent], confirmation: Confirmation | None, commands: list[bytes]
    ) -> list[_Sent]:
        """Answer each; gives those for which the server did not have the script."""
        if confirmation is not None:
            commands.append(packed_command(*confirmation.command))
        answers = await exchange(self._redis, commands)
        confirmed = answers[-1] if confirmation is not None else None
        unknown = []
        for sent, given in zip(together, answers, strict=False):
            if isinstance(given, NoScriptError):
                unknown.append(sent)
            elif sent.answer.done():
                continue
            elif isinstance(given, Exception):
                sent.answer.set_exception(given)
            else:
                sent.answer.set_result(Answered(given, confirmed))
        return unknown


def _next(waiting: deque[_Sent]) -> list[_Sent]:
    """What goes together next, without those whose callers went away; one that is larger than the limit goes alone."""
    together: list[_Sent] = []
    size = 0
    while waiting and len(together) < APPENDS_MAX and (not together or size + len(waiting[0].packed) <= BYTES_MAX):
        sent = waiting.popleft()
        if not sent.answer.done():
            together.append(sent)
            size += len(sent.packed)
    return together


def _not_sent() -> Unavailable:
    return Unavailable("the log's server was lost; nothing was appended")


def _fail(all_sent: Iterable[_Sent], error: Exception) -> None:
    for sent in all_sent:
        if not sent.answer.done():
            sent.answer.set_exception(error)

"""Lifecycle: a program from its start to its end: one stop event, one TaskGroup.

Owns signals and the wait for the log's server. A service that listens has `listening` as well.
"""

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from shared.errors import Misconfigured
from shared.redis import UNREACHABLE, AuthenticationError

log = structlog.get_logger()

WAIT_FOR_SERVER_SECONDS = 1.0
# What may wait for the collector: a few megabytes at most, looked through in two or three milliseconds.
COLLECTED_OBJECTS = 10_000


@asynccontextmanager
async def stop_on_signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set; the handlers that stood before are put back."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stopping(which: signal.Signals) -> None:
        log.info("stopping", signal=which.name)
        stop.set()

    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    for which in before:
        loop.add_signal_handler(which, stopping, which)
    try:
        yield stop
    finally:
        for which, handler in before.items():
            loop.remove_signal_handler(which)
            # remove_signal_handler restores Python's default, not what stood there.
            signal.signal(which, handler)


async def run_until(stop: asyncio.Event, *parts: Coroutine[Any, Any, None]) -> None:
    """Run all parts until `stop` is set and then cancel them; the first part that fails ends the others and is raised."""

    async def all_parts() -> None:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)

    tasks = [asyncio.create_task(all_parts()), asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseExceptionGroup):
            raise first_error(result)
        if isinstance(result, Exception):
            raise result


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first: the rest of a group ended because of it."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def serving(prepare: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
    """Run `prepare` until the log's server is there; a server that is refused for good raises at once."""
    while not stop.is_set():
        try:
            return await prepare()
        except UNREACHABLE as error:
            # A kind of ConnectionError to redis-py, or the cause of one, but no waiting mends it.
            if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
                raise Misconfigured(f"the server does not let us in: {error}") from error
            log.warning("waiting_for_server", error=str(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_FOR_SERVER_SECONDS):
                await stop.wait()
    return None


def keep_what_is_loaded() -> None:
    """Spare the collector what lives until the end: under load it would look at all modules again and again.

    And let it look less often than its 700 new objects, which are those of a few requests under way and no garbage.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_OBJECTS)

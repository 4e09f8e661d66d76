"""Supervisor: processes of this program that are kept running, and the workers of one service that share its port.

Owns their start, restart and end. What a process does is its module's business, what it tells `worker`'s.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from shared.config import PREFIX, Config
from shared.errors import Misconfigured
from shared.lifecycle import run_until
from shared.metrics import forget_gauges, shared_metrics
from shared.ports import held_ports
from shared.worker import LISTENING, REFUSED, arguments

log = structlog.get_logger()

RESTART_SECONDS = 0.5
RESTART_SECONDS_MAX = 10.0
# Who ran for so long did not fail in its start: its next failure is another one.
SETTLED_SECONDS = 60.0
# Beyond the drain time, to close what is left; who takes longer is killed.
CLOSING_SECONDS = 5.0


def restart_delay(last: float | None, *, ran_seconds: float) -> float:
    """How long to wait before a process is started again: the longer, the oftener it failed without ever settling."""
    if last is None or ran_seconds > SETTLED_SECONDS:
        return RESTART_SECONDS
    return min(2 * last, RESTART_SECONDS_MAX)


def environment_of(config: Config, *, settings: Collection[str] = Config.__struct_fields__) -> dict[str, str]:
    """This process's environment with these settings as they are here, and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    # A child imports what this process did, not what happens to lie in the current directory.
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    imports = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
    values = {PREFIX + name.upper(): getattr(config, name) for name in settings}
    return inherited | imports | {name: str(value) for name, value in values.items() if value is not None}


class Child:
    """A process of `module`, started again whenever it ends; `name` is its worker's."""

    def __init__(self, module: str, name: str, environment: Mapping[str, str], *, drain_seconds: float) -> None:
        self.name = name
        self.listens = asyncio.Event()
        self.url = ""
        self._listened_once = False
        self._module = module
        self._environment = environment
        self._stop_seconds = drain_seconds + CLOSING_SECONDS

    async def run(self, *, refusable: bool = False) -> None:
        """Until cancelled; the process drains then. `refusable`: Misconfigured with what it refuses before it ever listened."""
        delay: float | None = None
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            try:
                code, why = await self._run_once()
            except OSError as error:
                # No process or descriptor is to be had at the moment; those that run are not to end for it.
                log.warning("worker_not_started", worker=self.name, error=repr(error))
                code, why = None, None
            if why is not None and refusable and not self._listened_once:
                raise Misconfigured(why)
            delay = restart_delay(delay, ran_seconds=clock() - started)
            log.error("worker_ended", worker=self.name, exit_code=code, refused=why, restart_in_seconds=delay)
            await asyncio.sleep(delay)

    async def _run_once(self) -> tuple[int, str | None]:
        """The exit code, and what was refused. Raises OSError where nothing could be started."""
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", self._module, *arguments(self.name, theirs.fileno())),
                    env=self._environment,
                    pass_fds=[theirs.fileno()],
                    # A terminal's Ctrl-C reaches the supervisor, which ends its processes in their order.
                    start_new_session=True,
                )
            try:
                refused = await self._listen(reader)
                return await process.wait(), refused
            except asyncio.CancelledError:
                await self._stop(process)
                raise
        finally:
            writer.close()
            self.listens.clear()
            forget_gauges(self.name)

    async def _listen(self, reader: asyncio.StreamReader) -> str | None:
        """What the process says until it ends; gives what it refused."""
        refused = None
        async for line in reader:
            word, _, text = line.decode().rstrip("\n").partition(" ")
            if word == LISTENING:
                self.url, self._listened_once = text, True
                self.listens.set()
            elif word == REFUSED:
                refused = text
        return refused

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._stop_seconds):
                    await process.wait()
            except TimeoutError:
                log.warning("worker_killed", worker=self.name, after_seconds=self._stop_seconds)
                process.kill()
                await process.wait()


async def keep_all(workers: Sequence[Child], *, on_listening: Callable[[str], Awaitable[None]]) -> None:
    """Keep all workers of one service until cancelled; they drain side by side then.

    `on_listening` is called once all listen. Raises Misconfigured (in a group) with what the first of them refuses.
    """
    first, *others = workers
    async with asyncio.TaskGroup() as group:
        # Alone at first: what it refuses all would, and once is enough.
        group.create_task(first.run(refusable=True))
        await first.listens.wait()
        for worker in others:
            group.create_task(worker.run())
        for worker in others:
            await worker.listens.wait()
        await on_listening(first.url)


async def supervise(service: str, config: Config, stop: asyncio.Event, *, workers: int) -> None:
    """Run several processes of a service on one port until `stop`. Raises Misconfigured for what the first of them refuses."""
    with shared_metrics(), held_ports(config) as held:
        environment = environment_of(held)
        children = [
            Child(f"services.{service}", str(number), environment, drain_seconds=config.drain_seconds)
            for number in range(1, workers + 1)
        ]

        async def listening(url: str) -> None:
            log.info("workers_listening", url=url, workers=workers)

        await run_until(stop, keep_all(children, on_listening=listening))

"""`dateline up`: the embedded server, writer, projector and gateway as one installation in one process tree.

Owns how they are put together: the projector is a child of its own so that folding and serving do not take turns, and on a
machine with cores to spare so are several workers that each serve writer and gateway on the one port (`serving`).
"""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

from services.cli.data_dir import TOKEN_FILE, DataDir
from services.cli.embedded import EmbeddedServer
from services.cli.heads import HEADS_FILE, admit_embedded
from services.cli.serving import serve
from shared.config import Config
from shared.errors import Misconfigured
from shared.lifecycle import first_error
from shared.metrics import Metrics, shared_metrics
from shared.ports import held_ports
from shared.supervisor import Child, environment_of, keep_all

log = structlog.get_logger()

TOKEN_BYTES = 24
WORKERS_MAX = 4
# The token is no business of the projector's, and `up` answers for it.
OF_PROJECTOR = ("redis_url", "key_prefix", "log_level", "log_format", "drain_seconds")


class Installation:
    """A running installation. `first` says that its data directory is new."""

    def __init__(self, url: str, ops_token: str, *, first: bool, parts: "asyncio.Task[None]") -> None:
        self.url = url
        self.ops_token = ops_token
        self.first = first
        self._parts = parts

    async def wait(self) -> None:
        """Returns never while all is well; raises when a part of the installation fails."""
        await asyncio.shield(self._parts)


@asynccontextmanager
async def installation(config: Config, *, data_dir: Path) -> AsyncIterator[Installation]:
    """Start everything, and yield once it listens; at the end drain, and stop in the order of the data's way.

    Raises DataDirInUse, ServerBinaryMissing, EmbeddedServerFailed or Misconfigured.
    """
    async with AsyncExitStack() as stack:
        lock = stack.enter_context(DataDir.lock(data_dir))
        ops_token, first = _ops_token(config, lock.path)
        server = None
        if config.redis_url is None:
            binary = Path(config.server_binary) if config.server_binary else None
            server = await EmbeddedServer.start(lock, binary=binary)
            stack.push_async_callback(server.stop)
            log.info("server_started", server=server.name, version=server.version)
            await admit_embedded(server.url, lock.path, key_prefix=config.key_prefix)
        config = msgspec.structs.replace(
            config, redis_url=server.url if server else config.redis_url, ops_token=ops_token
        )
        # All its processes show their metrics as one.
        stack.enter_context(shared_metrics())
        workers = config.workers or workers_for(_cores())
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def on_listening(url: str) -> None:
            listening.set_result(url)

        async def front() -> None:
            if workers == 1:
                heads = lock.path / HEADS_FILE if server is not None else None
                metrics = Metrics(shared_as="up")
                await serve(config, metrics, heads=heads, shares_port=False, on_listening=on_listening)
            else:
                with held_ports(config) as held:
                    environment = environment_of(held)
                    names = [str(number) for number in range(1, workers + 1)]
                    children = [_child("services.cli.serving", name, environment, config) for name in names]
                    await keep_all(children, on_listening=on_listening)

        async def parts() -> None:
            async with asyncio.TaskGroup() as group:
                projector = _child(
                    "services.projector", "projector", environment_of(config, settings=OF_PROJECTOR), config
                )
                behind = [group.create_task(projector.run())]
                if server is not None:
                    behind.append(group.create_task(_watch(server)))
                try:
                    # In the group's own task: cancelled first, and what it needs to drain still runs.
                    await front()
                finally:
                    for task in behind:
                        task.cancel()

        running = asyncio.create_task(parts())
        try:
            waited: set[asyncio.Future[Any]] = {running, listening}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            yield Installation(config.public_url or listening.result(), ops_token, first=first, parts=running)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await _ended(running)


async def _ended(running: "asyncio.Task[None]") -> None:
    """Wait for the parts to drain and end; what made them fail was raised by `wait` already, or is now."""
    try:
        await running
    except BaseExceptionGroup as group:
        raise first_error(group) from None


def _ops_token(config: Config, data_dir: Path) -> tuple[str, bool]:
    """The token given, else the one kept in the data directory, else a new one; kept before anything listens."""
    file = data_dir / TOKEN_FILE
    kept = file.read_text(encoding="ascii").strip() if file.exists() else None
    token = config.ops_token or kept or secrets.token_urlsafe(TOKEN_BYTES)
    if token != kept:
        new = file.with_name(TOKEN_FILE + ".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
            out.write(token + "\n")
        new.rename(file)
    return token, kept is None


async def _watch(server: EmbeddedServer) -> None:
    code = await server.wait()
    raise Misconfigured(f"the embedded server ended with exit code {code}; its log is beside the data")


def _child(module: str, name: str, environment: Mapping[str, str], config: Config) -> Child:
    return Child(module, name, environment, drain_seconds=config.drain_seconds)


def workers_for(cores: int) -> int:
    """The log's server and the projector need a core each; more processes than a few would only read the frames once more."""
    return 1 if cores <= 3 else min(cores - 2, WORKERS_MAX)


def _cores() -> int:
    """Those that this process may use; one where the system does not share a port out evenly."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1

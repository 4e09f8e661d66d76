"""`dateline up`: the embedded server, writer, projector and gateway as one installation in one process tree.

Owns how they are put together: the route tables of writer and gateway join in one application of this process, the projector
is a child of its own so that folding and serving do not take turns. Holds no rules of the services.
"""

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

from services.cli.children import ending_with_its_owner
from services.cli.data_dir import DataDir
from services.cli.embedded import EmbeddedServer
from services.cli.heads import admit_embedded, keep_heads
from services.gateway.service import Gateway
from services.writer.service import Writer
from shared.config import PREFIX, Config
from shared.errors import Misconfigured
from shared.http import application
from shared.lifecycle import first_error, serving
from shared.listening import listen
from shared.metrics import Metrics

log = structlog.get_logger()

TOKEN_FILE = "ops.token"  # noqa: S105  the name of the file, not a token
TOKEN_BYTES = 24
RESTART_SECONDS = 0.5
RESTART_SECONDS_MAX = 10.0
STOP_SECONDS = 10.0


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
        metrics = Metrics()
        writer, gateway = Writer(config, metrics), Gateway(config, metrics)
        stack.push_async_callback(writer.close)
        stack.push_async_callback(gateway.close)
        for prepare in (writer.prepare, gateway.prepare):
            await serving(prepare, asyncio.Event())
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def on_listening(url: str) -> None:
            listening.set_result(url)

        async def parts() -> None:
            async with asyncio.TaskGroup() as group:
                behind = [group.create_task(_keep_projector(config)), group.create_task(gateway.run())]
                behind.append(group.create_task(writer.run()))
                if server is not None:
                    behind.append(group.create_task(keep_heads(lock.path, writer.witness)))
                    behind.append(group.create_task(_watch(server)))
                try:
                    # In the group's own task: cancelled first, and what it needs to drain still runs.
                    await listen(
                        application(
                            [*writer.routes, *gateway.routes],
                            metrics=metrics,
                            checks={**writer.checks, **gateway.checks},
                            at_hand=gateway.at_hand,
                        ),
                        host=config.listen_host,
                        port=config.listen_port,
                        drain=gateway.drain,
                        drain_seconds=config.drain_seconds,
                        on_listening=on_listening,
                    )
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


async def _keep_projector(config: Config) -> None:
    """Run the projector as a child, and start it again whenever it ends; SIGTERM drains it when this is cancelled."""
    delay = RESTART_SECONDS
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        process = await asyncio.create_subprocess_exec(
            *ending_with_its_owner([sys.executable, "-m", "services.projector"]),
            env=_environment(config),
            # A terminal's Ctrl-C reaches our own drain, which ends the child after the readers.
            start_new_session=True,
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _stop(process)
            raise
        log.error("projector_ended", exit_code=code, restart_in_seconds=delay)
        await asyncio.sleep(delay)
        delay = RESTART_SECONDS if loop.time() - started > 60 else min(2 * delay, RESTART_SECONDS_MAX)


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _environment(config: Config) -> dict[str, str]:
    """This process's environment with the settings as they are here; the token is no business of the projector's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    shared = ("redis_url", "key_prefix", "log_level", "log_format", "drain_seconds")
    # The child imports what this process did, not what happens to lie in the current directory.
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    imports = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
    return inherited | imports | {PREFIX + name.upper(): str(getattr(config, name)) for name in shared}

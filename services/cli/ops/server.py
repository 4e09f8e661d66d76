"""The Redis that operators' verbs talk to: one given by URL, or that of a data directory whose `up` runs or has stopped.

Owns the flags and the connection. A stopped `up`'s server is started for the verb alone, under the directory's lock, and
stopped again after it.
"""

import asyncio
import getpass
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from services.cli.data_dir import DataDir, DataDirInUse, ServerRecord
from services.cli.embedded import EmbeddedServer, EmbeddedServerFailed, ServerBinaryMissing
from services.cli.heads import admit_embedded
from shared.config import Config
from shared.errors import DatelineError, Misconfigured
from shared.keys import Keys
from shared.logs import configure_logs
from shared.members import Members, process_name
from shared.redis import UNREACHABLE, Redis, check_installation, connect, connect_for_blocking

F = TypeVar("F", bound=Callable[..., Any])


def server_options(verb: F) -> F:
    """The flags that say which installation a verb works on."""
    for option in (
        click.option("--redis-url", help="The log's server; default DATELINE_REDIS_URL."),
        click.option(
            "--data-dir",
            type=click.Path(file_okay=False),
            help="Data of an `up`, running or stopped; default .dateline.",
        ),
    ):
        verb = option(verb)
    return verb


class Server:
    """An open connection to one installation's Redis. `data_dir` is that of an `up`, None for a server given by URL.

    `started_here`: the `up` has stopped, its server runs for this verb alone.
    """

    def __init__(
        self, config: Config, redis: Redis, url: str, data_dir: Path | None, *, started_here: bool = False
    ) -> None:
        self.config = config
        self.redis = redis
        self.url = url
        self.data_dir = data_dir
        self.started_here = started_here
        self.keys = Keys(config.key_prefix)

    @asynccontextmanager
    async def projecting(self) -> AsyncIterator[bool]:
        """See to it that somebody projects: on a stopped system this process does, for as long as the verb needs it.

        Gives whether it does. When its projector ends, so does the verb, with what ended it.
        """
        # A server that was started for this verb remembers projectors that were killed with its last one.
        if not self.started_here and await Members(self.redis, self.keys.projectors).alive():
            yield False
            return
        # Here, not above: most verbs need no projector of their own.
        from services.projector.worker import BLOCK_SECONDS, Projector
        from shared.metrics import Metrics

        blocking = connect_for_blocking(self.url, block_seconds=BLOCK_SECONDS)
        projector = Projector(self.redis, blocking, self.keys, Metrics(), owner=process_name())
        verb = asyncio.current_task()
        task = asyncio.create_task(projector.run())
        task.add_done_callback(lambda ended: None if ended.cancelled() or verb is None else verb.cancel())
        try:
            yield True
        finally:
            task.cancel()
            try:
                with suppress(asyncio.CancelledError):
                    await task
            except BaseExceptionGroup as group:
                # A task group wraps what ended one of its tasks.
                raise _first(group) from group
            finally:
                await blocking.aclose()


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def operator() -> str:
    """Who acts, for the record: the system's user; a container may run under a number that has no name."""
    try:
        return f"ops:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"ops:uid-{os.getuid()}"


@asynccontextmanager
async def opened(redis_url: str | None, data_dir: str | None, *, read_only: bool = False) -> AsyncIterator[Server]:
    """The installation's server; `read_only` writes nothing to it, so that it may be a replica.

    Raises DatelineError, or what the embedded server raises when it does not start."""
    config = Config.load(os.environ, {"redis_url": redis_url, "data_dir": data_dir})
    # Before anything is logged: standard output is the verb's.
    configure_logs(config, service="ops")
    if config.redis_url is not None and data_dir is None:
        async with _connected(config, config.redis_url, None, read_only=read_only) as server:
            yield server
        return
    path = Path(config.data_dir)
    if not (path / "server.json").exists():
        raise Misconfigured(f"there is no data of an `up` in {path}: name it with --data-dir, or give --redis-url")
    try:
        lock = DataDir.lock(path)
    except DataDirInUse:
        record = ServerRecord.read(path)
        if record is None:
            raise Misconfigured(f"{path} is in use, and its server.json cannot be read") from None
        async with _connected(config, record.url, path, read_only=read_only) as server:
            yield server
        return
    with lock:
        binary = Path(config.server_binary) if config.server_binary else None
        embedded = await EmbeddedServer.start(lock, binary=binary)
        try:
            await admit_embedded(embedded.url, path, key_prefix=config.key_prefix)
            async with _connected(config, embedded.url, path, read_only=read_only, started_here=True) as server:
                yield server
        finally:
            await embedded.stop()


@asynccontextmanager
async def _connected(
    config: Config, url: str, data_dir: Path | None, *, read_only: bool, started_here: bool = False
) -> AsyncIterator[Server]:
    redis = connect(url)
    server = Server(config, redis, url, data_dir, started_here=started_here)
    try:
        await check_installation(redis, server.keys, record=not read_only)
        yield server
    finally:
        await redis.aclose()


def run_verb(
    redis_url: str | None,
    data_dir: str | None,
    verb: Callable[[Server], Coroutine[Any, Any, int]],
    *,
    read_only: bool = False,
) -> None:
    """Run a verb and leave with the exit code that it gives; what it cannot do is one sentence and exit code 1."""

    async def run() -> int:
        async with opened(redis_url, data_dir, read_only=read_only) as server:
            return await verb(server)

    try:
        code = asyncio.run(run())
    except (DatelineError, DataDirInUse, EmbeddedServerFailed, ServerBinaryMissing, *UNREACHABLE) as error:
        raise click.ClickException(str(error)) from error
    raise SystemExit(code)

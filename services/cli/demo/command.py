"""`dateline demo`: the command line of the demo.

Owns its options, the throw-away installation and the exit code. What happens on it is `performance`'s, what is printed
`summary`'s business.
"""

import asyncio
import os
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import click

from services.cli.demo.coverage import Coverage, load
from services.cli.demo.performance import Performance
from services.cli.demo.progress import Progress
from services.cli.demo.summary import console, delivery, invitation, summary
from services.cli.problem import Problem, reason_of
from services.cli.services import run_service
from services.cli.target import Failed, explain
from shared.config import Config
from shared.errors import DatelineError
from shared.lifecycle import run_until
from shared.logs import configure_logs

Result = TypeVar("Result")

# Settings that would lead the demo to somebody's real data, or readers to another server.
NOT_FOR_THE_DEMO = frozenset({"DATELINE_REDIS_URL", "DATELINE_DATA_DIR", "DATELINE_OPS_TOKEN", "DATELINE_PUBLIC_URL"})


@click.command()
@click.option(
    "--once", is_flag=True, help="End after the coverage: check what readers got, print a summary, exit 0 or 1."
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    default=1,
    show_default=True,
    help="How fast the coverage runs; 0 is as fast as it goes. At 1 it takes about a minute.",
)
@click.option("--host", metavar="HOST", help="Where to listen.  [default: 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Where to listen.  [default: 8080; with --once any free one]"
)
@click.option("--server-binary", metavar="PATH", help="The Valkey or Redis server to use.")
def demo(once: bool, speed: float, host: str | None, port: int | None, server_binary: str | None) -> None:
    """A live story for a while: several desks publish, readers follow, on data that is thrown away.

    Three feeds in three languages cover one (invented) night. It stays up afterwards until Ctrl-C; with --once it ends and
    says whether every reader got exactly what the pages show.
    """
    environ = {name: value for name, value in os.environ.items() if name not in NOT_FOR_THE_DEMO}
    # The services' own log would run through the progress; what they warn of is shown.
    environ.setdefault("DATELINE_LOG_LEVEL", "warning")
    with tempfile.TemporaryDirectory(prefix="dateline-demo-") as directory:
        overrides: dict[str, Any] = {
            "listen_host": host,
            "listen_port": 0 if port is None and once else port,
            "server_binary": server_binary,
            "data_dir": directory,
        }
        try:
            config = Config.load(environ, overrides=overrides)
        except DatelineError as error:
            raise click.UsageError(str(error)) from error
        configure_logs(config, service="demo")
        verdicts: list[bool] = []

        async def play() -> None:
            # Here, not above: the other verbs need not load every service to start.
            from services.cli.up import installation

            show = _once if once else _staying
            async with installation(config, data_dir=Path(directory)) as running:
                verdicts.append(await _beside(running.wait(), show(load(), running.url, running.ops_token, speed)))

        try:
            run_service(lambda stop: run_until(stop, play()))
        except Problem as problem:
            raise Failed(explain(problem)) from problem
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Failed(f"a desk or a reader lost the server: {reason_of(error)}") from error
    # A demo that a signal ended has given no verdict, and without --once that is its only end.
    if once and verdicts != [True]:
        raise click.exceptions.Exit(1)


async def _once(coverage: Coverage, url: str, token: str, speed: float) -> bool:
    """Whether every reader got what the pages show."""
    performance = Performance(coverage, url=url, token=token, speed=speed)
    await performance.open()
    with Progress(coverage, console(stderr=True)) as progress:
        await performance.run(observe=progress.see)
    report = await performance.report()
    console().print(summary(report))
    return not report.faults


async def _staying(coverage: Coverage, url: str, token: str, speed: float) -> bool:
    """Stay up for ever: what ends it is a signal."""
    performance = Performance(coverage, url=url, token=token, speed=speed)
    await performance.open()
    out = console()
    out.print(invitation(coverage, url=url, token=token), soft_wrap=True)
    with Progress(coverage, console(stderr=True)) as progress:
        await performance.run(observe=progress.see)
    # No verdict here: whoever was invited may be writing, and then the pages hold more than the script.
    out.print(delivery(performance.deliveries_ms()))
    out.print("The coverage is over. Everything stays up until Ctrl-C.")
    return await asyncio.Event().wait()


async def _beside(watch: Coroutine[Any, Any, None], work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work while the watch stands; a watch that ends, as it does when a part of the installation fails, ends it."""
    watching, working = asyncio.create_task(watch), asyncio.create_task(work)
    try:
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            watching.result()
            raise Failed("the installation ended")
        return working.result()
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.gather(watching, working, return_exceptions=True)

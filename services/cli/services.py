"""`dateline up`, `writer`, `projector`, `gateway` and `config`: the commands that run services or show their settings."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from shared.config import PREFIX, Config, sources
from shared.durability import DURABILITIES
from shared.errors import DatelineError
from shared.logs import configure_logs

_SECRET = frozenset({"ops_token"})

_redis_url = click.option("--redis-url", help="Redis >= 7.0 or Valkey >= 8, such as redis://127.0.0.1:6379/0.")
_host = click.option("--host", "listen_host", help="Address to listen on.")
_port = click.option("--port", "listen_port", type=int, help="Port to listen on; 0 takes a free one.")
_workers = click.option("--workers", type=int, help="How many processes share the port; default 1.")
_metrics_port = click.option(
    "--metrics-port", type=int, help="Serve /metrics on this port as well; 0 takes a free one."
)
_durability = click.option("--durability", type=click.Choice(DURABILITIES), help="What acknowledged means.")


@click.command()
@_redis_url
@_host
@_port
@_durability
@click.option("--data-dir", type=click.Path(file_okay=False), help="Where the log lies; default .dateline.")
@click.option("--server-binary", help="A valkey-server or redis-server to run instead of the embedded one.")
@click.option("--public-url", help="The URL under which readers reach this installation.")
@click.option("--workers", type=int, help="How many processes share the port; default by the number of cores.")
@_metrics_port
def up(**flags: Any) -> None:
    """Start everything here: server, writer, projector and gateway."""
    config = load(flags)
    configure_logs(config, service="up")
    run_service(lambda stop: _up(config, stop))


async def _up(config: Config, stop: asyncio.Event) -> None:
    # Here, not above: `dateline config` need not load every service.
    from services.cli.data_dir import TOKEN_FILE
    from services.cli.up import installation
    from shared.lifecycle import run_until

    async def show() -> None:
        async with installation(config, data_dir=Path(config.data_dir)) as running:
            token_file = Path(config.data_dir) / TOKEN_FILE
            click.echo(f"Dateline is up at {running.url}")
            click.echo(f"  readers' pages   {running.url}/live/<feed>")
            click.echo(f"  API              {running.url}/v1/feeds")
            click.echo(f"  data             {config.data_dir} (the ops token is in {token_file})")
            if running.first:
                click.echo(f"  ops token        {running.ops_token}")
            click.echo("Open a feed and publish into it:")
            click.echo(_curl(running.url, "PUT", "/v1/feeds/first", '{"title":"First feed"}', token_file))
            click.echo(_curl(running.url, "POST", "/v1/feeds/first/entries", '{"headline":"It is on"}', token_file))
            await running.wait()

    await run_until(stop, show())


def _curl(url: str, method: str, path: str, body: str, token_file: Path) -> str:
    return (
        f'  curl -X {method} {url}{path} -H "Authorization: Bearer $(cat {token_file})" '
        f"-H 'Content-Type: application/json' -d '{body}'"
    )


@click.command()
@_redis_url
@_host
@_port
@_durability
@_workers
@_metrics_port
def writer(**flags: Any) -> None:
    """Run one writer: commands in, positions out."""
    _serve("writer", flags)


@click.command()
@_redis_url
@_host
@click.option("--port", "listen_port", type=int, help="Serve health and metrics on this port; default: none.")
@_metrics_port
def projector(**flags: Any) -> None:
    """Run one projector: log in, read models out."""
    from services.projector.service import run

    config = load(flags)
    configure_logs(config, service="projector")
    with_http = flags["listen_port"] is not None or PREFIX + "LISTEN_PORT" in os.environ
    run_service(lambda stop: run(config, stop, with_http=with_http))


@click.command()
@_redis_url
@_host
@_port
@click.option("--public-url", help="The URL under which readers reach this gateway.")
@_workers
@_metrics_port
def gateway(**flags: Any) -> None:
    """Run one gateway: read models in, bytes out."""
    _serve("gateway", flags)


def _serve(service: str, flags: dict[str, Any]) -> None:
    config = load(flags)
    configure_logs(config, service=service)
    workers = config.workers or 1
    if workers == 1:
        run = import_module(f"services.{service}.service").run
        run_service(lambda stop: run(config, stop))
    else:
        # Here, not above; and not the service either, which only its workers load.
        from shared.supervisor import supervise

        run_service(lambda stop: supervise(service, config, stop, workers=workers))


@click.command("config")
def show_config() -> None:
    """List every setting, its value and where it came from."""
    try:
        settings = sources(os.environ).settings
    except DatelineError as error:
        raise click.ClickException(str(error)) from error
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for name, value, source in settings:
        shown = "" if value is None else "(set, not shown)" if name in _SECRET else str(value)
        table.add_row(PREFIX + name.upper(), shown, source)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def load(flags: dict[str, Any]) -> Config:
    """The configuration with a command's flags; a setting that is not valid is a usage error."""
    try:
        return Config.load(os.environ, flags)
    except DatelineError as error:
        raise click.UsageError(str(error)) from error


def run_service(program: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run a program until a signal stops it; its own errors end with one line and exit code 1."""
    # Here, not above: they come with the embedded server and the HTTP server.
    from services.cli.data_dir import DataDirInUse
    from services.cli.embedded import EmbeddedServerFailed, ServerBinaryMissing
    from shared.lifecycle import keep_what_is_loaded, stop_on_signals

    async def run() -> None:
        async with stop_on_signals() as stop:
            await program(stop)

    keep_what_is_loaded()
    try:
        asyncio.run(run())
    except (DatelineError, DataDirInUse, EmbeddedServerFailed, ServerBinaryMissing, OSError) as error:
        raise click.ClickException(str(error)) from error

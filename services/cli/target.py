"""Which server a newsroom verb talks to, with which token, and how its failures read.

Owns `--url`, `--token`, `--data-dir`, the exit code 1 and its one sentence. What is asked of the server is each verb's own.
"""

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import aiohttp
import click
from stamina.instrumentation import RetryDetails, get_on_retry_hooks, set_on_retry_hooks

from services.cli.client import DatelineClient
from services.cli.data_dir import TOKEN_FILE
from services.cli.problem import Problem, reason_of
from services.cli.terminal import plain

URL_DEFAULT = "http://127.0.0.1:8080"

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")


class Target(NamedTuple):
    url: str
    token: str | None

    def client(self) -> DatelineClient:
        return DatelineClient(self.url, self.token)


class Failed(click.ClickException):
    """A verb that did not do what it was asked: one message on stderr, exit code 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"dateline: {self.message}", err=True)


def url_option(command: Command) -> Command:
    return click.option(
        "--url",
        envvar="DATELINE_URL",
        show_envvar=True,
        default=URL_DEFAULT,
        show_default=True,
        metavar="URL",
        help="The server.",
    )(command)


def token_option(command: Command) -> Command:
    return click.option(
        "--token",
        envvar="DATELINE_TOKEN",
        show_envvar=True,
        metavar="TOKEN",
        help="Better given as a variable: arguments can be read by others on this machine.",
    )(command)


def desk_options(command: Command) -> Command:
    """What every verb of a desk takes beside its own options."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the document instead.")
    return url_option(token_option(_data_dir_option(as_json(command))))


def _data_dir_option(command: Command) -> Command:
    return click.option(
        "--data-dir",
        envvar="DATELINE_DATA_DIR",
        show_envvar=True,
        default=".dateline",
        show_default=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="Without a token: where a server on this machine keeps its ops.token.",
    )(command)


def target(*, url: str, token: str | None, data_dir: Path | None = None) -> Target:
    """The server and the token to use. The token in the data dir is only ever sent to this machine."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise click.UsageError(f"{url!r} is not the URL of a server, such as {URL_DEFAULT}")
    if not token and data_dir is not None and _is_local(parts.hostname):
        with suppress(OSError):
            token = (data_dir / TOKEN_FILE).read_text(encoding="utf-8").strip()
    return Target(url, token or None)


def run(work: Coroutine[Any, Any, Result], *, url: str) -> Result:
    """Run a verb to its end; what the server refuses, and a server out of reach, become one sentence and exit code 1."""
    before = get_on_retry_hooks()
    set_on_retry_hooks([_say_again])
    try:
        return asyncio.run(work)
    except Problem as problem:
        raise Failed(explain(problem)) from problem
    except TimeoutError as error:
        raise Failed(f"{url} does not answer") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Failed(f"cannot reach {url}: {plain(reason_of(error))}") from error
    finally:
        set_on_retry_hooks(before)


def explain(problem: Problem) -> str:
    """A problem as people read it: what it is, then every field with its path."""
    lines = [plain(problem.detail)]
    if problem.errors:
        lines = [
            "not accepted",
            *(f"  {plain(error.path or '/')}: {plain(error.message)}" for error in problem.errors),
        ]
    if problem.status == 401:
        lines.append("  set DATELINE_TOKEN, or --data-dir to that of a server on this machine")
    if problem.status >= 500 and problem.request_id:
        lines.append(f"  request {plain(problem.request_id)}")
    return "\n".join([f"{lines[0]} ({problem.status} {plain(problem.code)})", *lines[1:]])


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _say_again(details: RetryDetails) -> None:
    click.echo(f"dateline: {plain(reason_of(details.caused_by))}; again in {details.wait_for:.1f} s", err=True)

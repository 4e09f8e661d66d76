"""`dateline ops quarantine`: events that could not be folded: seen, tried again, or given up.

Owns the commands and what they print. What they do is `services.projector.quarantine`'s.
"""

from collections.abc import Mapping
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from services.cli.ops.building import watch
from services.cli.ops.look import known_feeds
from services.cli.ops.server import Server, operator, run_verb, server_options
from services.cli.terminal import escaped_json, plain
from services.projector.quarantine import Quarantine
from shared.errors import FeedNotFound
from shared.instants import instant_of
from shared.ndjson import line_of
from shared.position import Position
from shared.quarantine import QuarantineRecord
from shared.redis import command


class PositionType(click.ParamType[Position]):
    name = "position"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Position:
        try:
            return value if isinstance(value, Position) else Position.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


@click.group()
def quarantine() -> None:
    """Events that could not be folded: the feed goes on without them until they are tried again."""


@quarantine.command("list")
@click.argument("feed", required=False)
@as_json_option
@server_options
def list_records(feed: str | None, *, as_json: bool, redis_url: str | None, data_dir: str | None) -> None:
    """List what is in quarantine, of one feed or of all; discarded events too."""

    async def run(server: Server) -> int:
        if feed is not None and not await command(server.redis, "EXISTS", server.keys.feed(feed).head):
            raise FeedNotFound(feed)
        feeds = [feed] if feed is not None else await known_feeds(server.redis, server.keys)
        its = Quarantine(server.redis, server.keys)
        found = [(name, record) for name in feeds for record in await its.records(name)]
        if as_json:
            _print({"events": [_facts(name, record) for name, record in found]})
            return 0
        table = Table("feed", "position", "event", "entry", "recorded", "why", "discarded", box=None, pad_edge=False)
        for name, record in found:
            table.add_row(*(plain(cell) for cell in _cells(name, record)))
        if found:
            Console(soft_wrap=True, markup=False, highlight=False).print(table)
        else:
            click.echo("Nothing is in quarantine.")
        return 0

    run_verb(redis_url, data_dir, run)


@quarantine.command()
@click.argument("feed")
@click.argument("position", type=PositionType())
@as_json_option
@server_options
def show(feed: str, position: Position, *, as_json: bool, redis_url: str | None, data_dir: str | None) -> None:
    """Show one event in quarantine: why, and the event itself, envelope and content as the log has them."""

    async def run(server: Server) -> int:
        its = Quarantine(server.redis, server.keys)
        record = await its.record(feed, position)
        event = msgspec.json.decode(line_of(await its.event(feed, position)))
        facts = _facts(feed, record) | {"envelope": event["envelope"], "content": event["content"]}
        if as_json:
            _print(facts)
        else:
            for name, value in facts.items():
                click.echo(
                    f"{name}: {plain(value) if isinstance(value, str) else escaped_json(_json(value, indent=2))}"
                )
        return 0

    run_verb(redis_url, data_dir, run)


@quarantine.command()
@click.argument("feed")
@click.argument("position", type=PositionType())
@as_json_option
@server_options
def retry(feed: str, position: Position, *, as_json: bool, redis_url: str | None, data_dir: str | None) -> None:
    """Fold the event after all, in its own place: rebuild the feed with it, and raise the epoch, so that readers learn of it.

    Exit code 1, with why, when it still does not fold; then nothing has changed.
    """

    async def run(server: Server) -> int:
        async with server.projecting():
            await Quarantine(server.redis, server.keys).retry(feed, position, by=operator())
            [build] = (await watch(server, [feed])).values()
        done = build.state == "flipped"
        if as_json:
            _print({"feed": feed, "position": str(position), "repaired": done, "build": build.as_json()})
        elif done:
            click.echo(f"{feed}: {position} is folded; readers start over in a new epoch.")
        else:
            click.echo(f"{feed}: {position} stays in quarantine: {plain(build.detail)}", err=True)
        return int(not done)

    run_verb(redis_url, data_dir, run)


@quarantine.command()
@click.argument("feed")
@click.argument("position", type=PositionType())
@click.option("--reason", required=True, help="Why the feed can do without the event, for the record.")
@as_json_option
@server_options
def discard(
    feed: str, position: Position, *, reason: str, as_json: bool, redis_url: str | None, data_dir: str | None
) -> None:
    """Give an event up: it stays skipped, its record is kept with the reason, and no alarm rings for it any more."""

    async def run(server: Server) -> int:
        record = await Quarantine(server.redis, server.keys).discard(feed, position, reason=reason, by=operator())
        if as_json:
            _print(_facts(feed, record))
        elif record.discarded is not None:
            why = plain(record.discarded.reason)
            click.echo(f"{feed}: {position} is discarded since {instant_of(record.discarded.at)}: {why}")
        return 0

    run_verb(redis_url, data_dir, run)


def _facts(feed: str, record: QuarantineRecord) -> dict[str, Any]:
    discarded = record.discarded
    return {
        "feed": feed,
        "position": record.position,
        "reason": record.reason,
        "type": record.type,
        "entry": record.entry,
        "recorded_at": instant_of(record.recorded_at),
        "discarded": discarded and {"reason": discarded.reason, "by": discarded.by, "at": instant_of(discarded.at)},
    }


def _cells(feed: str, record: QuarantineRecord) -> list[str]:
    discarded = f"{record.discarded.reason} ({record.discarded.by})" if record.discarded else ""
    recorded = instant_of(record.recorded_at)
    return [feed, record.position, record.type or "?", record.entry or "", recorded, record.reason, discarded]


def _json(value: Any, *, indent: int = 0) -> str:
    encoded = msgspec.json.encode(value)
    return (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()


def _print(document: Mapping[str, Any]) -> None:
    click.echo(escaped_json(_json(document)))

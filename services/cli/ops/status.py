"""`dateline ops status`: how an installation and its feeds are, and whether anything needs a human.

Owns the command and its two forms of output.
Facts come from `look` and `surroundings`, the verdict from `report`, the tables from `overview`.
"""

import sys
from collections.abc import Sequence

import click
import msgspec
from rich.console import Console

from services.cli.ops.look import feeds_of
from services.cli.ops.overview import show
from services.cli.ops.report import Report
from services.cli.ops.server import Server, run_verb, server_options
from services.cli.ops.surroundings import installation_of

FEEDS_SHOWN = 30
# Without a terminal whose width is known: as wide as the widest table.
COLUMNS = 200


@click.command()
@click.argument("feeds", metavar="[FEED]...", nargs=-1)
@click.option("--limit", type=click.IntRange(min=0), default=FEEDS_SHOWN, show_default=True, help="Feeds in the table.")
@click.option("--shards", is_flag=True, help="Show each shard, too.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON document: every feed, every field.")
@server_options
def status(
    feeds: tuple[str, ...], *, limit: int, shards: bool, as_json: bool, redis_url: str | None, data_dir: str | None
) -> None:
    """Show how server and feeds are, and what needs a human.

    Feeds that lag, are quarantined or being built come first, then the most recently active. Exit code 1 when something needs
    a human, which is then said first: no projector is alive, an event has waited for over 10 s to be folded, an event is in
    quarantine, a build failed, a shard takes no events, or the server cannot keep what it promises.
    """
    named = list(dict.fromkeys(feeds))

    async def run(server: Server) -> int:
        report = Report(await installation_of(server), limit=len(named) or limit)
        if as_json:
            await _print_json(server, named, report)
        else:
            async for feed in feeds_of(server.redis, server.keys, named):
                report.add(feed)
            width = None if sys.stdout.isatty() else COLUMNS
            show(report, Console(width=width, highlight=False), shards=shards)
        return 0 if report.healthy else 1

    run_verb(redis_url, data_dir, run, read_only=True)


async def _print_json(server: Server, named: Sequence[str], report: Report) -> None:
    """One document, written as the feeds are looked at: a line for each, however many there are."""
    write = sys.stdout.write
    separator = f'{{"installation":{_json(report.installation)},\n"feeds":['
    async for feed in feeds_of(server.redis, server.keys, named):
        report.add(feed)
        write(f"{separator}\n{_json(feed)}")
        separator = ","
    rest = {
        "ok": report.healthy,
        "totals": report.totals,
        "troubles": report.troubles,
        "trouble_counts": report.trouble_counts,
    }
    write(f"{'' if report.totals.feeds else separator}],\n{_json(rest)[1:]}\n")


def _json(part: object) -> str:
    return msgspec.json.encode(part).decode()

"""`dateline ops replay`: the events of a feed once more, between two positions or instants, at the pace of then or faster.

Owns the command and its range. What a line says is `event_lines`', when it is due `pace`'s business, and reading archive and
stream as one the log's.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, NamedTuple

import click
import msgspec

from services.cli.ops.event_lines import EventLines
from services.cli.ops.pace import Pace
from services.cli.ops.server import Server, run_verb, server_options
from services.cli.terminal import escaped_json
from shared.documents import is_feed_id
from shared.errors import FeedNotFound
from shared.instants import milliseconds_of, parse_instant
from shared.log import Head, Log
from shared.ndjson import StreamEntry, line_of
from shared.position import ORIGIN, Position


class Place(NamedTuple):
    """An end of the range: a position, or an instant in milliseconds since 1970."""

    position: Position | None
    milliseconds: int | None


class _Place(click.ParamType[Place]):
    name = "position|instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        try:
            return Place(Position.parse(value), None)
        except ValueError:
            pass
        try:
            return Place(None, milliseconds_of(parse_instant(value)))
        except ValueError:
            self.fail(f"{value!r} is neither a position, such as 1-57, nor an instant, such as 2022-01-10T18:38:00Z")


@click.command()
@click.argument("feed")
@click.option("--from", "from_", type=_Place(), help="First event: its position, or the instant from which on.")
@click.option(
    "--to", type=_Place(), help="Last event, itself included: its position, or an instant. Default: the head."
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    help="Faster than it was recorded: 60 is a minute in a second.",
)
@click.option("--fast", is_flag=True, help="All at once.")
@click.option(
    "--json", "as_json", is_flag=True, help="Each event as one line of JSON, as `events` and archives have it."
)
@server_options
def replay(
    feed: str,
    *,
    from_: Place | None,
    to: Place | None,
    speed: float | None,
    fast: bool,
    as_json: bool,
    redis_url: str | None,
    data_dir: str | None,
) -> None:
    """Print the events of FEED once more, at the pace at which they were recorded unless told otherwise.

    Times are those of the feed's own time zone. A position may be of any epoch of the log. Ctrl-C ends it.
    """
    if fast and speed is not None:
        raise click.UsageError("--fast and --speed exclude each other")
    if from_ is not None and to is not None and _reversed(from_, to):
        raise click.UsageError("--from comes after --to")

    async def run(server: Server) -> int:
        return await _replay(server, feed, from_=from_, to=to, speed=None if fast else speed or 1.0, as_json=as_json)

    try:
        run_verb(redis_url, data_dir, run)
    except KeyboardInterrupt:
        # The way a replay at its own pace is often ended.
        return


async def _replay(
    server: Server, feed: str, *, from_: Place | None, to: Place | None, speed: float | None, as_json: bool
) -> int:
    if not is_feed_id(feed):
        raise FeedNotFound(feed)
    log = Log(server.redis, server.keys)
    looked = await log.look(feed, entries=(), pins=False, command=None)
    if looked.head is None:
        raise FeedNotFound(feed)
    for place in (from_, to):
        if place is not None and place.position is not None:
            await log.check_held(feed, place.position, head=looked.head)
    document = msgspec.to_builtins(looked.feed) if looked.feed is not None else None
    lines = EventLines(document, quarantined=await log.quarantined(feed))
    pace = None
    if speed is not None:
        loop = asyncio.get_running_loop()
        pace = Pace(speed=speed, now=loop.time, sleep=asyncio.sleep, announce=_announce)
    try:
        async with aclosing(_events(log, feed, head=looked.head, from_=from_, to=to)) as entries:
            async for entry in entries:
                if pace is not None:
                    await pace.wait(int(entry.fields[b"recorded_at"]))
                if as_json:
                    _print_json(entry)
                else:
                    print(*lines.lines(entry), sep="\n")
                if pace is not None:
                    sys.stdout.flush()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read it has enough, and at its end Python would flush into the closed pipe once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


async def _events(
    log: Log, feed: str, *, head: Head, from_: Place | None, to: Place | None
) -> AsyncGenerator[StreamEntry, None]:
    after, begin = ORIGIN, None
    if from_ is not None and from_.position is not None:
        after = Position(from_.position.epoch, from_.position.n - 1)
    elif from_ is not None:
        begin = from_.milliseconds
    last = to.position if to is not None and to.position is not None else head.position
    end = to.milliseconds if to is not None else None
    async with aclosing(log.read(feed, after=after, to=last)) as entries:
        async for entry in entries:
            recorded_at = int(entry.fields[b"recorded_at"])
            if end is not None and recorded_at > end:
                return
            if begin is None or recorded_at >= begin:
                yield entry


def _reversed(from_: Place, to: Place) -> bool:
    if from_.position is not None and to.position is not None:
        return from_.position > to.position
    if from_.milliseconds is not None and to.milliseconds is not None:
        return from_.milliseconds > to.milliseconds
    return False


def _print_json(entry: StreamEntry) -> None:
    line = line_of(entry)
    if sys.stdout.isatty():
        print(escaped_json(line.decode().rstrip("\n")))
    else:
        # Byte for byte: digests are of what the log holds.
        sys.stdout.buffer.write(line)


def _announce(text: str) -> None:
    click.secho(f"— {text} —", err=True, dim=True)

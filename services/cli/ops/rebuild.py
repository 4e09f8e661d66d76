"""`dateline ops rebuild`: asks for new generations of feeds' read models, and watches until they are in place.

Owns the command. The projectors that own the shards build (`services.projector.builder`); on a stopped system this process
projects itself.
"""

import asyncio
from collections.abc import Sequence

import click
import msgspec

from services.cli.ops.building import watch
from services.cli.ops.look import known_feeds
from services.cli.ops.server import Server, operator, run_verb, server_options
from services.projector.builds import Build, Builds
from shared.errors import FeedNotFound
from shared.redis import command


@click.command()
@click.argument("feeds", metavar="[FEED]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every feed.")
@click.option(
    "--throttle",
    type=click.FloatRange(min=0, min_open=True),
    metavar="EVENTS_PER_SECOND",
    help="Build no faster; each feed by itself. A build that is joined keeps its own pace.",
)
@click.option("--json", "as_json", is_flag=True, help="How each build ended, as one JSON document, at the end.")
@server_options
def rebuild(
    feeds: tuple[str, ...],
    *,
    every: bool,
    throttle: float | None,
    as_json: bool,
    redis_url: str | None,
    data_dir: str | None,
) -> None:
    """Build new read models beside the live ones, from the log, and switch to them; readers notice nothing.

    Ctrl-C ends the watching, not the building. Run again, or twice at once, it joins the build under way. Exit code 1 when a
    feed could not be rebuilt, which is then named; it keeps the read models that it has.
    """
    if bool(feeds) == every:
        raise click.UsageError("Name the feeds, or all of them with --all.")

    async def run(server: Server) -> int:
        named = list(dict.fromkeys(feeds)) or await known_feeds(server.redis, server.keys)
        done = await carry_out(server, named, throttle=throttle)
        if as_json:
            click.echo(msgspec.json.encode({"feeds": [build.as_json() for build in done]}).decode())
        else:
            _tell(done)
        return int(any(build.state == "failed" for build in done))

    run_verb(redis_url, data_dir, run)


async def carry_out(server: Server, feeds: Sequence[str], *, throttle: float | None = None) -> Sequence[Build]:
    """Rebuild the feeds and wait for it; FeedNotFound, before anything is asked, when one is not there."""
    for feed in feeds:
        if not await command(server.redis, "EXISTS", server.keys.feed(feed).head):
            raise FeedNotFound(feed)
    builds = Builds(server.redis, server.keys)
    async with server.projecting() as here:
        for feed in feeds:
            await builds.ask(feed, reason="rebuild", by=operator(), throttle=throttle)
        try:
            return list((await watch(server, feeds)).values())
        except asyncio.CancelledError:
            click.echo(
                "Stopped; the rebuild goes on when a projector runs again."
                if here
                else "No longer watching; the rebuild goes on. The same command watches it again.",
                err=True,
            )
            raise


def _tell(done: Sequence[Build]) -> None:
    failed = [build for build in done if build.state == "failed"]
    for build in failed:
        click.echo(f"{build.feed}: not rebuilt: {build.detail}", err=True)
    events = sum(build.events for build in done)
    click.echo(f"{len(done) - len(failed)} of {len(done)} feeds rebuilt, {events} events.")

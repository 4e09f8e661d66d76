"""`dateline ops restore`: feeds from an archive into an installation that does not have them.

Owns which feeds, the verification before anything is written, and the wait until readers have them. How events are taken over
is `shared.archive.restoring`'s.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import click
import msgspec
from msgspec import Struct

from services.cli.ops.server import Server, run_verb, server_options
from services.cli.progress import Progress
from services.cli.terminal import plain
from shared.archive.archives import Archive, Archives
from shared.archive.objects import Objects
from shared.archive.restoring import Restoring, in_chunks
from shared.archive.segments import Manifest
from shared.documents import is_feed_id
from shared.epochs.admission import Admission
from shared.errors import Corrupted, DatelineError, Misconfigured
from shared.ndjson import CHAIN_START, StreamEntry, chain_over
from shared.position import ORIGIN, Position
from shared.redis import command

LOOK_SECONDS = 0.05


class Report(Struct, frozen=True, omit_defaults=True):
    """What became of one feed; `already` says that it stood there with this very history before."""

    feed: str
    ok: bool
    position: str | None = None
    events: int | None = None
    already: bool = False
    error: str | None = None


@click.command()
@click.argument("feeds", nargs=-1, metavar="[FEED]...")
@click.option("--all", "every", is_flag=True, help="Every feed that is archived there.")
@click.option("--from", "url", required=True, metavar="URL", help="The archive: a folder or s3://bucket/prefix.")
@click.option("--json", "as_json", is_flag=True, help="The reports as one JSON document.")
@server_options
def restore(
    feeds: tuple[str, ...],
    *,
    every: bool,
    url: str,
    as_json: bool,
    redis_url: str | None,
    data_dir: str | None,
) -> None:
    """Bring each FEED back from its archive: same positions, same documents; desks and readers then go on.

    The archive is verified first. A feed appears whole, at the end; interrupted, the same command goes on where it was. A feed
    that is there with other events is left alone, and an error (exit code 1).
    """
    if bool(feeds) == every:
        raise click.UsageError("name the feeds to restore, or give --all")

    async def run(server: Server) -> int:
        names = list(dict.fromkeys(feeds)) or [name for name in await Objects(url).folders() if is_feed_id(name)]
        reports = await carry_out(server, names, url=url, as_json=as_json)
        ok = all(report.ok for report in reports) and bool(reports)
        if as_json:
            click.echo(msgspec.json.encode({"ok": ok, "feeds": reports}))
        elif not reports:
            click.echo(f"there is no archived feed at {plain(url)}", err=True)
        return 0 if ok else 1

    run_verb(redis_url, data_dir, run)


async def carry_out(server: Server, feeds: Sequence[str], *, url: str, as_json: bool) -> list[Report]:
    """Restore the feeds one after the other; one that fails is reported and keeps no other from its turn."""
    reports = []
    archives = Archives(server.redis, server.keys)
    await Admission(server.redis, server.keys).admit()
    with Progress("restoring") as progress:
        async with server.projecting():
            for feed in feeds:
                try:
                    report = await _one(server, archives.at(url, feed), progress)
                except DatelineError as error:
                    report = Report(feed, ok=False, error=error.detail)
                reports.append(report)
                if not as_json:
                    click.echo(line_of(report))
    return reports


async def _one(server: Server, archive: Archive, progress: Progress) -> Report:
    feed = archive.feed
    found = await archive.manifest() if is_feed_id(feed) else None
    if found is None or not found.manifest.segments:
        raise Misconfigured(f"there is no archive of {feed!r} at {archive.url}", feed=feed)
    manifest = found.manifest
    restoring = Restoring(server.redis, server.keys)
    staged = await restoring.staged(feed)
    chain = await _verified(archive, manifest, progress, at=staged.position)
    if not staged.live:
        if chain != staged.chain:
            # Left by a run that brought in another history of this feed.
            await restoring.discard(feed)
            staged = await restoring.staged(feed)
        events = _events(archive, after=staged.position, end=manifest.end)
        async for chunk in in_chunks(events):
            await restoring.stage(feed, chunk)
            progress.show(feed, "restoring", done=chunk[-1].position.n, total=manifest.end.n)
    restored = await restoring.finish(feed, last=manifest.end, chain=manifest.chain, quarantine=manifest.quarantine)
    await _projected(server, feed, manifest.end, progress)
    return Report(feed, ok=True, position=str(manifest.end), events=manifest.end.n, already=not restored)


async def _verified(archive: Archive, manifest: Manifest, progress: Progress, *, at: Position) -> str | None:
    """Read all of the archive and verify it; gives the chain at the position `at`, None where the archive ends before."""
    found = CHAIN_START if at == ORIGIN else None
    for number, segment in enumerate(manifest.segments):
        before = manifest.chain_before(number)
        entries = await archive.entries(segment, chain_before=before)
        if entries is None:
            raise Corrupted(f"the archive's object {archive.url}/{segment.object} is missing", object=segment.object)
        if segment.first_n <= at.n <= segment.end.n:
            found = chain_over(before, entries[: at.n - segment.first_n + 1])
        progress.show(archive.feed, "verifying", done=segment.end.n, total=manifest.end.n)
    return found


async def _events(archive: Archive, *, after: Position, end: Position) -> AsyncGenerator[StreamEntry, None]:
    async for entries in archive.read(after=after, before_n=end.n + 1, to=None):
        for entry in entries:
            yield entry


async def _projected(server: Server, feed: str, end: Position, progress: Progress) -> None:
    """Wait until readers have the whole feed."""
    keys = server.keys.feed(feed)
    n = 0
    while n < end.n:
        active = await command(server.redis, "GET", keys.active)
        if active is not None:
            meta = keys.of_generation(int(active)).meta
            n = Position.parse((await command(server.redis, "HGET", meta, "checkpoint")).decode()).n
            progress.show(feed, "projecting", done=min(n, end.n), total=end.n)
        await asyncio.sleep(LOOK_SECONDS)


def line_of(report: Report) -> str:
    feed = plain(report.feed)
    if report.error is not None:
        return f"{feed}: not restored: {plain(report.error)}"
    what = "is there already" if report.already else "restored"
    return f"{feed}: {what}, {report.events} events up to {report.position}"

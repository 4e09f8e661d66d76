"""`dateline ops archive`: feeds into their archives and, with --trim, out of the server's memory.

Owns which feeds are meant, where they go, and the report. The steps and their order are `shared.archive.archiving`'s and
`shared.archive.trimming`'s.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import Struct

from services.cli.ops.server import Server, run_verb, server_options
from services.cli.progress import Progress
from services.cli.terminal import plain
from shared.archive.archiving import Archived, Archiving
from shared.archive.trimming import Trimmed, Trimming
from shared.errors import DatelineError, Misconfigured
from shared.keys import SHARDS
from shared.log import Log
from shared.redis import command

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Age(click.ParamType[int]):
    """A span of time such as 30d, in milliseconds."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([1-9][0-9]{0,5})([smhdw])", value)
        if found is None:
            self.fail(f"{value!r} is no age: give a number and s, m, h, d or w, such as 30d", param, ctx)
        return int(found[1]) * _SECONDS[found[2]] * 1000


class Report(Struct, frozen=True, omit_defaults=True):
    """What became of one feed. `bytes` are those of the archive's objects; `kept` says why no more was trimmed.

    `former` are the places that it was moved away from: whether a copy stays there is the operator's to say.
    """

    feed: str
    ok: bool
    url: str | None = None
    archived_to: str | None = None
    events: int | None = None
    written_events: int | None = None
    segments: int | None = None
    bytes: int | None = None
    chain: str | None = None
    trimmed_to: str | None = None
    trimmed_events: int | None = None
    kept: str | None = None
    former: tuple[str, ...] = ()
    error: str | None = None


@click.command()
@click.argument("feeds", nargs=-1, metavar="[FEED]...")
@click.option("--closed", is_flag=True, help="Every feed that is closed.")
@click.option("--older-than", type=Age(), help="Every feed without an event for so long, such as 30d.")
@click.option(
    "--to",
    metavar="URL",
    help="A folder or s3://bucket/prefix; default: where the feed's archive is, else DATELINE_ARCHIVE_URL, "
    "else `archive` in the data directory.",
)
@click.option("--trim", is_flag=True, help="Then take from the server's memory what was read back and found the same.")
@click.option("--json", "as_json", is_flag=True, help="The reports as one JSON document.")
@server_options
def archive(
    feeds: tuple[str, ...],
    *,
    closed: bool,
    older_than: int | None,
    to: str | None,
    trim: bool,
    as_json: bool,
    redis_url: str | None,
    data_dir: str | None,
) -> None:
    """Archive each FEED, or those that are --closed and --older-than; exit code 1 when one was not.

    An archive goes on where it ended. Desks, readers and projectors go on meanwhile; rebuild, verify, history and replay read
    archive and stream as one. A feed that is archived elsewhere by now is moved with --to; the old copy stays until you
    delete it, and redactions reach it.
    """
    if bool(feeds) == (closed or older_than is not None):
        raise click.UsageError("name the feeds to archive, or give --closed or --older-than")

    async def run(server: Server) -> int:
        chosen = list(dict.fromkeys(feeds)) or await _chosen(server, closed=closed, older_than_milliseconds=older_than)
        reports = await carry_out(server, chosen, to=to, trim=trim, as_json=as_json)
        ok = all(report.ok for report in reports)
        if as_json:
            click.echo(msgspec.json.encode({"ok": ok, "feeds": reports}))
        elif not reports:
            click.echo("no feed is meant; nothing to archive")
        return 0 if ok else 1

    run_verb(redis_url, data_dir, run)


async def carry_out(server: Server, feeds: Sequence[str], *, to: str | None, trim: bool, as_json: bool) -> list[Report]:
    """Archive the feeds one after the other; one that fails is reported and keeps no other from its turn."""
    reports = []
    archiving, trimming = Archiving(server.redis, server.keys), Trimming(server.redis, server.keys)
    log = Log(server.redis, server.keys)
    with Progress("archiving") as progress:
        for feed in feeds:
            try:
                report = await _one(server, log, archiving, trimming, feed, to=to, trim=trim, progress=progress)
            except DatelineError as error:
                report = Report(feed, ok=False, error=error.detail)
            reports.append(report)
            if not as_json:
                click.echo(line_of(report))
    return reports


async def _one(
    server: Server,
    log: Log,
    archiving: Archiving,
    trimming: Trimming,
    feed: str,
    *,
    to: str | None,
    trim: bool,
    progress: Progress,
) -> Report:
    state = await log.archives.state(feed)
    head = await log.head(feed)
    total = head.position.n if head else 0
    url = to or (None if state is not None else default_place(server))

    def shown(stage: str) -> Any:
        return lambda n: progress.show(feed, stage, done=n, total=total)

    archived = await archiving.archive(feed, url=url, progress=shown("archiving"))
    trimmed = await trimming.trim(feed, progress=shown("verifying and trimming")) if trim else None
    state = await log.archives.state(feed)
    return _report(feed, archived, trimmed, former=state.former if state is not None else ())


def default_place(server: Server) -> str:
    """Where feeds go that have no archive yet; Misconfigured when nothing says."""
    if server.config.archive_url is not None:
        return server.config.archive_url
    if server.data_dir is None:
        raise Misconfigured("no place given: name one with --to or DATELINE_ARCHIVE_URL", setting="archive_url")
    return (Path(server.data_dir).absolute() / "archive").as_uri()


async def _chosen(server: Server, *, closed: bool, older_than_milliseconds: int | None) -> list[str]:
    """The feeds that are meant, by name: both conditions hold where both are given."""
    seconds, _ = await command(server.redis, "TIME")
    chosen = []
    for shard in range(SHARDS):
        names = await command(server.redis, "ZRANGE", server.keys.shard(shard).feeds, 0, -1)
        for feed in (name.decode() for name in names):
            status, recorded_at = await command(
                server.redis, "HMGET", server.keys.feed(feed).head, "status", "recorded_at"
            )
            if status is None or (closed and status != b"closed"):
                continue
            if older_than_milliseconds is None or int(recorded_at) <= int(seconds) * 1000 - older_than_milliseconds:
                chosen.append(feed)
    return sorted(chosen)


def _report(feed: str, archived: Archived, trimmed: Trimmed | None, *, former: tuple[str, ...]) -> Report:
    return Report(
        feed,
        ok=True,
        url=archived.url,
        archived_to=str(archived.archived_to),
        events=archived.events,
        written_events=archived.written_events,
        segments=archived.segments,
        bytes=archived.bytes,
        chain=archived.chain,
        trimmed_to=str(trimmed.trimmed_to) if trimmed and trimmed.trimmed_to.n else None,
        trimmed_events=trimmed.events if trimmed else None,
        kept=trimmed.kept if trimmed else None,
        former=former,
    )


def line_of(report: Report) -> str:
    feed = plain(report.feed)
    if report.error is not None:
        return f"{feed}: not archived: {plain(report.error)}"
    line = (
        f"{feed}: archived to {report.archived_to} ({report.written_events} new of {report.events} events, "
        f"{report.segments} segments, {report.bytes} bytes) at {plain(report.url or '')}"
    )
    if report.trimmed_events is not None:
        line += f"; trimmed {report.trimmed_events} events, the stream begins after {report.trimmed_to or 'nothing'}"
    line += f" ({report.kept})" if report.kept else ""
    return line + (f"; it was at {plain(', '.join(report.former))} before" if report.former else "")

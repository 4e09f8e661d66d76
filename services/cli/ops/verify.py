"""`dateline ops verify`: what stands, byte by byte against a fresh fold of the log; exit code 1 with the differences.

Owns the words of the report. What is compared, and how, is the projector's `verify`.
"""

from collections.abc import Sequence
from functools import partial

import click
import msgspec

from services.cli.ops.server import Server, run_verb, server_options
from services.cli.progress import Progress
from services.cli.terminal import plain
from services.projector.verify.differences import Difference
from services.projector.verify.feed import Report, Stage, verify_feed
from services.projector.verify.found_keys import FoundKeys


@click.command()
@click.argument("feeds", nargs=-1, metavar="[FEED]...")
@click.option("--all", "every", is_flag=True, help="Every feed.")
@click.option("--json", "as_json", is_flag=True, help="The reports as one JSON document.")
@server_options
def verify(feeds: tuple[str, ...], *, every: bool, as_json: bool, redis_url: str | None, data_dir: str | None) -> None:
    """Fold the log of each FEED afresh and compare it with all that stands: exit code 1 with the differences.

    Compared are the live generation (byte by byte), the log itself, head and records of the write side, and the archive.
    Nothing is written to the server, which may be a replica; desks, projectors and readers go on meanwhile. The fold is kept
    in a temporary file (TMPDIR) of about the size of the feed's documents.
    """
    if every == bool(feeds):
        raise click.UsageError("name the feeds to verify, or give --all")

    async def run(server: Server) -> int:
        reports = await carry_out(server, list(dict.fromkeys(feeds)), as_json=as_json)
        if as_json:
            click.echo(msgspec.json.encode({"ok": all(report.ok for report in reports), "feeds": reports}))
        return 0 if all(report.ok for report in reports) else 1

    run_verb(redis_url, data_dir, run, read_only=True)


async def carry_out(server: Server, feeds: Sequence[str], *, as_json: bool) -> list[Report]:
    """Verify the feeds, or all when none is named, and print each report as soon as it stands unless all are wanted as JSON."""
    reports = []
    with FoundKeys(server.redis, server.keys) as found_keys, Progress("verifying") as progress:
        await found_keys.walk(feeds[0] if len(feeds) == 1 else None)
        for feed in feeds or found_keys.feeds():
            report = await verify_feed(
                server.redis, server.keys, feed, found_keys, progress=partial(_show, progress, feed)
            )
            reports.append(report)
            if not as_json:
                click.echo("\n".join(lines_of(report)))
    return reports


def _show(progress: Progress, feed: str, stage: Stage) -> None:
    progress.show(feed, stage.name, done=stage.done, total=stage.total)


def lines_of(report: Report) -> list[str]:
    """One line for a feed that is as it should be, otherwise one more for each difference that is shown."""
    generation = "no generation yet" if report.generation is None else f"generation {report.generation}"
    skipped = f", {report.skipped} in quarantine" if report.skipped else ""
    facts = f"{report.events} events, {report.entries} entries{skipped}, {generation}, checkpoint {report.checkpoint}"
    if report.refused is not None:
        return [f"{report.feed}: not verified: {plain(report.refused)}"]
    if report.ok:
        return [f"{report.feed}: ok, {facts}"]
    lines = [f"{report.feed}: {report.differences_count} differences, {facts}"]
    lines += [_line_of(difference) for difference in report.differences]
    if report.differences_count > len(report.differences):
        lines.append(f"  and {report.differences_count - len(report.differences)} more")
    if report.unjudged:
        lines.append(f"  could not be judged: {', '.join(report.unjudged)}")
    return lines


def _line_of(difference: Difference) -> str:
    stored, folded = ("nothing" if value is None else plain(value) for value in (difference.stored, difference.folded))
    return f"  {difference.what} {plain(difference.which)}: stored is {stored}; the log gives {folded}"

"""What the demo prints: where to look, how far it is, and at the end what readers got.

Owns the words and tables. What they say comes from `performance`.
"""

import statistics
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.cli.demo.coverage import Coverage
from services.cli.demo.performance import FeedReport, ReaderReport, Report
from services.cli.terminal import plain

FAULTS_SHOWN_MAX = 20


def invitation(coverage: Coverage, *, url: str, token: str) -> RenderableType:
    """What to open, and how to take part."""
    first = coverage.feeds[0].id
    pages = [
        Text.assemble("  ", (f"{url}/live/{feed.id}", "bold"), f"  {feed.document.title}") for feed in coverage.feeds
    ]
    publish = (
        f"curl -X POST {url}/v1/feeds/{first}/entries -H 'Authorization: Bearer {token}' "
        f"-H 'Content-Type: application/json' -d '{{\"headline\": \"Seen from the pier\"}}'"
    )
    return Group(
        Text(plain(coverage.story)),
        Text("Open in a browser:"),
        *pages,
        Text("Follow in a terminal:"),
        Text(f"  curl -N '{url}/v1/feeds/{first}/stream?snapshot=5'"),
        Text(f"  DATELINE_URL={url} dateline tail {' '.join(feed.id for feed in coverage.feeds)}"),
        Text("Take part:"),
        Text(f"  {publish}"),
        Text(f"  DATELINE_URL={url} DATELINE_TOKEN={token} dateline publish {first} 'Seen from the pier'"),
    )


def summary(report: Report) -> RenderableType:
    """The end: per feed, per reader, how fast, and whether all of it is right."""
    faults = report.faults
    parts: list[RenderableType] = [_feeds(report.feeds), _readers(report.readers), delivery(report.delivery_ms)]
    if faults:
        parts.append(Text(f"{len(faults)} differences:", style="bold red"))
        parts += [Text(f"  {plain(fault)}") for fault in faults[:FAULTS_SHOWN_MAX]]
        if len(faults) > FAULTS_SHOWN_MAX:
            parts.append(Text(f"  … and {len(faults) - FAULTS_SHOWN_MAX} more"))
    else:
        readers = len(report.readers)
        parts.append(Text(f"All {readers} readers hold exactly what the pages show.", style="bold green"))
    return Group(*parts)


def _feeds(reports: Sequence[FeedReport]) -> Table:
    table = Table(box=SIMPLE, title="Feeds", title_justify="left")
    table.add_column("feed", no_wrap=True)
    for name in ("live", "retracted", "corrected", "pinned", "key events", "position", "conflicts", "pages"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        truth = report.truth
        counts = [
            len(truth.newest),
            len(truth.tombstones),
            sum(entry["revision"] > 1 for entry in truth.newest),
            len(truth.pinned),
            sum(entry["key_event"] for entry in truth.newest),
        ]
        table.add_row(
            report.coverage.id, *map(str, counts), truth.position, str(report.conflicts), _verdict(report.faults)
        )
    return table


def _readers(reports: Sequence[ReaderReport]) -> Table:
    table = Table(box=SIMPLE, title="Readers", title_justify="left")
    table.add_column("feed", no_wrap=True)
    table.add_column("reader", no_wrap=True)
    for name in ("frames", "cuts", "resumes", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        feed = report.seat.feeds[0] if len(report.seat.feeds) == 1 else "all"
        table.add_row(
            feed,
            report.seat.name,
            str(report.frames),
            str(report.cuts),
            str(report.resumes),
            _verdict(report.faults),
        )
    return table


def delivery(milliseconds: Sequence[float]) -> Text:
    if len(milliseconds) < 2:
        return Text("Publish to delivery: not measured")
    cuts = statistics.quantiles(milliseconds, n=20, method="inclusive")
    return Text(
        f"Publish to delivery: p50 {cuts[9]:.1f} ms, p95 {cuts[18]:.1f} ms, over {len(milliseconds)} deliveries"
    )


def _verdict(faults: Sequence[str]) -> Text:
    return Text(f"{len(faults)} wrong", style="bold red") if faults else Text("exact", style="green")


def console(*, stderr: bool = False) -> Console:
    """A console that never takes text for markup, and on a pipe does not cut tables to 80 columns."""
    found = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=140)

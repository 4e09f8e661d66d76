"""The overview that `dateline ops status` shows to people: first what needs them, then the installation, then the feeds.

Owns layout and wording. What is trouble and which feeds come first is `report`'s.
"""

from collections import Counter
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.ops.feed_status import FeedStatus
from services.cli.ops.figures import bytes_text, events_text, seconds_text
from services.cli.ops.installation import Installation
from services.cli.ops.report import Report
from services.cli.terminal import plain


def show(report: Report, console: Console, *, shards: bool) -> None:
    _troubles(report, console)
    for line in _summary(report):
        console.print(Text(line))
    if shards:
        console.print()
        console.print(_shard_table(report.installation))
    worst = report.worst
    if worst:
        console.print()
        console.print(_feed_table(worst, at=report.installation.at))
    if report.totals.feeds > len(worst):
        left = report.totals.feeds - len(worst)
        console.print(Text(f"… and {_count(left, 'more feed')}: name them, or raise --limit", style="dim"))


def _troubles(report: Report, console: Console) -> None:
    if report.healthy:
        console.print(Text("All is well.", style="bold green"))
        return
    console.print(Text("This needs somebody:", style="bold red"))
    for trouble in report.troubles:
        where = f"{trouble.feed}: " if trouble.feed else ""
        console.print(Text(f"  {trouble.code:<11} {where}{plain(trouble.detail)}", style="red"))
    for code, count in report.untold.items():
        console.print(Text(f"  {code:<11} … and {_count(count, 'more feed')}", style="red"))


def _summary(report: Report) -> list[str]:
    found, totals = report.installation, report.totals
    server = found.server
    used = bytes_text(server.memory_used_bytes)
    most = f" of {bytes_text(server.memory_max_bytes)}" if server.memory_max_bytes else ""
    aof = f"AOF {server.aof.last_write}" if server.aof.enabled else "no AOF"
    if server.aof.rewrite_under_way:
        aof += ", being rewritten"
    standing = f"up {seconds_text(server.up_seconds)}" if found.running else "stopped; started for this look alone"
    replicas = f", {_count(server.replicas, 'replica')}" if server.replicas else ""
    held = Counter(shard.holder for shard in found.shards if shard.holder is not None)
    holders = ", ".join(f"{holder} ({count})" for holder, count in sorted(held.items()))
    durability = server.durability or "none to rely on"
    return [
        f"server      {server.name} {server.version}, {server.role}{replicas}, run id {server.run_id[:8]}, {standing}",
        f"            durability {durability}, memory {used}{most}, {aof}",
        f"processes   {_count(len(found.projectors), 'projector')}, {_count(len(found.gateways), 'gateway')}",
        f"shards      {held.total()} of {len(found.shards)} held{': ' + holders if holders else ''}",
        *_epochs(found),
        f"feeds       {totals.feeds:,} with {totals.entries:,} entries; {totals.lagging_feeds:,} lagging, "
        f"{events_text(totals.quarantined_events)} in quarantine, {totals.building_feeds:,} building",
        f"logs        {events_text(totals.log_events)} in memory, {bytes_text(totals.log_memory_bytes)}; "
        f"{_count(totals.archived_feeds, 'feed')} archived, {bytes_text(totals.archive_bytes)}",
    ]


def _epochs(found: Installation) -> list[str]:
    """Why epochs were last raised for the sake of the whole server, and whether it takes events."""
    admissions = [shard.admission for shard in found.shards]
    missing = sum(not admission.admitted for admission in admissions)
    lines = []
    if found.running and missing and found.server.role == "master":
        lines.append(f"events      {missing} of {len(admissions)} shards take none until a writer admits the server")
    raised = max(
        (admission for admission in admissions if admission.raised_at), key=lambda a: a.raised_at or "", default=None
    )
    if raised is not None:
        lines.append(f"epochs      last raised at {raised.raised_at}: {plain(raised.raised_because or '')}")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _table(*columns: str, right: frozenset[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table


def _shard_table(found: Installation) -> Table:
    right = frozenset({"shard", "fence", "left", "feeds", "dirty", "builds"})
    table = _table("shard", "tag", "holder", "fence", "left", "feeds", "dirty", "builds", right=right)
    for shard in found.shards:
        left = f"{shard.seconds_left:.1f} s" if shard.seconds_left is not None else ""
        table.add_row(
            str(shard.shard),
            shard.tag,
            Text(shard.holder or "nobody", style="" if shard.holder or not found.running else "red"),
            str(shard.fence),
            left,
            f"{shard.feeds:,}",
            f"{shard.dirty_feeds:,}",
            f"{shard.builds:,}",
        )
    return table


_COLUMNS = (
    *("feed", "status", "entries", "head", "lag", "gen", "quarantine", "build", "memory", "archived to", "archive"),
    *("last event", "epoch"),
)
_RIGHT = frozenset({"entries", "head", "lag", "gen", "memory", "archived to", "archive", "last event"})


def _feed_table(feeds: list[FeedStatus], *, at: str) -> Table:
    table = _table(*_COLUMNS, right=_RIGHT)
    now = datetime.fromisoformat(at)
    for feed in feeds:
        table.add_row(
            feed.feed,
            feed.status,
            f"{feed.entries:,}",
            feed.head,
            _lag(feed),
            str(feed.generation) if feed.generation is not None else "none",
            _quarantine(feed),
            _build(feed),
            bytes_text(feed.log.memory_bytes),
            feed.archive.archived_to or "",
            bytes_text(feed.archive.bytes) if feed.archive.bytes is not None else "",
            f"{seconds_text(max(0.0, (now - datetime.fromisoformat(feed.recorded_at)).total_seconds()))} ago",
            Text(_epoch(feed)),
        )
    return table


def _lag(feed: FeedStatus) -> Text:
    if feed.lag_events == 0:
        return Text("0")
    return Text(f"{feed.lag_events:,}, {seconds_text(feed.lag_seconds)}", style="red" if feed.stands else "yellow")


def _quarantine(feed: FeedStatus) -> Text:
    found = feed.quarantine
    parts = [f"{found.open} open"] if found.open else []
    parts += [f"{found.discarded} discarded"] if found.discarded else []
    return Text(", ".join(parts), style="red" if found.open else "dim")


def _build(feed: FeedStatus) -> Text:
    build = feed.build
    if build is None or build.state == "flipped":
        return Text("")
    if build.state == "failed":
        return Text("failed", style="red")
    return Text(f"{build.reason} {build.progress or 0:.0%}", style="yellow")


def _epoch(feed: FeedStatus) -> str:
    epoch = feed.epoch
    if epoch.raised_at is None:
        return ""
    at = datetime.fromisoformat(epoch.raised_at).astimezone(UTC)
    return plain(f"{epoch.number} since {at:%Y-%m-%d %H:%M}Z ({epoch.reason}): {epoch.because}")

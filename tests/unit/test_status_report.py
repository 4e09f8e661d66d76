"""The report of `ops status`: which feeds come first, what needs a human, and that memory is bounded however many feeds."""

import io
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from services.cli.ops.feed_status import (
    LAG_STANDS_SECONDS,
    ArchiveStatus,
    BuildStatus,
    EpochStatus,
    FeedStatus,
    LogSize,
    Quarantine,
)
from services.cli.ops.figures import bytes_text, seconds_text
from services.cli.ops.installation import Admission, Aof, Installation, ProjectorStatus, ServerStatus, ShardStatus
from services.cli.ops.overview import show
from services.cli.ops.report import TOLD_MAX, Report

AOF = Aof(enabled=True, last_write="ok", rewrite_under_way=False, size_bytes=1)
SERVER = ServerStatus(
    name="Valkey", version="9.1.2", role="master", replicas=0, run_id="5f3a" * 10, up_seconds=5, durability="fsync",
    problem=None, memory_used_bytes=1, memory_max_bytes=None, aof=AOF,
)  # fmt: skip
ADMITTED = Admission(True, "2026-01-01T00:00:00.000Z", None, None, None)
SHARDS = [
    ShardStatus(
        shard=n,
        tag=str(n),
        holder="vm:1" if n else None,
        fence=1,
        seconds_left=2.0,
        feeds=1,
        dirty_feeds=0,
        builds=0,
        admission=ADMITTED,
    )
    for n in range(16)
]
RAISING = [
    msgspec.structs.replace(shard, admission=Admission(False, None, "a witness saw 1-9", None, None))
    for shard in SHARDS
]
UNHELD = [msgspec.structs.replace(shard, holder=None, seconds_left=None) for shard in SHARDS]
NO_ARCHIVE = ArchiveStatus(None, None, None, None)
HEALTHY = Installation(
    release="0.1.0", at="2026-01-01T00:00:10.000Z", running=True, data_dir=None, key_prefix="dl", server=SERVER,
    projectors=[ProjectorStatus("vm:1", 1, ["chronological"])], gateways=[], shards=SHARDS,
)  # fmt: skip


def feed(name: str = "story", *, lag: float = 0.0, open_: int = 0, discarded: int = 0, **more: Any) -> FeedStatus:
    facts: dict[str, Any] = {
        "shard": 3, "status": "open", "entries": 2, "head": "1-5", "recorded_at": "2026-01-01T00:00:00.000Z",
        "checkpoint": "1-5", "lag_events": 2 if lag else 0, "lag_seconds": lag, "generation": 1, "fold_version": 1,
        "epoch": EpochStatus(1, None, None, None), "quarantine": Quarantine(open_, discarded),
        "log": LogSize(5, 100, "1-1"), "archive": NO_ARCHIVE, "build": None, **more,
    }  # fmt: skip
    return FeedStatus(feed=name, **facts)


def build(state: str, **more: Any) -> BuildStatus:
    facts: dict[str, Any] = {
        "reason": "rebuild", "by": "ops", "because": None, "generation": 2, "checkpoint": "1-2", "events": 2,
        "progress": 0.4 if state in ("asked", "building") else None, "requested_at": "2026-01-01T00:00:00.000Z",
        "started_at": None, "updated_at": None, "detail": None, **more,
    }  # fmt: skip
    return BuildStatus(state=state, **facts)


def report(*feeds: FeedStatus, limit: int = 30, **more: Any) -> Report:
    made = Report(msgspec.structs.replace(HEALTHY, **more), limit=limit)
    for one in feeds:
        made.add(one)
    return made


def shown(made: Report, *, shards: bool = False) -> str:
    out = io.StringIO()
    show(made, Console(file=out, width=200, highlight=False), shards=shards)
    return out.getvalue()


def server(**more: Any) -> dict[str, Any]:
    return {"server": msgspec.structs.replace(SERVER, **more)}


STANDING = LAG_STANDS_SECONDS + 1


def test_worst_comes_first_then_most_recently_active() -> None:
    feeds = [
        feed("quiet"), feed("busy", recorded_at="2026-01-01T00:00:09.000Z"),
        feed("lags", lag=STANDING), feed("lags-longer", lag=STANDING + 9),
        feed("quarantined", open_=1),
        feed("builds", build=build("building")), feed("built", build=build("flipped")),
        feed("discarded", discarded=1), feed("behind-for-a-moment", lag=0.2),
    ]  # fmt: skip
    expected = ["lags-longer", "lags", "quarantined", "builds", "behind-for-a-moment", "busy"]
    assert [one.feed for one in report(*feeds).worst][:6] == expected
    assert [one.feed for one in report(*reversed(feeds), limit=3).worst] == expected[:3]
    assert report(*feeds, limit=0).worst == []


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 3), st.integers(0, 2)), max_size=30), st.integers(0, 10))
def test_what_is_kept_are_the_worst_and_what_is_summed_are_all(rows: list[tuple[float, int, int]], limit: int) -> None:
    feeds = [feed(f"f{n}", lag=lag, open_=found, discarded=gone) for n, (lag, found, gone) in enumerate(rows)]
    made = report(*feeds, limit=limit)
    assert made.worst == sorted(feeds, key=lambda one: one.rank, reverse=True)[:limit]
    totals = made.totals
    assert (totals.feeds, totals.entries, totals.log_events) == (len(feeds), 2 * len(feeds), 5 * len(feeds))
    assert totals.lagging_feeds == sum(lag > 0 for lag, _, _ in rows)
    assert totals.lag_seconds == max((lag for lag, _, _ in rows), default=0)
    assert (totals.quarantined_events, totals.discarded_events) == (
        sum(found for _, found, _ in rows),
        sum(gone for _, _, gone in rows),
    )
    assert made.trouble_counts.get("lag", 0) == sum(lag > LAG_STANDS_SECONDS for lag, _, _ in rows)
    assert made.trouble_counts.get("quarantine", 0) == totals.quarantined_feeds
    assert made.healthy == (not made.trouble_counts)
    told = [sum(trouble.code == code for trouble in made.troubles) for code in made.trouble_counts]
    assert told == [min(count, TOLD_MAX) for count in made.trouble_counts.values()]


@pytest.mark.parametrize(
    ("code", "says", "more"),
    [
        ("projectors", "no projector is alive", {"projectors": [], "shards": UNHELD}),
        ("projectors", "every projector that is alive refuses", {"projectors": []}),
        ("epochs", "16 shards take no events until their epochs are raised: a witness", {"shards": RAISING}),
        ("server", "may evict keys", server(problem="the server may evict keys", durability=None)),
        ("server", "append-only file failed", server(aof=msgspec.structs.replace(AOF, last_write="err"))),
        ("server", "95% of the server's memory", server(memory_used_bytes=95, memory_max_bytes=100)),
    ],
)
def test_an_installation_that_needs_somebody_says_why(code: str, says: str, more: dict[str, Any]) -> None:
    made = report(feed(), **more)
    [trouble] = made.troubles
    assert (trouble.code, trouble.feed, made.healthy) == (code, None, False)
    assert says in trouble.detail
    text = shown(made)
    assert text.index(says) < text.index("\nserver  "), "what needs somebody comes first"


@pytest.mark.parametrize(
    ("code", "says", "one"),
    [
        ("lag", "2 events not folded, the oldest for 11 s; shard 3 is held by vm:1", feed(lag=STANDING)),
        ("lag", "nobody holds shard 0, though projectors are alive", feed(lag=STANDING, shard=0)),
        (
            "build",
            "the build (release) failed: its log",
            feed(build=build("failed", reason="release", detail="its log")),
        ),
        ("quarantine", "3 events in quarantine", feed(open_=3, discarded=1)),
        ("quarantine", "1 event in quarantine", feed(open_=1)),
    ],
)
def test_a_feed_that_needs_somebody_says_why(code: str, says: str, one: FeedStatus) -> None:
    made = report(feed("well"), one)
    [trouble] = made.troubles
    assert (trouble.code, trouble.feed, trouble.shard, made.healthy) == (code, "story", one.shard, False)
    assert says in trouble.detail
    assert f"story: {trouble.detail}" in shown(made)


@pytest.mark.parametrize(
    ("one", "more"),
    [
        (feed(), {}),
        (feed(lag=LAG_STANDS_SECONDS), {}),
        (feed(discarded=2), {}),
        (feed(build=build("building")), {}),
        (feed(build=build("flipped")), {}),
        # Whatever it lags, it is folded when the installation is started.
        (feed(lag=STANDING), {"running": False, "projectors": []}),
        (feed(), {"running": False, "shards": RAISING}),
        (feed(), server(durability="memory", aof=Aof(False, "ok", False, None))),
        (feed(), server(memory_used_bytes=90, memory_max_bytes=100)),
    ],
)
def test_what_mends_itself_or_was_decided_needs_nobody(one: FeedStatus, more: dict[str, Any]) -> None:
    made = report(one, **more)
    assert (made.troubles, made.healthy) == ([], True)
    assert shown(made).startswith("All is well.")


def test_of_many_troubles_some_are_told_and_all_are_counted() -> None:
    made = report(*(feed(f"f{n}", lag=STANDING) for n in range(TOLD_MAX + 5)), limit=2)
    assert len(made.troubles) == TOLD_MAX
    assert made.trouble_counts == {"lag": TOLD_MAX + 5}
    text = shown(made)
    assert "… and 5 more feeds\n" in text
    assert f"… and {TOLD_MAX + 3} more feeds: name them" in text


def test_the_overview_shows_shards_when_asked_and_nothing_that_steers_a_terminal() -> None:
    epoch = EpochStatus(2, "2026-01-01T00:00:05.000Z", "epoch", "[bold]a\x1b[2J witness\nsaw more[/bold]")
    text = shown(report(feed(epoch=epoch)), shards=True)
    assert "2 since 2026-01-01 00:00Z (epoch): [bold]a␛[2J witness saw more[/bold]" in text
    assert "\x1b" not in text
    assert text.count("vm:1 ") >= 15
    assert "nobody" in text
    assert "nobody" not in shown(report(feed()))


def test_why_epochs_were_raised_is_said_and_what_takes_no_events() -> None:
    raised = Admission(True, "2026-01-01T00:00:09.000Z", None, "2026-01-01T00:00:08.000Z", "server restarted\x1b[2J")
    other = Admission(False, None, None, "2026-01-01T00:00:07.000Z", "older")
    shards = [msgspec.structs.replace(shard, admission=other if shard.shard else raised) for shard in SHARDS]
    text = shown(report(feed(), shards=shards))
    assert "epochs      last raised at 2026-01-01T00:00:08.000Z: server restarted␛[2J\n" in text
    assert "events      15 of 16 shards take none until a writer admits the server\n" in text
    assert "take none" not in shown(report(feed(), shards=shards, running=False))
    assert "epochs  " not in shown(report(feed()))


def test_a_build_shows_how_far_it_is_and_an_archive_how_far_it_reaches() -> None:
    made = report(
        feed("builds", build=build("building")),
        feed("kept", archive=ArchiveStatus("file:///a", "1-4", "1-3", 2048)),
        feed("kept-too", archive=ArchiveStatus("file:///a", "1-5", None, 1024)),
    )
    assert (made.totals.building_feeds, made.totals.archived_feeds, made.totals.archive_bytes) == (1, 2, 3072)
    rows = {line.split()[0]: line for line in shown(made).splitlines() if line}
    assert " rebuild 40% " in rows["builds"]
    assert " 1-4  2.0 KiB " in rows["kept"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (22334668, "21.3 MiB"), (5 << 40, "5.0 TiB"), (1 << 55, "32768.0 TiB")],
)  # fmt: skip
def test_sizes_are_said_in_the_unit_that_fits(size: int, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (59.6, "60 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"),
     (172800, "2 d")],
)  # fmt: skip
def test_durations_are_said_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text

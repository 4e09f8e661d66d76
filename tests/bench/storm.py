"""A storm: all readers are cut at once and are back at once with Last-Event-ID, while a desk publishes on."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.bench.crowd import build, crowd
from tests.bench.installation import Installation, installation
from tests.bench.machine import cpu_seconds
from tests.bench.table import Given, Table, at_most

READERS = 10_000
ENTRIES_MEANWHILE = 5
LAG = "dateline_loop_lag_seconds"
PROBE_SECONDS = 0.01
# By far enough for a gateway that comes out of the storm at all.
BACK_SECONDS_MAX = 60.0


async def run(table: Table, given: Given) -> None:
    readers = given.readers or READERS
    back: list[float] = []
    lags: list[float] = []
    probes: list[float] = []
    used: list[float] = []
    turned_away: list[float] = []
    asked: Counter[str] = Counter()
    table.title(f"{readers:,} readers cut and back with Last-Event-ID, {given.rounds} times")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = await build("crowd", folder)
        async with (
            installation(folder / "dateline") as running,
            crowd(program, running.port, "/v1/feeds/bench/stream", readers, "whole") as all_,
        ):
            await running.open("bench")
            await all_.come()
            for number in range(given.rounds):
                late = await all_.until(await running.publish("bench"))
                table.check(not late, f"storm {number}: {late} readers lack the entry before it")
                await all_.report()
                commands, buckets = await running.commands(), await running.metric(LAG + "_bucket")
                cpu, began = cpu_seconds(running.pids["gateway"]), time.monotonic()
                async with _probed(running, probes):
                    await all_.ask("cut", 0, readers)
                    last = [await running.publish("bench") for _ in range(ENTRIES_MEANWHILE)][-1]
                    away = await all_.live(BACK_SECONDS_MAX)
                    back.append(time.monotonic() - began)
                used.append((cpu_seconds(running.pids["gateway"]) - cpu) / readers * 1e6)
                if buckets:
                    lags.append(_greatest(buckets, await running.metric(LAG + "_bucket")) * 1000)
                asked += Counter(await running.commands()) - Counter(commands)
                report = await all_.report()
                turned_away.append(report["ended"])
                table.check_report(f"storm {number}", report, ended=True)
                if away:
                    table.note(
                        f"storm {number}: {away:,} readers are not live again within {BACK_SECONDS_MAX:g} s: given up"
                    )
                    break
                late = await all_.until(last)
                table.check(not late, f"storm {number}: {late} readers lack entries")
    table.figure("until the last is live again", back, "s", at_most(5))
    table.figure("gateway's CPU for each", used, "us", digits=0)
    table.figure("answered with bye or cut, and came again", turned_away, "readers", digits=0)
    table.figure("slowest /healthz, from the readers' core", probes, "ms", None if lags else at_most(100), digits=0)
    if lags:
        table.figure("event loop's lag, upper bound by its own histogram", lags, "ms", at_most(100), digits=0)
    each = ", ".join(f"{name} {count / len(back):.0f}" for name, count in asked.most_common(8))
    table.note(f"commands to Redis a storm, publishing included: {sum(asked.values()) / len(back):.0f} ({each})")


@asynccontextmanager
async def _probed(running: Installation, slowest_ms: list[float]) -> AsyncIterator[None]:
    """Asks for /healthz over and over, and adds the milliseconds of the slowest answer, an outstanding one included."""
    slowest, began = 0.0, time.monotonic()

    async def probe() -> None:
        nonlocal slowest, began
        while True:
            began = time.monotonic()
            async with running.session.get(f"{running.read_url}/healthz") as answer:
                await answer.read()
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(PROBE_SECONDS)

    probing = asyncio.create_task(probe())
    try:
        yield
        slowest_ms.append(max(slowest, time.monotonic() - began - PROBE_SECONDS) * 1000)
    finally:
        probing.cancel()


def _greatest(before: dict[str, float], after: dict[str, float]) -> float:
    """The bound of the lowest bucket that everything new is in."""
    new = {float(labels.split('"')[1]): count - before[labels] for labels, count in after.items()}
    return min(bound for bound, count in new.items() if count == max(new.values()))

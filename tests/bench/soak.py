"""A soak: readers come, stall, are cut and go for half an hour while desks publish. A line a minute, then whether memory and open
files of the gateway reach a plateau; that nothing was lost or repeated each reader checks as it goes."""

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.bench.crowd import Crowd, build, crowd
from tests.bench.installation import Installation, installation
from tests.bench.machine import connections, open_files, rss_bytes, settled
from tests.bench.table import Given, Table, at_most

READERS = 1_000
FEEDS = 3
DESKS = 4
ENTRIES_PER_SECOND = 20
ENTRY_BYTES = 1_000
RECEIVE_BYTES = 8_192
CHURN_SECONDS = 0.5
MIB = 1024 * 1024


class Sample(NamedTuple):
    mib: float
    files: int


async def run(table: Table, given: Given) -> None:
    readers = (given.readers or READERS) // FEEDS
    table.title(
        f"soak, {given.minutes:g} minutes: {FEEDS} feeds of {readers} readers who come, stall, are cut and go; {DESKS} desks"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = await build("crowd", folder)
        async with installation(folder / "dateline") as running, _crowds(program, running, readers) as crowds:
            gateway = running.pids["gateway"]
            own = connections(running.port)
            end = time.monotonic() + given.minutes * 60
            heads = dict.fromkeys(crowds, 1)
            async with asyncio.TaskGroup() as group:
                for desk in range(DESKS):
                    group.create_task(_publish(running, heads, end, random.Random(desk)))
                for feed, one in crowds.items():
                    group.create_task(_churn(one, end, random.Random(feed)))
                watching = group.create_task(_watch(table, running, crowds, end))
            for feed, one in crowds.items():
                late = await one.until(heads[feed])
                table.check(not late, f"{feed}: {late} readers do not come to its head {heads[feed]}")
                table.check_report(feed, await one.report(), ended=True)
                await one.ask("leave", 0, one.readers)
            await settled(gateway)
            samples = watching.result()
            third = max(1, len(samples) // 3)
            middle, last = samples[third : 2 * third] or samples, samples[-third:]
            growth = median(sample.mib for sample in last) / median(sample.mib for sample in middle)
            table.figure("gateway's RSS, last third to the one before", [growth], "x", at_most(1.05))
            held = connections(running.port) - own
            table.figure("connections held after all have gone", [held], "", at_most(0), digits=0)


@asynccontextmanager
async def _crowds(program: Path, running: Installation, readers: int) -> AsyncIterator[dict[str, Crowd]]:
    async with AsyncExitStack() as stack:
        crowds = {}
        for feed in (f"soak-{number}" for number in range(FEEDS)):
            await running.open(feed)
            path = f"/v1/feeds/{feed}/stream"
            one = crowd(program, running.port, path, readers, "whole", receive_bytes=RECEIVE_BYTES)
            crowds[feed] = await stack.enter_async_context(one)
        yield crowds


async def _publish(running: Installation, heads: dict[str, int], end: float, rng: random.Random) -> None:
    while time.monotonic() < end:
        feed = rng.choice(sorted(heads))
        heads[feed] = max(heads[feed], await running.publish(feed, size=ENTRY_BYTES))
        await asyncio.sleep(rng.uniform(0, 2 * DESKS / ENTRIES_PER_SECOND))


async def _churn(one: Crowd, end: float, rng: random.Random) -> None:
    """Something befalls a few neighbours each time; who has gone comes back, who stalls reads again, sooner or later."""
    await one.come()
    while time.monotonic() < end:
        first = rng.randrange(one.readers)
        few = rng.randrange(1, 2 + one.readers // 20)
        await one.ask(rng.choice(["stall", "stall", "resume", "cut", "leave", "join"]), first, first + few)
        await asyncio.sleep(CHURN_SECONDS)
    await one.ask("join", 0, one.readers)


async def _watch(table: Table, running: Installation, crowds: dict[str, Crowd], end: float) -> list[Sample]:
    """A sample a minute, of what the gateway holds."""
    samples: list[Sample] = []
    began = time.monotonic()
    while time.monotonic() < end:
        await asyncio.sleep(min(60.0, end - time.monotonic()))
        reports = [await one.report() for one in crowds.values()]
        for feed, report in zip(crowds, reports, strict=True):
            table.check_report(feed, report, ended=True)
        sample = Sample(rss_bytes(running.pids["gateway"]) / MIB, open_files(running.pids["gateway"]))
        samples.append(sample)
        came = sum(report["deliveries"] for report in reports)
        ended = sum(report["ended"] for report in reports)
        p50 = max(report["p50_ms"] for report in reports)
        table.note(
            f"minute {(time.monotonic() - began) / 60:4.1f}: {came:8,} deliveries, p50 {p50:5.1f} ms, "
            f"{ended} streams ended, gateway {sample.mib:.1f} MiB, {sample.files} files"
        )
    return samples

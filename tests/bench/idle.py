"""Readers who only are there: what it costs to connect one, and the memory of the serving process for each.

Processes are fresh each round, since the memory of a process hardly falls after a peak.
"""

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from tests.bench import peers
from tests.bench.crowd import build, crowd
from tests.bench.installation import installation
from tests.bench.machine import Absent, cpu_seconds, rss_bytes, settled
from tests.bench.peers import Subject
from tests.bench.table import Given, Table, at_most

READERS = 10_000
# Served before anything is measured: what a process loads and keeps for its first readers is no reader's.
FIRST_READERS = 100


async def run(table: Table, given: Given) -> None:
    readers = given.readers or READERS
    found: dict[str, list[tuple[float, float]]] = {"dateline": [], "bare aiohttp": [], "nchan": []}
    table.title(f"{readers:,} idle readers, {given.rounds} rounds, each with fresh processes")
    with tempfile.TemporaryDirectory() as name:
        program = await build("crowd", Path(name))
        for number in range(given.rounds):
            folder = Path(name) / str(number)
            async with AsyncExitStack() as stack:
                running = await stack.enter_async_context(installation(folder))
                await running.open("bench")
                found["dateline"].append(await _round(table, program, peers.dateline(running, "bench"), readers))
            async with peers.letting_go(folder) as subject:
                found["bare aiohttp"].append(await _round(table, program, subject, readers))
            try:
                async with peers.nchan(folder) as subject:
                    found["nchan"].append(await _round(table, program, subject, readers))
            except Absent as absent:
                if number == 0:
                    table.note(f"nchan skipped: {absent} is not here")
    for name, figures in found.items():
        if figures:
            connect, rss = zip(*figures, strict=True)
            ours = name == "dateline"
            table.figure(f"connecting a reader: {name}", connect, "us of CPU", at_most(350) if ours else None, digits=0)
            table.figure(f"RSS per idle reader: {name}", rss, "KB", at_most(1) if ours else None)


async def _round(table: Table, program: Path, subject: Subject, readers: int) -> tuple[float, float]:
    """Microseconds of CPU to connect one reader, and KB of memory for each."""
    async with crowd(program, subject.port, subject.path, FIRST_READERS, subject.kind) as first:
        await first.come()
        assert not await first.until(await subject.publish(1, 300))
    await settled(subject.pid)
    async with crowd(program, subject.port, subject.path, readers, subject.kind) as idle:
        rss, cpu = rss_bytes(subject.pid), cpu_seconds(subject.pid)
        await idle.come()
        cpu = cpu_seconds(subject.pid) - cpu
        await settled(subject.pid)
        rss = rss_bytes(subject.pid) - rss
        table.check_report(subject.name, await idle.report())
    return cpu / readers * 1e6, rss / readers / 1024

"""Publish to delivery: from before a desk's POST until a reader has the frame, all processes real, durability memory.

The floor, in the same rounds: what no backend on this stack could do without, an HTTP request that appends to a stream, and
a blocked XREAD whose answer is written to the readers, in one process.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from tests.bench import peers
from tests.bench.crowd import build, crowd
from tests.bench.installation import entry, installation, mark, server_in_memory
from tests.bench.peers import Subject, bare
from tests.bench.table import Given, Table, at_most, ratios

ENTRIES = 200
ENTRY_BYTES = 300
PAUSE_SECONDS = 0.01
GOALS_MS = {1: 3.0, 100: 4.0, 1_000: 9.0}


async def run(table: Table, given: Given) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = await build("crowd", folder)
        async with installation(folder / "dateline") as running, floor(folder / "floor") as bare_hops:
            await running.open("bench")
            table.title(f"POST to SSE, {ENTRIES} entries a round, {given.rounds} rounds in turn with the floor: ms")
            for readers in [given.readers] if given.readers else GOALS_MS:
                found: dict[str, list[tuple[float, float]]] = {"dateline": [], "floor": []}
                for _ in range(given.rounds):
                    for subject in (peers.dateline(running, "bench"), bare_hops):
                        found[subject.name].append(await _round(table, program, subject, readers))
                for name, figures in found.items():
                    p50, p99 = zip(*figures, strict=True)
                    goal = at_most(GOALS_MS[readers]) if name == "dateline" and readers in GOALS_MS else None
                    table.figure(f"{readers:,} readers: {name} p50", p50, "ms", goal)
                    table.figure(f"{readers:,} readers: {name} p99", p99, "ms")
                both = ([p50 for p50, _ in found[name]] for name in ("dateline", "floor"))
                table.figure(f"{readers:,} readers: p50, dateline / floor", ratios(*both), "x")


async def _round(table: Table, program: Path, subject: Subject, readers: int) -> tuple[float, float]:
    """Median and 99th percentile of all deliveries, in milliseconds."""
    async with crowd(program, subject.port, subject.path, readers, subject.kind) as readers_:
        await readers_.come()
        late = await readers_.until(await subject.publish(1, ENTRY_BYTES))
        await readers_.report()
        for _ in range(ENTRIES):
            late += await readers_.until(await subject.publish(1, ENTRY_BYTES))
            await asyncio.sleep(PAUSE_SECONDS)
        report = await readers_.report()
    table.check_report(subject.name, report)
    table.check(not late and report["deliveries"] == readers * ENTRIES, f"{subject.name}: {late} deliveries are late")
    return report["p50_ms"], report["p99_ms"]


@asynccontextmanager
async def floor(folder: Path) -> AsyncIterator[Subject]:
    """The bare hops, writer and reader as one process of its own."""
    folder.mkdir()
    async with AsyncExitStack() as stack:
        url, _ = await server_in_memory(stack, folder)
        pid, bare_url = await bare(stack, folder, "hops", url)
        number = 0
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def publish(_: int, size: int) -> int:
            nonlocal number
            number += 1
            body = entry(size) | {"headline": mark(number)}
            async with session.post(f"{bare_url}/", json=body) as answer:
                assert answer.status == 200, await answer.text()
            return number

        yield Subject("floor", pid, int(bare_url.rpartition(":")[2]), "/stream", "marks", publish)

"""What is to cost the same however long a feed is: a publication until it is readable, a page, a reader's return, in CPU of all
processes, on feeds of a thousand, a hundred thousand and, with --long, a million entries."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.bench.crowd import build, crowd
from tests.bench.installation import Installation, installation
from tests.bench.machine import cpu_seconds, settled
from tests.bench.table import Given, Table, at_most, ratios

SIZES = (1_000, 100_000)
SIZES_LONG = (*SIZES, 1_000_000)
BATCH = 200
PUBLICATIONS = 200
PAGES = 50
RETURNS = 50


async def run(table: Table, given: Given) -> None:
    sizes = SIZES_LONG if given.long else SIZES
    found: dict[int, dict[str, list[float]]] = {size: {} for size in sizes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = await build("crowd", folder)
        async with installation(folder / "dateline") as running:
            table.title(f"feeds that grow, {given.rounds} rounds in turn: us of CPU of all processes")
            for size in sizes:
                await _fill(running, f"feed-{size}", size)
            for _ in range(given.rounds):
                for size in sizes:
                    for what, cpu in (await _round(table, program, running, f"feed-{size}")).items():
                        found[size].setdefault(what, []).append(cpu)
    least, most = found[sizes[0]], found[sizes[-1]]
    for what in least:
        for size in sizes:
            table.figure(f"{what}, {size:,} entries", found[size][what], "us", digits=0)
        table.figure(
            f"{what}, {sizes[-1]:,} to {sizes[0]:,} entries", ratios(most[what], least[what]), "x", at_most(1.5)
        )


async def _fill(running: Installation, feed: str, size: int) -> None:
    await running.open(feed)
    for _ in range(0, size, BATCH):
        # Readable before the next: a desk folds what is not projected yet for every decision.
        await running.readable(feed, await running.publish(feed, BATCH))


async def _round(table: Table, program: Path, running: Installation, feed: str) -> Mapping[str, float]:
    pids = tuple(running.pids.values())
    path = f"/v1/feeds/{feed}/stream"
    async with crowd(program, running.port, path, RETURNS, "whole") as readers:
        # Each goes at another position, so that none returns to a difference that another has asked for.
        for reader in range(RETURNS):
            await readers.ask("join", reader, reader + 1)
            await readers.live()
            await readers.ask("leave", reader, reader + 1)
            await running.readable(feed, await running.publish(feed))
        await readers.report()
        await settled(*pids)
        used = cpu_seconds(*pids)
        for reader in range(RETURNS):
            await readers.ask("join", reader, reader + 1)
            await readers.live()
        returns = cpu_seconds(*pids) - used
        report = await readers.report()
        table.check_report(feed, report)
        missed = RETURNS * (RETURNS + 1) // 2
        table.check(report["deliveries"] == missed, f"{feed}: {report['deliveries']} of {missed} entries came")

    await settled(*pids)
    used = cpu_seconds(*pids)
    for _ in range(PUBLICATIONS):
        await running.readable(feed, await running.publish(feed))
    publications = cpu_seconds(*pids) - used

    # From page to page: none is asked for twice.
    used = cpu_seconds(*pids)
    cursor: dict[str, str] = {}
    for _ in range(PAGES):
        _, body = await running.page(feed, **cursor)
        cursor = {"cursor": json.loads(body)["next"]}
    pages = cpu_seconds(*pids) - used
    return {
        "publish until readable": publications / PUBLICATIONS * 1e6,
        "page of 20 after page": pages / PAGES * 1e6,
        f"return after 1 to {RETURNS} changes": returns / RETURNS * 1e6,
    }

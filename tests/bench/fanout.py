"""Fan-out: CPU of the serving process per delivery, without a backlog and with 64 events waiting, beside nchan and the floor.

The same bytes a reader everywhere: the peers' messages are as long as Dateline's frames are for entries of 300 B.
"""

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from tests.bench import peers
from tests.bench.crowd import build, crowd
from tests.bench.installation import installation
from tests.bench.machine import Absent, cpu_seconds, settled
from tests.bench.peers import Subject
from tests.bench.table import Given, Table, at_least, at_most, ratios

ENTRY_BYTES = 300
BURST = 64
# Of each case: readers, entries in one write, writes in a round.
CASES = ((1_000, 1, 200), (10_000, 1, 20), (1_000, BURST, 20))
FRAME_BYTES = 20  # what stands around a peer's data


async def run(table: Table, given: Given) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = await build("crowd", folder)
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(installation(folder / "dateline"))
            await running.open("bench")
            subjects = [peers.dateline(running, "bench"), await stack.enter_async_context(peers.floor(folder))]
            try:
                subjects.append(await stack.enter_async_context(peers.nchan(folder)))
            except Absent as absent:
                table.note(f"nchan skipped: {absent} is not here")
            table.title(f"fan-out, entries of {ENTRY_BYTES} B, {given.rounds} rounds in turn: us of CPU per delivery")
            for readers, waiting, writes in CASES:
                await _case(table, given.rounds, program, subjects, given.readers or readers, waiting, writes)


async def _case(
    table: Table, rounds: int, program: Path, subjects: list[Subject], readers: int, waiting: int, writes: int
) -> None:
    what = f"{readers:,} readers, " + ("no backlog" if waiting == 1 else f"{waiting} waiting")
    used: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    size = ENTRY_BYTES
    for _ in range(rounds):
        for subject in subjects:
            message = ENTRY_BYTES if subject.name == "dateline" else size
            cpu, frame_bytes = await _round(table, what, program, subject, readers, waiting, writes, message)
            used[subject.name].append(cpu)
            if subject.name == "dateline":
                size = round(frame_bytes) - FRAME_BYTES
    for name, figures in used.items():
        table.figure(f"{what}: {name}", figures, "us")
    ours = used["dateline"]
    table.figure(f"{what}: dateline / floor", ratios(ours, used["floor"]), "x", at_most(1.25) if waiting == 1 else None)
    if "nchan" in used and waiting == 1:
        table.figure(f"{what}: dateline / nchan", ratios(ours, used["nchan"]), "x", at_most(0.8))
    elif "nchan" in used:
        table.figure(f"{what}: rate, dateline / nchan", ratios(used["nchan"], ours), "x", at_least(30))


async def _round(
    table: Table, what: str, program: Path, subject: Subject, readers: int, waiting: int, writes: int, size: int
) -> tuple[float, float]:
    """Microseconds of CPU and bytes, per delivery. The next write begins when all have the last."""
    async with crowd(program, subject.port, subject.path, readers, subject.kind) as readers_:
        await readers_.come()
        assert not await readers_.until(await subject.publish(1, size))
        await settled(subject.pid)
        await readers_.report()
        before, late = cpu_seconds(subject.pid), 0
        for _ in range(writes):
            late += await readers_.until(await subject.publish(waiting, size))
        cpu = cpu_seconds(subject.pid) - before
        report = await readers_.report()
    await settled(subject.pid)
    deliveries = readers * waiting * writes
    where = f"{subject.name}, {what}"
    table.check_report(where, report)
    table.check(
        not late and report["deliveries"] == deliveries,
        f"{where}: {report['deliveries']} of {deliveries} deliveries, {late} late",
    )
    return cpu / deliveries * 1e6, report["bytes"] / deliveries

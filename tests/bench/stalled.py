"""Readers that take nothing for a minute beside readers that live: what the latter and the gateway's memory feel of them, and
whether the stalled end in the exact state once they read again.

Half of the changes are corrections, so that what a stalled reader lacks is much less than what it missed.
"""

import asyncio
import random
import re
import socket
import tempfile
import time
from pathlib import Path

from tests.acceptance.harness import FrameParser, position_key
from tests.acceptance.killing import Follower
from tests.bench.crowd import build, crowd
from tests.bench.installation import Installation, entry, installation
from tests.bench.machine import rss_bytes
from tests.bench.table import Given, Table, at_most, ratios

READERS = 500
ENTRY_BYTES = 8_000
SECONDS = 60.0
# In a minute several times what a gateway keeps of a feed's last frames: who stalled that long gets a folded difference.
CHANGES_PER_SECOND = 10
# Little enough that a stalled reader is full at once, and not when the kernel has taken megabytes for it.
RECEIVE_BYTES = 8_192
CATCH_UP_SECONDS = 120


async def run(table: Table, given: Given) -> None:
    readers, seconds = given.readers or READERS, given.seconds or SECONDS
    alone: list[float] = []
    beside: list[float] = []
    growths: list[float] = []
    table.title(f"{readers} stalled and {readers} live readers, entries of {ENTRY_BYTES} B, {seconds:g} s a round")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = await build("crowd", folder)
        async with installation(folder / "dateline") as running:
            for number in range(given.rounds):
                p99, _ = await _round(table, program, running, f"alone-{number}", readers, 0, seconds)
                alone.append(p99)
                p99, growth = await _round(table, program, running, f"beside-{number}", readers, readers, seconds)
                beside.append(p99)
                growths.append(growth)
            caught_up = sum((await running.metric("dateline_catch_ups_total")).values())
    table.note(f"brought up by a folded difference: {caught_up:,.0f} in all")
    table.figure("live readers' p99, none stalled", alone, "ms")
    table.figure("live readers' p99, beside the stalled", beside, "ms")
    table.figure("the second to the first", ratios(beside, alone), "x", at_most(1.2))
    table.figure("gateway's RSS, end to a third of the time", growths, "x", at_most(1.05))


async def _round(
    table: Table, program: Path, running: Installation, feed: str, live: int, stalled: int, seconds: float
) -> tuple[float, float]:
    """The live readers' p99 in milliseconds, and by what factor the gateway's memory grew after a third of the time."""
    await running.open(feed)
    idlers = [Idler() for _ in range(stalled)]
    async with crowd(program, running.port, f"/v1/feeds/{feed}/stream", live, "dateline") as readers:
        await readers.come()
        for idler in idlers:
            await idler.connect(running.port, feed)
        await readers.report()
        number, rss = await _publish(running, feed, seconds)
        growth = rss_bytes(running.pids["gateway"]) / rss
        late = await readers.until(number)
        report = await readers.report()
        table.check_report(feed, report)
        table.check(not late, f"{feed}: {late} live readers lack changes")
    try:
        async with asyncio.timeout(CATCH_UP_SECONDS):
            await asyncio.gather(*(idler.catch_up(number) for idler in idlers))
        page = await running.everything(feed)
        wrong = sum(idler.folded.entries() != page for idler in idlers)
        table.check(not wrong, f"{feed}: {wrong} stalled readers end in another state than the page's")
        resets = sum(len(idler.folded.resets) for idler in idlers)
        table.check(not resets, f"{feed}: {resets} resets")
    finally:
        for idler in idlers:
            idler.close()
    return report["p99_ms"], growth


async def _publish(running: Installation, feed: str, seconds: float) -> tuple[int, int]:
    """The number of the last change, and the gateway's memory after a third of the time."""
    revisions: dict[str, int] = {}
    rng, began, rss, number, made = random.Random(1), time.monotonic(), 0, 1, 0
    while (passed := time.monotonic() - began) < seconds:
        made += 1
        if made % 2:
            name = f"e{made}"
            number = await running.write("POST", f"/v1/feeds/{feed}/entries", {"id": name, **entry(ENTRY_BYTES)})
            revisions[name] = 1
        else:
            name = rng.choice(sorted(revisions))
            path, match = f"/v1/feeds/{feed}/entries/{name}", f'"{revisions[name]}"'
            number = await running.write("PATCH", path, entry(ENTRY_BYTES), **{"If-Match": match})
            revisions[name] += 1
        if not rss and passed > seconds / 3:
            rss = rss_bytes(running.pids["gateway"])
        await asyncio.sleep(max(0, began + made / CHANGES_PER_SECOND - time.monotonic()))
    await running.readable(feed, number)
    return number, rss


class Idler:
    """A reader on a bare socket, which is read from only when it is asked to be."""

    def __init__(self) -> None:
        self.folded = Follower()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self._socket.setblocking(False)
        self._parser = FrameParser()

    async def connect(self, port: int, feed: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", port))
        await loop.sock_sendall(self._socket, f"GET /v1/feeds/{feed}/stream HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += await loop.sock_recv(self._socket, 4096)
        assert re.match(rb"HTTP/1.1 200", head), head
        self._take(head.partition(b"\r\n\r\n")[2])
        await self.catch_up(1)

    async def catch_up(self, number: int) -> None:
        """Reads until it is live and holds `number`."""
        while not (self.folded.live and self.folded.position and position_key(self.folded.position)[1] >= number):
            data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
            assert data, "a stalled reader was ended"
            self._take(data)

    def close(self) -> None:
        self._socket.close()

    def _take(self, data: bytes) -> None:
        for frame in self._parser.feed(data):
            self.folded.take(frame)

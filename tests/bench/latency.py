"""Publish to delivery: from a desk's POST until the last reader has the frame, real processes, durability as it is by default.

The floor, in the same rounds: what no backend on this stack could do without, an HTTP request through a bare aiohttp route
that appends to a stream with `appendfsync always`, and a blocked XREAD that writes the entry to one open HTTP response.
"""

import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from services.cli.embedded import DataDir, EmbeddedServer
from services.cli.up import TOKEN_FILE
from shared.listening import listen
from shared.redis import command, connect, connect_for_blocking
from tests.bench.machine import quantile, spread

ENTRIES = 200
PAUSE_SECONDS = 0.01
ENTRY = {"headline": "Figures", "body": [{"type": "text", "html": "x" * 120}]}

Publish = Callable[[], Awaitable[str]]


class Arrivals:
    """When each id has come to all of the readers."""

    def __init__(self, readers: int) -> None:
        self._readers = readers
        self._counts: dict[str, int] = {}
        self._at: dict[str, asyncio.Future[float]] = {}

    def arrived(self, identity: str) -> None:
        count = self._counts[identity] = self._counts.get(identity, 0) + 1
        if count == self._readers:
            self._future(identity).set_result(time.perf_counter())

    async def at(self, identity: str) -> float:
        async with asyncio.timeout(10):
            return await self._future(identity)

    def _future(self, identity: str) -> "asyncio.Future[float]":
        return self._at.setdefault(identity, asyncio.get_running_loop().create_future())


async def read(url: str, arrivals: Arrivals, ready: asyncio.Event) -> None:
    """One reader on a plain socket, so that the client's own work stays small."""
    match = re.fullmatch(r"http://([^:/]+):(\d+)(/.*)", url)
    assert match
    reader, writer = await asyncio.open_connection(match[1], int(match[2]))
    writer.write(f"GET {match[3]} HTTP/1.1\r\nHost: {match[1]}\r\n\r\n".encode())
    try:
        event = b""
        while line := await reader.readline():
            if line.startswith(b"event: "):
                event = line[7:-1]
            elif line.startswith(b"id: "):
                if event == b"live":
                    ready.set()
                else:
                    arrivals.arrived(line[4:-1].decode())
    finally:
        writer.close()


async def measure(stream: str, readers: int, publish: Publish) -> list[float]:
    """Milliseconds from the start of each publication to its arrival at the last of `readers`."""
    arrivals = Arrivals(readers)
    async with asyncio.TaskGroup() as group:
        tasks = []
        for _ in range(readers):
            ready = asyncio.Event()
            tasks.append(group.create_task(read(stream, arrivals, ready)))
            async with asyncio.timeout(10):
                await ready.wait()
        taken = []
        for _ in range(ENTRIES):
            begun = time.perf_counter()
            identity = await publish()
            taken.append((await arrivals.at(identity) - begun) * 1000)
            await asyncio.sleep(PAUSE_SECONDS)
        for task in tasks:
            task.cancel()
    return taken


@asynccontextmanager
async def dateline(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """`dateline up` as its own processes; gives URL and token."""
    arguments = ["-m", "services.cli", "up", "--data-dir", str(folder), "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout
    try:
        async with asyncio.timeout(30):
            first = (await process.stdout.readline()).decode()
        yield first.split()[-1], (folder / TOKEN_FILE).read_text().strip()
    finally:
        process.terminate()
        await process.communicate()


@asynccontextmanager
async def floor(folder: Path) -> AsyncIterator[str]:
    """The bare hops, writer and reader as one process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.latency", str(folder), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    try:
        async with asyncio.timeout(30):
            url = (await process.stdout.readline()).decode().strip()
        yield url
    finally:
        process.terminate()
        await process.communicate()


async def run(*, rounds: int, readers: tuple[int, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            dateline(Path(folder) / "a") as (url, token),
            floor(Path(folder) / "b") as bare,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        ):

            async def to_dateline() -> str:
                async with session.post(f"{url}/v1/feeds/bench/entries", json=ENTRY) as answer:
                    assert answer.status == 201, await answer.text()
                    return answer.headers["Dateline-Position"]

            async def to_floor() -> str:
                async with session.post(f"{bare}/", json=ENTRY) as answer:
                    return str((await answer.json())["id"])

            opened = await session.put(f"{url}/v1/feeds/bench", json={"title": "Bench"})
            assert opened.status == 201, await opened.text()
            await session.get(f"{url}/v1/feeds/bench?min_position=1-1")
            print(f"publish to delivery, ms, {ENTRIES} entries a round, {rounds} rounds in turn with the floor")
            print("medians of the rounds (least to most)")
            for count in readers:
                ours: list[list[float]] = []
                theirs: list[list[float]] = []
                for _ in range(rounds):
                    ours.append(await measure(f"{url}/v1/feeds/bench/stream", count, to_dateline))
                    theirs.append(await measure(f"{bare}/stream", count, to_floor))
                ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(ours, theirs, strict=True)]
                for name, taken in (("dateline", ours), ("floor", theirs)):
                    p50 = spread([quantile(one, 0.5) for one in taken])
                    p99 = spread([quantile(one, 0.99) for one in taken])
                    print(f"  {count:4} readers  {name:9} p50 {p50}  p99 {p99}")
                print(f"  {count:4} readers  p50 as a ratio to the floor {spread(ratios)}")


async def _serve_floor(folder: Path) -> None:
    with DataDir.lock(folder) as data_dir:
        server = await EmbeddedServer.start(data_dir)
        redis, blocking = connect(server.url), connect_for_blocking(server.url, block_seconds=1)
        open_streams: set[web.StreamResponse] = set()

        async def publish(request: web.Request) -> web.Response:
            body = await request.read()
            identity = await command(redis, "XADD", "log", "*", "body", body)
            return web.json_response({"id": identity.decode()})

        async def stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"event: live\nid: 0\n\n")
            open_streams.add(response)
            try:
                await asyncio.Event().wait()
            finally:
                open_streams.discard(response)
            return response

        async def tail() -> None:
            cursor = "$"
            while True:
                answer = await command(blocking, "XREAD", "BLOCK", 1000, "STREAMS", "log", cursor)
                for _, entries in answer or []:
                    for identity, fields in entries:
                        cursor = identity.decode()
                        frame = f"event: entry\nid: {cursor}\ndata: {json.dumps(fields[b'body'].decode())}\n\n".encode()
                        for response in list(open_streams):
                            await response.write(frame)

        async def listening(url: str) -> None:
            print(url, flush=True)

        app = web.Application()
        app.add_routes([web.post("/", publish), web.get("/stream", stream)])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(tail())
                group.create_task(
                    listen(app, host="127.0.0.1", port=0, drain=None, drain_seconds=0.1, on_listening=listening)
                )
        finally:
            await redis.aclose()
            await blocking.aclose()
            await server.stop()


if __name__ == "__main__":
    asyncio.run(_serve_floor(Path(sys.argv[1])))

"""Dateline as it runs in earnest, a process for each service, on a server that keeps everything in memory.

Owns starting and ending them, and the desk that publishes. One service, the one under measure, has a core for itself.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import aiohttp

from services.cli.children import ending_with_its_owner
from services.cli.embedded import server_binary
from shared.redis import Redis, connect
from tests.acceptance.harness import clean_environment, free_port, http_status
from tests.bench.machine import core

TOKEN = "bench-token"
READERS_MAX = 20_000
START_SECONDS = 30.0

Measured = Literal["gateway", "writer"]


async def start(stack: AsyncExitStack, *command: str, environment: Mapping[str, str] | None = None, log: Path) -> int:
    """The pid of a process that ends with `stack`; what it says is in `log`."""
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *ending_with_its_owner(list(command)),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )

    async def end() -> None:
        if process.returncode is None:
            process.terminate()
        await process.wait()

    stack.push_async_callback(end)
    return process.pid


async def answers(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while await asyncio.to_thread(http_status, url) != 200:
        assert time.monotonic() < deadline, f"{url} does not answer\n{log.read_text(errors='replace')[-2000:]}"
        await asyncio.sleep(0.05)


class Installation:
    """The running services: their pids and ports by name, and a desk."""

    def __init__(
        self, pids: Mapping[str, int], ports: Mapping[str, int], redis: Redis, session: aiohttp.ClientSession
    ) -> None:
        self.pids = pids
        self.port = ports["gateway"]
        self.write_url = f"http://127.0.0.1:{ports['writer']}"
        self.read_url = f"http://127.0.0.1:{ports['gateway']}"
        self.redis = redis
        self.session = session

    async def open(self, feed: str) -> None:
        await self.write("PUT", f"/v1/feeds/{feed}", {"title": "Bench"})
        await self.readable(feed, 1)

    async def publish(self, feed: str, count: int = 1, *, size: int = 300) -> int:
        """The number of the last of `count` entries of `size` bytes, which go in one request."""
        if count == 1:
            return await self.write("POST", f"/v1/feeds/{feed}/entries", entry(size))
        commands = [{"type": "publish", **entry(size)} for _ in range(count)]
        return await self.write("POST", f"/v1/feeds/{feed}/batch", {"commands": commands})

    async def write(self, method: str, path: str, body: Any, **headers: str) -> int:
        """The number that the write's answer names."""
        async with self.session.request(method, self.write_url + path, json=body, headers=headers) as answer:
            text = await answer.text()
            assert answer.status in (200, 201), text
            return int(answer.headers["Dateline-Position"].partition("-")[2])

    async def readable(self, feed: str, number: int) -> None:
        """Waits until the read models hold a number of the first epoch."""
        while True:
            async with self.session.get(f"{self.read_url}/v1/feeds/{feed}?min_position=1-{number}") as answer:
                text = await answer.text()
                if answer.status == 200:
                    return
                assert answer.status in (404, 503), text

    async def page(self, feed: str, **query: str | int) -> tuple[Mapping[str, str], bytes]:
        async with self.session.get(f"{self.read_url}/v1/feeds/{feed}/entries", params=query) as answer:
            body = await answer.read()
            assert answer.status == 200, body
            return answer.headers.copy(), body

    async def commands(self) -> dict[str, int]:
        """How often the server was asked each command."""
        stats = await self.redis.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(of["calls"]) for name, of in stats.items()}

    async def metric(self, name: str) -> dict[str, float]:
        """What the gateway says of a metric, by the text of its labels; empty when it has none of that name."""
        async with self.session.get(f"{self.read_url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        found = [line.removeprefix(name).rpartition(" ") for line in lines if line.startswith((name + "{", name + " "))]
        return {labels: float(value) for labels, _, value in found}

    async def everything(self, feed: str) -> list[Any]:
        """All entries, newest first, page by page; right only while nobody publishes."""
        entries: list[Any] = []
        query: dict[str, str | int] = {"limit": 100}
        while True:
            page = json.loads((await self.page(feed, **query))[1])
            entries += page["entries"]
            if page["next"] is None:
                return entries
            query["cursor"] = page["next"]


def mark(number: int = 0) -> str:
    """What a crowd finds in the data: when it was handed in, and for servers without positions which it is."""
    return f"@t={time.monotonic_ns()};q={number}@"


def entry(size: int) -> dict[str, Any]:
    """An entry whose JSON is about `size` bytes."""
    made: dict[str, Any] = {"headline": mark(), "body": [{"type": "text", "html": ""}]}
    made["body"][0]["html"] = "x" * max(1, size - len(json.dumps(made)))
    return made


async def server_in_memory(stack: AsyncExitStack, folder: Path) -> tuple[str, int]:
    """The URL and the pid of a server that ends with `stack` and keeps nothing."""
    socket = folder / "s"
    flags = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--appendonly", "no", "--save", ""]
    pid = await start(stack, str(server_binary()), *flags, log=folder / "redis.log")
    return f"unix://{socket}", pid


@asynccontextmanager
async def installation(folder: Path, *, measured: Measured = "gateway") -> AsyncIterator[Installation]:
    folder.mkdir(parents=True)
    async with AsyncExitStack() as stack:
        url, redis_pid = await server_in_memory(stack, folder)
        pids = {"redis": redis_pid}
        ports = {name: free_port() for name in ("writer", "gateway")}
        environment = clean_environment(
            DATELINE_REDIS_URL=url,
            DATELINE_OPS_TOKEN=TOKEN,
            DATELINE_DURABILITY="memory",
            DATELINE_READERS_MAX=str(READERS_MAX),
            DATELINE_DRAIN_SECONDS="1",
        )
        for name in ("writer", "projector", "gateway"):
            command = [sys.executable, "-m", "services.cli", name]
            if name in ports:
                command += ["--port", str(ports[name])]
            log = folder / f"{name}.log"
            with core("server") if name == measured else nullcontext():
                pids[name] = await start(stack, *command, environment=environment, log=log)
        for name, port in ports.items():
            await answers(f"http://127.0.0.1:{port}/readyz", folder / f"{name}.log")
        redis = connect(url)
        stack.push_async_callback(redis.aclose)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}, connector=aiohttp.TCPConnector(limit=0))
        )
        yield Installation(pids, ports, redis, session)

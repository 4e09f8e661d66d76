"""What Dateline is measured beside: nchan, the strongest peer in fan-out, a floor that does nothing but send, bare aiohttp.

Owns starting them, on the server's core, and publishing to them under the same few words as an installation of our own.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from tests.acceptance.harness import free_port
from tests.bench.crowd import build
from tests.bench.installation import Installation, answers, mark, start
from tests.bench.machine import Absent, core

NGINX = Path("/usr/sbin/nginx")
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
NCHAN_CONF = """
load_module {module};
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off; keepalive_requests 10000000; nchan_max_reserved_memory 512M;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /stream {{
      nchan_subscriber eventsource; nchan_channel_id bench; nchan_subscriber_first_message newest;
      nchan_subscriber_timeout 0; nchan_eventsource_ping_interval 0;
    }}
    location = /publish {{
      nchan_publisher; nchan_channel_id bench; nchan_message_buffer_length 1000; nchan_message_timeout 5m;
    }}
  }}
}}
"""


class Subject(NamedTuple):
    """A server under measure. `publish(count, size)` gives the number of the last and goes out in one write."""

    name: str
    pid: int
    port: int
    path: str
    kind: Literal["whole", "marks"]
    publish: Callable[[int, int], Awaitable[int]]


def dateline(running: Installation, feed: str) -> Subject:
    async def publish(count: int, size: int) -> int:
        return await running.publish(feed, count, size=size)

    return Subject("dateline", running.pids["gateway"], running.port, f"/v1/feeds/{feed}/stream", "whole", publish)


@asynccontextmanager
async def floor(folder: Path) -> AsyncIterator[Subject]:
    program = await build("floor", folder)
    async with AsyncExitStack() as stack:
        port = free_port()
        with core("server"):
            pid = await start(stack, str(program), str(port), log=folder / "floor.log")
        publisher = await stack.enter_async_context(Publisher.connected(port))
        yield Subject("floor", pid, port, "/stream", "marks", publisher.publish)


@asynccontextmanager
async def nchan(folder: Path) -> AsyncIterator[Subject]:
    """Raises Absent. One process, so that its CPU is all there is."""
    if not NGINX.exists() or not NCHAN.exists():
        raise Absent("nchan (Debian: nginx, libnginx-mod-nchan)")
    async with AsyncExitStack() as stack:
        own, port = folder / "nchan", free_port()
        own.mkdir(exist_ok=True)
        conf = own / "conf"
        conf.write_text(NCHAN_CONF.format(module=NCHAN, folder=own, port=port, files=20_000, connections=19_000))
        with core("server"):
            pid = await start(stack, str(NGINX), "-c", str(conf), "-p", str(own), log=own / "out")
        publisher = await stack.enter_async_context(Publisher.connected(port))
        yield Subject("nchan", pid, port, "/stream", "marks", publisher.publish)


@asynccontextmanager
async def letting_go(folder: Path) -> AsyncIterator[Subject]:
    """aiohttp that lets go of a stream's connection after its first line, and does nothing else for it."""
    async with AsyncExitStack() as stack:
        pid, url = await bare(stack, folder, "streams", "-")
        port = int(url.rpartition(":")[2])
        publisher = await stack.enter_async_context(Publisher.connected(port))
        yield Subject("bare aiohttp", pid, port, "/stream", "marks", publisher.publish)


async def bare(
    stack: AsyncExitStack, folder: Path, which: Literal["pages", "hops", "streams"], given: str
) -> tuple[int, str]:
    """The pid and the URL of a server of `bare.py`."""
    port, log = free_port(), folder / "bare.log"
    with core("server"):
        command = [sys.executable, "-m", "tests.bench.bare", str(port), which, given]
        pid = await start(stack, *command, log=log)
    url = f"http://127.0.0.1:{port}"
    await answers(f"{url}/healthz", log)
    return pid, url


class Publisher:
    """POSTs over one connection, numbered in the mark; several are written at once and answered one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0

    @classmethod
    @asynccontextmanager
    async def connected(cls, port: int) -> AsyncIterator["Publisher"]:
        for _ in range(200):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
        else:
            raise AssertionError(f"nobody listens on {port}")
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def publish(self, count: int, size: int) -> int:
        requests = []
        for _ in range(count):
            self._number += 1
            body = mark(self._number).ljust(size, "x").encode()
            head = f"POST /publish HTTP/1.1\r\nHost: bench\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}"
            requests.append(head.encode() + b"\r\n\r\n" + body)
        self._writer.write(b"".join(requests))
        for _ in range(count):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 20"), head
            length = next(line for line in head.lower().splitlines() if line.startswith("content-length:"))
            await self._reader.readexactly(int(length.partition(":")[2]))
        return self._number

"""Requests by 64 clients at once, for each second of the server's CPU, beside bare aiohttp routes: a page of about 20 KB that is
asked for again and again and its 304, from the gateway; single publications, to the writer. wrk (Debian: wrk) is the client."""

import asyncio
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.bench.installation import TOKEN, Installation, Measured, entry, installation
from tests.bench.machine import Absent, cpu_seconds
from tests.bench.peers import bare
from tests.bench.table import Given, Table, at_least, ratios

CLIENTS = 64
SECONDS = 5.0
PAGE_ENTRIES = 20
PAGE_ENTRY_BYTES = 700
POST_BYTES = 300
FEEDS = (1, 16)
HEADERS_KEPT = (
    "ETag",
    "Cache-Control",
    "Vary",
    "Content-Type",
    "Access-Control-Allow-Origin",
    "Dateline-Position",
    "Link",
)

# Round the feeds in turn, the same entry each time; the server gives it an id.
POSTS_LUA = """
local turn, body = 0, %s
local headers = {["Content-Type"] = "application/json", ["Authorization"] = "Bearer %s"}
function request()
  turn = turn + 1
  return wrk.format("POST", string.format("%s", turn %% %d), headers, body)
end
"""


class Rate(NamedTuple):
    requests: int
    per_cpu_second: float


async def pages(table: Table, given: Given) -> None:
    async with _servers("gateway") as (running, folder, stack):
        await running.open("bench")
        await running.readable("bench", await running.publish("bench", PAGE_ENTRIES, size=PAGE_ENTRY_BYTES))
        headers, body = await running.page("bench")
        stored = folder / "page"
        kept = {name: headers[name] for name in HEADERS_KEPT if name in headers}
        stored.write_bytes(json.dumps(kept).encode() + b"\n" + body)
        bare_pid, bare_url = await bare(stack, folder, "pages", str(stored))
        table.title(
            f"a page of {len(body):,} B, {CLIENTS} clients, {given.rounds} rounds in turn: requests per s of CPU"
        )
        for what, asked in (("page", []), ("304", ["-H", f"If-None-Match: {headers['ETag']}"])):
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(given.rounds):
                url = f"{running.read_url}/v1/feeds/bench/entries"
                ours.append((await _wrk(table, given, url, running.pids["gateway"], *asked)).per_cpu_second)
                theirs.append((await _wrk(table, given, f"{bare_url}/page", bare_pid, *asked)).per_cpu_second)
            _print(table, what, ours, theirs, goal=0.9)
        table.check((await running.page("bench"))[1] == body, "the page is another one afterwards")


async def posts(table: Table, given: Given) -> None:
    async with _servers("writer") as (running, folder, stack):
        stored = folder / "page"
        stored.write_bytes(b'{"ETag": ""}\n')
        bare_pid, bare_url = await bare(stack, folder, "pages", str(stored))
        table.title(
            f"single POSTs of {POST_BYTES} B, {CLIENTS} clients, {given.rounds} rounds in turn: requests per s of CPU"
        )
        for feeds in FEEDS:
            names = [f"bench-{feeds}-{i}" for i in range(feeds)]
            heads = dict.fromkeys(names, 1)
            for feed in names:
                await running.open(feed)
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(given.rounds):
                script = _script(folder / "ours.lua", f"/v1/feeds/bench-{feeds}-%d/entries", feeds)
                rate = await _wrk(table, given, running.write_url, running.pids["writer"], "-s", script)
                ours.append(rate.per_cpu_second)
                # What was being answered when wrk stopped may be in the log without having been counted.
                written = 0
                for feed in names:
                    head = await running.publish(feed)
                    written += head - heads[feed] - 1
                    heads[feed] = head
                    await running.readable(feed, head)
                table.check(0 <= written - rate.requests <= CLIENTS, f"{rate.requests} answered, {written} in the logs")
                script = _script(folder / "bare.lua", "/entries", 1)
                theirs.append((await _wrk(table, given, bare_url, bare_pid, "-s", script)).per_cpu_second)
            _print(table, f"POST into {feeds} feed{'s' * (feeds > 1)}", ours, theirs, goal=0.5)


@asynccontextmanager
async def _servers(measured: Measured) -> AsyncIterator[tuple[Installation, Path, AsyncExitStack]]:
    if shutil.which("wrk") is None:
        raise Absent("wrk (Debian: wrk)")
    with tempfile.TemporaryDirectory() as name:
        async with AsyncExitStack() as stack:
            folder = Path(name)
            running = await stack.enter_async_context(installation(folder / "dateline", measured=measured))
            yield running, folder, stack


def _script(file: Path, path: str, feeds: int) -> str:
    file.write_text(POSTS_LUA % (json.dumps(json.dumps(entry(POST_BYTES))), TOKEN, path, feeds))
    return str(file)


async def _wrk(table: Table, given: Given, url: str, pid: int, *more: str) -> Rate:
    seconds = max(1, round(given.seconds or SECONDS))
    before = cpu_seconds(pid)
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", *more, url), stdout=asyncio.subprocess.PIPE
    )
    out = (await process.communicate())[0].decode()
    used = cpu_seconds(pid) - before
    counted = re.search(r"(\d+) requests in", out)
    assert counted, out
    table.check("Non-2xx" not in out and "Socket errors" not in out, f"{url}: {out}")
    return Rate(int(counted[1]), int(counted[1]) / used)


def _print(table: Table, what: str, ours: list[float], theirs: list[float], *, goal: float) -> None:
    table.figure(f"{what}: dateline", ours, "/s", digits=0)
    table.figure(f"{what}: bare aiohttp", theirs, "/s", digits=0)
    table.figure(f"{what}: dateline / bare", ratios(ours, theirs), "x", at_least(goal))

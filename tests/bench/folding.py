"""Rebuild and verify: events per second, CPU seconds per million events and peak memory, for feeds of growing size.

The floor, in the same rounds and on the same feeds: what nobody who folds a log into Redis could do without, a bare loop of
XRANGE, decoding envelope and content, and pipelined writes of the same bytes. Each measurement is a process of its own, so
that its peak memory is its own.
"""

import asyncio
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import msgspec

from services.cli.embedded import DataDir, EmbeddedServer
from services.projector.verify.feed import verify_feed
from services.projector.verify.found_keys import FoundKeys
from services.writer.commands import Command
from shared.events import Envelope
from shared.keys import Keys
from shared.redis import Redis, command, connect
from tests.bench.machine import spread
from tests.bench.table import Given, Table
from tests.integration.builders import (
    Projection,
    carry_out,
    correcting,
    desk_of,
    opening,
    pinning,
    publishing,
    unpinning,
)
from tests.integration.rebuild_kit import Owner

SIZES = (10_000, 100_000)
SIZES_LONG = (*SIZES, 1_000_000)
EVENTS_PER_BATCH = 200
EVENTS_PER_CHUNK = 500
# Rounds of a large feed are few: each is long enough to tell, and a million events take minutes.
EVENTS_PER_SIZE_MAX = 300_000
SECONDS_BETWEEN_LINES = 10.0
TEXT = "The keeper punches it away, and the clock says there is time for one more. " * 4


class Figures(NamedTuple):
    """One pass over a feed; CPU of this process and of the server, memory in MiB."""

    seconds: float
    client_seconds: float
    server_seconds: float
    peak_mib: float


def batch(start: int, count: int) -> list[Command]:
    """Commands that make `count` events from number `start` on: seven in ten publish, the others come back to an entry."""
    made: list[Command] = []
    for number in range(start, start + count):
        entry = f"e{number - number % 10}"
        match number % 10:
            case 7:
                made.append(correcting(entry, 1, headline=f"Corrected at {number}"))
            case 8:
                made.append(pinning(entry))
            case 9:
                made.append(unpinning(entry))
            case _:
                tags = ["goal", f"team-{number % 20}"]
                made.append(publishing(f"e{number}", headline=f"Minute {number}", text=TEXT, tags=tags))
    return made


async def fill(redis: Redis, keys: Keys, feed: str, events: int) -> None:
    """A feed of `events` events and its opening, written by a desk and projected."""
    desk, projection = desk_of(redis, keys), Projection(redis, keys, feed)
    await carry_out(desk, feed, opening())
    await projection.take_shard()
    said = time.monotonic()
    for start in range(0, events, EVENTS_PER_BATCH):
        end = min(start + EVENTS_PER_BATCH, events)
        await carry_out(desk, feed, *batch(start, end - start), batch=True)
        # At once: a desk folds what is not projected yet for every decision, all of it each time.
        while (await projection.step()).checkpoint.n < 1 + end:
            pass
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"  {events:9,} events  {end:,} written", flush=True)


async def floor(redis: Redis, keys: Keys, feed: str) -> None:
    log, scratch = keys.feed(feed).log, f"{keys.prefix}:bench"
    envelopes, contents = msgspec.json.Decoder(Envelope), msgspec.json.Decoder()
    after = "-"
    while entries := await command(redis, "XRANGE", log, after, "+", "COUNT", EVENTS_PER_CHUNK):
        pipeline = redis.pipeline(transaction=False)
        for entry_id, fields in entries:
            envelopes.decode(fields[b"envelope"])
            if fields[b"content"]:
                contents.decode(fields[b"content"])
            pipeline.execute_command("HSET", scratch, entry_id, fields[b"envelope"] + fields[b"content"])
        await pipeline.execute()
        after = "(" + entries[-1][0].decode()
    await command(redis, "UNLINK", scratch)


async def rebuild(redis: Redis, keys: Keys, feed: str) -> None:
    owner = Owner(redis, keys, feed)
    await owner.take_shard()
    await owner.ask()
    site = await owner.built()
    assert await owner.flip(site) == "flipped"


async def verify(redis: Redis, keys: Keys, feed: str) -> None:
    with FoundKeys(redis, keys) as found_keys:
        await found_keys.walk(feed)
        report = await verify_feed(redis, keys, feed, found_keys, progress=lambda stage: None)
    assert report.ok, report


PASSES: Mapping[str, Callable[[Redis, Keys, str], Awaitable[None]]] = {
    "floor": floor,
    "rebuild": rebuild,
    "verify": verify,
}


async def server_cpu_seconds(redis: Redis) -> float:
    info = await redis.info("cpu")
    return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])


async def one_pass(url: str, name: str, feed: str) -> Figures:
    redis, keys = connect(url), Keys("bench")
    server, cpu, started = await server_cpu_seconds(redis), time.process_time(), time.perf_counter()
    await PASSES[name](redis, keys, feed)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    server = await server_cpu_seconds(redis) - server
    await Owner(redis, keys, feed).clear_away()
    await redis.aclose()
    return Figures(seconds, cpu, server, peak_mib())


def peak_mib() -> float:
    """This program's own; what getrusage gives on Linux begins at what its parent had when it was started."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1024 * 1024 if sys.platform == "darwin" else 1024)


async def measured(url: str, name: str, feed: str) -> Figures:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.folding", url, name, feed, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, name
    return Figures(*json.loads(out))


async def run(_: Table, given: Given) -> None:
    rounds, sizes = given.rounds, SIZES_LONG if given.long else SIZES
    with tempfile.TemporaryDirectory() as folder, DataDir.lock(Path(folder) / "server") as data_dir:
        server = await EmbeddedServer.start(data_dir)
        try:
            print("\nrebuild and verify, rounds in turn with the floor, each a process of its own", flush=True)
            for events in sizes:
                redis = connect(server.url)
                await fill(redis, Keys("bench"), f"feed-{events}", events)
                await redis.aclose()
                found: dict[str, list[Figures]] = {name: [] for name in PASSES}
                several = max(1, min(rounds, EVENTS_PER_SIZE_MAX // events))
                for number in range(1, several + 1):
                    for name, figures in found.items():
                        figures.append(await measured(server.url, name, f"feed-{events}"))
                        seconds = f"{figures[-1].seconds:.1f} s"
                        print(f"  {events:9,} events  {name:8} round {number} of {several}: {seconds}", flush=True)
                for name, figures in found.items():
                    _print(name, events, figures, found["floor"])
        finally:
            await server.stop()


def _print(name: str, events: int, figures: list[Figures], floors: list[Figures]) -> None:
    million = 1_000_000 / events
    rate = spread([events / f.seconds for f in figures], digits=0)
    client = spread([f.client_seconds * million for f in figures], digits=1)
    whole = spread([f.server_seconds * million for f in figures], digits=1)
    peak = statistics.median(f.peak_mib for f in figures)
    print(
        f"  {events:9,} events  {name:8} events/s {rate}  CPU-s per million: client {client}, server {whole}  "
        f"peak {peak:.0f} MiB",
        flush=True,
    )
    if name != "floor":
        times = spread([f.seconds / g.seconds for f, g in zip(figures, floors, strict=True)])
        cpus = spread(
            [
                (f.client_seconds + f.server_seconds) / (g.client_seconds + g.server_seconds)
                for f, g in zip(figures, floors, strict=True)
            ]
        )
        print(f"  {events:9,} events  {name:8} as a ratio to the floor: time {times}, CPU {cpus}", flush=True)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(one_pass(*cast("tuple[str, str, str]", tuple(sys.argv[1:4]))))))

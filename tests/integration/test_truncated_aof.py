"""An append-only file that lost its end, at every byte of it: what is served is a prefix of the log, and where the heads
beside it say that there was more, the loss is made visible by the epoch."""

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from services.cli.data_dir import DataDir
from services.cli.embedded import EmbeddedServer, server_binary
from services.cli.heads import HEADS_FILE, admit_embedded, write_heads
from shared.keys import Keys
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.redis import Redis, connect
from tests.integration.builders import carry_out, desk_of, log_entries, opening, publishing

FEED = "final"
KEYS = Keys()
# Events of which all are cut away, bit by bit, and how many offsets the default run tries.
TAIL_EVENTS = 3
SAMPLE = 12


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> Path:
    found = server_binary() if request.param == "valkey" else shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not installed")
    return Path(found)


class Written(NamedTuple):
    """A data directory after a clean stop, its log, and the size of its AOF before the last events."""

    folder: Path
    entries: list[StreamEntry]
    before_tail_bytes: int
    size_bytes: int


@asynccontextmanager
async def served(folder: Path, binary: Path) -> AsyncIterator[Redis]:
    """The server as `up` starts it: its lock, its repair of a torn tail, its admission."""
    with DataDir.lock(folder) as lock:
        server = await EmbeddedServer.start(lock, binary=binary)
        redis = connect(server.url)
        try:
            await admit_embedded(server.url, folder, key_prefix=KEYS.prefix)
            yield redis
        finally:
            await redis.aclose()
            await server.stop()


def aof(folder: Path) -> Path:
    [file] = (folder / "appendonlydir").glob("*.incr.aof")
    return file


async def written(folder: Path, binary: Path) -> Written:
    async with served(folder, binary) as redis:
        desk = desk_of(redis, KEYS)
        await carry_out(desk, FEED, opening())
        await carry_out(desk, FEED, publishing("first"))
        before = aof(folder).stat().st_size
        for number in range(TAIL_EVENTS):
            await carry_out(desk, FEED, publishing(f"tail-{number}"))
        size = aof(folder).stat().st_size
        entries = await log_entries(redis, KEYS, FEED)
    write_heads(folder / HEADS_FILE, {FEED: entries[-1].position})
    return Written(folder, entries, before, size)


async def cut(whole: Written, binary: Path, folder: Path, offset: int, *, heads: bool) -> list[StreamEntry]:
    """The log of a copy whose AOF ends at `offset`, once its server is admitted; desks then go on."""
    shutil.copytree(whole.folder, folder, ignore=shutil.ignore_patterns("socket", "lock"))
    with aof(folder).open("r+b") as file:
        file.truncate(offset)
    if not heads:
        (folder / HEADS_FILE).unlink()
    async with served(folder, binary) as redis:
        entries = await log_entries(redis, KEYS, FEED)
        outcome = await carry_out(desk_of(redis, KEYS), FEED, publishing("after"))
        assert outcome.position == entries[-1].position.next()
    shutil.rmtree(folder)
    return entries


def kept_of(whole: Written, entries: list[StreamEntry]) -> int:
    """How many of the log's events are left; a raised epoch comes after them, and nothing else does."""
    kept = len([entry for entry in entries if entry.position.epoch == 1])
    assert entries[:kept] == whole.entries[:kept], "a prefix, event by event"
    assert [e.position for e in entries[kept:]] in ([], [Position(2, kept + 1)])
    return kept


async def test_a_cut_tail_is_a_prefix_and_a_loss_that_the_heads_saw_raises_the_epoch(
    binary: Path, tmp_path: Path, long: bool
) -> None:
    whole = await written(tmp_path / "whole", binary)
    tail = whole.size_bytes - whole.before_tail_bytes
    step = 1 if long else max(1, tail // SAMPLE)
    seen: Mapping[int, set[bool]] = {n: set() for n in range(len(whole.entries) + 1)}
    for offset in [*range(whole.before_tail_bytes, whole.size_bytes, step), whole.size_bytes]:
        entries = await cut(whole, binary, tmp_path / str(offset), offset, heads=True)
        kept = kept_of(whole, entries)
        raised = entries[-1].position.epoch == 2
        assert raised == (kept < len(whole.entries)), f"cut at {offset}, {kept} events are left"
        seen[kept].add(raised)
    tried = {kept for kept, found in seen.items() if found}
    assert tried >= {2, len(whole.entries)}, "from the whole tail to nothing of it"


async def test_where_no_witness_saw_more_the_epoch_is_kept(binary: Path, tmp_path: Path) -> None:
    whole = await written(tmp_path / "whole", binary)
    for offset in (whole.before_tail_bytes, whole.size_bytes - 1):
        entries = await cut(whole, binary, tmp_path / str(offset), offset, heads=False)
        assert kept_of(whole, entries) < len(whole.entries) and entries[-1].position.epoch == 1

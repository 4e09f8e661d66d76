"""The look that a decision rests on, on real servers: one moment of the write side and of the read models that readers get.

Owns what `look` and `read` give. What is decided on it is test_desk's.
"""

import asyncio
from typing import Any

import pytest

from shared.append import Known, NewRecord
from shared.documents import Entry, Tombstone
from shared.errors import Corrupted
from shared.events import EntryPinned, EntryRetracted, RetractionReason
from shared.keys import Keys
from shared.log import Log, Record
from shared.position import ORIGIN, Position
from shared.redis import Redis, command
from tests.integration.builders import (
    Projection,
    appending,
    appending_entry,
    encoded,
    log_positions,
    open_feed,
    project,
    published,
)

FEED = "final"
DAY_MILLISECONDS = 86_400_000


@pytest.fixture
def log(redis: Redis, keys: Keys) -> Log:
    return Log(redis, keys)


async def a_feed_with(log: Log, *entries: str) -> None:
    await open_feed(log, FEED)
    for entry in entries:
        await log.append(FEED, appending_entry(entry))


async def pin(log: Log, entry: str) -> None:
    await log.append(FEED, appending(EntryPinned(entry=entry), sets_pins=True))


async def test_a_feed_that_does_not_exist_gives_nothing(log: Log) -> None:
    looked = await log.look(FEED, entries=["e1", "e2"], pins=True, command="c")
    assert (looked.known, looked.head, looked.checkpoint, looked.feed) == (None, None, ORIGIN, None)
    assert looked.records == {"e1": None, "e2": None}
    assert looked.documents == {"e1": None, "e2": None}
    assert looked.pinned == frozenset()


async def test_before_the_first_commit_there_is_a_head_and_records_and_no_documents(log: Log) -> None:
    await a_feed_with(log, "e1")
    looked = await log.look(FEED, entries=["e1", "e2"], pins=True, command=None)
    assert looked.head is not None
    assert (looked.head.position, looked.head.status, looked.head.live) == (Position(1, 2), "open", 1)
    assert looked.records == {"e1": Record("published", 1, Position(1, 2), "f"), "e2": None}
    assert (looked.checkpoint, looked.feed, looked.documents) == (ORIGIN, None, {"e1": None, "e2": None})


async def test_a_lagging_read_model_is_seen_as_it_lags(redis: Redis, keys: Keys, log: Log) -> None:
    await a_feed_with(log, "e1", "e2")
    await pin(log, "e1")
    await project(redis, keys, FEED)
    retraction = appending(
        EntryRetracted(entry="e1", content=RetractionReason(None)),
        live_change=-1,
        sets_pins=True,
        records={"e1": NewRecord("retracted", 1, 1, "f")},
    )
    await log.append(FEED, retraction)
    looked = await log.look(FEED, entries=["e1", "e3"], pins=True, command=None)
    assert looked.head is not None and looked.head.position == Position(1, 5)
    assert looked.checkpoint == Position(1, 4)
    assert looked.records["e1"] == Record("retracted", 1, Position(1, 5), "f")
    assert isinstance(looked.documents["e1"], Entry) and looked.documents["e1"].position == "1-4"
    assert looked.documents["e3"] is None
    assert looked.feed is not None and looked.feed.position == "1-4"
    assert looked.pinned == {"e1"}
    await project(redis, keys, FEED)
    looked = await log.look(FEED, entries=["e1"], pins=True, command=None)
    assert looked.checkpoint == Position(1, 5) and looked.pinned == frozenset()
    assert isinstance(looked.documents["e1"], Tombstone)


async def test_pins_are_looked_up_where_a_decision_needs_them(redis: Redis, keys: Keys, log: Log) -> None:
    await a_feed_with(log, "e1", "e2")
    await pin(log, "e1")
    await pin(log, "e2")
    await project(redis, keys, FEED)
    assert (await log.look(FEED, entries=[], pins=True, command=None)).pinned == {"e1", "e2"}
    assert (await log.look(FEED, entries=[], pins=False, command=None)).pinned == frozenset()


async def test_documents_are_those_of_the_generation_that_readers_get(redis: Redis, keys: Keys, log: Log) -> None:
    await a_feed_with(log, "e1")
    await project(redis, keys, FEED)
    await log.append(FEED, appending_entry("e2"))
    # A second generation stands beside the active one, further on.
    await command(redis, "RENAME", keys.feed(FEED).active, keys.feed(FEED).active + "-before")
    await project(redis, keys, FEED)
    assert await command(redis, "GET", keys.feed(FEED).active) == b"2"

    async def seen() -> tuple[Position, bool, bool]:
        looked = await log.look(FEED, entries=["e1", "e2"], pins=False, command=None)
        return looked.checkpoint, looked.documents["e1"] is not None, looked.documents["e2"] is not None

    assert await seen() == (Position(1, 3), True, True)
    await command(redis, "RENAME", keys.feed(FEED).active + "-before", keys.feed(FEED).active)
    assert await seen() == (Position(1, 2), True, False)


@pytest.mark.parametrize(("days_ago", "is_known"), [(0, True), (1, True), (2, True), (3, False)])
async def test_a_command_of_today_and_of_the_two_days_before_is_known(
    redis: Redis, keys: Keys, log: Log, days_ago: int, is_known: bool
) -> None:
    await a_feed_with(log, "e1")
    seconds, _ = await redis.time()
    bucket = f"{keys.feed(FEED).commands}{seconds * 1000 // DAY_MILLISECONDS - days_ago}"
    await command(redis, "HSET", bucket, "old", "f 0123456789ab 3 1-2")
    looked = await log.look(FEED, entries=[], pins=False, command="old")
    assert looked.known == (Known("f", "0123456789ab", 3, Position(1, 2)) if is_known else None)
    assert (await log.look(FEED, entries=[], pins=False, command="another")).known is None
    # Without a command there is nothing to be known, whatever stands in the bucket.
    await command(redis, "HSET", bucket, "", "f 0123456789ab 3 1-2")
    assert (await log.look(FEED, entries=[], pins=False, command=None)).known is None


async def test_a_look_is_of_one_moment_while_a_desk_and_a_projector_are_at_work(
    redis: Redis, keys: Keys, log: Log
) -> None:
    """Of several round trips the head could be older than the checkpoint, or a document of another moment."""
    await a_feed_with(log)
    projection = Projection(redis, keys, FEED)
    await projection.take_shard()
    done = asyncio.Event()

    async def work() -> None:
        for number in range(30):
            await log.append(FEED, appending_entry(f"e{number}"))
            await projection.to_head()
        done.set()

    async def look() -> None:
        names = [f"e{number}" for number in range(30)]
        while not done.is_set():
            looked = await log.look(FEED, entries=names, pins=False, command=None)
            assert looked.head is not None
            assert looked.checkpoint <= looked.head.position
            positions = [Position.parse(d.position) for d in looked.documents.values() if d is not None]
            assert max(positions, default=Position(1, 1)) == max(looked.checkpoint, Position(1, 1))
            assert sum(record is not None for record in looked.records.values()) == looked.head.live

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        for _ in range(2):
            group.create_task(look())


@pytest.mark.parametrize("field", ["n", "recorded_at", "status", "version", "pins", "live"])
async def test_a_head_that_lacks_a_field_is_corruption(redis: Redis, keys: Keys, log: Log, field: str) -> None:
    await a_feed_with(log)
    await command(redis, "HDEL", keys.feed(FEED).head, field)
    with pytest.raises(Corrupted, match="lacks a field"):
        await log.look(FEED, entries=[], pins=False, command=None)


async def test_a_server_that_forgot_the_script_gets_it_again(redis: Redis, log: Log) -> None:
    await a_feed_with(log, "e1")
    await command(redis, "SCRIPT FLUSH")
    assert (await log.look(FEED, entries=["e1"], pins=False, command=None)).records["e1"] is not None


# Reading the log


async def read(log: Log, *, after: Position = ORIGIN, to: Position | None = None, chunk_events: int = 500) -> list[str]:
    return [entry.id.decode() async for entry in log.read(FEED, after=after, to=to, chunk_events=chunk_events)]


@pytest.mark.parametrize("chunk_events", [1, 2, 3, 5, 500])
async def test_the_log_is_read_in_order_whatever_the_chunks(
    redis: Redis, keys: Keys, log: Log, chunk_events: int
) -> None:
    await a_feed_with(log, "e1", "e2", "e3", "e4", "e5")
    positions = await log_positions(redis, keys, FEED)
    assert await read(log, chunk_events=chunk_events) == positions
    assert await read(log, after=Position(1, 2), chunk_events=chunk_events) == positions[2:]
    assert await read(log, after=Position(1, 2), to=Position(1, 4), chunk_events=chunk_events) == positions[2:4]
    assert await read(log, after=Position(1, 6), chunk_events=chunk_events) == []


@pytest.mark.parametrize("chunk_events", [2, 500])
async def test_a_gap_in_the_log_is_corruption(redis: Redis, keys: Keys, log: Log, chunk_events: int) -> None:
    await a_feed_with(log, "e1")
    event = encoded(published("e9"))
    raw: Any = ("envelope", event.envelope, "content", event.content, "recorded_at", "1")
    await command(redis, "XADD", keys.feed(FEED).log, "1-4", *raw)
    with pytest.raises(Corrupted, match="4 where n must be 3"):
        await read(log, chunk_events=chunk_events)


async def test_a_log_that_begins_after_its_first_event_is_corruption(redis: Redis, keys: Keys, log: Log) -> None:
    await a_feed_with(log, "e1", "e2")
    await command(redis, "XTRIM", keys.feed(FEED).log, "MINID", "1-2")
    with pytest.raises(Corrupted, match="2 where n must be 1"):
        await read(log)


async def test_n_goes_on_across_epochs(redis: Redis, keys: Keys, log: Log) -> None:
    await a_feed_with(log, "e1")
    event = encoded(published("e9"))
    raw: Any = ("envelope", event.envelope, "content", event.content, "recorded_at", "1")
    await command(redis, "XADD", keys.feed(FEED).log, "2-3", *raw)
    assert await read(log) == ["1-1", "1-2", "2-3"]


async def test_the_time_of_an_event_that_is_not_there_is_corruption(log: Log) -> None:
    await a_feed_with(log)
    with pytest.raises(Corrupted, match="no event at 1-2"):
        await log.recorded_at(FEED, Position(1, 2))

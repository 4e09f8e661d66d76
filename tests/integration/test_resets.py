"""Readers of a feed whose epoch grows: they forget, get a snapshot, and go on without a gap, whatever told the gateway."""

import asyncio
from typing import Any

import pytest

from shared.epochs.raising import Epochs, Raise
from shared.epochs.witness import Witness
from shared.keys import Keys
from shared.position import Position
from shared.redis import Redis
from tests.integration.gateway_kit import (
    Held,
    Newsroom,
    Running,
    Stream,
    assert_equals_page,
    on_one_server,
)

pytestmark = on_one_server

FEED = "story"
OTHER = "other"


@pytest.fixture
async def newsroom(redis: Redis, keys: Keys) -> Newsroom:
    newsroom = Newsroom(redis, keys)
    await newsroom.story(FEED, 5)
    return newsroom


async def repaired(newsroom: Newsroom, feed: str = FEED, *, frames: bool = True) -> Position:
    """The feed's epoch grows by a repair, and the read models hold it."""
    epochs = Epochs(newsroom.redis, newsroom.keys)
    [standing] = await epochs.standings([feed])
    server = (await epochs.process()).server
    assert await epochs.raise_all([Raise(standing, "repaired", "tried")], server=server) == ["raised"]
    return await newsroom.commit_all(feed, frames=frames)


async def lost(newsroom: Newsroom, seen: Position, feed: str = FEED, *, frames: bool = True) -> Position:
    """The feed's epoch grows because a witness saw more, and the read models hold it."""
    witness = Witness(newsroom.redis, newsroom.keys)
    witness.saw(feed, seen)
    await witness.check()
    return await newsroom.commit_all(feed, frames=frames)


async def reset_of(stream: Stream) -> tuple[list[str], Any]:
    """The events from the reset to its `live`, and the reset's reason; what came before it is passed by."""
    reset = (await stream.until("reset"))[-1]
    rest = await stream.until("live")
    return [event.kind for event in rest], reset.data


@pytest.mark.parametrize("frames", [True, False], ids=["by its frame", "by the sweep"])
async def test_a_live_reader_is_reset_and_goes_on(newsroom: Newsroom, gateway: Running, frames: bool) -> None:
    held = Held()
    async with await gateway.stream(f"/v1/feeds/{FEED}/stream?snapshot=50") as stream:
        held.take(await stream.until("live"))
        position = await repaired(newsroom, frames=frames)
        events = await stream.until("live")
        assert [event.kind for event in events] == ["reset", "snapshot", "live"]
        assert events[0].data == {"feed": FEED, "reason": "repaired"}
        assert [event.id for event in events[1:]] == [str(position)] * 2
        held.take(events)
        await newsroom.say(FEED, "after")
        await held.follow(stream, position.n + 1)
        await assert_equals_page(gateway, FEED, held)
        assert held.id == str(position.next())


@pytest.mark.parametrize("frames", [True, False], ids=["by its frame", "by the sweep"])
async def test_a_reader_that_was_ahead_of_what_is_left_is_reset_below_where_it_stood(
    newsroom: Newsroom, gateway: Running, frames: bool
) -> None:
    """What it holds above was lost; the new epoch's positions begin below, and none of them is taken for one that it had."""
    async with await gateway.stream(f"/v1/feeds/{FEED}/stream") as stream:
        await stream.until("live")
        ahead = Position(1, 40)
        followed = next(iter(gateway.readers.following.feeds()))
        followed.position = ahead
        for reader in followed.readers():
            reader.positions = (ahead,)
        position = await lost(newsroom, ahead, frames=frames)
        assert position == Position(2, 7)
        kinds, reset = await reset_of(stream)
        assert reset == {"feed": FEED, "reason": "epoch"}
        assert kinds == ["snapshot", "live"]
        await newsroom.say(FEED, "after")
        assert (await stream.until("entry"))[-1].id == "2-8"


async def test_a_reader_gets_its_own_number_of_entries_and_order_after_a_reset(
    newsroom: Newsroom, gateway: Running
) -> None:
    asked = {"snapshot=2&order=oldest": ["e1", "e2"], "snapshot=3": ["e5", "e4", "e3"]}
    for query, entries in asked.items():
        async with await gateway.stream(f"/v1/feeds/{FEED}/stream?{query}") as stream:
            await stream.until("live")
            await repaired(newsroom)
            snapshot = (await stream.until("snapshot"))[-1].data
            assert [entry["id"] for entry in snapshot["entries"]] == entries


async def test_thousands_that_are_reset_at_once_read_one_snapshot(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    page = gateway.gateway._readers._catch_ups._snapshots._reads.page

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0.05)
        return await page(*args, **kwargs)

    streams = [await gateway.stream(f"/v1/feeds/{FEED}/stream") for _ in range(30)]
    try:
        for stream in streams:
            await stream.until("live")
        monkeypatch.setattr(gateway.gateway._readers._catch_ups._snapshots._reads, "page", counted)
        await repaired(newsroom)
        for stream in streams:
            await stream.until("reset")
            await stream.until("live")
    finally:
        for stream in streams:
            stream.close()
    assert reads == 1


async def test_only_the_feed_whose_epoch_grew_is_reset_on_a_stream_of_several(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(OTHER, 2)
    async with await gateway.stream(f"/v1/stream?feed={FEED}&feed={OTHER}&snapshot=5") as stream:
        await stream.until("live", times=2)
        await repaired(newsroom)
        events = await stream.until("live")
        assert [event.kind for event in events] == ["reset", "snapshot", "live"]
        assert events[0].data["feed"] == FEED
        assert events[-1].id == f"{OTHER}:1-3,{FEED}:2-7"
        await newsroom.say(OTHER, "more")
        assert (await stream.until("entry"))[-1].id == f"{OTHER}:1-4,{FEED}:2-7"


async def test_a_position_of_the_present_epoch_goes_on_without_a_reset(newsroom: Newsroom, gateway: Running) -> None:
    position = await repaired(newsroom)
    await newsroom.say(FEED, "after")
    async with await gateway.stream(f"/v1/feeds/{FEED}/stream?last_event_id={position}") as stream:
        events = await stream.until("live")
        assert [event.kind for event in events] == ["retry", "entry", "live"]


async def test_one_who_resumes_is_told_of_a_loss_if_there_was_one_since(newsroom: Newsroom, gateway: Running) -> None:
    async def told(last: str) -> str:
        async with await gateway.stream(f"/v1/feeds/{FEED}/stream?last_event_id={last}") as stream:
            _, reset = await reset_of(stream)
            return str(reset["reason"])

    await repaired(newsroom)
    await repaired(newsroom)
    assert [await told("1-6"), await told("2-7")] == ["repaired", "repaired"]
    await lost(newsroom, Position(3, 90))
    assert [await told("1-6"), await told("3-8")] == ["epoch", "epoch"]
    await repaired(newsroom)
    assert [await told("3-8"), await told("4-9")] == ["epoch", "repaired"]


async def test_a_reader_in_the_middle_of_a_difference_is_reset(newsroom: Newsroom, gateway: Running) -> None:
    """A long difference comes in chunks; one of a new epoch is not the rest of it."""
    async with await gateway.stream(f"/v1/feeds/{FEED}/stream?last_event_id=1-2") as stream:
        await stream.until("live")
        [reader] = next(iter(gateway.readers.following.feeds())).readers()
        reader.live = False
        reader.positions = (Position(1, 3),)
        reader.folding = frozenset({0})
        await repaired(newsroom)
        kinds, reset = await reset_of(stream)
        assert (kinds, reset["reason"]) == (["snapshot", "live"], "repaired")
        assert not reader.folding


async def test_after_another_server_process_the_gateway_begins_anew_and_readers_miss_nothing(
    newsroom: Newsroom, gateway: Running
) -> None:
    async with await gateway.stream(f"/v1/feeds/{FEED}/stream") as stream:
        await stream.until("live")
        gateway.gateway._restarted()
        await newsroom.say(FEED, "e6")
        assert (await stream.until("entry"))[-1].data["id"] == "e6"

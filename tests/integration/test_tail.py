"""The tail on real servers: frames are hints, and whatever is lost of them the sweep finds."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.gateway import tail as module
from services.gateway.ring import Ready
from services.gateway.tail import Tail
from shared.errors import Unavailable
from shared.keys import SHARDS, Keys
from shared.log import Log
from shared.position import ORIGIN
from shared.redis import Redis, command
from tests.integration.conftest import RunningServer
from tests.integration.gateway_kit import (
    Held,
    Newsroom,
    Running,
    assert_equals_page,
    eventually,
    on_one_server,
    running_gateway,
)
from tests.proxy import Proxy

FEED = "story"
STREAM = f"/v1/feeds/{FEED}/stream"


@pytest.fixture
async def gateway(server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """It looks more often than it does, for tests that are not about how often."""
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr(module, "BLOCK_SECONDS", 0.2)
    async with running_gateway(server.url, keys) as running:
        yield running
        await running.at_rest()


@on_one_server
async def test_a_frame_that_was_lost_is_found_by_the_sweep(
    newsroom: Newsroom, server: RunningServer, keys: Keys
) -> None:
    """No frame follows that would show the gap. All that a live reader and one of several feeds get is the difference."""
    await newsroom.story(FEED, 1)
    await newsroom.story("other", 1)
    async with (
        running_gateway(server.url, keys) as gateway,
        await gateway.stream(STREAM) as stream,
        await gateway.stream(f"/v1/stream?feed={FEED}&feed=other") as joined,
    ):
        await stream.until("live")
        await joined.until("live", times=2)
        await newsroom.publish(FEED, "lost")
        await newsroom.commit_all(FEED, frames=False)
        events = await stream.until("live")
        assert [(event.kind, event.id) for event in events] == [("entry", "1-3"), ("live", "1-3")]
        assert [event.id for event in await joined.until("live")] == [f"other:1-2,{FEED}:1-3"] * 2
        await newsroom.say(FEED, "next")
        assert [(await reader.next()).kind for reader in (stream, joined)] == ["entry", "entry"]


def test_the_sweep_comes_once_a_second() -> None:
    assert module.SWEEP_SECONDS == 1.0


@on_one_server
async def test_a_sweep_in_quiet_times_disturbs_nobody(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 3)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        await stream.silence(0.6)
    assert gateway.metrics.registry.get_sample_value("dateline_catch_ups_total") == 0


@on_one_server
async def test_a_frame_comes_with_the_instant_of_its_event_unless_an_older_projector_sent_it(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered: list[Ready] = []
    monkeypatch.setattr(gateway.readers.following, "deliver", delivered.append)
    await eventually(lambda: gateway.gateway._tail._cursors, what="the tail knows where the frames end")
    position = await newsroom.story(FEED)
    await eventually(lambda: delivered, what="the frame")
    older = ("f", FEED, "p", str(position), "k", "feed", "d", delivered[0].data)
    await command(newsroom.redis, "XADD", newsroom.frames_key(FEED), "*", *older)
    await eventually(lambda: len(delivered) == 2, what="the older projector's frame")
    [event] = [entry async for entry in Log(newsroom.redis, newsroom.keys).read(FEED, after=ORIGIN)]
    assert [ready.recorded_at for ready in delivered] == [int(event.fields[b"recorded_at"]), None]


async def test_a_frame_that_is_merely_on_its_way_is_not_taken_for_lost(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sweep sees the checkpoint before the frame has come: the frame comes as such, without a difference."""
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        (followed,) = gateway.readers.following.feeds()
        followed.swept = followed.position
        tail = gateway.gateway._tail
        swept = tail._swept
        monkeypatch.setattr(module, "SWEEP_SECONDS", 3600)
        await eventually(lambda: tail._swept > swept, what="the last sweep but that of this test")
        deliver = tail._deliver
        held_back: list[Any] = []
        monkeypatch.setattr(tail, "_deliver", held_back.append)
        await newsroom.say(FEED, "late")
        await eventually(lambda: held_back)
        await tail._sweep()
        await stream.silence(0.15)
        monkeypatch.undo()
        deliver(held_back[0])
        event = await stream.next()
        assert (event.kind, event.data["id"]) == ("entry", "late")
        await tail._sweep()
        assert gateway.metrics.registry.get_sample_value("dateline_catch_ups_total") == 0


async def test_a_frames_stream_that_was_made_anew_with_smaller_ids_does_not_deafen_the_tail(
    newsroom: Newsroom, gateway: Running, redis: Redis
) -> None:
    """A cursor ahead of it would wait for ever: frames come again, not only sweeps."""
    await newsroom.story(FEED, 1)
    frames: Any = newsroom.frames_key(FEED)
    client: Any = redis
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        tail = gateway.gateway._tail
        before = tail._cursors[frames]
        await client.delete(frames)
        # Commits let the server choose ids by its clock: what runs behind is a clock that was set back.
        await client.xadd(frames, {"f": "nobody", "p": "1-1", "k": "entry", "d": "{}"}, id="5-1")
        await eventually(lambda: tail._cursors[frames] == "5-1", what="the cursor follows the new stream")
        assert before != "5-1"
        fields = {"f": FEED, "p": "1-3", "k": "entry", "d": ""}
        await newsroom.publish(FEED, "e2")
        await newsroom.commit_all(FEED, frames=False)
        await client.xadd(frames, fields, id="5-2")
        event = await stream.next()
        assert (event.kind, event.n) == ("entry", 3)
        await eventually(lambda: tail._cursors[frames] == "5-2", what="frames are heard again")


@pytest.mark.parametrize("how", ["xtrim", "delete"])
async def test_a_frames_stream_that_is_emptied_again_and_again_loses_nothing(
    newsroom: Newsroom, gateway: Running, redis: Redis, how: str
) -> None:
    await newsroom.story(FEED, 1)
    client: Any = redis
    async with await gateway.stream(f"{STREAM}?last_event_id=1-1") as stream:
        held = Held(at="1-1")
        held.take(await stream.until("live"))
        for i in range(5):
            await newsroom.say(FEED, f"e{i}x")
            frames = newsroom.frames_key(FEED)
            await (client.xtrim(frames, maxlen=0, approximate=False) if how == "xtrim" else client.delete(frames))
        await held.follow(stream, 7)
        await assert_equals_page(gateway, FEED, held)


async def test_frames_that_come_twice_are_sent_once(newsroom: Newsroom, gateway: Running, redis: Redis) -> None:
    """After a lost reply or a cursor that was set back the tail reads what it has read."""
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        await newsroom.say(FEED, "e2")
        tail = gateway.gateway._tail
        await gateway.followed(FEED, 3)
        tail._cursors[newsroom.frames_key(FEED)] = "0-0"
        await newsroom.say(FEED, "e3")
        assert [(await stream.next()).n, (await stream.next()).n] == [3, 4]
        await eventually(lambda: tail._cursors[newsroom.frames_key(FEED)] != "0-0")
        await newsroom.say(FEED, "e4")
        assert (await stream.next()).n == 5


async def test_feeds_of_all_shards_are_followed_by_one_tail(newsroom: Newsroom, gateway: Running) -> None:
    names: dict[int, str] = {}
    for i in range(200):
        names.setdefault(Keys.shard_of(f"f{i}"), f"f{i}")
    assert len(names) == SHARDS
    for feed in names.values():
        await newsroom.story(feed)
    query = "&".join(f"feed={feed}" for feed in names.values())
    async with await gateway.stream(f"/v1/stream?{query}") as stream:
        await stream.until("live", times=SHARDS)
        for feed in names.values():
            await newsroom.say(feed, "e1")
        events = [await stream.next() for _ in names]
        assert sorted(event.data["feed"] for event in events) == sorted(names.values())
        assert events[-1].id == ",".join(f"{feed}:1-2" for feed in sorted(names.values()))


async def test_the_frames_of_a_burst_larger_than_one_read_come_in_order(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRAMES_PER_READ_MAX", 7)
    await newsroom.story(FEED)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        await newsroom.batch(FEED, [{"type": "publish", "id": f"e{i}", "headline": "h"} for i in range(60)])
        await newsroom.commit_all(FEED)
        events = [await stream.next() for _ in range(60)]
        assert [(event.kind, event.n) for event in events] == [("entry", n) for n in range(2, 62)]


# The server goes away and comes back


async def test_a_tail_whose_server_went_away_goes_on_by_itself_and_readers_miss_nothing(
    newsroom: Newsroom, server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0.05)
    await newsroom.story(FEED, 1)
    async with Proxy(server.url) as proxy, running_gateway(proxy.url, keys) as gateway:
        held = Held(at="1-1")
        async with await gateway.stream(f"{STREAM}?last_event_id=1-1") as stream:
            held.take(await stream.until("live"))
            proxy.down = True
            await proxy.cut_all()
            await newsroom.say(FEED, "while-down")
            await stream.silence(0.3)
            proxy.down = False
            await held.follow(stream, 3)
            await newsroom.say(FEED, "after")
            await held.follow(stream, 4)
            await assert_equals_page(gateway, FEED, held)
        await gateway.at_rest()


@on_one_server
async def test_readiness_says_when_the_tail_hears_nothing(
    server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers nothing and keeps connections open looks healthy to whoever only pings."""
    monkeypatch.setattr(module, "BLOCK_SECONDS", 0.1)
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.1)
    async with Proxy(server.url) as proxy, running_gateway(proxy.url, keys) as gateway:
        tail: Tail = gateway.gateway._tail
        await eventually(lambda: tail._heard > 0 and tail._swept > 0)
        assert (await gateway.get("/readyz")).status == 200
        proxy.stop()
        with monkeypatch.context() as soon:
            soon.setattr(module, "STALE_SECONDS", 0.4)
            oldest = min(tail._heard, tail._swept)
            await eventually(lambda: asyncio.get_running_loop().time() - oldest > 2 * module.STALE_SECONDS)
            with pytest.raises(Unavailable, match="heard nothing"):
                await tail.check()
        silent_since = max(tail._heard, tail._swept)
        proxy.go_on()
        await eventually(lambda: min(tail._heard, tail._swept) > silent_since)
        assert (await gateway.get("/readyz")).status == 200


@on_one_server
@pytest.mark.parametrize("silent", ["_heard", "_swept"])
async def test_readiness_needs_frames_and_sweeps_both(
    gateway: Running, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = gateway.gateway._tail
    await eventually(lambda: tail._heard > 0 and tail._swept > 0)
    await tail.check()
    setattr(tail, silent, asyncio.get_running_loop().time() - module.STALE_SECONDS - 1)
    with pytest.raises(Unavailable):
        await tail.check()

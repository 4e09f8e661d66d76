"""What a gateway does when an entry is redacted: it drops what it holds, confirms it, and its readers go on without a gap."""

import pytest

from services.gateway import purges as purges_module
from services.writer.redaction import Redactions
from shared.keys import Keys
from shared.log import Log
from shared.members import Members
from shared.position import Position
from shared.redis import Redis
from tests.integration.builders import eventually
from tests.integration.conftest import RunningServer
from tests.integration.gateway_kit import Newsroom, Running, on_one_server, running_gateway

pytestmark = on_one_server

SECRET = "a name that no one may print"


def held(running: Running, feed: str) -> bytes:
    """Everything that the gateway keeps of a feed's frames."""
    followed = running.readers.following._followed[feed]
    kept = followed.ring.after(Position(1, 0)) or [*followed.ring._frames]
    return b"".join(ready.data for ready in [*kept, *followed.backlog])


async def test_a_gateway_drops_its_frames_confirms_and_brings_readers_up_from_the_read_models(
    server: RunningServer, redis: Redis, keys: Keys
) -> None:
    newsroom, redactions = Newsroom(redis, keys), Redactions(redis, keys, Log(redis, keys))
    await newsroom.open("final")
    await newsroom.commit("final")
    async with running_gateway(server.url, keys) as running:
        async with await running.stream("/v1/feeds/final/stream") as reader:
            await reader.until("live")
            await newsroom.publish("final", "named", headline=SECRET)
            await newsroom.commit("final")
            await reader.until_n(2)
            assert SECRET.encode() in held(running, "final")
            redacted, _ = await redactions.append("final", "named", reason="r", by="b")
            await newsroom.commit("final")
            [gone] = await reader.until("retraction")
            assert gone.data["id"] == "named" and gone.n == redacted.position.n
            names = await Members(redis, keys.gateways).alive()
            assert len(names) == 1
            await redactions.ask_gateways("final", "named", token="t1")

            async def confirmed() -> bool:
                return await redactions.confirmed("final", token="t1") == set(names)

            await eventually(confirmed)
            assert SECRET.encode() not in held(running, "final")
            await newsroom.publish("final", "next")
            await newsroom.commit("final")
            [entry] = await reader.until("entry")
            assert entry.data["id"] == "next", "the stream goes on without a gap or a repeat"
        async with await running.stream("/v1/feeds/final/stream?last_event_id=1-1") as resumed:
            events = await resumed.until("live")
            assert [event.kind for event in events] == ["retry", "retraction", "entry", "live"]
            assert [event.data["id"] for event in events[1:3]] == ["named", "next"]
    assert await Members(redis, keys.gateways).alive() == [], "one that has ended is none to wait for"


async def test_what_is_kept_of_the_feed_is_dropped_before_anything_is_confirmed(
    server: RunningServer, redis: Redis, keys: Keys
) -> None:
    newsroom = Newsroom(redis, keys)
    await newsroom.open("final")
    await newsroom.publish("final", "named", headline=SECRET)
    await newsroom.commit_all("final")
    async with running_gateway(server.url, keys) as running:
        assert SECRET in str((await running.page("final"))["entries"])
        assert running.gateway._kept._values
        running.gateway._purges.purge("final", b"t1 named")
        assert not running.gateway._kept._values


async def test_frames_that_wait_while_a_gap_is_mended_are_dropped_too_and_no_position_is_lost(
    server: RunningServer, redis: Redis, keys: Keys
) -> None:
    newsroom = Newsroom(redis, keys)
    await newsroom.open("final")
    await newsroom.commit("final")
    async with (
        running_gateway(server.url, keys) as running,
        await running.stream("/v1/feeds/final/stream") as reader,
    ):
        await reader.until("live")
        followed = running.readers.following._followed["final"]
        followed.mending = True
        for entry in ("named", "second"):
            await newsroom.publish("final", entry, headline=SECRET)
            await newsroom.commit("final")
        await eventually(lambda: len(followed.backlog) == 2)
        running.readers.following.forget_frames("final")
        assert not followed.backlog
        followed.mending = False
        events = await reader.until_n(3)
        assert [event.n for event in events if event.kind == "entry"] == [2, 3]


async def test_a_gateway_that_has_lost_the_server_is_not_waited_for_long(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forget(feed: str, entry: str) -> None:
        raise AssertionError("nothing is purged here")

    monkeypatch.setattr(purges_module, "ALIVE_SECONDS", 1.0)
    purges = purges_module.Purges(redis, keys, name="one", forget=forget)
    await purges.announce()
    members = Members(redis, keys.gateways)
    assert await members.alive() == ["one"]

    async def gone() -> bool:
        return await members.alive() == []

    await eventually(gone)

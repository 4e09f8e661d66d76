"""`min_position` on real servers: woken by a frame or by the look, never longer than it says, and no oracle for private feeds."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from services.gateway import waiting as module
from services.gateway.waiting import Arrivals
from shared.keys import Keys
from tests.integration.conftest import RunningServer
from tests.integration.gateway_kit import (
    PATIENCE_SECONDS,
    SIGNED,
    Answer,
    Newsroom,
    Running,
    eventually,
    number,
    on_one_server,
    running_gateway,
)

pytestmark = on_one_server

FEED = "story"
READS = ["", "/entries", "/entries/e1", "/changes"]


@pytest.fixture
async def gateway(server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """It waits for longer than it does: no step of a test comes too late, and who waits in vain is found out."""
    monkeypatch.setattr(module, "WAIT_SECONDS", 2 * PATIENCE_SECONDS)
    async with running_gateway(server.url, keys) as running:
        yield running
        await eventually(lambda: not arrivals_of(running)._waiting, what="nobody waits")


def arrivals_of(gateway: Running) -> Arrivals:
    return gateway.gateway._tail._arrivals


async def asked(gateway: Running, path: str) -> asyncio.Task[Answer]:
    """A read under way that has begun to wait."""
    task = asyncio.create_task(gateway.get(path))
    await eventually(lambda: arrivals_of(gateway)._waiting or task.done())
    return task


@pytest.mark.parametrize("path", READS)
async def test_a_read_waits_for_the_position_and_then_shows_it(newsroom: Newsroom, gateway: Running, path: str) -> None:
    await newsroom.story(FEED, 1)
    position = await newsroom.correct(FEED, "e1", revision=1, headline="Corrected")
    task = await asked(gateway, f"/v1/feeds/{FEED}{path}?min_position={position}")
    assert not task.done()
    await newsroom.commit(FEED)
    answer = await task
    assert answer.status == 200
    assert answer.headers["Dateline-Position"] == str(position)
    assert b"Corrected" in answer.body or path == ""


async def test_a_position_that_is_there_is_not_waited_for(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 2 * PATIENCE_SECONDS)
    await newsroom.story(FEED, 2)
    for position in ("1-1", "1-2", "1-3"):
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await gateway.get(f"/v1/feeds/{FEED}/entries?min_position={position}")
        assert answer.status == 200


async def test_a_commit_that_comes_short_of_the_position_does_not_end_the_wait(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 1)
    await newsroom.publish(FEED, "e2")
    position = await newsroom.publish(FEED, "e3")
    task = await asked(gateway, f"/v1/feeds/{FEED}/entries?min_position={position}")
    await newsroom.commit(FEED, events=1)
    await asyncio.sleep(3 * module.LOOK_SECONDS)
    assert not task.done()
    await newsroom.commit(FEED)
    assert number((await task).json["position"]) == position.n


async def test_a_frame_wakes_it_before_the_next_look(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 2 * PATIENCE_SECONDS)
    await newsroom.story(FEED, 1)
    position = await newsroom.publish(FEED, "e2")
    task = await asked(gateway, f"/v1/feeds/{FEED}/entries?min_position={position}")
    await newsroom.commit(FEED)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await task).status == 200


async def test_the_look_finds_it_when_no_frame_comes(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    position = await newsroom.publish(FEED, "e2")
    task = await asked(gateway, f"/v1/feeds/{FEED}/entries?min_position={position}")
    await newsroom.commit(FEED, frames=False)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await task).status == 200


@pytest.mark.parametrize("path", READS)
async def test_after_the_time_it_is_503_and_says_when_to_come_again(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    await newsroom.story(FEED, 1)
    position = await newsroom.publish(FEED, "e2")
    start = time.monotonic()
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer = await gateway.get(f"/v1/feeds/{FEED}{path}?min_position={position}")
    assert time.monotonic() - start >= 0.1
    assert answer.status == 503
    assert answer.json["type"] == "urn:dateline:problem:position-not-yet-readable"
    assert answer.headers["Retry-After"] == "1"
    assert answer.headers["Cache-Control"] == "no-store"


def test_it_waits_for_two_seconds() -> None:
    assert module.WAIT_SECONDS == 2.0


async def test_a_feed_that_is_not_known_yet_is_waited_for(newsroom: Newsroom, gateway: Running) -> None:
    position = await newsroom.open(FEED)
    task = await asked(gateway, f"/v1/feeds/{FEED}?min_position={position}")
    await newsroom.commit(FEED)
    assert (await task).status == 200


async def test_an_entry_that_is_not_known_yet_is_waited_for(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED)
    position = await newsroom.publish(FEED, "e1")
    task = await asked(gateway, f"/v1/feeds/{FEED}/entries/e1?min_position={position}")
    await newsroom.commit(FEED)
    assert (await task).json["position"] == str(position)


@pytest.mark.parametrize("position", ["1-3", "2-1", "2-2", "1-" + "9" * 18, "9" * 18 + "-1"])
@pytest.mark.parametrize("name", ["min_position", "after", "unread_since"])
async def test_a_position_that_is_not_of_this_history_is_stale_at_once(
    newsroom: Newsroom, gateway: Running, name: str, position: str
) -> None:
    await newsroom.story(FEED, 1)
    path = "changes" if name == "after" else "entries"
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer = await gateway.get(f"/v1/feeds/{FEED}/{path}?{name}={position}")
    assert answer.status == 410
    assert answer.json["type"] == "urn:dateline:problem:stale-position"
    assert answer.json["head"] == "1-2"
    assert answer.headers["Cache-Control"] == "no-store"


async def test_changes_after_a_position_ahead_of_the_read_models_waits_for_them(
    newsroom: Newsroom, gateway: Running
) -> None:
    """What the client holds came from a gateway whose Redis was ahead of this one's, or from its own write."""
    await newsroom.story(FEED, 1)
    position = await newsroom.publish(FEED, "e2")
    task = await asked(gateway, f"/v1/feeds/{FEED}/changes?after={position}")
    assert not task.done()
    await newsroom.commit(FEED)
    answer = (await task).json
    assert (answer["position"], answer["documents"]) == (str(position), [])


async def test_a_private_feed_and_no_feed_at_all_look_the_same_to_those_who_wait(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.03)
    await newsroom.story("secret", 1, visibility="private")
    for position in ("1-99", "7-1"):
        for path in READS:
            answers = []
            for feed in ("secret", "absent"):
                answer = await gateway.get(f"/v1/feeds/{feed}{path}?min_position={position}")
                body = answer.json
                del body["request_id"]
                headers = {
                    name: value for name, value in answer.headers.items() if name not in ("X-Request-Id", "Date")
                }
                answers.append((answer.status, repr(body).replace(feed, "…"), sorted(headers)))
            assert answers[0] == answers[1]
            assert answers[0][0] == 503
    signed = await gateway.get("/v1/feeds/secret?min_position=1-99", headers=SIGNED)
    assert signed.status == 410


async def test_a_feed_that_turns_private_while_somebody_waits_is_not_shown(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.2)
    await newsroom.story(FEED, 1)
    await newsroom.revise(FEED, visibility="private", title="Nobody may know")
    position = await newsroom.publish(FEED, "secret")
    task = await asked(gateway, f"/v1/feeds/{FEED}/entries?min_position={position}")
    await newsroom.commit_all(FEED)
    answer = await task
    assert answer.status == 503
    assert b"Nobody" not in answer.body and b"secret" not in answer.body


async def test_many_who_wait_are_all_woken(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    position = await newsroom.publish(FEED, "e2")
    tasks = [await asked(gateway, f"/v1/feeds/{FEED}?min_position={position}") for _ in range(20)]
    await newsroom.commit(FEED)
    assert [(await task).status for task in tasks] == [200] * 20


async def test_who_leaves_while_waiting_leaves_nothing_behind(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    position = await newsroom.publish(FEED, "e2")
    task = await asked(gateway, f"/v1/feeds/{FEED}?min_position={position}")
    task.cancel()
    await eventually(lambda: not arrivals_of(gateway)._waiting and not gateway.tasks())


async def test_a_moved_feed_wakes_those_who_wait_for_it_alone() -> None:
    arrivals = Arrivals()
    one = asyncio.create_task(arrivals.wait("one", seconds=PATIENCE_SECONDS))
    two = asyncio.create_task(arrivals.wait("two", seconds=PATIENCE_SECONDS))
    await eventually(lambda: len(arrivals._waiting) == 2)
    arrivals.moved("one")
    arrivals.moved("nobody")
    await one
    assert not two.done()
    arrivals.moved("two")
    await two
    assert arrivals._waiting == {}


async def test_one_whose_time_is_over_takes_nobody_with_it() -> None:
    arrivals = Arrivals()
    patient = asyncio.create_task(arrivals.wait("feed", seconds=PATIENCE_SECONDS))
    await arrivals.wait("feed", seconds=0.01)
    assert not patient.done()
    arrivals.moved("feed")
    await patient
    assert arrivals._waiting == {}

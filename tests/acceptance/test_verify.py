"""`dateline ops verify`, as a process: against a running and a stopped `up`, with its exit codes and its JSON."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from shared.keys import Keys
from shared.redis import command, connect
from tests.acceptance.harness import Installation, Newsroom, free_port, newsroom_at
from tests.acceptance.test_newsroom_verbs import Desk


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation of this module's own, which it stops and damages."""
    running = Installation(tmp_path_factory.mktemp("verify") / "data", free_port()).start()
    yield running
    running.kill()


@pytest.fixture
async def newsroom(own: Installation) -> AsyncIterator[Newsroom]:
    async with newsroom_at(own.base_url, own.token) as newsroom:
        yield newsroom


async def test_verify_running_and_stopped_clean_and_damaged(
    own: Installation, newsroom: Newsroom, feed_id: str
) -> None:
    desk = Desk(own)
    words = ("ops", "verify", feed_id, "--data-dir", str(own.data_dir))
    await newsroom.open_feed(feed_id)
    for number in range(5):
        await newsroom.publish(feed_id, f"Minute {number}", id=f"e{number}", tags=["goal"])
    await newsroom.correct(feed_id, "e1", 1, headline="Half-time")
    await newsroom.page(feed_id, min_position="1-7")
    shown = await desk.type(*words)
    assert shown.startswith(f"{feed_id}: ok, 7 events, 5 entries, generation 1, checkpoint 1-7")

    redis = connect(f"unix://{json.loads((own.data_dir / 'server.json').read_text())['socket']}")
    feed = Keys().feed(feed_id)
    await command(redis, "HSET", feed.of_generation(1).documents, "e2", "{}")
    await command(redis, "ZADD", feed.of_generation(1).indexes + "tag:goal", 0, "\x1b[2Jboo")
    damaged = await desk.type(*words, code=1)
    assert f"{feed_id}: 2 differences" in damaged and "\x1b" not in damaged
    assert "document e2: stored is {}; the log gives {" in damaged
    assert "index tag:goal: stored is " in damaged
    report = json.loads(await desk.type(*words, "--json", code=1))
    assert report["ok"] is False and report["feeds"][0]["differences_count"] == 2
    assert {(d["what"], d["which"]) for d in report["feeds"][0]["differences"]} == {
        ("document", "e2"),
        ("index", "tag:goal"),
    }
    await redis.aclose()

    assert own.stop() == 0
    stopped = json.loads(await desk.type(*words[:2], "--all", *words[3:], "--json", code=1))
    assert [(r["feed"], r["ok"]) for r in stopped["feeds"]] == [(feed_id, False)]
    own.start()


async def test_what_cannot_be_verified_is_said_in_one_sentence(own: Installation) -> None:
    desk = Desk(own)
    where = ("--data-dir", str(own.data_dir))
    assert "no feed 'nobody'" in (await desk.type("ops", "verify", "nobody", *where, code=1)).error
    assert "--all" in (await desk.type("ops", "verify", *where, code=2)).error
    assert "--all" in (await desk.type("ops", "verify", "final", "--all", *where, code=2)).error

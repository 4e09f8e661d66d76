"""Durability that others must confirm, on real servers with a real replica: acknowledged means confirmed, and once."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.cli.embedded import server_binary
from services.writer.promises import Promises
from shared import durability
from shared.config import Config
from shared.durability import Durability
from shared.epochs.admission import Admission
from shared.errors import Malformed, Misconfigured, OutcomeUnknown, Unavailable
from shared.keys import Keys
from shared.redis import Redis, connect, means_of
from tests.integration.builders import carry_out, desk_of, eventually, log_positions, opening, publishing

FEED = "final"


class Process:
    """A server of the test's own on a unix socket and, for a replica to follow it, a port that nobody else has."""

    def __init__(self, binary: Path, folder: Path, *flags: str, port: int) -> None:
        self.socket = folder / "s"
        self.port = port
        self.process = subprocess.Popen(
            [
                str(binary),
                "--port",
                str(port),
                "--unixsocket",
                str(self.socket),
                "--dir",
                str(folder),
                "--save",
                "",
                *flags,
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not self.socket.exists():
            assert time.monotonic() < deadline and self.process.poll() is None, "the server does not start"
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def signal(self, which: signal.Signals) -> None:
        self.process.send_signal(which)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def ports() -> tuple[int, int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    return 11_000 + 2 * worker, 11_001 + 2 * worker


ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> Path:
    found = server_binary() if request.param == "valkey" else shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not installed")
    return Path(found)


@pytest.fixture
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    running: list[Process] = []
    yield running
    for process in running:
        process.kill()


def start(started: list[Process], binary: Path, folder: Path, *flags: str) -> Process:
    folder.mkdir()
    process = Process(binary, folder, *flags, port=ports()[len(started)])
    started.append(process)
    return process


@pytest.fixture
async def redis(started: list[Process], binary: Path, tmp_path: Path) -> AsyncIterator[Redis]:
    client = connect(start(started, binary, tmp_path / "m", *ALWAYS).url)
    yield client
    await client.aclose()


@pytest.fixture
async def keys(redis: Redis) -> Keys:
    keys = Keys("t")
    await Admission(redis, keys).admit()
    return keys


async def with_replica(started: list[Process], binary: Path, folder: Path, redis: Redis) -> Process:
    replica = start(started, binary, folder / "r", *ALWAYS, "--replicaof", "127.0.0.1", str(started[0].port))

    async def follows() -> bool:
        info = await redis.info("replication")
        return int(info["connected_slaves"]) == 1 and info["slave0"]["state"] == "online"

    await eventually(follows)
    return replica


def promises_of(redis: Redis, promised: Durability, *, replicas: int = 1) -> Promises:
    return Promises(redis, Config(durability=promised, replicas=replicas))


async def publish(redis: Redis, keys: Keys, promises: Promises, entry: str, *, asked: str | None = None) -> Durability:
    promise = await promises.of(asked)
    request = publishing(entry)
    await carry_out(desk_of(redis, keys), FEED, request, key=entry, confirmation=promise.confirmation)
    return promise.reached


async def test_a_replica_confirms_what_is_acknowledged(
    redis: Redis, keys: Keys, started: list[Process], binary: Path, tmp_path: Path
) -> None:
    await with_replica(started, binary, tmp_path, redis)
    await carry_out(desk_of(redis, keys), FEED, opening())
    promises = promises_of(redis, "replicated")
    await promises.prepare()
    assert await promises.check() == {"durability": "replicated"}
    assert await publish(redis, keys, promises, "one") == "replicated"
    other = connect(started[1].url)
    try:
        assert await log_positions(other, keys, FEED) == ["1-1", "1-2"], (
            "it stands on the replica when it is acknowledged"
        )
    finally:
        await other.aclose()


async def test_a_replica_that_hangs_leaves_the_outcome_unknown_and_the_same_request_appends_once(
    redis: Redis, keys: Keys, started: list[Process], binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durability, "CONFIRM_MILLISECONDS", 200)
    replica = await with_replica(started, binary, tmp_path, redis)
    await carry_out(desk_of(redis, keys), FEED, opening())
    promises = promises_of(redis, "replicated")
    replica.signal(signal.SIGSTOP)
    try:
        for _ in range(2):
            with pytest.raises(OutcomeUnknown) as unknown:
                await publish(redis, keys, promises, "one")
            assert "nothing was appended" not in unknown.value.detail
    finally:
        replica.signal(signal.SIGCONT)
    assert await log_positions(redis, keys, FEED) == ["1-1", "1-2"]
    monkeypatch.setattr(durability, "CONFIRM_MILLISECONDS", 2_000)

    async def acknowledged() -> bool:
        try:
            return await publish(redis, keys, promises, "one") == "replicated"
        except Unavailable:
            return False

    await eventually(acknowledged)
    assert await log_positions(redis, keys, FEED) == ["1-1", "1-2"]


async def test_without_enough_replicas_nothing_is_appended(redis: Redis, keys: Keys) -> None:
    await carry_out(desk_of(redis, keys), FEED, opening())
    promises = promises_of(redis, "replicated")
    await promises.prepare()
    with pytest.raises(OutcomeUnknown, match="nothing was appended"):
        await publish(redis, keys, promises, "one")
    with pytest.raises(Unavailable, match="0 of 1 replicas"):
        await promises.check()
    assert await log_positions(redis, keys, FEED) == ["1-1"]


async def test_a_request_may_ask_for_more_and_gets_what_the_server_can(
    started: list[Process], binary: Path, tmp_path: Path, keys: Keys
) -> None:
    redis = connect(start(started, binary, tmp_path / "e", *EVERYSEC).url)
    try:
        await carry_out(desk_of(redis, keys), FEED, opening())
        promises = promises_of(redis, "memory")
        await promises.prepare()
        assert await publish(redis, keys, promises, "one") == "memory"
        has_waitaof = (await means_of(redis)).waitaof
        if has_waitaof:
            assert await publish(redis, keys, promises, "two", asked="fsync") == "fsync"
        else:
            with pytest.raises(Unavailable, match="nothing was appended"):
                await publish(redis, keys, promises, "two", asked="fsync")
        with pytest.raises(Malformed):
            await promises.of("eternal")
        if not has_waitaof:
            with pytest.raises(Misconfigured):
                await promises_of(redis, "replicated").prepare()
    finally:
        await redis.aclose()


async def test_what_stood_before_is_confirmed_too(
    redis: Redis, keys: Keys, started: list[Process], binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that appends nothing is acknowledged as well: an idempotent replay, or what stands already."""
    replica = await with_replica(started, binary, tmp_path, redis)
    await carry_out(desk_of(redis, keys), FEED, opening())
    await carry_out(desk_of(redis, keys), FEED, publishing("one"), key="k")
    monkeypatch.setattr(durability, "CONFIRM_MILLISECONDS", 200)
    promise = await promises_of(redis, "memory").of("replicated")
    replica.signal(signal.SIGSTOP)
    try:
        for key in ("k", None):
            with pytest.raises(OutcomeUnknown):
                await carry_out(
                    desk_of(redis, keys), FEED, publishing("one"), key=key, confirmation=promise.confirmation
                )
    finally:
        replica.signal(signal.SIGCONT)

"""Several processes of a service on one port: they serve as one, one that dies comes back, and they end together."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from services.cli.data_dir import ServerRecord
from services.cli.heads import read_heads
from shared import supervisor
from shared.config import Config
from shared.position import Position
from shared.supervisor import Child, environment_of
from tests.acceptance.harness import (
    Installation,
    Newsroom,
    Service,
    Stream,
    WireError,
    clean_environment,
    command_line,
    dateline,
    descendants,
    eventually,
    free_port,
    http_status,
    newsroom_at,
)

# So many that they are with one worker of two in one run of ten thousand.
READERS = 14


@pytest.fixture
def redis_url(installation: Installation) -> str:
    record = ServerRecord.read(installation.data_dir)
    assert record is not None
    return record.url


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator["Workers"]:
    workers = Workers(redis_url, tmp_path / "gateway.log")
    yield workers
    workers.service.kill()


class Workers:
    """Two workers of a gateway, with their metrics on a port of their own."""

    def __init__(self, redis_url: str, log_path: Path) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        ports = ("--port", str(self.port), "--metrics-port", str(self.metrics_port))
        self.service = Service(["gateway", "--redis-url", redis_url, "--workers", "2", *ports], log_path).start()

    @property
    def pids(self) -> dict[str, int]:
        """By the worker's name."""
        assert self.service.process is not None
        return workers_of(self.service.process.pid)


def workers_of(pid: int) -> dict[str, int]:
    found = ((re.search(r"--worker (\w+)", line), child) for child, line in descendants(pid).items())
    return {name[1]: child for name, child in found if name}


async def sample(newsroom: Newsroom, name: str) -> float:
    """What a scrape shows: one of the processes is asked."""
    text = (await newsroom.get("/metrics")).ok().body.decode()
    found = re.search(rf"^{name} (\S+)$", text, flags=re.MULTILINE)
    return float(found[1]) if found else 0.0


async def is_broken_off(stream: Stream) -> bool:
    try:
        return await stream.frame_or_end(timeout_seconds=0.5) is None
    except WireError:
        return True
    except TimeoutError:
        return False


async def test_two_workers_serve_as_one_a_killed_one_comes_back_and_sigterm_drains_both(
    newsroom: Newsroom, feed: str, gateway: Workers
) -> None:
    await eventually(lambda: "workers_listening" in gateway.service.output, what="both workers listen")
    first = gateway.pids
    assert first.keys() == {"1", "2"}
    async with (
        newsroom_at(gateway.base_url, newsroom.token, write_url=newsroom.base_url) as readers,
        newsroom_at(f"http://127.0.0.1:{gateway.metrics_port}", "") as scraper,
        AsyncExitStack() as open_streams,
    ):
        streams = [await open_streams.enter_async_context(readers.stream(feed)) for _ in range(READERS)]
        for stream in streams:
            await stream.until("live")
        assert await sample(readers, "dateline_readers") == await sample(scraper, "dateline_readers") == READERS
        entry = await readers.publish(feed, "For readers of both")
        for stream in streams:
            assert (await stream.frame()).position == entry["position"]

        killed = first["1"]
        os.kill(killed, signal.SIGKILL)
        ended = await asyncio.gather(*(is_broken_off(stream) for stream in streams))
        broken = [stream for stream, is_broken in zip(streams, ended, strict=True) if is_broken]
        assert 0 < len(broken) < READERS
        left = READERS - len(broken)
        await eventually(lambda: counts(scraper, "dateline_readers", left), what="its readers are forgotten")
        await eventually(lambda: gateway.pids.get("1", killed) != killed, what="it is started again")
        for stream in broken:
            streams.remove(stream)
            again = readers.stream(feed, last_event_id=entry["position"])
            streams.append(await open_streams.enter_async_context(again))
            await streams[-1].until("live")
        await eventually(lambda: gateway.service.output.count("gateway_listening") == 3, what="it listens again")
        entry = await readers.publish(feed, "For those who came back as well")
        for stream in streams:
            assert (await stream.frame()).position == entry["position"]
        # What the dead one had delivered is counted still.
        await eventually(lambda: reaches(scraper, "dateline_deliveries_total", 2 * READERS), what="counters go on")
        assert gateway.pids["2"] == first["2"], "nobody else was touched"

        pids = [*gateway.pids.values()]
        gateway.service.signal(signal.SIGTERM)
        # Who is impatient ends nothing early.
        gateway.service.interrupt_as_a_terminal_does()
        ends = await asyncio.gather(*(stream.to_the_end() for stream in streams))
        assert [frames[-1].data["reason"] for frames in ends] == ["draining"] * READERS
    assert gateway.service.wait() == 0
    assert [command_line(pid) for pid in pids] == ["", ""]


async def counts(newsroom: Newsroom, name: str, value: float) -> bool:
    return await sample(newsroom, name) == value


async def reaches(newsroom: Newsroom, name: str, value: float) -> bool:
    return await sample(newsroom, name) >= value


def test_what_the_workers_refuse_is_said_once_and_ends_the_start(redis_url: str) -> None:
    words = ("writer", "--redis-url", redis_url, "--workers", "2", "--port", "0")
    ended = dateline(*words, environment=clean_environment())
    assert ended.code == 1
    assert ended.error == "Error: the writer needs DATELINE_OPS_TOKEN: without it nobody could publish\n"


async def test_a_worker_that_does_not_end_when_it_is_asked_to_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "CLOSING_SECONDS", 0.1)
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    environment = {**environment_of(Config()), "PYTHONPATH": str(tmp_path)}
    kept = Child("stubborn", "1", environment, drain_seconds=0.1)
    running = asyncio.create_task(kept.run())
    await asyncio.wait_for(kept.listens.wait(), 30)
    pid = int(kept.url)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled() and command_line(pid) == ""


STUBBORN = """
import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
socket.socket(fileno=int(sys.argv[-1])).sendall(f"listening {os.getpid()}\\n".encode())
time.sleep(60)
"""


async def test_a_projector_serves_its_metrics_on_a_port_of_their_own(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    # Beside the feeds of all other tests.
    settings = clean_environment(DATELINE_KEY_PREFIX="apart", DATELINE_METRICS_PORT=str(port))
    projector = Service(["projector", "--redis-url", redis_url], tmp_path / "projector.log", settings).start()
    try:
        await eventually(lambda: http_status(f"http://127.0.0.1:{port}/metrics") == 200, what="its metrics")
        async with newsroom_at(f"http://127.0.0.1:{port}", "") as scraper:
            await eventually(lambda: counts(scraper, "dateline_shards_owned", 16), what="all shards are its own")
    finally:
        assert projector.terminate() == 0


async def test_up_with_workers_is_one_installation_and_nothing_outlives_it(tmp_path: Path) -> None:
    own = Installation(tmp_path / "data", free_port(), extra=["--workers", "2"]).start()
    try:
        async with newsroom_at(own.base_url, own.token) as newsroom:
            await newsroom.open_feed("story")
            for n in range(10):
                # A connection each: the writes are both workers'.
                async with newsroom_at(own.base_url, own.token) as desk:
                    await desk.publish("story", f"Entry {n}")
            await eventually(lambda: counts(newsroom, "dateline_events_folded_total", 11), what="the projector's")
            assert await sample(newsroom, "dateline_events_appended_total") == 11
            assert await sample(newsroom, "dateline_append_seconds_count") == 11
            assert await sample(newsroom, "dateline_shards_owned") == 16
        assert own.running.process is not None
        processes = descendants(own.running.process.pid)
        assert len(processes) == 4, processes
    finally:
        own.kill()
    await eventually(lambda: not any(command_line(pid) for pid in processes), what="all end with their supervisor")
    assert read_heads(own.data_dir) == {"story": Position(1, 11)}, "each wrote down what it acknowledged"

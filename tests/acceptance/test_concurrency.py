"""Many desks, many readers, and processes that die: what was acknowledged is there once, and readers end in one state.

Here processes are started, frozen and killed for real; what a single request promises is in the contract tests.
"""

import asyncio
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.acceptance.harness import (
    REPOSITORY,
    Answer,
    FoldedFeed,
    FrameParser,
    Installation,
    Json,
    Newsroom,
    RedisServer,
    Service,
    Stream,
    clean_environment,
    command_line,
    descendants,
    eventually,
    free_port,
    http_status,
    ids,
    newsroom_at,
    number,
    order_key,
    position_key,
    wait_ready,
)

DESKS = 16
ENTRIES = 2_000
CUTS = 50


def minute(n: int) -> str:
    return f"2022-01-10T{8 + n // 60:02}:{n % 60:02}:00.000Z"


# Coverage by many desks -------------------------------------------------------------------------------------------


@dataclass
class Coverage:
    """What the desks were told, kept apart from what readers see."""

    acknowledged: dict[str, Json] = field(default_factory=dict)
    positions: list[str] = field(default_factory=list)
    retracted: set[str] = field(default_factory=set)
    # Retractions count from the moment they are asked for: from then on a reader may see either.
    leaving: set[str] = field(default_factory=set)
    writing: bool = True

    def note(self, document: Json) -> None:
        self.positions.append(document["position"])
        held = self.acknowledged.get(document["id"])
        if held is None or position_key(held["position"]) < position_key(document["position"]):
            self.acknowledged[document["id"]] = document

    @property
    def certain(self) -> set[str]:
        return self.acknowledged.keys() - self.leaving


async def desk(newsroom: Newsroom, feed: str, coverage: Coverage, number_: int) -> None:
    rng = random.Random(number_)
    own: list[Json] = []
    for n in range(ENTRIES // DESKS):
        # Twelve minutes for two thousand entries: most share theirs; one in eight leaves its time to the append.
        times = {} if rng.random() < 0.125 else {"published_at": minute(rng.randrange(12))}
        entry = await newsroom.publish(feed, f"desk {number_} entry {n}", id=f"d{number_}-{n}", **times)
        coverage.note(entry)
        own.append(entry)
        chance = rng.random()
        if chance < 0.15:
            at = rng.randrange(len(own))
            own[at] = await newsroom.correct(feed, own[at]["id"], own[at]["revision"], headline=f"corrected {n}")
            coverage.note(own[at])
        elif chance < 0.25:
            gone = own.pop(rng.randrange(len(own)))["id"]
            coverage.leaving.add(gone)
            coverage.note(await newsroom.retract(feed, gone))
            coverage.retracted.add(gone)


async def walker(newsroom: Newsroom, feed: str, coverage: Coverage, order: str, limit: int) -> int:
    walks = 0
    while coverage.writing:
        certain, known = set(coverage.certain), newsroom.positions[feed]
        walked: list[Json] = []
        query: dict[str, str | int] = {"order": order, "limit": limit, "min_position": known}
        while True:
            page = (await newsroom.get(f"/v1/feeds/{feed}/entries", query)).ok(200).json
            walked.extend(page["entries"])
            if page["next"] is None:
                break
            query["cursor"] = page["next"]
        names = ids(walked)
        assert len(names) == len(set(names)), f"{order}/{limit}: repeated"
        assert certain - coverage.leaving <= set(names), f"{order}/{limit}: skipped"
        assert [order_key(entry) for entry in walked] == sorted(map(order_key, walked), reverse=order == "newest")
        walks += 1
    return walks


async def cut_reader(newsroom: Newsroom, feed: str, coverage: Coverage, folded: FoldedFeed, snapshot: int) -> int:
    """Follow a feed over connections that break after a random number of bytes, whole frames or not."""
    rng = random.Random(snapshot)
    cuts = 0
    # On a busy machine every connection may break before the snapshot has come.
    while cuts < CUTS or coverage.writing or folded.position is None:
        parser = FrameParser()
        bytes_left, cut_at = rng.randrange(1, 60_000), time.monotonic() + rng.uniform(0.01, 0.08)
        query = {"snapshot": snapshot} if snapshot else {}
        async with newsroom.stream(feed, query=query, last_event_id=folded.position) as stream:
            while bytes_left > 0 and (seconds_left := cut_at - time.monotonic()) > 0:
                try:
                    async with asyncio.timeout(seconds_left):
                        chunk = await stream.response.content.read(min(bytes_left, 4096))
                except TimeoutError:
                    break
                assert chunk, "the server ended a stream that it should have kept"
                bytes_left -= len(chunk)
                for frame in parser.feed(chunk):
                    folded.take(frame)
        folded.disconnected()
        cuts += 1
    return cuts


async def test_sixteen_desks_and_their_readers_agree_on_every_entry(newsroom: Newsroom, feed: str) -> None:
    coverage = Coverage()
    from_the_start, from_a_snapshot = FoldedFeed(), FoldedFeed()
    from_the_start.position = newsroom.positions[feed]
    await newsroom.feed(feed)

    async def write() -> None:
        try:
            async with asyncio.TaskGroup() as desks:
                for n in range(DESKS):
                    desks.create_task(desk(newsroom, feed, coverage, n))
        finally:
            coverage.writing = False

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(write())
        walkers = [
            group.create_task(walker(newsroom, feed, coverage, order, limit))
            for order, limit in (("newest", 100), ("oldest", 100), ("newest", 37), ("oldest", 23))
        ]
        readers = [
            group.create_task(cut_reader(newsroom, feed, coverage, from_the_start, 0)),
            group.create_task(cut_reader(newsroom, feed, coverage, from_a_snapshot, 10)),
        ]
    assert all(task.result() > 0 for task in walkers)
    assert all(task.result() >= CUTS for task in readers)

    # Each acknowledged write is one position, and there are no others.
    assert len(coverage.acknowledged) == ENTRIES
    head = newsroom.positions[feed]
    assert sorted(number(position) for position in coverage.positions) == list(range(2, number(head) + 1))
    live = sorted((d for name, d in coverage.acknowledged.items() if name not in coverage.retracted), key=order_key)
    assert all(document["status"] == "published" for document in live)
    for limit in (41, 100):
        oldest, newest = await asyncio.gather(
            newsroom.walk(feed, order="oldest", limit=limit), newsroom.walk(feed, order="newest", limit=limit)
        )
        assert oldest == live
        assert newest == oldest[::-1]
    assert (await newsroom.page(feed, limit=1))["total"] == len(live)
    assert (await newsroom.feed(feed))["entry_count"] == len(live)

    for folded in (from_the_start, from_a_snapshot):
        async with newsroom.stream(feed, query=newsroom.known(feed), last_event_id=folded.position) as stream:
            await stream.follow(folded, head)
        assert not folded.resets
    assert from_the_start.entries() == live[::-1]
    visible = from_a_snapshot.entries()
    assert len(visible) >= 1 and visible == live[::-1][: len(visible)]


# One process tree -------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Installation]:
    """An installation that the test may end as it likes."""
    installation = Installation(tmp_path / "data", free_port())
    yield installation
    installation.kill()


async def test_up_keeps_every_acknowledged_write_over_kill_9_and_readers_resume(own: Installation) -> None:
    own.start()
    token = own.token
    folded = FoldedFeed()
    acknowledged: dict[str, Json] = {}

    async def write(newsroom: Newsroom, name: str) -> None:
        for n in range(10_000):
            try:
                entry = await newsroom.publish("story", f"{name} {n}", id=f"{name}-{n}", published_at=minute(n % 7))
            except (aiohttp.ClientError, ConnectionError):
                return
            acknowledged[entry["id"]] = entry

    async def read(newsroom: Newsroom) -> None:
        try:
            async with newsroom.stream("story", query=newsroom.known("story"), last_event_id="1-1") as stream:
                while True:
                    folded.take(await stream.frame())
        except (aiohttp.ClientError, ConnectionError, AssertionError) as end:
            if isinstance(end, AssertionError) and "stream ended" not in str(end) and "broke" not in str(end):
                raise

    async with newsroom_at(own.base_url, token) as newsroom:
        await newsroom.open_feed("story")
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for n in range(6):
                group.create_task(write(newsroom, f"w{n}"))
            group.create_task(read(newsroom))
            # The reader follows too: one that has nothing yet has nothing to resume from.
            await eventually(lambda: len(acknowledged) > 150 and folded.position is not None)
            assert own.running.process is not None
            children = descendants(own.running.process.pid)
            own.kill()
    own.start()
    assert children or not Path("/proc").exists(), "up without an embedded server"
    left = {pid: line for pid, line in children.items() if line and command_line(pid) == line}
    assert not left, f"processes outlived up: {left}"
    assert own.token == token
    async with newsroom_at(own.base_url, token) as newsroom:
        for entry in acknowledged.values():
            newsroom.remember("story", entry["position"])
        entries = await newsroom.walk("story", order="oldest")
        found = {entry["id"]: entry for entry in entries}
        assert len(found) == len(entries)
        assert {name: found.get(name) for name in acknowledged} == acknowledged
        folded.disconnected()
        last = await newsroom.publish("story", "After the crash", id="last")
        async with newsroom.stream("story", query=newsroom.known("story"), last_event_id=folded.position) as stream:
            await stream.follow(folded, last["position"])
        assert folded.entries("oldest") == await newsroom.walk("story", order="oldest")
        assert not folded.resets
    assert own.stop() == 0


@pytest.mark.parametrize("sign", ["SIGTERM", "SIGINT", "Ctrl-C"])
async def test_a_signal_drains_streams_and_ends_with_0(own: Installation, sign: str) -> None:
    own.start()
    acknowledged: list[str] = []

    async def write(newsroom: Newsroom) -> None:
        for n in range(10_000):
            try:
                answer = await newsroom.write("POST", "/v1/feeds/other/entries", {"headline": "h", "id": f"e{n}"})
            except (aiohttp.ClientError, ConnectionError):
                return
            if answer.status == 503:
                return
            acknowledged.append(answer.ok(201).json["id"])

    async with newsroom_at(own.base_url, own.token) as newsroom:
        await newsroom.open_feed("story")
        await newsroom.open_feed("other")
        await asyncio.gather(newsroom.feed("story"), newsroom.feed("other"))
        async with newsroom.stream("story") as one, newsroom.stream("other", "story") as several:
            await one.until("live")
            await several.until("live")
            writing = asyncio.create_task(write(newsroom))
            await eventually(lambda: len(acknowledged) > 20, what="writes are under way")
            if sign == "Ctrl-C":
                own.running.interrupt_as_a_terminal_does()
            else:
                own.running.signal(signal.Signals[sign])
            endings = await asyncio.gather(*(stream.to_the_end() for stream in (one, several)))
            await writing
        for frames in endings:
            assert frames[-1].event == "bye"
            assert frames[-1].data["reason"] == "draining"
            assert frames[-1].data["reconnect_ms"] >= 0
    assert await asyncio.to_thread(own.running.wait) == 0, own.running.output[-3000:]
    assert http_status(f"{own.base_url}/healthz") is None
    assert "Traceback" not in own.running.output
    if sign == "Ctrl-C":
        own.kill()
        own.start()
        async with newsroom_at(own.base_url, own.token) as newsroom:

            async def shown() -> bool:
                return set(acknowledged) <= set(ids(await newsroom.walk("other")))

            await eventually(shown, what="what was acknowledged last is projected too")


async def test_a_second_up_on_the_same_data_refuses(installation: Installation, tmp_path: Path) -> None:
    arguments = ["up", "--data-dir", str(installation.data_dir), "--port", str(free_port())]
    second = Service(arguments, tmp_path / "second.log").start()
    try:
        code = await asyncio.to_thread(second.wait)
    finally:
        second.kill()
    assert code not in (0, 2), second.output
    assert "Traceback" not in second.output
    async with newsroom_at(installation.base_url, installation.token) as newsroom:
        (await newsroom.get("/readyz")).ok(200)
        await newsroom.open_feed(f"still-writing-{time.time_ns()}")


async def test_the_first_start_prints_how_to_publish_and_keeps_the_token(installation: Installation) -> None:
    output = re.sub(r"\x1b\[[0-9;]*m", "", installation.log_path.read_text())
    assert installation.base_url in output
    assert "curl" in output
    assert installation.token in output
    token_file = installation.data_dir / "ops.token"
    assert token_file.stat().st_mode & 0o777 == 0o600


# What Kubernetes puts into every pod beside a service called dateline.
INJECTED = {
    "DATELINE_SERVICE_HOST": "10.96.0.17",
    "DATELINE_SERVICE_PORT": "8080",
    "DATELINE_SERVICE_PORT_HTTP": "8080",
    "DATELINE_PORT": "tcp://10.96.0.17:8080",
    "DATELINE_PORT_8080_TCP": "tcp://10.96.0.17:8080",
    "DATELINE_PORT_8080_TCP_PROTO": "tcp",
    "DATELINE_PORT_8080_TCP_PORT": "8080",
    "DATELINE_PORT_8080_TCP_ADDR": "10.96.0.17",
}


async def test_what_kubernetes_injects_does_not_stop_the_start(own: Installation) -> None:
    own.settings = INJECTED
    await asyncio.to_thread(own.start)
    assert await asyncio.to_thread(own.stop) == 0


def test_an_unknown_setting_stops_the_start_with_its_name(tmp_path: Path) -> None:
    environment = clean_environment(DATELINE_LISTEN_PROT="8080")
    command = [sys.executable, "-m", "services.cli.main", "up", "--data-dir", str(tmp_path / "d")]
    ended = subprocess.run(
        [*command, "--port", str(free_port())],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode != 0
    assert "DATELINE_LISTEN_PROT" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


# A Redis of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(directory).start()
    yield server
    server.kill()


async def test_without_redis_writes_are_503_and_all_recovers_by_itself(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    own = Installation(tmp_path / "data", free_port(), extra=["--redis-url", redis_server.url])
    with ExitStack() as stack:
        stack.callback(own.kill)
        own.start()
        async with newsroom_at(own.base_url, own.token) as newsroom, AsyncExitStack() as stack_of_clients:
            await newsroom.open_feed("story")
            before = await newsroom.publish("story", "Before", id="before")
            open_throughout = FoldedFeed()
            stream = await stack_of_clients.enter_async_context(
                newsroom.stream("story", query=newsroom.known("story"), last_event_id="1-1")
            )
            await stream.follow(open_throughout, before["position"])

            # Frozen: the outcome of a write is unknown, and asking again under its id is safe.
            redis_server.signal(signal.SIGSTOP)
            try:
                frozen = await newsroom.write("POST", "/v1/feeds/story/entries", {"id": "frozen", "headline": "Frozen"})
                unavailable(frozen)
            finally:
                redis_server.signal(signal.SIGCONT)
            again = await write_until_taken(newsroom, {"id": "frozen", "headline": "Frozen"})

            # Gone: reads that are not cached, writes and readiness say so; the process stays.
            redis_server.kill()
            down = await newsroom.write("POST", "/v1/feeds/story/entries", {"id": "down", "headline": "Down"})
            unavailable(down)
            read = await newsroom.get("/v1/feeds/story/entries?limit=7&order=oldest&tag=never-asked-before")
            unavailable(read)
            assert await eventually(lambda: ready(newsroom, 503), what="readyz tells of the missing Redis")
            (await newsroom.get("/healthz")).ok(200)

            redis_server.start()
            assert await eventually(lambda: ready(newsroom, 200), what="ready again")
            down = await write_until_taken(newsroom, {"id": "down", "headline": "Down"})
            entries = await newsroom.walk("story", order="oldest")
            assert ids(entries) == ["before", "frozen", "down"]
            assert entries == [before, again.json, down.json]
            await reader_goes_on(newsroom, stream, open_throughout, down.position)
            assert open_throughout.entries("oldest") == entries
        assert await asyncio.to_thread(own.stop) == 0


async def reader_goes_on(newsroom: Newsroom, stream: Stream, folded: FoldedFeed, position: str) -> None:
    """Over the old connection, or a new one if the old was ended: never a silent one that misses something."""
    query = newsroom.known("story")
    async with asyncio.timeout(30):
        while (frame := await stream.frame_or_end()) is not None:
            folded.take(frame)
            if folded.live and folded.position == position:
                break
    folded.disconnected()
    async with newsroom.stream("story", query=query, last_event_id=folded.position) as again:
        await again.follow(folded, position)
        last = await newsroom.publish("story", "Live again", id="last")
        await again.follow(folded, last["position"])
    await newsroom.retract("story", "last")
    folded.documents.pop("last")
    assert not folded.resets


def unavailable(answer: Answer) -> None:
    answer.problem(503)
    assert int(answer.headers["Retry-After"]) >= 0


async def ready(newsroom: Newsroom, status: int) -> bool:
    return (await newsroom.get("/readyz")).status == status


async def write_until_taken(newsroom: Newsroom, entry: Json) -> Answer:
    async def attempt() -> Answer | None:
        answer = await newsroom.write("POST", "/v1/feeds/story/entries", entry)
        return answer.ok(200, 201) if answer.status != 503 else None

    taken = await eventually(attempt, what="the same request is taken in the end")
    assert isinstance(taken, Answer)
    return taken


# Services apart ---------------------------------------------------------------------------------------------------


@dataclass
class Apart:
    """Two writers, a gateway and two projectors on one Redis."""

    projectors: list[Service]
    # One for each writer; both read from the gateway.
    newsrooms: list[Newsroom]
    urls: dict[Path, str]

    @property
    def newsroom(self) -> Newsroom:
        return self.newsrooms[0]


@asynccontextmanager
async def services_apart(redis_server: RedisServer, directory: Path) -> AsyncIterator[Apart]:
    environment = clean_environment(DATELINE_OPS_TOKEN="an-ops-token-for-services-apart")
    with ExitStack() as processes:

        def service(name: str, log: str) -> tuple[Service, str]:
            port = free_port()
            arguments = [name, "--redis-url", redis_server.url, "--port", str(port)]
            started = Service(arguments, directory / f"{log}.log", environment).start()
            processes.callback(started.kill)
            return started, f"http://127.0.0.1:{port}"

        writers = [service("writer", f"writer-{n}") for n in range(2)]
        gateway = service("gateway", "gateway")
        projectors = [service("projector", f"projector-{n}") for n in range(2)]
        for one, url in (*writers, gateway, *projectors):
            await asyncio.to_thread(wait_ready, one, url)
        async with AsyncExitStack() as clients:
            token = environment["DATELINE_OPS_TOKEN"]
            newsrooms = [
                await clients.enter_async_context(newsroom_at(gateway[1], token, write_url=url)) for _, url in writers
            ]
            urls = {one.log_path: url for one, url in projectors}
            yield Apart([one for one, _ in projectors], newsrooms, urls)
        for one, _ in (gateway, *writers, *projectors):
            if one.process is not None:
                assert await asyncio.to_thread(one.terminate) == 0, one.output[-3000:]


async def test_a_projector_takes_over_every_shard_of_one_that_was_killed(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    # Feeds enough that no shard of sixteen is without one.
    feeds = [f"story-{n:02}" for n in range(64)]
    async with services_apart(redis_server, tmp_path) as apart:
        newsroom = apart.newsroom
        await asyncio.gather(*(newsroom.open_feed(feed) for feed in feeds))
        await asyncio.gather(*(newsroom.publish(feed, "Before", id="before") for feed in feeds))
        before = await asyncio.gather(*(newsroom.page(feed) for feed in feeds))
        assert all(ids(page["entries"]) == ["before"] for page in before)

        await two_writers_decide_as_one(apart, feeds[0])

        # Whichever of the two held the shards: the second to die certainly held all of them.
        for n, victim in enumerate(apart.projectors):
            victim.kill()
            await every_feed_goes_on(newsroom, feeds, name=f"after-{n}")
            victim.start()
            await asyncio.to_thread(wait_ready, victim, apart.urls[victim.log_path])
        await reads_wait_while_projection_stands_still(apart, feeds[0])


async def two_writers_decide_as_one(apart: Apart, feed: str) -> None:
    """Rules over a whole feed hold whichever writers the desks reach."""
    desks = [apart.newsrooms[n % 2] for n in range(16)]
    path = f"/v1/feeds/{feed}/entries"
    await asyncio.gather(*(desk.publish(feed, f"h{n}", id=f"e{n}") for n, desk in enumerate(desks)))
    pins = await asyncio.gather(*(desk.write("PUT", f"{path}/e{n}/pin") for n, desk in enumerate(desks)))
    assert sorted(answer.status for answer in pins) == [200] * 10 + [409] * 6
    fields, if_match = {"headline": "c"}, {"If-Match": '"1"'}
    corrections = await asyncio.gather(
        *(
            desk.write("PATCH", f"{path}/e0", {"headline": f"desk {n}"}, headers=if_match)
            for n, desk in enumerate(desks)
        )
    )
    assert sorted(answer.status for answer in corrections) == [200] + [412] * 15
    keyed = {"Idempotency-Key": "one"}
    publications = await asyncio.gather(*(desk.write("POST", path, fields, headers=keyed) for desk in desks))
    assert sorted(answer.status for answer in publications) == [200] * 15 + [201]
    taken = await asyncio.gather(
        *(desk.write("POST", path, {"id": "same", "headline": f"h{n % 4}"}) for n, desk in enumerate(desks))
    )
    statuses = sorted(answer.status for answer in taken)
    assert statuses == [200] * 3 + [201] + [409] * 12
    page = await newsroom_that_knows(apart, feed).page(feed, limit=100)
    # One opening, one entry of before, sixteen of here, ten pins, one correction, two publications.
    assert page["position"] == "1-31"
    assert (page["total"], len(page["pinned"])) == (19, 10)


def newsroom_that_knows(apart: Apart, feed: str) -> Newsroom:
    """The newsroom of one writer, told what the others were answered."""
    for other in apart.newsrooms[1:]:
        apart.newsroom.remember(feed, other.positions.get(feed))
    return apart.newsroom


async def reads_wait_while_projection_stands_still(apart: Apart, feed: str) -> None:
    newsroom, path = apart.newsroom, f"/v1/feeds/{feed}/entries"
    for projector in apart.projectors:
        projector.signal(signal.SIGSTOP)
    try:
        entry = await newsroom.publish(feed, "Acknowledged, not projected", id="late")
        known = {"min_position": entry["position"]}
        assert "late" not in ids((await newsroom.get(path)).ok(200).json["entries"])
        started = time.monotonic()

        async def farewell() -> None:
            async with newsroom.stream(feed, query=known) as stream:
                frames = await stream.to_the_end()
                assert [frame.event for frame in frames] == ["bye"]
                assert frames[0].data["reason"] == "unavailable"

        answers = await asyncio.gather(newsroom.get(path, known), newsroom.get(f"{path}/late", known), farewell())
        for answer in answers[:2]:
            answer.problem(503)
        assert time.monotonic() - started > 1.5
        waiting = asyncio.create_task(newsroom.get(f"{path}/late", known))
        await asyncio.sleep(0.2)
    finally:
        for projector in apart.projectors:
            projector.signal(signal.SIGCONT)
    if (answer := await waiting).status == 503:
        # A lease that ran out meanwhile may take longer than a reader waits; then the next one gets it.
        answer = await newsroom.get(f"{path}/late", known)
    assert answer.ok(200).json == entry


async def every_feed_goes_on(newsroom: Newsroom, feeds: list[str], *, name: str) -> None:
    """Publish into each feed: every entry reaches its page, and a stream exactly once."""
    followed = feeds[:16]
    seen_before = ",".join(f"{feed}:{newsroom.positions[feed]}" for feed in followed)

    async def shown(feed: str, entry: Json) -> None:
        async def seen() -> bool:
            page = (await newsroom.get(f"/v1/feeds/{feed}/entries")).ok(200).json
            return entry in page["entries"]

        await eventually(seen, what=f"{feed} shows what was published")

    async with newsroom.stream(*followed, last_event_id=seen_before) as stream:
        published = await asyncio.gather(*(newsroom.publish(feed, "After", id=name) for feed in feeds))
        await asyncio.gather(*(shown(feed, entry) for feed, entry in zip(feeds, published, strict=True)))
        got: dict[str, Json] = {}
        while len(got) < len(followed):
            frame = await stream.frame()
            if frame.event == "entry":
                assert frame.data["feed"] not in got
                got[frame.data["feed"]] = frame.data
        assert got == dict(zip(followed, published[: len(followed)], strict=True))

"""What the gateway's integration tests share: a newsroom whose every commit a test makes itself, a gateway on a free port, a
strict reader on a raw socket, and what a client holds, folded as the contract says.

The reader and the fold are written from the contract and import nothing of the product; the scenarios are in the tests.
"""

import asyncio
import contextlib
import io
import json
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self, cast

import aiohttp
import msgspec
import pytest
import uuid_utils

from services.gateway import kept
from services.gateway.reader import Reader
from services.gateway.readers import Readers
from services.gateway.reads import Reads
from services.gateway.service import Gateway
from services.projector.commit import Commits, prepare
from services.writer.commands import Command, MarkKeyEvent, PinEntry, Request, RetractEntry, UnmarkKeyEvent, UnpinEntry
from services.writer.outcome import Outcome
from services.writer.requests import Parser
from services.writer.service import Writer
from shared.config import Config
from shared.http import application
from shared.keys import Keys
from shared.lifecycle import run_until
from shared.listening import listen
from shared.metrics import Metrics
from shared.position import Position
from shared.redis import Redis
from tests.integration.builders import desk_of

TOKEN = "a-token-for-tests"
SIGNED = {"Authorization": f"Bearer {TOKEN}"}
# How long is waited for what must come; generous, since nobody waits this long for what does.
PATIENCE_SECONDS = 30.0

Json = dict[str, Any]

# See conftest for what may be.
on_one_server = pytest.mark.on_one_server


async def eventually(condition: Callable[[], object], *, seconds: float = PATIENCE_SECONDS, what: str = "") -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        await asyncio.sleep(0.005)


def number(position: str | Position) -> int:
    return int(str(position).partition("-")[2])


# The newsroom: desk and projector, in hand


class Newsroom:
    """Writes to the log and commits to the read models, each only when told to, so that a test decides what comes when."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys
        self._desk = desk_of(redis, keys)
        self._commits = Commits(redis, keys)
        self._parser = Parser(
            now_milliseconds=lambda: time.time_ns() // 1_000_000, new_entry_id=lambda: str(uuid_utils.uuid7())
        )

    # Desk: into the log, and no further

    async def open(self, feed: str, *, title: str = "A story", **fields: Any) -> Position:
        return await self.write(feed, self._parser.open_feed(_json(title=title, **fields), only_open=False))

    async def revise(self, feed: str, **fields: Any) -> Position:
        return await self.write(feed, self._parser.revise_feed(_json(**fields)))

    async def publish(self, feed: str, entry: str, *, headline: str | None = None, **fields: Any) -> Position:
        return await self.write(feed, self._parser.publish(_json(id=entry, headline=headline or entry, **fields)))

    async def correct(self, feed: str, entry: str, *, revision: int, **fields: Any) -> Position:
        return await self.write(
            feed, self._parser.correct(_json(**fields), entry=entry, revisions=frozenset({revision}))
        )

    async def retract(self, feed: str, entry: str) -> Position:
        return await self.write(feed, RetractEntry(entry, None))

    async def pin(self, feed: str, entry: str) -> Position:
        return await self.write(feed, PinEntry(entry))

    async def unpin(self, feed: str, entry: str) -> Position:
        return await self.write(feed, UnpinEntry(entry))

    async def mark(self, feed: str, entry: str) -> Position:
        return await self.write(feed, MarkKeyEvent(entry))

    async def unmark(self, feed: str, entry: str) -> Position:
        return await self.write(feed, UnmarkKeyEvent(entry))

    async def batch(self, feed: str, commands: Sequence[Json]) -> Position:
        return await self.write(feed, *self._parser.batch(_json(commands=commands)), batch=True)

    async def write(self, feed: str, *commands: Command, batch: bool = False) -> Position:
        outcome: Outcome = await self._desk.carry_out(
            Request(
                feed=feed, commands=commands, batch=batch, by="test", causation="test", key=None, fingerprint="test"
            )
        )
        return outcome.position

    # Projector: one commit, now

    async def commit(
        self, feed: str, *, events: int | None = None, frames: bool = True, broken: Sequence[str] = ()
    ) -> Position:
        """Commit the next `events` of the log, all that one commit takes by default; without `frames` readers hear nothing.

        The events at the positions `broken` are found unreadable, as if the log had been damaged there.
        """
        lease = self.keys.shard(self.keys.shard_of(feed)).lease
        await cast("Any", self.redis.hset(lease, "fence", "1"))
        (pending,) = await self._commits.pending([feed])
        if events is not None:
            pending = msgspec.structs.replace(pending, entries=pending.entries[:events])
        assert pending.entries, f"{feed} has nothing to commit"
        damaged = [
            entry._replace(fields={**entry.fields, b"content": b"damaged"}) if entry.id.decode() in broken else entry
            for entry in pending.entries
        ]
        pending = msgspec.structs.replace(pending, entries=damaged)
        commit = prepare(pending)
        if not frames:
            commit = msgspec.structs.replace(commit, frames=())
        generation = pending.generation or await self._commits.new_generation(feed)
        (answer,) = await self._commits.commit([(pending, commit, generation)], fence=1)
        assert answer == "committed"
        return commit.checkpoint

    async def commit_all(self, feed: str, *, one_by_one: bool = False, frames: bool = True) -> Position:
        while True:
            checkpoint = await self.commit(feed, events=1 if one_by_one else None, frames=frames)
            if checkpoint == await self.head(feed):
                return checkpoint

    async def head(self, feed: str) -> Position:
        raw = await cast("Any", self.redis.hmget(self.keys.feed(feed).head, ["epoch", "n"]))
        return Position(int(raw[0]), int(raw[1]))

    # Both

    async def say(self, feed: str, entry: str, **fields: Any) -> Position:
        """Publish and commit."""
        await self.publish(feed, entry, **fields)
        return await self.commit_all(feed)

    async def story(self, feed: str, entries: int = 0, **fields: Any) -> Position:
        """A feed that readers can read, with `entries` entries e1, e2, …, each a minute after the one before."""
        await self.open(feed, **fields)
        if entries:
            commands = [
                {"type": "publish", "id": f"e{i}", "headline": f"Entry {i}", "published_at": minute(i)}
                for i in range(1, entries + 1)
            ]
            for start in range(0, entries, 200):
                await self.batch(feed, commands[start : start + 200])
        return await self.commit_all(feed)

    def frames_key(self, feed: str) -> str:
        return self.keys.shard(self.keys.shard_of(feed)).frames


def minute(i: int) -> str:
    return f"2024-05-{1 + i // 1440:02}T{i // 60 % 24:02}:{i % 60:02}:00.000Z"


def _json(**fields: Any) -> bytes:
    return msgspec.json.encode(fields)


# The gateway


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A gateway on a free port, with its insides open to tests."""

    def __init__(self, gateway: Gateway, port: int, session: aiohttp.ClientSession, metrics: Metrics) -> None:
        self.gateway = gateway
        self.port = port
        self.metrics = metrics
        self._session = session
        self._before = asyncio.all_tasks()

    @property
    def readers(self) -> Readers:
        return self.gateway._readers

    @property
    def reader(self) -> Reader:
        """The only one."""
        (reader,) = self.readers
        return reader

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self._session.request(method, url, headers=headers, allow_redirects=False) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def send(
        self, method: str, path: str, *, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A write, signed and of JSON unless `headers` say otherwise."""
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {**SIGNED, "Content-Type": "application/json", **(headers or {})}
        body = None if data is None else io.BytesIO(data)
        async with self._session.request(method, url, data=body, headers=headers) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def page(self, feed: str, query: str = "") -> Json:
        answer = await self.get(f"/v1/feeds/{feed}/entries?{query}", headers=SIGNED)
        assert answer.status == 200, answer
        return cast("Json", answer.json)

    async def walk(self, feed: str, query: str = "limit=100") -> list[Json]:
        """The pages of a walk from its beginning to its end."""
        pages = [await self.page(feed, query)]
        while pages[-1]["next"]:
            pages.append(await self.page(feed, f"{query}&cursor={pages[-1]['next']}"))
            assert len(pages) < 100, "the walk goes round and round"
        return pages

    async def stream(self, path: str, **how: Any) -> "Stream":
        return await Stream.open(self.port, path, **how)

    async def followed(self, feed: str, n: int) -> None:
        """Wait until the tail has brought position `n` of a feed to this gateway."""

        def came() -> bool:
            followed = self.readers.following._followed.get(feed)
            return followed is not None and followed.position is not None and followed.position.n >= n

        await eventually(came, what=f"the tail brings {n} of {feed}")

    async def at_rest(self) -> None:
        """Nothing is left of any reader: no object, no task, no read under way."""
        readers = self.readers
        await eventually(
            lambda: (
                not (
                    len(readers)
                    or readers._channels
                    or readers._connected
                    or any(readers._wheel)
                    or list(readers.following.feeds())
                    or readers._tasks
                    or readers._catch_ups._waiting
                    or self.gateway._kept.reading
                )
            ),
            what="readers are gone",
        )
        try:
            await eventually(lambda: not self.tasks(), what="no task of a reader is left")
        except AssertionError as error:
            raise AssertionError(f"tasks are left: {self.tasks()}") from error

    def tasks(self) -> list[asyncio.Task[Any]]:
        """What the gateway runs now and did not when it had just started: handlers of requests, and work for readers."""
        ours = ("services/gateway/", "RequestHandler._handle_request")
        return [task for task in asyncio.all_tasks() - self._before if any(name in repr(task) for name in ours)]


@asynccontextmanager
async def running_gateway(
    url: str, keys: Keys, *, readers_max: int = 10_000, drain_seconds: float = 2.0, with_writer: bool = False
) -> AsyncIterator[Running]:
    """A gateway as `service.run` puts it together; `with_writer` joins the writer's routes, as `up` does."""
    config = Config(redis_url=url, key_prefix=keys.prefix, ops_token=TOKEN, readers_max=readers_max)
    metrics = Metrics()
    gateway = Gateway(config, metrics)
    writer = Writer(config, metrics) if with_writer else None
    routes = [*gateway.routes, *(writer.routes if writer else [])]
    stop = asyncio.Event()
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context))
    bound: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def listening(address: str) -> None:
        bound.set_result(address)

    serving = asyncio.create_task(
        run_until(
            stop,
            gateway.run(),
            listen(
                application(routes, metrics=metrics, checks=gateway.checks, at_hand=gateway.at_hand),
                host="127.0.0.1",
                port=0,
                drain=gateway.drain,
                drain_seconds=drain_seconds,
                on_listening=listening,
                offer=gateway.offered,
            ),
        )
    )
    try:
        either: list[asyncio.Future[Any]] = [serving, bound]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not bound.done():
            await serving
        port = int(bound.result().rpartition(":")[2])
        await eventually(lambda: gateway._tail._cursors, what="the tail has found the ends of its streams")
        timeout = aiohttp.ClientTimeout(total=20)
        # Bodies come as they are, and are coded only for tests that ask for it.
        async with aiohttp.ClientSession(
            timeout=timeout, auto_decompress=False, skip_auto_headers=[aiohttp.hdrs.ACCEPT_ENCODING]
        ) as session:
            yield Running(gateway, port, session, metrics)
    finally:
        stop.set()
        try:
            await serving
        finally:
            await gateway.close()
            if writer is not None:
                await writer.close()
        assert not unheard, "a task failed and nobody heard of it"


def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read goes to Redis, for tests of what may happen between two of them."""
    monkeypatch.setattr(kept, "TRUSTED_SECONDS", -1.0)


class Gate:
    """Holds every call of one method of Reads, after it has read and before its answer is used, until it is opened."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, method: str, *, when: Callable[..., bool] | None = None
    ) -> None:
        self.arrived = asyncio.Event()
        self.calls = 0
        self._open = asyncio.Event()
        original: Callable[..., Awaitable[Any]] = getattr(Reads, method)

        async def held(reads: Reads, *args: Any, **kwargs: Any) -> Any:
            answer = await original(reads, *args, **kwargs)
            if when is None or when(*args, **kwargs):
                self.calls += 1
                self.arrived.set()
                await self._open.wait()
            return answer

        monkeypatch.setattr(Reads, method, held)

    async def reached(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.arrived.wait()

    def open(self) -> None:
        self._open.set()


# Streams: an independent reader


class Event(NamedTuple):
    """One event as it came. A `retry:` comes as an event of that kind."""

    kind: str
    id: str | None
    data: Any

    @property
    def n(self) -> int:
        assert self.id is not None, self
        return number(self.id)


class WireError(AssertionError):
    """Bytes that an EventSource would read otherwise than they were meant, or that the contract does not allow."""


class SseParser:
    """WHATWG HTML, section 9.2.6, and strict: CR, LF and CRLF each end a line, and nothing unknown is swallowed."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, str] = {}

    def feed(self, data: bytes) -> list[Event]:
        self._rest += data
        # A CR at the very end may be the first half of a CRLF.
        *lines, self._rest = re.split(rb"\r\n|\n|\r(?!\Z)", self._rest)
        return [event for line in lines if (event := self._line(line)) is not None]

    def end(self) -> None:
        if self._rest or self._fields:
            raise WireError(f"the stream ends inside an event: {self._fields} {self._rest[:80]!r}")

    def _line(self, line: bytes) -> Event | None:
        if not line:
            fields, self._fields = self._fields, {}
            return self._event(fields)
        name, colon, value = line.decode("utf-8").partition(":")
        if name not in ("event", "id", "data", "retry") or not colon or name in self._fields:
            raise WireError(f"an unexpected line: {line[:80]!r}")
        self._fields[name] = value.removeprefix(" ")
        return None

    def _event(self, fields: dict[str, str]) -> Event:
        if set(fields) == {"retry"}:
            return Event("retry", None, int(fields["retry"]))
        if not {"event", "data"} <= set(fields) <= {"event", "id", "data"}:
            raise WireError(f"an event of the fields {fields}")
        if "\0" in fields.get("id", ""):
            raise WireError("an id with NUL is ignored by browsers")
        return Event(fields["event"], fields.get("id"), json.loads(fields["data"]))


@asynccontextmanager
async def _patience(seconds: float) -> AsyncIterator[None]:
    """Pings that come meanwhile do not prolong it: a stream that only pings is a stuck one."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise AssertionError(f"nothing came for {seconds} s") from None


class Stream:
    """A reader on a raw socket that takes bytes only when asked to: it can be slow, stop, be cut, or half-close.

    Pings come at any time, so they are counted and not given with the other events.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._parser = SseParser()
        self._events: list[Event] = []
        self.ended = False
        self.head = b""
        self.received_bytes = 0
        self.pings = 0

    @classmethod
    async def open(
        cls,
        port: int,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        version: str = "1.1",
        receive_buffer_bytes: int | None = None,
        after: bytes = b"",
    ) -> Self:
        """`after` is sent behind the request, in the same segment. Refuses any answer but a 200 that is an event stream."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", port))
        lines = [f"{method} {path} HTTP/{version}", "Host: test"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape") + after)
        stream = cls(sock)
        await stream._read_head()
        return stream

    async def _read_head(self) -> None:
        raw = b""
        while b"\r\n\r\n" not in raw:
            chunk = await self._receive(65536, PATIENCE_SECONDS)
            assert chunk, f"the connection ended in the head: {raw!r}"
            raw += chunk
        self.head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = self.head.decode().lower().split("\r\n")
        assert first.startswith(("http/1.1 200", "http/1.0 200")), raw
        headers = dict(line.split(": ", 1) for line in lines)
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert headers["server"] == "dateline"
        assert "transfer-encoding" not in headers, "a stream is close-delimited"
        assert "content-length" not in headers
        self._take(body)

    async def next(self, *, seconds: float = PATIENCE_SECONDS) -> Event:
        """The next event; an AssertionError when none comes or the stream ends."""
        async with _patience(seconds):
            while not self._events:
                assert not self.ended, "the stream has ended"
                await self.read(seconds=seconds)
        return self._events.pop(0)

    async def until(self, kind: str, *, times: int = 1, seconds: float = PATIENCE_SECONDS) -> list[Event]:
        """Events up to the `times`-th of a kind, that one included."""
        found: list[Event] = []
        while sum(event.kind == kind for event in found) < times:
            found.append(await self.next(seconds=seconds))
        return found

    async def until_n(self, n: int, *, kinds: Iterable[str] = ("entry", "retraction", "feed", "live")) -> list[Event]:
        """Events up to one whose position is `n` or beyond."""
        found = [await self.next()]
        while found[-1].kind not in kinds or found[-1].n < n:
            found.append(await self.next())
        return found

    async def rest(self, *, seconds: float = PATIENCE_SECONDS) -> list[Event]:
        """Everything to the end of the stream."""
        async with _patience(seconds):
            while not self.ended:
                await self.read(seconds=seconds)
        self._parser.end()
        events, self._events = self._events, []
        return events

    async def silence(self, seconds: float) -> None:
        """Nothing but pings comes for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._events and not self.ended:
                    await self.read(seconds=seconds)
        assert not self._events and not self.ended, self._events

    async def read(self, *, bytes_max: int = 65536, seconds: float = PATIENCE_SECONDS) -> int:
        """Take up to `bytes_max` from the socket; TimeoutError when nothing comes."""
        chunk = await self._receive(bytes_max, seconds)
        self._take(chunk)
        if not chunk:
            self.ended = True
            self.close()
        return len(chunk)

    async def _receive(self, bytes_max: int, seconds: float) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().sock_recv(self._sock, bytes_max)
        except ConnectionResetError:
            return b""

    def at_hand(self, *, bytes_max: int) -> list[Event]:
        """What whole events have come by now in at most so many bytes; never waits."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            self._take(self._sock.recv(bytes_max))
        events, self._events = self._events, []
        return events

    def _take(self, chunk: bytes) -> None:
        self.received_bytes += len(chunk)
        for event in self._parser.feed(chunk):
            if event.kind == "ping":
                assert event == Event("ping", None, {})
                self.pings += 1
            else:
                self._events.append(event)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    def half_close(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._sock.close()

    def cut(self) -> None:
        """End with a reset, as a crash or a phone that left the network does."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class Held:
    """What a client holds of one feed, folded as the contract says; every promise about order is checked on the way."""

    def __init__(self, *, at: str | Position | None = None) -> None:
        self.documents: dict[str, Json] = {}
        self.feed_document: Json | None = None
        self.last = number(at) if at is not None else 0
        self.id = str(at) if at is not None else None
        # A position is missing between two frames, and no `live` has said why.
        self.gap = False
        self.lives = 0
        self.resets: list[str] = []

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            self.take_one(event)

    def take_one(self, event: Event) -> None:
        match event.kind:
            case "retry" | "ping" | "bye":
                assert event.id is None
                return
            case "reset":
                assert event.id is None
                self.resets.append(event.data["reason"])
                self.documents, self.feed_document, self.last, self.gap = {}, None, 0, False
                return
            case "snapshot":
                assert not self.documents
                assert number(event.data["position"]) == event.n == number(event.data["feed_document"]["position"])
                for document in (*event.data["entries"], *event.data["pinned"]):
                    self.documents[document["id"]] = document
                self.feed_document = event.data["feed_document"]
            case "entry" | "retraction":
                assert (event.kind == "entry") == (event.data["status"] == "published")
                assert event.data["position"] == event.id
                held = self.documents.get(event.data["id"])
                assert held is None or number(held["position"]) < event.n, "a document came again"
                assert held is None or held["status"] == "published", "a tombstone was resurrected"
                assert event.n > self.last, f"{event.id} came after {self.last}"
                self.gap = self.gap or event.n != self.last + 1
                self.documents[event.data["id"]] = event.data
            case "feed":
                assert event.n > self.last, f"{event.id} came after {self.last}"
                assert number(event.data["position"]) >= event.n
                self.gap = self.gap or event.n != self.last + 1
                self.feed_document = event.data
            case "live":
                assert event.n >= self.last
                self.lives += 1
                self.gap = False
            case _:
                raise AssertionError(f"an unknown event: {event}")
        self.last = event.n
        self.id = event.id

    async def follow(self, stream: Stream, n: int) -> None:
        """Read until position `n` is here and no gap is left unexplained."""
        while self.last < n or self.gap:
            self.take_one(await stream.next())

    @property
    def entries(self) -> list[Json]:
        """The live entries, newest first."""
        live = [document for document in self.documents.values() if document["status"] == "published"]
        return sorted(live, key=lambda d: (d["published_at"], number(d["first_position"])), reverse=True)


async def assert_equals_page(running: Running, feed: str, held: Held) -> None:
    """The client has missed nothing: its state is the page's, at the page's position."""
    pages = await running.walk(feed)
    assert not held.gap, "a position is missing and no `live` came"
    assert held.last == number(pages[0]["position"])
    assert held.entries == [entry for page in pages for entry in page["entries"]]


async def raw_exchange(port: int, data: bytes, *, seconds: float = PATIENCE_SECONDS) -> bytes:
    """Send bytes and give the one answer that comes: its head, and as much of a body as the head says or to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(seconds):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head.lower())
            if data.startswith(b"HEAD ") or b" 304 " in head.partition(b"\r\n")[0]:
                return head + await reader.read()
            return head + (await reader.readexactly(int(length[1])) if length else await reader.read())
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

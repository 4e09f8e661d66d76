"""The hub: when aiohttp lets go of a connection, what is left of it, and how descriptors end."""

import asyncio
import errno
import gc
import os
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.web_protocol import RequestHandler

from services.gateway import hub as module
from services.gateway.connection import TransportConnection
from services.gateway.hub import Descriptor, Hub
from tests.integration.gateway_kit import Newsroom, Running, eventually, on_one_server

pytestmark = on_one_server

FEED = "story"
STREAM = f"/v1/feeds/{FEED}/stream"


async def test_nothing_of_aiohttp_and_no_task_is_left_of_a_live_reader(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM) as stream:
        await stream.until("live")
        assert isinstance(gateway.reader.connection, Descriptor)
        await eventually(lambda: not gateway.tasks(), what="the request's handler has ended")
        gc.collect()
        assert not [thing for thing in gc.get_objects() if isinstance(thing, RequestHandler)]
        await newsroom.say(FEED, "e2")
        assert (await stream.next()).n == 3


async def test_a_request_with_a_body_stays_with_its_transport(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    async with await gateway.stream(STREAM, headers={"Content-Length": "3"}, after=b"abc") as stream:
        await stream.until("live")
        assert isinstance(gateway.reader.connection, TransportConnection)


async def test_a_stream_behind_a_response_that_is_still_going_out_does_not_mix_with_it(
    newsroom: Newsroom, gateway: Running
) -> None:
    """The client asks for large pages and a stream on one connection, and reads only then."""
    await newsroom.story(FEED)
    for i in range(3):
        await newsroom.say(FEED, f"e{i}", body=[{"type": "text", "html": "x" * 9_000}] * 20)
    page = (await gateway.get(f"/v1/feeds/{FEED}/entries")).body
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", gateway.port))
    pages = f"GET /v1/feeds/{FEED}/entries HTTP/1.1\r\nHost: x\r\n\r\n" * 12
    await loop.sock_sendall(sock, (pages + f"GET {STREAM} HTTP/1.1\r\nHost: x\r\n\r\n").encode())
    received = b""
    async with asyncio.timeout(30):
        while b"event: live" not in received:
            received += await loop.sock_recv(sock, 1 << 20)
    before, _, stream = received.rpartition(b"HTTP/1.1 200 OK\r\n")
    assert before.count(page) == 12
    assert before.endswith(page)
    assert b"text/event-stream" in stream
    sock.close()


async def test_a_transport_that_is_taken_over_while_it_waits_is_full_until_all_of_that_has_gone_out() -> None:
    """A page that nobody reads may be before the stream: frames would be heaped up behind it."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(lambda: BaseProtocol(loop), ours)
    transport.write(b"x" * (1 << 20))
    writable: list[object] = []
    connection = TransportConnection(transport, on_writable=writable.append, on_gone=lambda reader: None)
    reader: Any = object()
    connection.reader = reader
    assert connection.full
    received = 0
    while received < 1 << 20:
        received += len(await loop.sock_recv(theirs, 1 << 16))
    await eventually(lambda: writable == [reader])
    assert not connection.full
    connection.abort()
    await connection.gone
    theirs.close()


@pytest.mark.parametrize(
    "lacks",
    [
        {"sslcontext": object()},
        {"socket": None},
        {"buffer": 1},
        {"body": True},
        {"closing": True},
    ],
    ids=lambda lacks: next(iter(lacks)),
)
async def test_a_connection_that_lacks_a_condition_is_not_taken(lacks: dict[str, Any]) -> None:
    ours, theirs = socket.socketpair()
    state = {"socket": ours, "sslcontext": None, "buffer": 0, "body": False, "closing": False, **lacks}
    aborted: list[bool] = []
    transport = SimpleNamespace(
        is_closing=lambda: state["closing"],
        get_write_buffer_size=lambda: state["buffer"],
        get_extra_info=state.get,
        abort=lambda: aborted.append(True),
    )
    hub = Hub(on_writable=lambda reader: None, on_gone=lambda reader: None)
    request: Any = SimpleNamespace(transport=transport, body_exists=state["body"])
    assert hub.take(request) is None
    assert not aborted
    ours.close()
    theirs.close()


async def test_a_connection_that_the_selector_has_no_room_for_stays_with_its_transport(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    aborted: list[bool] = []
    transport = SimpleNamespace(
        is_closing=lambda: False,
        get_write_buffer_size=lambda: 0,
        get_extra_info={"socket": ours}.get,
        abort=lambda: aborted.append(True),
    )
    hub = Hub(on_writable=lambda reader: None, on_gone=lambda reader: None)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    number = os.dup(ours.fileno())
    monkeypatch.setattr(hub._open_selector(), "register", refuse)
    monkeypatch.setattr("services.gateway.hub.os.dup", lambda fd: number)
    request: Any = SimpleNamespace(transport=transport, body_exists=False)
    assert hub.take(request) is None
    assert not aborted
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    hub.close()
    ours.close()
    theirs.close()


class Pair:
    """A descriptor of a hub and the socket of its peer; what the hub tells is counted."""

    def __init__(self) -> None:
        self.gone: list[object] = []
        self.writable: list[object] = []
        self.hub = Hub(on_writable=self.writable.append, on_gone=self.gone.append)
        self.reader: Any = object()
        self.sockets: list[socket.socket] = []

    def connect(self) -> tuple[Descriptor, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.sockets += (ours, theirs)
        transport = SimpleNamespace(
            is_closing=lambda: False,
            get_write_buffer_size=lambda: 0,
            get_extra_info={"socket": ours}.get,
            abort=ours.close,
        )
        request: Any = SimpleNamespace(transport=transport, body_exists=False)
        descriptor = self.hub.take(request)
        assert descriptor is not None
        descriptor.reader = self.reader
        return descriptor, theirs


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    yield made
    made.hub.close()
    for sock in made.sockets:
        sock.close()


async def test_what_was_ready_for_a_closed_descriptor_does_not_reach_the_next_one_of_its_number(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, its_peer = pair.connect()
    other, others_peer = pair.connect()
    its_peer.close()
    others_peer.close()
    ready = pair.hub._open_selector().select(0)
    assert {key.fd for key, _ in ready} == {first.fd, other.fd}
    number = other.fd
    pair.hub._events.extend(ready)
    pair.hub.release(other)
    monkeypatch.setattr("services.gateway.hub.os.dup", lambda fd: os.dup2(fd, number))
    again, peer = pair.connect()
    pair.hub._work()
    assert first.fd == -1
    assert (again.fd, len(pair.gone)) == (number, 2)
    peer.close()
    await eventually(lambda: len(pair.gone) == 3)


async def test_a_frame_in_part_goes_out_before_all_else_and_then_the_hub_tells(pair: Pair) -> None:
    descriptor, peer = pair.connect()
    data = os.urandom(1 << 20)
    taken = descriptor.write(data)
    assert 0 < taken < len(data)
    descriptor.finish(memoryview(data)[taken:])
    descriptor.finish(b"bye")
    assert descriptor.full
    peer.setblocking(False)
    received = b""
    loop = asyncio.get_running_loop()
    while len(received) < len(data) + 3:
        received += await loop.sock_recv(peer, 1 << 16)
    assert received == data + b"bye"
    await eventually(lambda: pair.writable == [pair.reader])
    assert not descriptor.full
    peer.close()
    await eventually(lambda: pair.gone)


async def test_a_closed_connection_ends_after_its_last_words_and_is_released_when_the_peer_ends_or_time_is_over(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.05)
    descriptor, peer = pair.connect()
    data = b"x" * (1 << 20)
    descriptor.finish(memoryview(data)[descriptor.write(data) :])
    descriptor.close()
    peer.setblocking(False)
    received = 0
    loop = asyncio.get_running_loop()
    while part := await loop.sock_recv(peer, 1 << 16):
        received += len(part)
    assert received == len(data), "the end comes after all of it"
    assert not pair.writable
    await eventually(lambda: pair.gone == [pair.reader])
    assert descriptor.reader is None
    peer.close()


async def test_a_flood_of_ends_is_worked_off_in_turns(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_SECONDS", 0.0)
    peers = [pair.connect()[1] for _ in range(50)]
    for peer in peers:
        peer.close()
    rounds = 0
    while len(pair.gone) < 50:
        before = len(pair.gone)
        await asyncio.sleep(0)
        assert len(pair.gone) - before <= 1
        rounds += 1
        assert rounds < 5_000

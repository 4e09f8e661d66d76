"""The door and what accepts before it: a crowd is let in as the first of it was, and nobody else is."""

import asyncio
import errno
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import web

from services.gateway.door import _request
from services.gateway.hub import Descriptor, Hub
from services.gateway.reader import Reader, Wish
from services.gateway.reads import DIFFERENCE_DOCUMENTS_MAX
from shared import accepting
from shared.accepting import Accepting, Offer
from shared.http import application
from shared.listening import listen
from shared.metrics import Metrics
from shared.position import Position
from tests.integration.gateway_kit import (
    PATIENCE_SECONDS,
    SIGNED,
    Newsroom,
    Running,
    eventually,
    on_one_server,
)

pytestmark = on_one_server

FEED = "story"
STREAM = f"/v1/feeds/{FEED}/stream"


@pytest.fixture
def let_in(monkeypatch: pytest.MonkeyPatch) -> list[Descriptor]:
    """Who came by the door."""
    descriptors: list[Descriptor] = []
    adopt = Hub.adopt

    def adopted(hub: Hub, sock: socket.socket, *, read_bytes: int) -> Descriptor | None:
        descriptor = adopt(hub, sock, read_bytes=read_bytes)
        if descriptor is not None:
            descriptors.append(descriptor)
        return descriptor

    monkeypatch.setattr(Hub, "adopt", adopted)
    return descriptors


def asking(target: str, *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/{version}", "Host: x", *lines, "", ""]).encode()


async def first_words(port: int, request: bytes) -> tuple[bytes, bytes, asyncio.StreamWriter]:
    """Of the answer its head and what came up to a `live`, without what is of its second or by chance."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(request)
    async with asyncio.timeout(PATIENCE_SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
        words = await reader.readuntil(b"event: live\n") + await reader.readuntil(b"\n\n")
    head = re.sub(rb"date: [^\r]+", b"date:", head.lower())
    return b"\n".join(sorted(head.split(b"\r\n"))), re.sub(rb"retry: \d+", b"retry:", words), writer


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        (STREAM, ()),
        (STREAM, ("Last-Event-ID: 1-1",)),
        (f"{STREAM}?last_event_id=1-2", ()),
        (f"{STREAM}?last_event_id=9-9&snapshot=1", ()),
        (f"{STREAM}?min_position=1-2", ()),
        (f"{STREAM}?last_event_id=1-1&catch_up=0", ()),
        ("/v1/feeds/other/stream?last_event_id=1-1", ()),
        (f"/v1/stream?feed={FEED}&feed=other", (f"Last-Event-ID: {FEED}:1-1",)),
    ],
    ids=[
        "as new",
        "by the header",
        "by the parameter",
        "ahead of the log",
        "from a position on",
        "too far behind",
        "of two chunks",
        "of several",
    ],
)
async def test_the_second_who_asks_alike_gets_the_very_answer_of_the_first(
    newsroom: Newsroom, gateway: Running, let_in: list[Descriptor], target: str, lines: tuple[str, ...]
) -> None:
    await newsroom.story(FEED, 1)
    await newsroom.story("other", DIFFERENCE_DOCUMENTS_MAX + 5)
    *first, first_writer = await first_words(gateway.port, asking(target, *lines))
    assert not let_in
    *second, second_writer = await first_words(gateway.port, asking(target, *lines))
    assert first == second
    # One who knows a position that may not be there yet is looked up each time.
    assert len(let_in) == ("9-9" not in target and "min_position" not in target)
    await eventually(lambda: len([reader for reader in gateway.readers if reader.live]) == 2)
    first_writer.close()
    second_writer.close()


async def test_one_who_is_let_in_has_its_first_words_in_one_write_and_then_every_frame(
    newsroom: Newsroom, gateway: Running, let_in: list[Descriptor]
) -> None:
    await newsroom.story(FEED, 1)
    request = asking(STREAM, "Last-Event-ID: 1-1")
    *_, first = await first_words(gateway.port, request)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(request)
    words = await reader.read(65_536)
    assert words.startswith(b"HTTP/1.1 200 OK\r\n") and words.endswith(b'data: {"feed":"story"}\n\n')
    assert words.count(b"\nid: 1-2\n") == 2
    assert not gateway.tasks()
    await newsroom.say(FEED, "e2")
    assert b"id: 1-3\n" in await reader.readuntil(b"}\n\n")
    assert len(let_in) == 1
    first.close()
    writer.close()


async def test_who_may_not_see_the_feed_any_more_is_not_let_in(
    newsroom: Newsroom, gateway: Running, let_in: list[Descriptor]
) -> None:
    await newsroom.story(FEED, 1)
    *_, writer = await first_words(gateway.port, asking(STREAM))
    writer.close()
    await newsroom.revise(FEED, visibility="private")
    await newsroom.commit_all(FEED)
    async with await gateway.stream(STREAM, headers=SIGNED) as stream:
        # What is kept of the feed is now what its readers with a token get.
        await stream.until("live")
        assert (await gateway.get(STREAM)).status == 404
    assert not let_in


async def test_nothing_that_is_at_hand_is_told_to_one_who_may_not_see_it(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1, visibility="private")
    async with await gateway.stream(f"{STREAM}?last_event_id=1-1", headers=SIGNED) as stream:
        await stream.until("live")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        descriptor = gateway.readers.hub.adopt(ours, read_bytes=0)
        assert descriptor is not None
        gateway.readers.join(descriptor, Wish((FEED,), False, (Position(1, 1),), None, "newest", None, (None,), False))
        with theirs:
            words = await asyncio.get_running_loop().sock_recv(theirs, 65_536)
        assert words.startswith(b'event: bye\ndata: {"reason":"expired"')


PLAIN = asking(STREAM)


@pytest.mark.parametrize(
    "here",
    [
        asking(STREAM, version="1.0"),
        asking(STREAM, "Authorization: Bearer x"),
        asking(STREAM, "Expect: 100-continue"),
        asking(STREAM, "Connection: Upgrade", "Upgrade: websocket"),
        asking(STREAM, "Content-Length: 3"),
        asking(STREAM, "Content-Length: 3") + b"abc",
        asking(STREAM, "Transfer-Encoding: chunked", "Content-Encoding: gzip") + b"3\r\nabc\r\n0\r\n\r\n",
        PLAIN.replace(b"GET", b"HEAD"),
        PLAIN[:-2],
        PLAIN + PLAIN,
        PLAIN + b"\x00\xff garbage",
        PLAIN.replace(b"Host: x\r\n", b""),
        b"GET \xff",
    ],
)
async def test_a_request_that_is_more_or_less_than_a_plain_one_goes_the_long_way(here: bytes) -> None:
    assert _request(PLAIN) is not None
    assert _request(here) is None


async def test_what_goes_out_before_the_first_words_is_kept_whole_where_the_socket_is_full() -> None:
    room = 3
    rest: list[bytes] = []
    connection: Any = type(
        "Full", (), {"write": lambda _, data: room, "finish": lambda _, data: rest.append(bytes(data))}
    )()
    wish = Wish(("f",), False, (None,), None, "newest", None, (None,), False)
    reader = Reader(cast("Any", None), connection, wish, snapshot=1, lead=b"head")
    assert reader.send_frames([b"one", b"two"], b"onetwo") == 0
    room = 2
    assert reader.send_frames([b"one", b"two"], b"onetwo") == 1
    assert rest == [b"d", b"e"]


# Accepting


@asynccontextmanager
async def accepting_for(offer: Offer) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    """A server that answers `long way` to what is not taken; yields how to send it something and read all of its answer."""
    loop = asyncio.get_running_loop()

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.Transport", transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(b"long way")
            self.transport.close()

    server = await loop.create_server(Answering, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    accepts = Accepting(server, Answering, offer)

    async def ask(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return answer

    try:
        yield ask
    finally:
        await accepts.close()
        server.close()
        with pytest.raises(ConnectionRefusedError):
            await ask(b"a")


async def test_a_connection_is_its_takers_or_goes_the_long_way_with_all_that_it_sent() -> None:
    def offer(sock: socket.socket, here: bytes) -> bool:
        if here == b"broken":
            raise RuntimeError("a bug")
        if here != b"taken":
            return False
        with sock:
            sock.recv(len(here))
            sock.sendall(b"at once")
        return True

    async with accepting_for(offer) as ask:
        assert await ask(b"other") == b"long way"
        assert await ask(b"taken") == b"at once"
        with pytest.raises(ConnectionResetError):
            await ask(b"broken")
        assert await ask(b"other") == b"long way"


async def test_where_there_is_no_room_for_a_connection_it_waits_a_while_and_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "NO_ROOM_SECONDS", 0.1)
    accept = socket.socket.accept
    refused = 0

    def no_room_at_first(listening: socket.socket) -> Any:
        nonlocal refused
        refused += 1
        if refused <= 2:
            raise OSError(errno.EMFILE, "too many open files")
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", no_room_at_first)
    began = asyncio.get_running_loop().time()
    async with accepting_for(lambda sock, here: False) as ask:
        assert await ask(b"other") == b"long way"
    assert asyncio.get_running_loop().time() - began >= 0.2


async def test_those_who_were_accepted_before_one_that_failed_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = socket.socket.accept
    failed: list[dict[str, Any]] = []
    calls = 0

    def fails_after_one(listening: socket.socket) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            return accept(listening)
        raise OSError(errno.EPROTO, "protocol error") if calls == 2 else BlockingIOError

    monkeypatch.setattr(socket.socket, "accept", fails_after_one)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    async with accepting_for(lambda sock, here: False) as ask:
        assert await ask(b"other") == b"long way"
    assert len(failed) == 1


async def test_a_crowd_is_accepted_at_once_and_answered_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a turn serves: between two turns the loop goes round, and no connection is forgotten."""
    rounds = 0
    in_round: list[int] = []

    def offer(_: socket.socket, here: bytes) -> bool:
        in_round.append(rounds)
        return False

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(accepting, "TURN_SECONDS", 60.0)
    async with accepting_for(offer) as ask:
        counting = asyncio.create_task(count())
        assert await asyncio.gather(*[ask(b"other") for _ in range(100)]) == [b"long way"] * 100
        counting.cancel()
    assert max(in_round.count(number) for number in in_round) <= accepting.HANDED_OVER_MAX


async def test_those_who_wait_for_their_turn_when_accepting_ends_are_answered_by_aiohttp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "TURN_SECONDS", 0.0)
    loop = asyncio.get_running_loop()
    built = 0

    class Counted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal built
            built += 1
            cast("asyncio.Transport", transport).abort()

    server = await loop.create_server(Counted, "127.0.0.1", 0)
    accepts = Accepting(server, Counted, lambda sock, here: True)
    crowd = [await asyncio.open_connection(*server.sockets[0].getsockname()) for _ in range(3)]
    for _, writer in crowd:
        writer.write(b"here")
    await eventually(lambda: len(accepts._accepted) == 3)
    await accepts.close()
    assert built == 3
    server.close()
    for _, writer in crowd:
        writer.close()


async def test_a_crowd_that_has_asked_when_serving_ends_is_answered_and_nothing_of_it_is_left_behind() -> None:
    bound: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    offered = 0

    def offer(_: socket.socket, here: bytes) -> bool:
        nonlocal offered
        offered += 1
        if offered == accepting.HANDED_OVER_MAX:
            serving.cancel()  # some are on their way to aiohttp now, and others wait for their turn
        return False

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def listening(url: str) -> None:
        bound.set_result(url)

    serving = asyncio.create_task(
        listen(
            application([web.get("/", hello)], metrics=Metrics(), checks={}),
            host="127.0.0.1",
            port=0,
            drain=None,
            drain_seconds=5,
            on_listening=listening,
            offer=offer,
        )
    )
    port = int((await bound).rpartition(":")[2])
    crowd = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(2 * accepting.HANDED_OVER_MAX)]
    for sock in crowd:
        sock.sendall(asking("/"))
    await asyncio.gather(serving, return_exceptions=True)
    assert not [task for task in asyncio.all_tasks() if "RequestHandler" in repr(task)]
    for sock in crowd:
        with sock:
            assert sock.recv(64).startswith(b"HTTP/1.1 200 ")

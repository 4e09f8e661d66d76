"""The hub: readers' bare descriptors in one selector, which is itself one descriptor of the event loop.

Owns them from the moment that aiohttp lets go of a connection until it is closed: no transport, no protocol, no task and no
buffer of a reader that keeps up. Where a condition fails, `connection` has the way through the transport.
"""

import asyncio
import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from aiohttp import web

from services.gateway.connection import NONE, SEND_BUFFER_BYTES, Told, bytes_acknowledged

if TYPE_CHECKING:
    from services.gateway.reader import Reader

# How long events are worked off before the loop goes round.
TURN_SECONDS = 0.004
DISCARDED_BYTES = 4096
# How long the end of a peer that was told ours is waited for.
LINGER_SECONDS = 0.5

_AT_ONCE = struct.pack("ii", 1, 0)
_CLOSED = NONE


class Descriptor:
    """One connection of the hub."""

    __slots__ = ("_closing", "_hub", "_rest", "fd", "full", "reader")

    def __init__(self, hub: "Hub", fd: int) -> None:
        self._hub = hub
        self.fd = fd
        self.full = False
        self.reader: Reader | None = None
        self._rest: memoryview | None = None
        self._closing = False

    def write(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            self._hub.release(self)
            return len(data)

    def finish(self, rest: bytes | memoryview) -> None:
        if self.fd == _CLOSED:
            return
        # One that is closing may still have a frame to end before its goodbye.
        self._rest = memoryview(rest if self._rest is None else bytes(self._rest) + bytes(rest))
        self.full = True
        self._hub.watch(self, writable=True)

    def close(self) -> None:
        self._closing = True
        if not self.full:
            self._shut_down()

    def abort(self) -> None:
        if self.fd != _CLOSED:
            with _socket(self.fd) as sock, suppress(OSError):
                # What waits is not sent on behind our back, for as long as the kernel would try.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self._hub.release(self)

    def bytes_acknowledged(self) -> int | None:
        if self.fd == _CLOSED:
            return None
        with _socket(self.fd) as sock:
            return bytes_acknowledged(sock)

    def go_on(self) -> bool:
        """Write what is left of a frame; True when nothing is."""
        if self._rest:
            written = self.write(self._rest)
            if self.fd == _CLOSED:
                return False
            self._rest = self._rest[written:]
            if self._rest:
                return False
        self._rest = None
        self.full = False
        self._hub.watch(self, writable=False)
        if self._closing:
            self._shut_down()
        return not self._closing

    def discard(self) -> None:
        """Take what came in and forget it; its end is the reader's."""
        try:
            ended = not os.read(self.fd, DISCARDED_BYTES)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self._hub.release(self)

    def _shut_down(self) -> None:
        """Nothing more comes from here."""
        if self.fd != _CLOSED:
            try:
                with _socket(self.fd) as sock:
                    sock.shutdown(socket.SHUT_WR)
                self._hub.linger(self)
            except OSError:
                self._hub.release(self)


@contextmanager
def _socket(fd: int) -> Iterator[socket.socket]:
    """The descriptor as a socket object for a moment: kept for each reader they would be most of its memory."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


class Hub:
    """All descriptors of one gateway process. `on_writable` and `on_gone` are told of a connection's reader."""

    def __init__(self, *, on_writable: Told, on_gone: Told) -> None:
        self._on_writable = on_writable
        self._on_gone = on_gone
        self._selector: selectors.DefaultSelector | None = None
        self._events: deque[tuple[selectors.SelectorKey, int]] = deque()
        self._lingering: deque[tuple[float, Descriptor]] = deque()

    def take(self, request: web.Request) -> Descriptor | None:
        """Take a connection from aiohttp after its response has begun; None where it must stay with its transport.

        Not over TLS, whose bytes are the transport's to make; not while bytes of an earlier response or of a body are under
        way, or the two would mix. What was sent behind the request is answered by nobody: a stream ends its connection.
        """
        transport = request.transport
        if transport is None or transport.is_closing() or request.body_exists or transport.get_write_buffer_size():
            return None
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is None or transport.get_extra_info("sslcontext") is not None or not self._works():
            return None
        try:
            descriptor = Descriptor(self, os.dup(sock.fileno()))
        except OSError:
            return None  # no descriptor is free, and the transport has one already
        if not self._register(descriptor, sock):
            os.close(descriptor.fd)
            return None
        # Closes aiohttp's own descriptor of the connection, and with it all that it keeps of it.
        transport.abort()
        return descriptor

    def adopt(self, sock: socket.socket, *, read_bytes: int) -> Descriptor | None:
        """Take a connection that nobody has, with so many bytes of its input as read; None where it stays the caller's."""
        if not self._works():
            return None
        descriptor = Descriptor(self, sock.fileno())
        if not self._register(descriptor, sock):
            return None
        with suppress(OSError):  # reset meanwhile, which the first write tells as well
            sock.recv(read_bytes)
        sock.detach()
        return descriptor

    def _register(self, descriptor: Descriptor, sock: socket.socket) -> bool:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            self._open_selector().register(descriptor.fd, selectors.EVENT_READ, descriptor)
        except OSError:
            return False  # a user may have only so many descriptors in selectors
        return True

    def watch(self, descriptor: Descriptor, *, writable: bool) -> None:
        events = selectors.EVENT_READ | selectors.EVENT_WRITE if writable else selectors.EVENT_READ
        self._open_selector().modify(descriptor.fd, events, descriptor)

    def release(self, descriptor: Descriptor) -> None:
        """Close it: a number that is used again never reaches this connection's reader, which holds the object."""
        fd, descriptor.fd = descriptor.fd, _CLOSED
        if fd == _CLOSED:
            return
        self._open_selector().unregister(fd)
        with suppress(OSError):  # the peer's reset, told once more
            os.close(fd)
        # Parted, both are freed at once: a crowd that leaves would wait for the collector.
        reader, descriptor.reader = descriptor.reader, None
        if reader is not None:
            self._on_gone(reader)

    def linger(self, descriptor: Descriptor) -> None:
        """Wait a little for the peer's end: closed before, input that still comes is answered by a reset, which can take
        the last words from the reader.
        """
        loop = asyncio.get_running_loop()
        self._lingering.append((loop.time() + LINGER_SECONDS, descriptor))
        if len(self._lingering) == 1:
            loop.call_later(LINGER_SECONDS, self._let_go)

    def _let_go(self) -> None:
        loop = asyncio.get_running_loop()
        while self._lingering and self._lingering[0][0] <= loop.time():
            self.release(self._lingering.popleft()[1])
        if self._lingering:
            loop.call_at(self._lingering[0][0], self._let_go)

    def close(self) -> None:
        """Close the selector and all that is still in it."""
        if self._selector is None:
            return
        for key in list(self._selector.get_map().values()):
            self.release(key.data)
        self._events.clear()
        self._lingering.clear()
        asyncio.get_running_loop().remove_reader(self._selector)
        self._selector.close()
        self._selector = None

    def _works(self) -> bool:
        """Whether this platform's selector can itself be waited for, as epoll's and kqueue's can."""
        return hasattr(selectors.DefaultSelector, "fileno")

    def _open_selector(self) -> selectors.DefaultSelector:
        if self._selector is None:
            self._selector = selectors.DefaultSelector()
            asyncio.get_running_loop().add_reader(self._selector, self._work)
        return self._selector

    def _work(self) -> None:
        """Serve what is ready, in turns: thousands may end at the same moment."""
        if self._selector is None:
            return
        if not self._events:
            self._events.extend(self._selector.select(0))
        until = time.monotonic() + TURN_SECONDS
        while self._events:
            key, events = self._events.popleft()
            descriptor: Descriptor = key.data
            if events & selectors.EVENT_READ and descriptor.fd == key.fd:
                descriptor.discard()
            if events & selectors.EVENT_WRITE and descriptor.fd == key.fd and descriptor.go_on() and descriptor.reader:
                self._on_writable(descriptor.reader)
            if time.monotonic() >= until:
                break

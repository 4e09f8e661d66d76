"""Accepting: connections from a listening socket, each offered with what it has sent so far before aiohttp has it.

Owns accepting in asyncio's place, and the way to aiohttp for all that nobody takes. Who takes a connection is the offer's. A
crowd is accepted at once, since the kernel turns away whom its queue has no room for, and served in turns.
"""

import asyncio
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import structlog

log = structlog.get_logger()

ACCEPTED_AT_ONCE_MAX = 256
# Of those that were accepted, in one round of the loop: so long, and so many that aiohttp has to answer.
TURN_SECONDS = 0.005
HANDED_OVER_MAX = 16
# Of what has come; more than a request's head that one is known by.
OFFERED_BYTES_MAX = 16 * 1024
# A connection that sends nothing waits in the kernel for so long, and goes to aiohttp then.
DEFERRED_SECONDS = 1
# How long none is accepted where none has room.
NO_ROOM_SECONDS = 1.0

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# Given a connection and what has come of it, which can still be read there: whether it is taken, and no other's from now on.
Offer = Callable[[socket.socket, bytes], bool]


class Accepting:
    """Accepts for `server`, in place of its own accepting, until closed; `build` makes aiohttp's protocol for a connection."""

    def __init__(self, server: asyncio.Server, build: Callable[[], asyncio.Protocol], offer: Offer) -> None:
        self._loop = asyncio.get_running_loop()
        self._build = build
        self._offer = offer
        self._listening: set[socket.socket] = set()
        self._accepted: deque[socket.socket] = deque()
        self._serving = False
        self._handing_over: set[asyncio.Task[object]] = set()
        for of_server in server.sockets:
            # The same queue of connections, under a number of our own.
            listening = socket.socket(fileno=os.dup(of_server.fileno()))
            # As asyncio and aiohttp have it of each connection, which inherits it from here.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_DEFER_ACCEPT"):
                with suppress(OSError):
                    # Connections come with their requests: there is something to offer.
                    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFERRED_SECONDS)
            self._listening.add(listening)
            self._loop.remove_reader(of_server.fileno())
            self._resume(listening)

    async def close(self) -> None:
        """Accept nothing more; those who wait for their turn are aiohttp's to answer, which has all of them then."""
        while self._listening:
            listening = self._listening.pop()
            self._loop.remove_reader(listening)
            listening.close()
        while self._accepted:
            self._hand_over(self._accepted.popleft())
        await asyncio.gather(*self._handing_over, return_exceptions=True)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        try:
            self._accept_all(listening)
        finally:
            # Those before one that failed, too: nobody else wakes them.
            if self._accepted and not self._serving:
                self._serve()

    def _accept_all(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE_MAX):
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                # It would be ready again and again.
                log.warning("no_room_for_connections", error=repr(error))
                self._loop.remove_reader(listening)
                self._loop.call_later(NO_ROOM_SECONDS, self._resume, listening)
                break
            sock.setblocking(False)
            self._accepted.append(sock)

    def _serve(self) -> None:
        until, handed_over = time.monotonic() + TURN_SECONDS, 0
        while self._accepted and handed_over < HANDED_OVER_MAX and time.monotonic() < until:
            sock = self._accepted.popleft()
            if not self._taken(sock):
                self._hand_over(sock)
                handed_over += 1
        self._serving = bool(self._accepted)
        if self._serving:
            self._loop.call_soon(self._serve)

    def _taken(self, sock: socket.socket) -> bool:
        try:
            here = sock.recv(OFFERED_BYTES_MAX, socket.MSG_PEEK)
        except OSError:
            return False  # nothing yet, or what aiohttp meets again
        try:
            return bool(here) and self._offer(sock, here)
        except Exception:
            # Nobody knows how far it came, and the others in the queue are to be accepted all the same.
            log.exception("offer_failed")
            sock.close()
            return True

    def _hand_over(self, sock: socket.socket) -> None:
        task = self._loop.create_task(self._connect(sock))
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)

    async def _connect(self, sock: socket.socket) -> None:
        with suppress(OSError):  # gone already
            await self._loop.connect_accepted_socket(self._build, sock)

"""A reader's connection: what the fan-out needs of it, and the way through asyncio's transport.

Owns flow control and the end of such a connection. Descriptors that need no transport are the `hub`'s; what is written, and
when, is not decided here.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from services.gateway.reader import Reader

# Small enough that a reader that stopped reading shows after some frames, not after megabytes of kernel buffers.
SEND_BUFFER_BYTES = 128 * 1024
# A transport takes all that it is given: this much at a time, and no more before that has gone out.
TRANSPORT_BYTES = 64 * 1024

# Linux: struct tcp_info, tcpi_bytes_acked, a 64-bit count.
_TCP_INFO_BYTES_ACKED = slice(120, 128)

NONE = -1

Told = Callable[["Reader"], None]


class Connection(Protocol):
    """`full` while what was given has not gone out: nothing may be written then. `reader` is whose it is, once that is known.

    `fd` is the bare descriptor that may be written to as well, `NONE` where `write` is the only way.
    """

    fd: int
    full: bool
    reader: "Reader | None"

    def write(self, data: bytes) -> int:
        """How many bytes were taken; the rest is not kept."""

    def finish(self, rest: bytes | memoryview) -> None:
        """Keep what is left of a frame that was taken in part, to go out before all else; empty where none was."""

    def close(self) -> None:
        """Close after what waits has gone out."""

    def abort(self) -> None:
        """Close now; what waits is lost."""

    def bytes_acknowledged(self) -> int | None:
        """How many bytes the peer has acknowledged so far; None where the platform does not tell."""


class TransportConnection(asyncio.Protocol):
    """Takes a transport over from another protocol; input is discarded, never parsed."""

    fd = NONE

    def __init__(self, transport: asyncio.Transport, *, on_writable: Told, on_gone: Told) -> None:
        self._transport = transport
        self._former = transport.get_protocol()
        self._on_writable = on_writable
        self._on_gone = on_gone
        # Paused by what went before, it says only once that it is not: when all of that has gone out.
        self.full = bool(getattr(self._former, "writing_paused", False))
        self.reader: Reader | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        transport.set_protocol(self)
        # Paused while a body came that nobody takes: the end of the connection would go unnoticed.
        transport.resume_reading()
        # What the socket does not take waits in user space, once: a reader whose socket is full is not written to.
        transport.set_write_buffer_limits(high=0)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if transport.is_closing():
            self._end()

    def write(self, data: bytes) -> int:
        taken = data[:TRANSPORT_BYTES]
        if not self._transport.is_closing():
            self._transport.write(taken)
        return len(taken)

    def finish(self, rest: bytes | memoryview) -> None:
        if rest and not self._transport.is_closing():
            self._transport.write(rest)

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def bytes_acknowledged(self) -> int | None:
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        return None if sock is None else bytes_acknowledged(sock)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self.reader is not None:
            self._on_writable(self.reader)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        # aiohttp keeps its books by its own protocol's end.
        self._former.connection_lost(exc)

    def _end(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)
            if self.reader is not None:
                self._on_gone(self.reader)


def bytes_acknowledged(sock: socket.socket) -> int | None:
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return None
    raw = info[_TCP_INFO_BYTES_ACKED]
    return cast("int", struct.unpack("=Q", raw)[0]) if len(raw) == 8 else None

"""A reader's connection: the transport that aiohttp accepted, without aiohttp's protocol in the way.

Owns flow control and the end of the connection. What is written, and when, is `readers`'.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

# Small enough that a reader that stopped reading shows after some frames, not after megabytes of kernel buffers.
SEND_BUFFER_BYTES = 128 * 1024

# Linux: struct tcp_info, tcpi_bytes_acked, a 64-bit count.
_TCP_INFO_BYTES_ACKED = slice(120, 128)


class Connection(asyncio.Protocol):
    """Takes a transport over from another protocol; input is discarded, never parsed."""

    def __init__(self, transport: asyncio.Transport, *, on_writable: Callable[[], None]) -> None:
        self._transport = transport
        self._former = transport.get_protocol()
        self._on_writable = on_writable
        self.full = False
        self._drained: asyncio.Future[None] | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        transport.set_protocol(self)
        # Paused while a body came that nobody takes: the end of the connection would go unnoticed.
        transport.resume_reading()
        # One write at most waits in user space: a reader whose socket is full is not written to.
        transport.set_write_buffer_limits(high=0)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if transport.is_closing():
            self._end()

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close after what waits has gone out."""
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    async def drained(self) -> None:
        """Wait until the socket takes more, or until the connection is gone."""
        if self.full:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def bytes_acknowledged(self) -> int | None:
        """How many bytes the peer has acknowledged so far; None where the platform does not tell."""
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is None or not hasattr(socket, "TCP_INFO"):
            return None
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            return None
        raw = info[_TCP_INFO_BYTES_ACKED]
        return cast("int", struct.unpack("=Q", raw)[0]) if len(raw) == 8 else None

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._wake()
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        # aiohttp keeps its books by its own protocol's end.
        self._former.connection_lost(exc)

    def _end(self) -> None:
        self._wake()
        if not self.gone.done():
            self.gone.set_result(None)

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

"""A relay on this machine that cuts connections in the middle of what they carry, as the networks of readers do.

Owns the cutting. Coming back is left to `follow`, which must not notice more than an ended connection.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

READ_BYTES = 4096


class Relay:
    """Passes bytes on to one server; the first `cuts_max` connections end after `bytes_before_cut` bytes of the answer."""

    def __init__(self, url: str, *, bytes_before_cut: int, cuts_max: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._bytes_before_cut = bytes_before_cut
        self._cuts_max = cuts_max
        self.cuts = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Give the URL to use in place of the server's."""
        tasks: set[asyncio.Task[None]] = set()

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            onward_reader, onward_writer = await asyncio.open_connection(self._host, self._port)
            to_server = asyncio.create_task(_pass_on(reader, onward_writer))
            try:
                whole = await _pass_on(onward_reader, writer, limit_bytes=self._limit_bytes)
                if not whole:
                    self.cuts += 1
            finally:
                to_server.cancel()
                await asyncio.wait([to_server])
                # Abort: the bytes still under way are lost, as they are when a network goes away.
                writer.transport.abort()
                onward_writer.transport.abort()

    @property
    def _limit_bytes(self) -> int | None:
        return self._bytes_before_cut if self.cuts < self._cuts_max else None


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limit_bytes: int | None = None
) -> bool:
    """Pass bytes on to the end; False when the limit came first."""
    passed_bytes = 0
    with suppress(OSError):
        while data := await reader.read(READ_BYTES):
            if limit_bytes is not None and passed_bytes + len(data) > limit_bytes:
                writer.write(data[: limit_bytes - passed_bytes])
                await writer.drain()
                return False
            writer.write(data)
            await writer.drain()
            passed_bytes += len(data)
    return True

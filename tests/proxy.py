"""A TCP proxy that loses what networks lose: it cuts, drops or stalls a connection at a given byte of a request or reply.

Owns loopback connections to one upstream and the faults armed on them. What must survive a fault is each test's business.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

CHUNK_BYTES = 1024 * 1024

Direction = Literal["request", "reply"]
Act = Literal["cut", "drop", "stall"]


class Fault:
    """An armed fault: `fired` counts how often it struck, `struck` is set from the first time on.

    `passed_bytes` counts what went through after it was bound: a fault that is too far away to strike measures.
    """

    def __init__(self, act: Act, direction: Direction, *, after_bytes: int, of: bytes, times: int | None) -> None:
        self.act = act
        self.direction = direction
        self.after_bytes = after_bytes
        self.of = of
        self.times = times
        self.fired = 0
        self.passed_bytes = 0
        self.struck = asyncio.Event()
        self.over = asyncio.Event()


class Proxy:
    """Forwards loopback connections to `upstream`, an URL of a unix socket or of a TCP port.

        async with Proxy(server.url) as proxy:
            client = connect(proxy.url)
            proxy.cut("reply", after_bytes=3, of=b"XADD")

    A fault is bound to a connection by the first request there that contains `of`; without `of`, by the first bytes in its
    own direction. From the beginning of that request, or of its reply, `after_bytes` pass and then it strikes: `cut` ends the
    connection, `drop` swallows what follows and leaves the connection open, `stall` holds it until `go_on`. It binds `times`
    times, each time anew; None is always. A fault strikes only when there is a byte to lose.

    `accepted` counts connections, `reply_bytes` what the upstream answered, whether passed on or not.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._scheme = "redis" if parts.scheme == "unix" else parts.scheme
        self._socket = parts.path if parts.scheme == "unix" else None
        self._address = (parts.hostname, parts.port)
        self._armed: list[Fault] = []
        self._faults: list[Fault] = []
        self._going = asyncio.Event()
        self._going.set()
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._server: asyncio.Server | None = None
        self._port = 0
        self.accepted = 0
        self.reply_bytes = 0
        self.down = False

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._port}"

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        await self.cut_all()
        if self._server is not None:
            await self._server.wait_closed()

    def cut(self, direction: Direction, *, after_bytes: int = 0, of: bytes = b"", times: int | None = 1) -> Fault:
        return self._arm(Fault("cut", direction, after_bytes=after_bytes, of=of, times=times))

    def drop(self, direction: Direction, *, after_bytes: int = 0, of: bytes = b"", times: int | None = 1) -> Fault:
        return self._arm(Fault("drop", direction, after_bytes=after_bytes, of=of, times=times))

    def stall(self, direction: Direction, *, after_bytes: int = 0, of: bytes = b"", times: int | None = 1) -> Fault:
        return self._arm(Fault("stall", direction, after_bytes=after_bytes, of=of, times=times))

    def stop(self) -> None:
        """Hold every byte of every connection until `go_on`, as if the process behind the proxy stood still."""
        self._going.clear()

    def go_on(self) -> None:
        """Let go what `stop` and the stalls that struck hold."""
        self._going.set()
        for fault in self._faults:
            if fault.act == "stall" and fault.fired:
                fault.over.set()

    def mend(self) -> None:
        """Disarm every fault, also where it is bound and waits for its byte; what is held goes on."""
        self._armed.clear()
        for fault in self._faults:
            fault.over.set()
        self._faults.clear()
        self._going.set()

    async def cut_all(self) -> None:
        """End every connection, now. While `down` is set, new ones are ended as soon as they are accepted."""
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def going(self) -> None:
        await self._going.wait()

    def binding(self, direction: Direction, chunk: bytes, bound: Sequence[Fault]) -> list[Fault]:
        """The armed faults that a chunk in `direction` binds to its connection, where `bound` are already."""
        found = [
            fault
            for fault in self._armed
            if (
                direction == "request" and fault.of in chunk
                if fault.of
                else direction == fault.direction and fault not in bound
            )
        ]
        for fault in found:
            if fault.times is not None:
                fault.times -= 1
        self._armed = [fault for fault in self._armed if fault.times != 0]
        return found

    def _arm(self, fault: Fault) -> Fault:
        self._armed.append(fault)
        self._faults.append(fault)
        return fault

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("connections are accepted in tasks")
        writers = self._connections[task] = [writer]
        try:
            if not self.down:
                upstream, to_upstream = await self._connect()
                writers.append(to_upstream)
                await _Connection(self).run(reader, writer, upstream, to_upstream)
        except (OSError, asyncio.CancelledError):
            # Either side may go at any time: that is what proxies are for. A task that ends cancelled would be logged.
            pass
        finally:
            del self._connections[task]
            for end in writers:
                end.close()
            for end in writers:
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await end.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._socket is not None:
            return await asyncio.open_unix_connection(self._socket)
        return await asyncio.open_connection(*self._address)


class _Cut(Exception):
    """The connection is cut."""


class _Binding:
    """A fault on one connection, and how many bytes may still pass."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.left = fault.after_bytes
        self.struck = False

    def strike(self) -> None:
        if not self.struck:
            self.struck = True
            self.fault.fired += 1
            self.fault.struck.set()


class _Connection:
    """One connection: a pump for each direction, and the fault that is bound there."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._bindings: dict[Direction, _Binding] = {}

    async def run(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: asyncio.StreamReader,
        to_upstream: asyncio.StreamWriter,
    ) -> None:
        pumps = [
            asyncio.create_task(self._pump("request", reader, to_upstream)),
            asyncio.create_task(self._pump("reply", upstream, writer)),
        ]
        try:
            # A side that only stops sending is passed on as such; an error ends both.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, direction: Direction, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(CHUNK_BYTES):
            if direction == "reply":
                self._proxy.reply_bytes += len(chunk)
            await self._proxy.going()
            for fault in self._proxy.binding(direction, chunk, [binding.fault for binding in self._bindings.values()]):
                self._bindings[fault.direction] = _Binding(fault)
            await self._pass_on(direction, chunk, sink)
        if sink.can_write_eof():
            sink.write_eof()

    async def _pass_on(self, direction: Direction, chunk: bytes, sink: asyncio.StreamWriter) -> None:
        binding = self._bindings.get(direction)
        if binding is None or binding.fault.over.is_set():
            sink.write(chunk)
            await sink.drain()
            return
        passing, rest = chunk[: binding.left], chunk[binding.left :]
        binding.left -= len(passing)
        binding.fault.passed_bytes += len(passing)
        sink.write(passing)
        await sink.drain()
        if not rest:
            return
        binding.strike()
        if binding.fault.act == "cut":
            raise _Cut
        if binding.fault.act == "stall":
            await binding.fault.over.wait()
            sink.write(rest)
            await sink.drain()

"""Listening: stop accepting, drain, close.

Owns the listening socket and the requests under way; apart from `lifecycle`, so that a process without HTTP does not load it.
What draining means for its work each service says itself.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web

from shared.accepting import Accepting, Offer
from shared.errors import Misconfigured

log = structlog.get_logger()

ACCEPTS_AT_ONCE = 16
WAITING_CONNECTIONS_MAX = 4096

# Set by a handler that found our own data broken: the process then stops, loudly.
FATAL: web.AppKey[asyncio.Future[None]] = web.AppKey("fatal", asyncio.Future)


class UnderWay:
    """Counts the requests that are being answered: whoever answers them says so."""

    def __init__(self) -> None:
        self.count = 0
        self.draining = False
        self._one_less = asyncio.Event()

    def begin(self) -> None:
        self.count += 1

    def end(self) -> None:
        self.count -= 1
        if self.draining:
            self._one_less.set()

    async def none(self) -> None:
        """Wait, while draining, until no request is left."""
        while self.count:
            self._one_less.clear()
            await self._one_less.wait()


Handler = Callable[[Any], Awaitable[web.StreamResponse]]

# What is around an application: given how it answers, and the count to keep of its requests, it answers all of them.
EDGE: web.AppKey[Callable[[Handler, UnderWay], Handler]] = web.AppKey("edge")


async def listen(
    app: web.Application,
    *,
    host: str,
    port: int,
    shares_port: bool = False,
    drain: Callable[[], Awaitable[None]] | None,
    drain_seconds: float,
    on_listening: Callable[[str], Awaitable[None]],
    offer: Offer | None = None,
) -> None:
    """Serve `app` until cancelled or a handler fails for good; then stop accepting, drain, and close.

    `drain` ends what would not end by itself, requests under way are finished, within `drain_seconds`.
    `on_listening` is called with the address that was bound, once it accepts. `shares_port`: with other processes (`ports`).
    Each connection is an `offer` first, and aiohttp's where that does not take it.
    """
    app[FATAL] = asyncio.get_running_loop().create_future()
    under_way = UnderWay()
    # A parked stream must notice that its reader went away; what draining leaves over is closed at once.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    server = runner.server
    if server is None:
        raise RuntimeError("a runner that is set up has a server")
    server.request_handler = app[EDGE](server.request_handler, under_way)
    try:
        site, url = await bind(runner, host=host, port=port, shares_port=shares_port)
        accepting = Accepting(_server_of(site), server, offer) if offer is not None else None
        try:
            await on_listening(url)
            await app[FATAL]
        finally:
            under_way.draining = True
            if accepting is not None:
                await accepting.close()
            await site.stop()
            try:
                async with asyncio.timeout(drain_seconds):
                    if drain is not None:
                        await drain()
                    await under_way.none()
            except TimeoutError:
                log.warning("drain_incomplete", drain_seconds=drain_seconds, requests=under_way.count)
    finally:
        await runner.cleanup()


async def bind(runner: web.AppRunner, *, host: str, port: int, shares_port: bool) -> tuple[web.TCPSite, str]:
    """The site, and the address that was bound. Raises Misconfigured."""
    # asyncio accepts as many at once as its backlog says, and builds a connection for each before anything else runs.
    site = web.TCPSite(runner, host, port, backlog=ACCEPTS_AT_ONCE, reuse_port=shares_port or None)
    try:
        await site.start()
    except OSError as error:
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}") from error
    _lengthen_queues(site)
    bound = runner.addresses[0]
    shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    return site, f"http://{shown}:{bound[1]}"


def _lengthen_queues(site: web.TCPSite) -> None:
    """Let the kernel hold the crowd that comes back at once: turned away, a client waits a second before it tries again."""
    for listening in _server_of(site).sockets:
        with socket.socket(fileno=os.dup(listening.fileno())) as same:
            same.listen(WAITING_CONNECTIONS_MAX)


def _server_of(site: web.TCPSite) -> asyncio.Server:
    server = site._server
    if not isinstance(server, asyncio.Server):
        raise RuntimeError("a site that has started has a server")  # noqa: TRY004
    return server

"""Scraping: metrics over HTTP, among a service's own routes and on a port of their own.

Owns the answer and that port. What is counted is `metrics`'.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import hdrs, web

from shared.config import Config
from shared.listening import bind
from shared.metrics import Metrics

log = structlog.get_logger()


def scrape(metrics: Metrics) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def render(request: web.Request) -> web.Response:
        # The sum over several processes takes milliseconds each, which readers need not wait for.
        body = await asyncio.to_thread(metrics.render)
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4; charset=utf-8"})

    return render


@asynccontextmanager
async def scraped_apart(metrics: Metrics, config: Config, *, shares_port: bool) -> AsyncIterator[None]:
    """Serve `/metrics` on `metrics_port` while this lasts, the drain included; without that setting, nothing."""
    if config.metrics_port is None:
        yield
        return
    app = web.Application()
    app.add_routes([web.get("/metrics", scrape(metrics))])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        _, url = await bind(runner, host=config.listen_host, port=config.metrics_port, shares_port=shares_port)
        log.info("metrics_listening", url=url)
        yield
    finally:
        await runner.cleanup()

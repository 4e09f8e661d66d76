"""A service that listens, alone in its process: from the wait for the log's server to the end of its drain.

Owns the order of these steps. What a service is made of is its own; `services/cli/serving` has two in one process.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from aiohttp import web

from shared.accepting import Offer
from shared.config import Config
from shared.http import AtHand, Check, application
from shared.lifecycle import run_until, serving
from shared.listening import listen
from shared.loop_lag import watch_loop_lag
from shared.metrics import Metrics
from shared.scraping import scraped_apart
from shared.worker import Worker

log = structlog.get_logger()


class Service(Protocol):
    """Routes and readiness checks for an application, work to run beside it, and how it begins and ends.

    `drain` ends what would not end by itself, `at_hand` and `offered` answer before the application does: None where it is all
    there is.
    """

    @property
    def routes(self) -> Sequence[web.RouteDef]: ...
    @property
    def checks(self) -> Mapping[str, Check]: ...
    @property
    def at_hand(self) -> AtHand | None: ...
    @property
    def offered(self) -> Offer | None: ...
    @property
    def drain(self) -> Callable[[], Awaitable[None]] | None: ...

    async def prepare(self) -> None: ...
    async def run(self) -> None: ...
    async def close(self) -> None: ...


async def serve(
    event: str,
    service: Service,
    config: Config,
    metrics: Metrics,
    *,
    stop: asyncio.Event,
    worker: Worker | None,
    **facts: Any,
) -> None:
    """Serve until `stop`, then drain. Once it listens, `event` is logged with `facts`, and a worker's supervisor is told."""
    shares_port = worker is not None
    try:
        await serving(service.prepare, stop)

        async def listening(url: str) -> None:
            log.info(event, url=url, **facts)
            if worker is not None:
                worker.listening(url)

        async with scraped_apart(metrics, config, shares_port=shares_port):
            await run_until(
                stop,
                service.run(),
                watch_loop_lag(metrics),
                listen(
                    application(service.routes, metrics=metrics, checks=service.checks, at_hand=service.at_hand),
                    host=config.listen_host,
                    port=config.listen_port,
                    shares_port=shares_port,
                    drain=service.drain,
                    drain_seconds=config.drain_seconds,
                    on_listening=listening,
                    offer=service.offered,
                ),
            )
    finally:
        await service.close()

"""The projector as a program: its parts, put together once."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import structlog

from services.projector.lease import TIME_TO_LIVE_SECONDS
from services.projector.worker import BLOCK_SECONDS, Projector
from shared.config import Config
from shared.errors import Unavailable
from shared.keys import Keys
from shared.lifecycle import run_until, serving
from shared.loop_lag import watch_loop_lag
from shared.members import process_name
from shared.metrics import Metrics
from shared.redis import check_installation, connect, connect_for_blocking, needed_url
from shared.worker import Worker

log = structlog.get_logger()


async def run(config: Config, stop: asyncio.Event, worker: Worker | None = None, *, with_http: bool) -> None:
    """Project until `stop`, then let go of the shards; `with_http` serves health and metrics."""
    keys = Keys(config.key_prefix)
    url = needed_url(config)
    redis = connect(url)
    blocking = connect_for_blocking(url, block_seconds=BLOCK_SECONDS)
    metrics = Metrics(shared_as=worker.name if worker else None)
    owner = process_name()
    projector = Projector(redis, blocking, keys, metrics, owner=owner)

    async def check() -> dict[str, Any]:
        age = asyncio.get_running_loop().time() - projector.last_renewal
        if age > TIME_TO_LIVE_SECONDS:
            raise Unavailable(f"no lease was confirmed for {age:.1f} s")
        return {"shards": projector.shards}

    async def listening(url: str) -> None:
        log.info("projector_listening", url=url)

    try:
        await serving(lambda: check_installation(redis, keys), stop)
        log.info("projecting", owner=owner)
        if worker is not None:
            worker.listening("")
        async with AsyncExitStack() as stack:
            # Here, not above: beside `up`, which answers for it, a projector starts without HTTP.
            if config.metrics_port is not None:
                from shared.scraping import scraped_apart

                await stack.enter_async_context(scraped_apart(metrics, config, shares_port=False))
            parts = [projector.run(), watch_loop_lag(metrics)]
            if with_http:
                from shared.http import application
                from shared.listening import listen

                parts.append(
                    listen(
                        application([], metrics=metrics, checks={"projector": check}),
                        host=config.listen_host,
                        port=config.listen_port,
                        drain=None,
                        drain_seconds=config.drain_seconds,
                        on_listening=listening,
                    )
                )
            await run_until(stop, *parts)
    finally:
        await redis.aclose()
        await blocking.aclose()

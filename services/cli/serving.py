"""Serving: the routes of writer and gateway in one application, as `up` has them, in its own process or in several workers.

Owns how the two are put together. Holds no rules of theirs.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from services.cli.data_dir import ServerRecord
from services.cli.heads import HEADS_FILE_OF, keep_heads
from services.gateway.service import Gateway
from services.writer.service import Writer
from shared.config import Config
from shared.http import application
from shared.lifecycle import run_until, serving
from shared.listening import listen
from shared.loop_lag import watch_loop_lag
from shared.metrics import Metrics
from shared.program import program
from shared.scraping import scraped_apart
from shared.worker import Worker

log = structlog.get_logger()


async def serve(
    config: Config,
    metrics: Metrics,
    *,
    heads: Path | None,
    shares_port: bool,
    on_listening: Callable[[str], Awaitable[None]],
) -> None:
    """Serve until cancelled, then drain. `heads`: where to write down what was acknowledged, for an embedded server."""
    writer, gateway = Writer(config, metrics), Gateway(config, metrics)
    try:
        for prepare in (writer.prepare, gateway.prepare):
            await serving(prepare, asyncio.Event())
        async with scraped_apart(metrics, config, shares_port=shares_port), asyncio.TaskGroup() as group:
            behind = [group.create_task(work) for work in (gateway.run(), writer.run(), watch_loop_lag(metrics))]
            if heads is not None:
                behind.append(group.create_task(keep_heads(heads, writer.witness)))
            try:
                # In the group's own task: cancelled first, and what it needs to drain still runs.
                await listen(
                    application(
                        [*writer.routes, *gateway.routes],
                        metrics=metrics,
                        checks={**writer.checks, **gateway.checks},
                        at_hand=gateway.at_hand,
                    ),
                    host=config.listen_host,
                    port=config.listen_port,
                    shares_port=shares_port,
                    drain=gateway.drain,
                    drain_seconds=config.drain_seconds,
                    on_listening=on_listening,
                    offer=gateway.offered,
                )
            finally:
                for task in behind:
                    task.cancel()
    finally:
        await gateway.close()
        await writer.close()


async def run(config: Config, stop: asyncio.Event, worker: Worker | None) -> None:
    """One of `up`'s workers."""
    if worker is None:
        raise RuntimeError("it runs beside the rest of `dateline up` alone")
    data_dir = Path(config.data_dir)
    server = ServerRecord.read(data_dir)
    embedded = server is not None and server.url == config.redis_url

    async def listening(url: str) -> None:
        log.info("up_listening", url=url)
        worker.listening(url)

    await run_until(
        stop,
        serve(
            config,
            Metrics(shared_as=worker.name),
            heads=data_dir / HEADS_FILE_OF.format(worker.name) if embedded else None,
            shares_port=True,
            on_listening=listening,
        ),
    )


if __name__ == "__main__":
    program("up", run)

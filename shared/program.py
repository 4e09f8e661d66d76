"""Program: a service as `python -m services.<service>`: by itself, as a worker, or as the supervisor of its workers.

Owns the way from the environment to a running service and its exit code. Flags are `services.cli`'s.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from shared.config import Config
from shared.errors import DatelineError
from shared.lifecycle import keep_what_is_loaded, stop_on_signals
from shared.logs import configure_logs
from shared.metrics import discard_shared_metrics
from shared.supervisor import supervise
from shared.worker import Worker

Run = Callable[[Config, asyncio.Event, Worker | None], Coroutine[Any, Any, None]]


def program(service: str, run: Run, *, shares_its_port: bool = False) -> None:
    """Configured by the environment alone, runs until a signal; exit code 1 on an error.

    One that `shares_its_port` runs as several processes where the configuration says so.
    """
    worker = None
    try:
        worker = Worker.of(sys.argv[1:])
        config = Config.load(os.environ)
        configure_logs(config, service=service, worker=worker.name if worker else None)
        keep_what_is_loaded()
        several = config.workers or 1
        if worker is not None:
            asyncio.run(_as_worker(run, config, worker))
        elif shares_its_port and several > 1:
            asyncio.run(_until_signal(lambda stop: supervise(service, config, stop, workers=several)))
        else:
            asyncio.run(_until_signal(lambda stop: run(config, stop, None)))
    except DatelineError as error:
        if worker is None or worker.listens:
            sys.exit(f"dateline {service}: {error}")
        worker.refused(str(error))
        sys.exit(1)


async def _until_signal(run: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    async with stop_on_signals() as stop:
        await run(stop)


async def _as_worker(run: Run, config: Config, worker: Worker) -> None:
    async with stop_on_signals() as stop:
        try:
            with worker.ending_with_its_supervisor(stop):
                await run(config, stop, worker)
        finally:
            if worker.left_alone:
                discard_shared_metrics()

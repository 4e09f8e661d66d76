"""The writer as a program: its parts, put together once."""

import asyncio
from collections.abc import Mapping

from aiohttp import web

from services.writer.app import routes
from services.writer.desk import Desk
from services.writer.imports import Imports
from services.writer.promises import Promises
from shared.archive.restoring import Restoring
from shared.config import Config
from shared.epochs.admission import Admission
from shared.epochs.witness import Witness
from shared.errors import Misconfigured
from shared.http import Check
from shared.keys import Keys
from shared.log import Log
from shared.metrics import Metrics
from shared.redis import check_installation, connect, needed_url
from shared.service import serve
from shared.tokens import Tokens
from shared.worker import Worker


class Writer:
    """One writer: routes and readiness checks for an application, and work to run beside it."""

    at_hand = offered = drain = None

    def __init__(self, config: Config, metrics: Metrics) -> None:
        if not config.ops_token:
            raise Misconfigured("the writer needs DATELINE_OPS_TOKEN: without it nobody could publish")
        self._keys = Keys(config.key_prefix)
        self._redis = connect(needed_url(config))
        self._promises = Promises(self._redis, config)
        self._admission = Admission(self._redis, self._keys)
        self.witness = Witness(self._redis, self._keys, on_restart=lambda: desk.forget())
        self._log = Log(self._redis, self._keys)
        desk = Desk(self._log, self._admission, self.witness, metrics)
        self.routes: list[web.RouteDef] = routes(
            desk,
            Imports(Restoring(self._redis, self._keys)),
            tokens=Tokens(config.ops_token),
            promises=self._promises,
        )
        self.checks: Mapping[str, Check] = {"writer": self._promises.check}

    async def prepare(self) -> None:
        """Refuse a server that cannot keep what this writer promises; waits for one that is not there yet."""
        await self._promises.prepare()
        await check_installation(self._redis, self._keys)
        await self._admission.admit()
        await self.witness.check()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.witness.watch())
            group.create_task(self._admission.watch())

    async def close(self) -> None:
        await self._log.close()
        await self._redis.aclose()


async def run(config: Config, stop: asyncio.Event, worker: Worker | None = None) -> None:
    """Serve until `stop`; requests under way are finished within the drain time."""
    metrics = Metrics(shared_as=worker.name if worker else None)
    writer = Writer(config, metrics)
    await serve("writer_listening", writer, config, metrics, stop=stop, worker=worker, durability=config.durability)

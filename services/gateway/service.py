"""The gateway as a program: its parts, put together once."""

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

from services.gateway.app import routes
from services.gateway.differences import Differences
from services.gateway.events import Events
from services.gateway.kept import Kept
from services.gateway.listing import Listing
from services.gateway.live_page import LivePage
from services.gateway.moments import Moments
from services.gateway.pages import Pages
from services.gateway.past_pages import PastPages
from services.gateway.pasts import Pasts
from services.gateway.purges import Purges
from services.gateway.readers import Readers
from services.gateway.reads import Reads
from services.gateway.snapshots import Snapshots
from services.gateway.streams import Streams
from services.gateway.tail import BLOCK_SECONDS, Tail
from services.gateway.waiting import Arrivals
from shared.config import Config
from shared.epochs.witness import Witness
from shared.errors import Unavailable
from shared.http import Check
from shared.keys import SHARDS, Keys
from shared.log import Log
from shared.members import process_name
from shared.metrics import Metrics
from shared.redis import UNREACHABLE, check_installation, connect, connect_for_blocking, needed_url
from shared.service import serve
from shared.tokens import Tokens
from shared.worker import Worker


class Gateway:
    """One gateway: routes and readiness checks for an application, work to run beside it, and how it drains."""

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._keys = Keys(config.key_prefix)
        self._drain_seconds = config.drain_seconds
        url = needed_url(config)
        self._redis = connect(url)
        self._blocking = connect_for_blocking(url, block_seconds=BLOCK_SECONDS)
        reads = Reads(self._redis, self._keys)
        listing = Listing(self._redis, self._keys)
        arrivals = Arrivals()
        self._kept = kept = Kept()
        differences = Differences(reads, kept)
        tokens = Tokens(config.ops_token)
        log_ = Log(self._redis, self._keys)
        self._pasts = Pasts(log_)
        past_pages = PastPages(log_, reads, arrivals, tokens, self._pasts)
        snapshots = Snapshots(reads, kept, arrivals)
        moments = Moments(reads, kept, arrivals)
        self._readers = Readers(differences, snapshots, moments, metrics, readers_max=config.readers_max)
        self._witness = Witness(self._redis, self._keys, on_restart=self._restarted)
        self._purges = Purges(self._redis, self._keys, name=process_name(), forget=self._forget)
        self._tail = Tail(
            self._redis, self._blocking, self._keys, self._readers, kept, arrivals, self._purges, self._witness
        )
        pages = Pages(reads, kept, listing, arrivals, tokens, past_pages)
        self.at_hand = pages.at_hand
        streams = Streams(moments, self._readers, tokens)
        self.offered = streams.door.offered
        self.routes: list[web.RouteDef] = routes(
            pages,
            past_pages,
            Events(log_, reads, arrivals, tokens),
            streams,
            LivePage(reads, listing, tokens),
        )
        self.checks: Mapping[str, Check] = {"gateway": self._check}

    async def prepare(self) -> None:
        """Refuse what this process must not serve from; waits for a server that is not there yet."""
        await check_installation(self._redis, self._keys)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tail.run())
            group.create_task(self._readers.keep_time())
            group.create_task(self._readers.watch())
            group.create_task(self._witness.watch())

    async def drain(self) -> None:
        await self._readers.drain(seconds=self._drain_seconds)

    async def close(self) -> None:
        self._readers.hub.close()
        await self._pasts.close()
        with suppress(*UNREACHABLE):
            # Not taken off, it counts as alive until its time is over.
            await self._purges.leave()
        await self._redis.aclose()
        await self._blocking.aclose()

    def _restarted(self) -> None:
        """Another server process than before: what this one remembers of its streams and frames is no more than that."""
        self._tail.forget()
        self._kept.forget_all()
        self._readers.following.forget_all()

    def _forget(self, feed: str, entry: str) -> Awaitable[None]:
        """Reads and frames at once, before another one is delivered; the past when its file can be written."""
        self._kept.forget(feed)
        self._readers.following.forget_frames(feed)
        return self._pasts.forget_entry(feed, entry)

    async def _check(self) -> dict[str, Any]:
        """Redis answers and the tail is current; how far projectors lag is a fact, not a verdict."""
        pipeline = self._redis.pipeline(transaction=False)
        for shard in range(SHARDS):
            pipeline.scard(self._keys.shard(shard).dirty)
        try:
            lagging = sum(await pipeline.execute())
        except UNREACHABLE as error:
            raise Unavailable(f"the log's server does not answer: {error}") from error
        return {**await self._tail.check(), "feeds_lagging": lagging}


async def run(config: Config, stop: asyncio.Event, worker: Worker | None = None) -> None:
    """Serve until `stop`, then drain."""
    metrics = Metrics(shared_as=worker.name if worker else None)
    await serve("gateway_listening", Gateway(config, metrics), config, metrics, stop=stop, worker=worker)

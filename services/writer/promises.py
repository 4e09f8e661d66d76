"""Promises: how durable a write is before it is acknowledged: as configured, or stronger where the request asks for it.

Owns what this writer promises and what it knows of the server's means. The rule is `shared.durability`'s; a write waits for
its confirmation in the log.
"""

from typing import Any

from msgspec import Struct

from shared.config import Config
from shared.durability import DURABILITIES, Confirmation, Durability, Means, confirmation, stronger
from shared.errors import Malformed, Misconfigured, Unavailable
from shared.redis import UNREACHABLE, Redis, check_server, means_of, redis_errors


class Promise(Struct, frozen=True):
    """What is reached once a request is acknowledged, and what must confirm it."""

    reached: Durability
    confirmation: Confirmation | None


class Promises:
    def __init__(self, redis: Redis, config: Config) -> None:
        self._redis = redis
        self._configured = config.durability
        self._replicas = config.replicas
        self._means: Means | None = None

    async def prepare(self) -> None:
        """Misconfigured for a server that can never keep what is configured."""
        self._means = await check_server(self._redis, durability=self._configured)

    async def check(self) -> dict[str, Any]:
        """Facts for readiness; Unavailable while the server cannot keep what is configured."""
        try:
            await self.prepare()
        except UNREACHABLE as error:
            raise Unavailable(f"the log's server does not answer: {error}") from error
        except Misconfigured as error:
            raise Unavailable(error.detail) from error
        promise = await self.of(None)
        return {"durability": promise.reached}

    async def of(self, header: str | None) -> Promise:
        """What a request with this `Dateline-Durability` is promised; Malformed, or OutcomeUnknown with nothing appended."""
        asked = (header or "").strip().lower() or "memory"
        if asked not in DURABILITIES:
            raise Malformed(f"Dateline-Durability is one of {', '.join(DURABILITIES)}")
        promised = stronger(self._configured, asked)
        if self._means is None or promised == "replicated":
            # Replicas come and go from one write to the next.
            async with redis_errors("nothing was appended"):
                self._means = await means_of(self._redis)
        needed = confirmation(promised, self._means, replicas=self._replicas)
        # What the server keeps anyway is reached too.
        return Promise(stronger(promised, self._means.kept), needed)

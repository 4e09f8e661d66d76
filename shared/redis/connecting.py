"""Connecting: clients of a Redis server, their pools and time limits, and which errors mean that it cannot be reached now."""

import asyncio
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.config import Config
from shared.errors import Misconfigured, Unavailable

COMMAND_TIMEOUT_SECONDS = 3.0
CONNECT_TIMEOUT_SECONDS = 2.0
POOL_WAIT_SECONDS = 3.0
CONNECTIONS_MAX = 64

# What passes once the server is back or has room again: the network, a restart, a promotion, a full memory.
UNREACHABLE = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError, OSError)


def needed_url(config: Config) -> str:
    """The server's URL; Misconfigured when none was given."""
    if not config.redis_url:
        raise Misconfigured("no server given: set DATELINE_REDIS_URL or --redis-url", setting="redis_url")
    if not config.redis_url.startswith(("redis://", "rediss://", "unix://")):
        raise Misconfigured(f"{config.redis_url} is no redis://, rediss:// or unix:// URL", setting="redis_url")
    return config.redis_url


def connect(
    url: str, *, connections_max: int = CONNECTIONS_MAX, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
) -> Redis:
    """A client for commands that answer at once. Each command is tried twice: every write of ours is safe to re-send."""
    pool: Pool = Pool.from_url(
        url,
        max_connections=connections_max,
        timeout=POOL_WAIT_SECONDS,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        # RESP2 answers with lists for every command that we use, on every server that we support.
        protocol=2,
        retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), 1),
    )
    pool.connection_class = type("Connection", (_Sending, pool.connection_class), {})
    return Redis.from_pool(pool)


class Pool(BlockingConnectionPool):
    """Keeps some connections at hand: to take one from redis-py's pool and give it back costs three times what asking does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._at_hand: list[Any] = []
        self._at_hand_max = max(1, self.max_connections // 8)
        self._waiting = 0

    async def take(self) -> Any:
        """A connection for its taker alone, connected when its first command is sent; each goes to `give_back`."""
        if not self._at_hand:
            return await self.get_connection()
        connection = self._at_hand.pop()
        # It ended meanwhile, or holds what would be taken for another command's answer.
        if connection.is_connected and await connection.can_read():
            await connection.disconnect(nowait=True)
        return connection

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        """Those who wait for one have it before those who come later: while anybody waits, none is kept at hand."""
        self._waiting += 1
        try:
            while self._at_hand and not self.can_get_connection():
                await asyncio.shield(self.release(self._at_hand.pop()))
            return await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
        finally:
            self._waiting -= 1

    async def give_back(self, connection: Any) -> None:
        if not self._waiting and len(self._at_hand) < self._at_hand_max:
            self._at_hand.append(connection)
        else:
            await asyncio.shield(self.release(connection))


class _Sending:
    """Sends without `asyncio.wait_for`, which on Python 3.11 loses a cancellation that comes with the end of the send.

    A task whose cancellation is lost never ends (python/cpython#86296). `asyncio.timeout` loses none, and makes no task.
    """

    socket_timeout: float | None

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        seconds, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(seconds):
                await super().send_packed_command(command, check_health)  # type: ignore[misc]  # redis-py's connection
        except TimeoutError as error:
            raise RedisTimeoutError("the command was not sent in time") from error
        finally:
            self.socket_timeout = seconds


def connect_for_blocking(url: str, *, block_seconds: float) -> Redis:
    """A client of its own for a reader that blocks up to `block_seconds`: the socket's timeout lies above."""
    return connect(url, connections_max=2, timeout_seconds=block_seconds + COMMAND_TIMEOUT_SECONDS)


class redis_errors:  # noqa: N801  it is used like a function; a generator would cost ten times as much
    """Turn a server that cannot be reached into Unavailable; everything else goes through as it is."""

    def __init__(self, what: str) -> None:
        self._what = what

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, UNREACHABLE):
            detail = f"{self._what}: the log's server cannot be reached; the request may be sent again."
            raise Unavailable(detail) from error

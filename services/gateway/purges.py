"""Purges: what a redaction asks of every gateway, to drop what it still holds of an entry, and to confirm it.

Owns the confirmation. What is held where says who holds it: rings and frames on their way are `readers`'.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from shared.errors import Unavailable
from shared.keys import Keys
from shared.members import Members
from shared.redis import UNREACHABLE, Redis, command

log = structlog.get_logger()

# A gateway that is cut off from the server longer than this is none that a redaction can wait for.
ALIVE_SECONDS = 5.0
# How long a confirmation stands for the operator's command to read it.
CONFIRMED_SECONDS = 300


class Purges:
    """One gateway's part in redactions.

    `forget(feed, entry)` drops what the process holds of the entry, and what it gives is done when nothing is left.
    """

    def __init__(self, redis: Redis, keys: Keys, *, name: str, forget: Callable[[str, str], Awaitable[None]]) -> None:
        self._redis = redis
        self._keys = keys
        self._name = name
        self._forget = forget
        self._members = Members(redis, keys.gateways)
        self._confirmations: set[asyncio.Task[None]] = set()

    async def announce(self) -> None:
        """Be one of those that a redaction waits for."""
        await self._members.announce(self._name, seconds=ALIVE_SECONDS)

    async def leave(self) -> None:
        await self._members.leave(self._name)

    def purge(self, feed: str, data: bytes) -> None:
        """Carry out a purge record, `<token> <entry>`, and confirm it."""
        token, _, entry = data.decode().partition(" ")
        forgotten = self._forget(feed, entry)
        task = asyncio.get_running_loop().create_task(self._confirm(feed, entry, token, forgotten))
        self._confirmations.add(task)
        task.add_done_callback(self._confirmations.discard)

    async def _confirm(self, feed: str, entry: str, token: str, forgotten: Awaitable[None]) -> None:
        key = self._keys.feed(feed).purged + token
        try:
            await forgotten
            await command(self._redis, "SADD", key, self._name)
            await command(self._redis, "EXPIRE", key, CONFIRMED_SECONDS)
        except (*UNREACHABLE, Unavailable) as error:
            # Not confirmed, the operator's command lists this gateway.
            log.warning("purge_not_confirmed", feed=feed, entry=entry, error=repr(error))
        else:
            log.info("entry_purged", feed=feed, entry=entry)

"""Members: which processes of one kind, projectors or gateways, are alive, by the server's clock.

Owns the announcement. Who counts them and what for is each kind's own.
"""

import os
import secrets
import socket

from shared.redis import Redis, Script, command

_members = Script(__file__, "members.lua")


def process_name() -> str:
    """A name that no other process has, and that tells an operator where to look."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Members:
    """The processes announced under one key; one that stops announcing itself is gone after its time to live."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key

    async def announce(self, name: str, *, seconds: float) -> int:
        """Count as alive for `seconds` from now; gives how many are alive."""
        return int(await _members(self._redis, (self._key,), (name, int(seconds * 1000))))

    async def leave(self, name: str) -> None:
        await _members(self._redis, (self._key,), (name, 0))

    async def alive(self) -> list[str]:
        """The names of those alive, without a write."""
        seconds, microseconds = await command(self._redis, "TIME")
        now = int(seconds) * 1000 + int(microseconds) // 1000
        return [name.decode() for name in await command(self._redis, "ZRANGEBYSCORE", self._key, f"({now}", "+inf")]

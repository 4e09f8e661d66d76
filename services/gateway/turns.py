"""Turns: long work over many readers leaves off in time, so that the event loop is never held long.

Owns the length of a turn, which all such work of a process shares, however many tasks it is made of.
"""

import asyncio
import time

# A frame to 1,000 readers takes 5 to 7 ms: one turn. With one look more, and the hub's turn, well under 20 ms.
TURN_SECONDS = 0.008


class Turns:
    def __init__(self) -> None:
        self._until = 0.0
        self._fresh = False
        self._announced = False
        self._next = asyncio.Event()

    def over(self) -> bool:
        """Whether whoever has the turn has to leave off."""
        return time.monotonic() >= self._until

    async def take(self) -> None:
        """Goes on at once while the turn lasts, else when the loop has been round and the next one begins."""
        while (now := time.monotonic()) >= self._until:
            # Longer ago than a turn, the last one was of an earlier round of the loop.
            if self._fresh or now - self._until > TURN_SECONDS:
                self._fresh = False
                self._until = now + TURN_SECONDS
                return
            if not self._announced:
                self._announced = True
                asyncio.get_running_loop().call_soon(self._begin)
            await self._next.wait()

    def _begin(self) -> None:
        self._announced = False
        # The turn is counted from where the first of those who wait goes on: others may come before it.
        self._fresh = True
        self._next.set()
        self._next.clear()

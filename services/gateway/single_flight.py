"""Single flight: what thousands ask for at the same moment is read once.

Owns the sharing. What is read, and what makes two questions the same, is the caller's.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")


class SingleFlight(Generic[_K, _T]):
    """Reads under way, by what is asked."""

    def __init__(self) -> None:
        self._under_way: dict[_K, asyncio.Task[_T]] = {}

    def keys(self) -> set[_K]:
        """What is being read now."""
        return set(self._under_way)

    async def read(self, key: _K, read: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """The answer of the read that is under way for `key`, or of a new one; its error goes to all who wait."""
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(read())
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._done(key, done))
        # One who leaves must not take the answer from the others.
        return await asyncio.shield(task)

    def _done(self, key: _K, task: asyncio.Task[_T]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # whoever still waits gets it; nobody may be left to

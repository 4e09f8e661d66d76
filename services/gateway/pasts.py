"""The pasts of all feeds that were asked for in this process: filled from the log, kept within bounds, forgotten on request.

Owns when what is folded, and the thread that does it: one for all, so that no fold and no query holds the event loop. How a
past is kept and asked is `past`'s.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TypeVar

import structlog

from services.gateway.past import Past
from shared.errors import FeedNotFound, NewerLog, Unavailable
from shared.log import Head, Log
from shared.ndjson import StreamEntry
from shared.position import ORIGIN, Position
from shared.redis import redis_errors

log = structlog.get_logger()

# What one request may make this process read and fold; the next one goes on.
EVENTS_PER_FILLING_MAX = 20_000
BYTES_PER_FILLING_MAX = 64 * 1024 * 1024
# A slice holds the interpreter in turns with the event loop, and other pasts' queries wait for it.
EVENTS_PER_SLICE_MAX = 100
BYTES_PER_SLICE_MAX = 256 * 1024
# Beyond this the least recently used feeds' pasts are dropped.
FILES_BYTES_MAX = 2 * 1024**3
FEEDS_MAX = 64

_T = TypeVar("_T")


class _Kept:
    """A feed's past and who is at it. `dropped`: nobody new comes to it, and it is closed when the last one leaves."""

    def __init__(self, past: Past) -> None:
        self.past = past
        self.users = 0
        self.size_bytes = 0
        self.dropped = False
        self.closed = False


class Pasts:
    """All feeds' pasts of one gateway process."""

    def __init__(self, log_: Log) -> None:
        self._log = log_
        # In order of use, the latest last.
        self._kept: dict[str, _Kept] = {}
        self._fillings: dict[str, asyncio.Task[None]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="past")

    @asynccontextmanager
    async def of(self, feed: str, *, head: Head) -> AsyncIterator["Query"]:
        """The feed's past up to `head`, for as long as it is asked; Unavailable while more is left than one filling takes."""
        kept = await self._filled(feed, head)
        kept.users += 1
        try:
            yield Query(self, kept)
        finally:
            kept.users -= 1
            await self._close_if_left(kept)

    async def forget(self, feed: str) -> None:
        """Drop all of a feed's past."""
        kept = self._kept.pop(feed, None)
        if kept is not None:
            kept.dropped = True
            await self._stopped(feed)
            await self._close_if_left(kept)

    async def forget_entry(self, feed: str, entry: str) -> None:
        """Drop the content of an entry that was redacted; when this returns, nothing of it is left here."""
        kept = self._kept.get(feed)
        if kept is None:
            return
        if feed in self._fillings:
            # What was read before the redaction may be on its way into the file: it is filled anew.
            del self._kept[feed]
            kept.dropped = True
            await self._stopped(feed)
        if not kept.closed:
            await self.run(kept, lambda: kept.past.forget(entry))
        await self._close_if_left(kept)

    async def close(self) -> None:
        for filling in list(self._fillings.values()):
            filling.cancel()
        await asyncio.gather(*self._fillings.values(), return_exceptions=True)
        for kept in self._kept.values():
            kept.dropped = True
            await self._close_if_left(kept)
        self._thread.shutdown(wait=True)

    async def run(self, kept: _Kept, act: Callable[[], _T]) -> _T:
        """Run `act` on a past's file, alone; a file that fails is dropped, and filled anew when it is asked for again."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, act)
        except sqlite3.Error as error:
            kept.dropped = True
            if self._kept.get(kept.past.feed) is kept:
                del self._kept[kept.past.feed]
            log.warning("past_dropped", feed=kept.past.feed, error=repr(error))
            raise Unavailable(f"the past of {kept.past.feed!r} cannot be kept here: {error}") from error

    # Filling

    async def _filled(self, feed: str, head: Head) -> _Kept:
        # A filling that was under way may have begun before this head was; the next one has seen it.
        for _ in range(2):
            filling = self._fillings.get(feed)
            if filling is None:
                filling = asyncio.create_task(self._fill(feed))
                self._fillings[feed] = filling
                filling.add_done_callback(lambda _: self._fillings.pop(feed, None))
            await _result_of(filling)
            kept = self._kept.get(feed)
            if kept is not None and _reached(kept.past, head):
                self._kept[feed] = self._kept.pop(feed)
                return kept
        kept = self._kept.get(feed)
        folded = kept.past.last.position.n if kept is not None and kept.past.last is not None else 0
        raise Unavailable(
            f"the past of {feed!r} is being gathered: {folded} of {head.position.n} events are; ask again to go on",
            feed=feed,
            folded_events=folded,
            head=str(head.position),
        )

    async def _fill(self, feed: str) -> None:
        """Fold what is between a feed's past and its head, within the bounds of one filling."""
        try:
            async with redis_errors(f"the past of {feed!r} was not read"):
                head = await self._log.head(feed)
                if head is None:
                    raise FeedNotFound(feed)
                # A quarantine that changes meanwhile makes another past of it: once more, from the beginning.
                for _ in range(2):
                    quarantined = frozenset(await self._log.quarantined(feed))
                    kept = await self._begun(feed, head, quarantined)
                    try:
                        await self._fold_on(kept, head, quarantined)
                    finally:
                        await self._close_if_left(kept)
                    if kept.dropped or quarantined == frozenset(await self._log.quarantined(feed)):
                        return
        except NewerLog as error:
            raise Unavailable(f"the log of {feed!r} is of a newer release: {error.detail}", feed=feed) from error

    async def _begun(self, feed: str, head: Head, quarantined: Collection[Position]) -> _Kept:
        """What is kept of a feed's past, if the log and its quarantine still say so; else a new one."""
        kept = self._kept.get(feed)
        if kept is not None and not (kept.past.agrees(quarantined) and await self._still(kept.past, head)):
            await self._drop(feed)
            kept = None
        if kept is None:
            try:
                kept = _Kept(Past(feed))
            except sqlite3.Error as error:
                raise Unavailable(f"no past can be kept here: {error}") from error
            self._kept[feed] = kept
        return kept

    async def _still(self, past: Past, head: Head) -> bool:
        """Whether the log's history is the one that was folded: after a loss it holds another event there, or none."""
        last = past.last
        if last is None or (head.position, head.recorded_at) == (last.position, int(last.fields[b"recorded_at"])):
            return True
        found = await self._log.event_at(past.feed, last.position)
        return found is not None and found.fields[b"envelope"] == last.fields[b"envelope"]

    async def _fold_on(self, kept: _Kept, head: Head, quarantined: Collection[Position]) -> None:
        past = kept.past
        after = past.last.position if past.last is not None else ORIGIN
        if after >= head.position:
            return
        part: list[StreamEntry] = []
        part_bytes = folded = folded_bytes = 0

        async def fold() -> None:
            nonlocal part, part_bytes, folded, folded_bytes
            entries = part
            if kept.dropped or not entries:
                return
            await self.run(kept, lambda: past.fold(entries, quarantined=quarantined))
            folded += len(entries)
            folded_bytes += part_bytes
            part, part_bytes = [], 0

        read = self._log.read(past.feed, after=after, to=head.position, chunk_events=EVENTS_PER_SLICE_MAX)
        async with aclosing(read):
            async for entry in read:
                part.append(entry)
                part_bytes += len(entry.fields[b"envelope"]) + len(entry.fields[b"content"])
                if len(part) >= EVENTS_PER_SLICE_MAX or part_bytes >= BYTES_PER_SLICE_MAX:
                    await fold()
                    if kept.dropped or folded >= EVENTS_PER_FILLING_MAX or folded_bytes >= BYTES_PER_FILLING_MAX:
                        break
        await fold()
        if not kept.dropped:
            kept.size_bytes = await self.run(kept, lambda: past.size_bytes)
            await self._keep_within_bounds(past.feed)

    # Dropping

    async def _keep_within_bounds(self, feed: str) -> None:
        """Drop the least recently used pasts, but not the one that is asked for, unless it alone is too large."""
        while len(self._kept) > FEEDS_MAX or sum(kept.size_bytes for kept in self._kept.values()) > FILES_BYTES_MAX:
            oldest = next((other for other in self._kept if other != feed and other not in self._fillings), feed)
            await self._drop(oldest)
            if oldest == feed:
                raise Unavailable(f"the past of {feed!r} is larger than this gateway keeps", feed=feed)

    async def _drop(self, feed: str) -> None:
        kept = self._kept.pop(feed, None)
        if kept is not None:
            kept.dropped = True
            await self._close_if_left(kept)

    async def _close_if_left(self, kept: _Kept) -> None:
        if kept.dropped and not kept.users and not kept.closed:
            kept.closed = True
            with suppress(sqlite3.Error):
                await asyncio.get_running_loop().run_in_executor(self._thread, kept.past.close)

    async def _stopped(self, feed: str) -> None:
        filling = self._fillings.get(feed)
        if filling is not None:
            await asyncio.wait([filling])


class Query:
    """Asks one feed's past, in its thread."""

    def __init__(self, pasts: Pasts, kept: _Kept) -> None:
        self._pasts = pasts
        self._kept = kept

    async def __call__(self, ask: Callable[[Past], _T]) -> _T:
        return await self._pasts.run(self._kept, lambda: ask(self._kept.past))


async def _result_of(filling: "asyncio.Task[None]") -> None:
    """Wait for a filling that others wait for too: one of them that goes away does not end it."""
    await asyncio.wait([filling])
    if filling.cancelled():
        raise Unavailable("this gateway is stopping")
    filling.result()


def _reached(past: Past, head: Head) -> bool:
    return past.last is not None and past.last.position >= head.position

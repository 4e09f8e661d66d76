"""Restoring: recorded events of a feed, brought into an installation that does not have the feed, verbatim.

Owns staging, which is safe to repeat and goes on where it was left, and the one act that makes a feed of what is staged. What
head and records become is `write_side`'s; where the events come from, an archive or an export, is the caller's.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

from shared.epochs.raising import Standing as LogStanding
from shared.epochs.raising import raising_event
from shared.errors import FieldError, HistoryDiffers, Invalid, Unavailable
from shared.events import EpochRaised
from shared.keys import Keys
from shared.log import Log, in_order
from shared.ndjson import CHAIN_START, StreamEntry, chained
from shared.position import ORIGIN, Position
from shared.redis import Redis, Script, command
from shared.write_side import Note, Raised, Standing, Told, after, told_by

EVENTS_PER_CHUNK_MAX = 1_000
BYTES_PER_CHUNK_MAX = 1024 * 1024
ATTEMPTS_MAX = 20

_restore = Script(__file__, "restore.lua")
_restored = Script(__file__, "restored.lua")


class Staged(NamedTuple):
    """How far the feed's events stand, staged, or live where the feed is there already; `chain` is that of what is staged."""

    position: Position
    live: bool
    chain: str = CHAIN_START


class Restoring:
    """Brings feeds into one installation."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._log = Log(redis, keys)

    async def staged(self, feed: str) -> Staged:
        """How far the feed stands; ORIGIN for one that is neither there nor staged."""
        head = await self._log.head(feed)
        if head is not None:
            return Staged(head.position, live=True)
        standing = await self._standing(feed)
        return Staged(standing.position, live=False, chain=standing.chain)

    async def discard(self, feed: str) -> None:
        """Forget what is staged."""
        keys = self._keys.feed(feed)
        await command(self._redis, "UNLINK", keys.restore_log, keys.restore_head, keys.restore_entries)

    async def stage(self, feed: str, entries: Sequence[StreamEntry]) -> Position:
        """Stage these events, consecutive ones; those that stand already are compared, and are no harm. Gives the last.

        Events from the first on that differ from what is staged take its place. Raises HistoryDiffers when the feed is there
        with other events, or when these do not go on from what is staged; NewerLog for events of a newer release.
        """
        _check_order(entries)
        for _ in range(ATTEMPTS_MAX):
            standing = await self._standing(feed)
            head = await self._log.head(feed)
            if head is not None:
                await self._check_live(feed, entries)
                return head.position
            same = await self._same(feed, standing, entries)
            anew = not same and entries[0].position.n == 1
            new = [entry for entry in entries if anew or entry.position.n > standing.position.n]
            previous = ORIGIN if anew else standing.position
            follows = not new or (new[0].position.n == previous.n + 1 and new[0].position > previous)
            if not (same or anew) or not follows:
                raise HistoryDiffers(
                    f"{feed!r} is being brought in and stands at n {standing.position.n}; these events, from "
                    f"{entries[0].position} on, do not go on from there",
                    feed=feed,
                    n=standing.position.n,
                )
            answer = await self._stage(feed, standing, new, anew=anew) if new else b"staged"
            if answer == b"staged":
                return max(previous, entries[-1].position)
        raise Unavailable(f"others bring in {feed!r} at the same time; try again", feed=feed)

    async def finish(self, feed: str, *, last: Position, chain: str, quarantine: Mapping[str, str]) -> bool:
        """Make the feed of what is staged up to `last`, where its chain must be `chain`. False: it is there already.

        Raises HistoryDiffers when the feed is there with other events, or when something else is staged, and Unavailable until
        the server process that answers is admitted.
        """
        for _ in range(ATTEMPTS_MAX):
            match await self._finish(feed, last, chain, quarantine):
                case b"restored":
                    return True
                case b"exists":
                    await self._check_same(feed, last, chain)
                    return False
                case b"moved":
                    raise HistoryDiffers(
                        f"what is staged of {feed!r} is not what ends at {last} with this chain", feed=feed
                    )
                case b"unadmitted":
                    raise Unavailable(
                        "the log's server is another process than before, and is not admitted yet; try again"
                    )
        raise Unavailable(f"witnesses report of {feed!r} all the time; try again", feed=feed)

    async def _finish(self, feed: str, last: Position, chain: str, quarantine: Mapping[str, str]) -> bytes:
        keys = self._keys.feed(feed)
        shard = self._keys.shard(self._keys.shard_of(feed))
        staged = (keys.restore_log, keys.restore_head, keys.restore_entries)
        live = (keys.log, keys.head, keys.entries, keys.quarantine)
        on_shard = (shard.dirty, shard.doorbell, shard.incarnation, shard.witnessed)
        back = await self._came_back(feed, last)
        args: list[bytes | str | int] = [feed, str(last), chain, str(back.seen or "")]
        # Readers may hold positions beyond what came back.
        raised = EpochRaised("epoch", back.loss) if back.loss is not None else None
        args += (
            [back.next_epoch, raising_event(raised).envelope, raised.because] if raised is not None else ["", "", ""]
        )
        args.append(len(quarantine))
        for pair in quarantine.items():
            args += pair
        answer: bytes = await _restored(self._redis, (*staged, *live, *on_shard), args)
        return answer

    async def _came_back(self, feed: str, last: Position) -> LogStanding:
        """What is staged, held against what witnesses reported of the feed."""
        keys, shard = self._keys.feed(feed), self._keys.shard(self._keys.shard_of(feed))
        raw = await command(self._redis, "HGET", shard.witnessed, feed)
        seen = Position.parse(raw.decode()) if raw else None
        # Readers of an older epoch are reset in any case.
        lost = seen is not None and seen.epoch >= last.epoch
        if seen is not None and lost and seen <= last:
            lost = not await command(self._redis, "XRANGE", keys.restore_log, str(seen), str(seen))
        return LogStanding(feed, last, seen, lost)

    async def _check_same(self, feed: str, last: Position, chain: str) -> None:
        """HistoryDiffers unless the feed that is there begins with the same history: perhaps our own act made it."""
        standing, found = ORIGIN, CHAIN_START
        async for entry in self._log.read(feed, after=ORIGIN, to=last):
            standing, found = entry.position, chained(found, entry)
        if (standing, found) != (last, chain):
            raise _exists(feed)

    async def _standing(self, feed: str) -> Standing:
        raw = await cast("Any", self._redis.hgetall(self._keys.feed(feed).restore_head))
        found = {name.decode(): value.decode() for name, value in raw.items()}
        if not found:
            return Standing()
        return Standing(
            position=Position(int(found["epoch"]), int(found["n"])),
            recorded_at=int(found["recorded_at"]),
            status=found["status"],
            version=int(found["version"]),
            pins=int(found["pins"]),
            live=int(found["live"]),
            chain=found["chain"],
            raised=Raised.parse(found),
        )

    async def _same(self, feed: str, standing: Standing, entries: Sequence[StreamEntry]) -> bool:
        """Whether those of the events that are staged already are the same there, byte for byte."""
        known = [entry for entry in entries if entry.position.n <= standing.position.n]
        if not known:
            return True
        first, last = known[0], known[-1]
        raw = await command(self._redis, "XRANGE", self._keys.feed(feed).restore_log, first.id, last.id)
        return in_order(feed, raw, after=Position(1, first.position.n - 1)) == known

    async def _check_live(self, feed: str, entries: Sequence[StreamEntry]) -> None:
        first, last = entries[0].position, entries[-1].position
        found = await self._log.read_chunk(
            feed, after=Position(first.epoch, first.n - 1), to=last, events_max=len(entries) + 1
        )
        if found != list(entries):
            raise _exists(feed)

    async def _stage(self, feed: str, standing: Standing, entries: Sequence[StreamEntry], *, anew: bool) -> Any:
        keys = self._keys.feed(feed)
        previous = str(standing.position) if standing.position != ORIGIN else ""
        told = [told_by(entry) for entry in entries]
        notes = {} if anew else await self._notes(feed, told)
        standing = Standing() if anew else standing
        changed: dict[str, Note] = {}
        args: list[bytes | str | int] = [previous, "1" if anew else "", len(entries)]
        for entry, what in zip(entries, told, strict=True):
            standing, note = after(standing, entry, what, notes.get(what.entry or ""))
            if note is not None and what.entry is not None:
                notes[what.entry] = changed[what.entry] = note
            args += [entry.id, entry.fields[b"envelope"], entry.fields[b"content"], entry.fields[b"recorded_at"]]
        epoch, n = standing.position
        fields: dict[str, str | int] = {
            "epoch": epoch,
            "n": n,
            "recorded_at": standing.recorded_at,
            "status": standing.status,
        }
        fields |= {"version": standing.version, "pins": standing.pins, "live": standing.live, "chain": standing.chain}
        fields |= standing.raised.fields() if standing.raised is not None else {}
        args.append(len(fields))
        for field in fields.items():
            args += field
        args.append(len(changed))
        for name, note in changed.items():
            args += [name, str(note)]
        return await _restore(self._redis, (keys.restore_log, keys.restore_head, keys.restore_entries, keys.head), args)

    async def _notes(self, feed: str, told: Sequence[Told]) -> dict[str, Note]:
        named = sorted({what.entry for what in told if what.entry is not None})
        if not named:
            return {}
        raw = await command(self._redis, "HMGET", self._keys.feed(feed).restore_entries, *named)
        return {name: Note.parse(text.decode()) for name, text in zip(named, raw, strict=True) if text is not None}


def _check_order(entries: Sequence[StreamEntry]) -> None:
    """Invalid unless positions are consecutive, epochs grow and the record's clock never runs backwards."""
    for number, (one, other) in enumerate(pairwise(entries), start=1):
        if other.position.n != one.position.n + 1 or other.position < one.position:
            raise Invalid([FieldError(f"/{number}", f"{other.position} does not come after {one.position}")])
        if int(other.fields[b"recorded_at"]) < int(one.fields[b"recorded_at"]):
            raise Invalid([FieldError(f"/{number}", f"{other.position} was recorded before {one.position}")])


async def in_chunks(entries: AsyncIterable[StreamEntry]) -> AsyncGenerator[list[StreamEntry], None]:
    """The events in pieces that one call may stage."""
    chunk: list[StreamEntry] = []
    size = 0
    async for entry in entries:
        size += sum(map(len, entry.fields.values()))
        if chunk and (size > BYTES_PER_CHUNK_MAX or len(chunk) == EVENTS_PER_CHUNK_MAX):
            yield chunk
            chunk, size = [], sum(map(len, entry.fields.values()))
        chunk.append(entry)
    if chunk:
        yield chunk


def _exists(feed: str) -> HistoryDiffers:
    return HistoryDiffers(f"the feed {feed!r} is there already, with other events", feed=feed)

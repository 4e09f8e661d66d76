"""Archiving: a feed's events into its archive.

Owns the order of the steps, so that a crash between any two leaves a valid archive: objects first, then the manifest, then
what the shard knows. Reading archives is `archives`', taking events out of the stream `trimming`'s.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import NamedTuple, cast

from msgspec import Struct
from msgspec.structs import replace

from shared.archive.archives import Archive, ArchiveState, mark_of
from shared.archive.objects import Moved
from shared.archive.segments import ARCHIVE_FORMAT, Manifest, Packing, Segment
from shared.errors import Corrupted, FeedNotFound, Unavailable
from shared.keys import Keys
from shared.log import Log
from shared.ndjson import CHAIN_START, chained
from shared.position import ORIGIN, Position
from shared.redis import Redis, Script, command

# Another run that was first is found by its manifest: then the work is done again on top of it.
ATTEMPTS_MAX = 5

_archived = Script(__file__, "archived.lua")

# Told the n that the work has reached.
Progress = Callable[[int], None]


class Archived(NamedTuple):
    """`events` and `segments` are of the whole archive, `written_events` of this run; `swept` objects were deleted."""

    url: str
    archived_to: Position
    chain: str
    events: int
    bytes: int
    segments: int
    written_events: int
    swept: list[str]


class _Written(Struct):
    segments: list[Segment]
    events: int = 0


class Archiving:
    """Archives feeds of one installation."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._log = Log(redis, keys)
        self._archives = self._log.archives
        self._token = secrets.token_hex(4)

    async def archive(self, feed: str, *, url: str | None, progress: Progress = lambda n: None) -> Archived:
        """Bring the feed's archive up to the head of its log; `url` is where, None where it is already.

        Raises Corrupted when another history stands there, Unavailable when other runs were faster again and again.
        """
        for _ in range(ATTEMPTS_MAX):
            try:
                return await self._archive(feed, url, progress)
            except Moved:
                continue
        raise Unavailable(f"other runs archive {feed!r} at the same time; nothing is lost, try again", feed=feed)

    async def _archive(self, feed: str, url: str | None, progress: Progress) -> Archived:
        head = await head_of(self._redis, self._keys, feed)
        state = await self._archives.state(feed)
        if url is None and state is None:
            raise FeedNotFound(feed)
        archive = self._archives.at(cast("str", url or (state and state.url)), feed)
        await self._announce(feed, state, archive)
        found = await archive.manifest()
        known = state.url if state else archive.url
        if found is not None and await self._check_history(feed, state, archive, found.manifest):
            await self._note(feed, archive, found.manifest, known=known)
            known = archive.url
        quarantine = await quarantine_until(self._log, feed, head)
        before = found.manifest if found else Manifest(ARCHIVE_FORMAT, feed, 0, [], {})
        if found is None or before.end != head or before.quarantine != quarantine:
            # Read after the manifest: content that a redaction removes meanwhile makes this manifest the older one.
            written = await self._write(feed, archive, before, head, progress)
            manifest = replace(before, version=before.version + 1, segments=written.segments, quarantine=quarantine)
            await archive.switch(manifest, expected=found)
        else:
            manifest, written = before, _Written(before.segments)
        await self._note(feed, archive, manifest, known=known)
        return Archived(
            url=archive.url,
            archived_to=manifest.end,
            chain=manifest.chain,
            events=manifest.end.n,
            bytes=manifest.bytes,
            segments=len(manifest.segments),
            written_events=written.events,
            swept=await archive.sweep(manifest),
        )

    async def _write(
        self, feed: str, archive: Archive, before: Manifest, head: Position, progress: Progress
    ) -> _Written:
        """Segments for what the archive does not have yet; a last one that is not full is written anew, longer."""
        mark = mark_of(before.version + 1, self._token)
        segments = list(before.segments)
        short = segments.pop() if segments and not segments[-1].full and before.end != head else None
        written = _Written(segments)
        packing = Packing(segments[-1].chain if segments else CHAIN_START)

        async def finish() -> None:
            packed = await asyncio.to_thread(packing.packed, feed, mark=mark)
            await archive.store(packed)
            segments.append(packed.segment)
            progress(packed.segment.end.n)

        after = segments[-1].end if segments else ORIGIN
        async for entry in self._log.read(feed, after=after, to=head):
            packing.add(entry)
            written.events += entry.position.n > before.end.n
            if short is not None and entry.position == short.end and packing.chain != short.chain:
                raise _other_history(feed, archive.url)
            if packing.full:
                await finish()
                packing = Packing(packing.chain)
        if packing.events:
            await finish()
        if segments and segments[-1].end != head:
            raise Corrupted(f"the log of {feed!r} ends at {segments[-1].last}, its head is {head}", feed=feed)
        return written

    async def _announce(self, feed: str, state: ArchiveState | None, archive: Archive) -> None:
        """Let a redaction know the place before anything is read for it."""
        key = self._keys.feed(feed).archive
        if state is None:
            await command(self._redis, "HSETNX", key, "url", archive.url)
        elif state.url != archive.url:
            await command(self._redis, "HSET", key, "moving_to", archive.url)

    async def _note(self, feed: str, archive: Archive, manifest: Manifest, *, known: str) -> None:
        """Tell the feed's shard of a manifest that stands; Moved when another run took the archive elsewhere meanwhile."""
        keys = (self._keys.feed(feed).archive,)
        args = (archive.url, str(manifest.end), manifest.chain, known, manifest.bytes)
        if manifest.segments and not await _archived(self._redis, keys, args):
            raise Moved(feed)

    async def _check_history(self, feed: str, state: ArchiveState | None, archive: Archive, manifest: Manifest) -> bool:
        """Corrupted unless the archive is of this very log; costs nothing where the last run left it as it is.

        Gives whether the log may be read from it: whether it has all that the place known until now has.
        """
        known = [s for s in manifest.segments if state and s.end == state.archived_to and s.chain == state.chain]
        moved = state is not None and state.url != archive.url
        if known and known[0].end == manifest.end and not moved:
            return True
        if moved and known:
            # A copy that somebody made of it: what the old place may no longer give is taken on by its chain.
            await self._check_objects(archive, manifest)
            after, chain = known[0].end, known[0].chain
        else:
            after, chain = ORIGIN, CHAIN_START
        async for entry in self._log.read(feed, after=after, to=manifest.end):
            chain, after = chained(chain, entry), entry.position
        if chain != manifest.chain or after != manifest.end:
            raise _other_history(feed, archive.url)
        return bool(known) or not moved

    async def _check_objects(self, archive: Archive, manifest: Manifest) -> None:
        for number, segment in enumerate(manifest.segments):
            if await archive.entries(segment, chain_before=manifest.chain_before(number)) is None:
                raise Corrupted(f"the archive's object {archive.url}/{segment.object} is missing")


def _other_history(feed: str, url: str) -> Corrupted:
    return Corrupted(f"the archive at {url} is of another history of {feed!r} than its log", feed=feed, archive=url)


async def head_of(redis: Redis, keys: Keys, feed: str) -> Position:
    """The log's last position; FeedNotFound where there is no such feed."""
    epoch, n = await command(redis, "HMGET", keys.feed(feed).head, "epoch", "n")
    if epoch is None:
        raise FeedNotFound(feed)
    return Position(int(epoch), int(n))


async def quarantine_until(log: Log, feed: str, end: Position) -> dict[str, str]:
    """The feed's quarantine up to `end`, as a manifest holds it."""
    records = await log.quarantined(feed)
    return {str(position): record.decode() for position, record in sorted(records.items()) if position <= end}

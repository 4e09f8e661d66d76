"""Removal: content out of a feed's archive, for a redaction.

Owns rewriting the segments that hold it. Which content must go, and that it is gone from everywhere else, is the redaction's.
"""

import asyncio
import secrets
from collections.abc import Collection
from typing import NamedTuple

from msgspec.structs import replace

from shared.archive.archives import Archive, mark_of
from shared.archive.archiving import ATTEMPTS_MAX, quarantine_until
from shared.archive.objects import Moved
from shared.archive.segments import ARCHIVE_FORMAT, Manifest, Packed, Packing, Segment
from shared.errors import Unavailable
from shared.keys import Keys
from shared.log import Log
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.redis import Redis


class Rewritten(NamedTuple):
    """One segment from which content was removed: its object before, which is gone, and after."""

    url: str
    before: Segment
    after: Segment


class Removal:
    """Removes content from archives of one installation."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._log = Log(redis, keys)
        self._archives = self._log.archives
        self._token = secrets.token_hex(4)

    async def places(self, feed: str) -> list[str]:
        """Where the feed's archive is, is being copied to, and was before."""
        state = await self._archives.state(feed)
        return [] if state is None else state.places

    async def remove_content(self, feed: str, url: str, positions: Collection[Position]) -> list[Rewritten]:
        """Empty the content of these events in the feed's archive at `url`; gives the segments that were rewritten.

        Removed from the log first: an archive run that read it before finds its manifest outdated by this one, and reads
        the log again. The objects with the content are deleted and looked after; the chain stays, their SHA-256 is new.
        """
        state = await self._archives.state(feed)
        former = state is not None and url not in (state.url, state.moving_to)
        return await self._remove_content(
            self._archives.at(url, feed), {str(p).encode() for p in positions}, former=former
        )

    async def _remove_content(self, archive: Archive, positions: set[bytes], *, former: bool) -> list[Rewritten]:
        for _ in range(ATTEMPTS_MAX):
            found = await archive.manifest()
            if found is None and former:
                return []  # the copy was taken away, and no run writes there any more
            before = found.manifest if found else Manifest(ARCHIVE_FORMAT, archive.feed, 0, [], {})
            mark = mark_of(before.version + 1, self._token)
            rewritten, segments = [], []
            for number, segment in enumerate(before.segments):
                wanted = [p for p in positions if segment.first_n <= Position.parse(p.decode()).n <= segment.end.n]
                after = segment
                if wanted:
                    chain = before.chain_before(number)
                    after = await self._emptied(archive, segment, positions, chain=chain, mark=mark)
                    if after != segment:
                        rewritten.append(Rewritten(archive.url, segment, after))
                segments.append(after)
            # Switched even where nothing was to be removed: what another run has read and not yet written is outdated.
            quarantine = await quarantine_until(self._log, archive.feed, before.end)
            manifest = replace(before, version=before.version + 1, segments=segments, quarantine=quarantine)
            try:
                await archive.switch(manifest, expected=found)
            except Moved:
                continue
            await archive.sweep(manifest)
            return rewritten
        raise Unavailable(f"other runs archive {archive.feed!r} at the same time; try again", feed=archive.feed)

    async def _emptied(
        self, archive: Archive, segment: Segment, positions: set[bytes], *, chain: str, mark: str
    ) -> Segment:
        entries = await archive.entries(segment, chain_before=chain)
        if entries is None:
            raise Unavailable(f"the archive of {archive.feed!r} was rewritten meanwhile; try again", feed=archive.feed)
        if not any(entry.id in positions and entry.fields[b"content"] for entry in entries):
            return segment

        def packed() -> Packed:
            packing = Packing(chain)
            for entry in entries:
                if entry.id in positions:
                    entry = StreamEntry(entry.id, {**entry.fields, b"content": b""})
                packing.add(entry)
            return packing.packed(archive.feed, mark=mark)

        made = await asyncio.to_thread(packed)
        await archive.store(made)
        return made.segment

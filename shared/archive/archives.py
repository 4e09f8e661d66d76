"""The archive: one feed's segments and manifest in a place, and where each feed's place is.

Owns reading them, verified, and switching the manifest. The form of the objects is `segments`', what goes into an archive and
out of the log `archiving`'s.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple, cast

from shared.archive.objects import Held, Objects
from shared.archive.segments import Manifest, Packed, Segment, check_chain, entries_of, seal, unpacked, unseal
from shared.errors import Corrupted
from shared.keys import Keys
from shared.ndjson import StreamEntry
from shared.position import ORIGIN, Position
from shared.redis import Redis

CHUNK_EVENTS = 500
# Segments kept in memory for whoever reads a feed in pieces: each is read from its object once.
SEGMENTS_HELD_MAX = 2

_FORMER = "former:"


class ArchiveState(NamedTuple):
    """What a feed's shard knows of its archive. Positions are ORIGIN where nothing is archived or trimmed yet.

    `chain` is that at `archived_to`; `moving_to` the place to which the archive is being copied, `former` are those that it was
    moved away from: copies may still be there.
    """

    url: str
    archived_to: Position
    trimmed_to: Position
    chain: str
    moving_to: str | None
    former: tuple[str, ...] = ()

    @property
    def places(self) -> list[str]:
        """Every place that may hold events of the feed."""
        return list(dict.fromkeys(filter(None, (self.url, self.moving_to, *self.former))))


class HeldManifest(NamedTuple):
    manifest: Manifest
    held: Held


class Archive:
    """One feed's archive in one place. `held` are lines of segments last read, by place and object."""

    def __init__(self, objects: Objects, feed: str, held: OrderedDict[tuple[str, str], list[bytes]]) -> None:
        self.feed = feed
        self._objects = objects
        self._held = held

    @property
    def url(self) -> str:
        return self._objects.url

    async def manifest(self) -> HeldManifest | None:
        """The manifest as it stands now; Corrupted for a damaged one."""
        held = await self._objects.get(self._manifest)
        if held is None:
            return None
        return HeldManifest(unseal(held.data, feed=self.feed, where=f"{self.url}/{self._manifest}"), held)

    async def switch(self, manifest: Manifest, *, expected: HeldManifest | None) -> None:
        """Put the manifest in the place of `expected`, in one step; raises Moved when another one stands there by now."""
        await self._objects.replace(self._manifest, seal(manifest), expected=expected.held if expected else None)

    async def store(self, packed: Packed) -> None:
        await self._objects.put(packed.segment.object, packed.data)

    async def entries(self, segment: Segment, *, chain_before: str) -> list[StreamEntry] | None:
        """A segment's events, read from its object and verified down to the chain; None when the object is gone."""
        held = await self._objects.get(segment.object)
        if held is None:
            return None

        def verified(data: bytes) -> list[StreamEntry]:
            entries = entries_of(segment, unpacked(segment, data))
            check_chain(segment, entries, before=chain_before)
            return entries

        return await asyncio.to_thread(verified, held.data)

    async def read(
        self, *, after: Position, before_n: int, to: Position | None
    ) -> AsyncGenerator[list[StreamEntry], None]:
        """The archived events after `after`, up to `to` and below `before_n`, in order, in chunks.

        Objects are verified, positions are gapless. Raises Corrupted for what is damaged, or missing in this range.
        """
        found = await self.manifest()
        while after.n + 1 < before_n and (to is None or after.n < to.n):
            number = found.manifest.holding(after.n + 1) if found else None
            if found is None or number is None:
                raise missing(self.feed, after.n + 1, before_n, self.url)
            segment = found.manifest.segments[number]
            lines = await self._lines(found.manifest, segment)
            if lines is None:
                # Another run put a longer segment, or one without removed content, in its place.
                found = await self._newer(found.manifest, segment)
                continue
            skip = after.n + 1 - segment.first_n
            entries = entries_of(segment, lines[skip : skip + min(CHUNK_EVENTS, before_n - after.n - 1)], skip=skip)
            # Positions compare as the stream compares its ids: one of another epoch may be beyond `to`, or not after `after`.
            wanted = [e for e in entries if e.position > after and (to is None or e.position <= to)]
            if wanted:
                yield wanted
            if len(wanted) < len(entries):
                return
            after = entries[-1].position

    async def sweep(self, manifest: Manifest) -> list[str]:
        """Delete what no manifest names any more: superseded segments, and what crashed runs left. Gives their names.

        Only what was written for `manifest` or an earlier one: another run may just now write for the next.
        """
        named = {segment.object for segment in manifest.segments}
        gone = []
        for name in await self._objects.names(self.feed):
            version = _version_in(name)
            if name not in named and version is not None and version <= manifest.version:
                await self._objects.delete(name)
                gone.append(name)
        return gone

    async def _lines(self, manifest: Manifest, segment: Segment) -> list[bytes] | None:
        named = {segment.object for segment in manifest.segments}
        for url, name in list(self._held):
            # What was removed from the archive leaves this memory too.
            if url == self.url and name.startswith(f"{self.feed}/") and name not in named:
                del self._held[url, name]
        key = (self.url, segment.object)
        if (lines := self._held.get(key)) is not None:
            self._held.move_to_end(key)
            return lines
        held = await self._objects.get(segment.object)
        if held is None:
            return None
        lines = await asyncio.to_thread(unpacked, segment, held.data)
        self._held[key] = lines
        while len(self._held) > SEGMENTS_HELD_MAX:
            self._held.popitem(last=False)
        return lines

    async def _newer(self, manifest: Manifest, segment: Segment) -> HeldManifest:
        found = await self.manifest()
        if found is None or found.manifest.version <= manifest.version:
            raise Corrupted(f"the archive's object {self.url}/{segment.object} is missing", object=segment.object)
        return found

    @property
    def _manifest(self) -> str:
        return f"{self.feed}/manifest.json"


def mark_of(version: int, token: str) -> str:
    """What tells one writing of a segment from every other: the manifest that it is for, and the run."""
    return f"{version}-{token}"


def _version_in(name: str) -> int | None:
    parts = name.rpartition("/")[2].split(".")
    version = parts[1].partition("-")[0] if len(parts) == 4 and parts[2:] == ["ndjson", "gz"] else ""
    return int(version) if version.isdecimal() else None


class Archives:
    """The archives of one installation's feeds, found by what each feed's shard knows of its own."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._places: dict[str, Objects] = {}
        self._held: OrderedDict[tuple[str, str], list[bytes]] = OrderedDict()

    async def state(self, feed: str) -> ArchiveState | None:
        """None for a feed that was never archived."""
        raw = await cast("Any", self._redis.hgetall(self._keys.feed(feed).archive))
        found = {name.decode(): value.decode() for name, value in raw.items()}
        if "url" not in found:
            return None
        return ArchiveState(
            url=found["url"],
            archived_to=_position(found.get("archived_to")),
            trimmed_to=_position(found.get("trimmed_to")),
            chain=found.get("chain", ""),
            moving_to=found.get("moving_to"),
            former=tuple(sorted(name.removeprefix(_FORMER) for name in found if name.startswith(_FORMER))),
        )

    def at(self, url: str, feed: str) -> Archive:
        """The feed's archive in this place, whether there is one yet or not."""
        objects = self._places.get(url) or Objects(url)
        self._places[url] = objects
        return Archive(objects, feed, self._held)

    async def read(
        self, feed: str, *, after: Position, before_n: int, to: Position | None
    ) -> AsyncGenerator[list[StreamEntry], None]:
        """What lies in (`after`, `to`] below `before_n`, where the stream begins; Corrupted when the archive lacks it."""
        state = await self.state(feed)
        if state is None:
            raise missing(feed, after.n + 1, before_n, None)
        async for entries in self.at(state.url, feed).read(after=after, before_n=before_n, to=to):
            yield entries


def missing(feed: str, n: int, first_n: int, url: str | None) -> Corrupted:
    """Neither the stream nor the archive has the feed's n-th event."""
    archive = f"its archive at {url} does not have that" if url else "it has no archive"
    return Corrupted(f"the log of {feed!r} has n {first_n} where n must be {n}, and {archive}", feed=feed, n=n)


def _position(text: str | None) -> Position:
    return Position.parse(text) if text else ORIGIN

"""The quarantine as operators work on it: what was set aside, giving up on it, taking it back.

Owns discarding, and what a retry asks for. What goes in is the commit's, what comes out again the flip's: a record leaves only
together with the generation that skipped its event.
"""

import time

import msgspec

from services.projector.builds import Build, Builds
from shared.errors import NotQuarantined
from shared.events import decode
from shared.keys import Keys
from shared.log import Log
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.quarantine import Discarded, QuarantineRecord, parse_quarantine_record
from shared.redis import Redis, Script, command

_discard = Script(__file__, "discard.lua")


class Quarantine:
    """The quarantines of one installation's feeds."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._log = Log(redis, keys)

    async def records(self, feed: str) -> list[QuarantineRecord]:
        """In order of position."""
        found = await self._log.quarantined(feed)
        return [parse_quarantine_record(found[position]) for position in sorted(found)]

    async def record(self, feed: str, position: Position) -> QuarantineRecord:
        return parse_quarantine_record(await self._raw(feed, position))

    async def event(self, feed: str, position: Position) -> StreamEntry:
        """The event that the record is of, as it stands in the log."""
        entry = await self._log.event_at(feed, position)
        if entry is None:
            raise NotQuarantined(feed, str(position))
        return entry

    async def discard(self, feed: str, position: Position, *, reason: str, by: str) -> QuarantineRecord:
        """Keep the record, marked: nobody needs to look at it any more. Done again, the first reason stands."""
        while True:
            seen = await self._raw(feed, position)
            record = parse_quarantine_record(seen)
            if record.discarded is not None:
                return record
            discarded = Discarded(reason=reason, by=by, at=time.time_ns() // 1_000_000)
            record = msgspec.structs.replace(record, discarded=discarded)
            args = (str(position), seen, msgspec.json.encode(record))
            if await _discard(self._redis, (self._keys.feed(feed).quarantine,), args):
                return record

    async def retry(self, feed: str, position: Position, *, by: str) -> Build:
        """Ask for a build that folds the event in its own place; gives the build.

        Raises CannotFold, or NewerLog, when this release cannot even read the event: then nothing is asked.
        """
        await self._raw(feed, position)
        entry = await self.event(feed, position)
        decode(entry.id, entry.fields)
        because = f"the event at {position} was taken out of quarantine by {by}"
        return await Builds(self._redis, self._keys).ask(
            feed, reason="repair", by=by, because=because, without=[position]
        )

    async def _raw(self, feed: str, position: Position) -> bytes:
        raw: bytes | None = await command(self._redis, "HGET", self._keys.feed(feed).quarantine, str(position))
        if raw is None:
            raise NotQuarantined(feed, str(position))
        return raw

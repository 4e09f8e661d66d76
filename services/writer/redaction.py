"""Redaction: the content of one entry goes for good from the write side and from what waits for readers; its digests stay.

Owns the event that says so, the log written anew without the content, and the traces of it in records, command buckets,
quarantine and frames. Read models follow by the event's fold; archives, gateways and the server's files are the caller's.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from shared.append import Append, Appended, Guards, NewRecord, Stale
from shared.errors import CannotFold, Corrupted, EntryNotFound, FeedNotFound, Unavailable
from shared.events import EntryRedacted, Envelope, Removed, about, encode
from shared.keys import Keys
from shared.log import Log, stream_entry
from shared.position import ORIGIN, Position
from shared.redis import Redis, Script, command
from shared.write_side import NO_FINGERPRINT

EVENTS_PER_COPY_MAX = 500
BYTES_PER_COPY_MAX = 1024 * 1024
ATTEMPTS_MAX = 20

_copy = Script(__file__, "redact_copy.lua")
_swap = Script(__file__, "redact_swap.lua")
_traces = Script(__file__, "redact_traces.lua")
_frames = Script(__file__, "redact_frames.lua")


class Traces(Struct, frozen=True):
    """An entry's events as the log has them; `removed` are those that have or had content, `left` those that still have.

    `redacted` is the redaction that stands in the log already; `salts` are known only from what is left.
    """

    positions: Sequence[Position]
    commands: Sequence[str]
    removed: Sequence[Removed]
    left: Sequence[Position]
    salts: Sequence[bytes]
    redacted: "Redacted | None"


class Redacted(Struct, frozen=True):
    """An EntryRedacted in the log: where, by whom and why."""

    position: Position
    by: str
    reason: str


class Redactions:
    """Redactions in the logs of one installation."""

    def __init__(self, redis: Redis, keys: Keys, log: Log) -> None:
        self._redis = redis
        self._keys = keys
        self._log = log

    async def traces(self, feed: str, entry: str) -> Traces:
        """Read the whole log, archive and stream, for the entry's events; EntryNotFound when there are none."""
        positions: list[Position] = []
        commands: dict[str, None] = {}
        removed: list[Removed] = []
        left: list[Position] = []
        salts: list[bytes] = []
        redacted = None
        async for event in self._log.read(feed, after=ORIGIN):
            try:
                what = about(event.fields)
            except CannotFold:
                continue  # an envelope that cannot be read names no entry
            if what.entry != entry:
                continue
            recorded = msgspec.json.decode(event.fields[b"envelope"], type=Envelope)
            if what.type == EntryRedacted.__name__:
                redacted = Redacted(event.position, recorded.by, recorded.facts["reason"])
                continue
            positions.append(event.position)
            commands[recorded.command] = None
            if what.digest is not None:
                removed.append(Removed(position=str(event.position), digest=what.digest))
                if content := event.fields[b"content"]:
                    left.append(event.position)
                    salts.append(_salt_of(content))
        if not positions:
            raise EntryNotFound(feed, entry)
        return Traces(positions, list(commands), removed, left, salts, redacted)

    async def append(self, feed: str, entry: str, *, reason: str, by: str) -> tuple[Redacted, Traces]:
        """Append the EntryRedacted, or find the one that names all that was ever there; gives it and the traces.

        Raises EntryNotFound, or Unavailable when desks change the entry faster than its events can be named.
        """
        for _ in range(ATTEMPTS_MAX):
            looked = await self._log.look(feed, entries=[entry], pins=False, command=None)
            record = looked.records.get(entry)
            if looked.head is None:
                raise FeedNotFound(feed)
            if record is None:
                raise EntryNotFound(feed, entry)
            traces = await self.traces(feed, entry)
            if traces.redacted is not None:
                return traces.redacted, traces
            event = EntryRedacted(entry=entry, reason=reason, removed=list(traces.removed))
            name = f"redact-{secrets.token_hex(8)}"
            answer = await self._log.append(
                feed,
                Append(
                    command=name,
                    fingerprint=NO_FINGERPRINT,
                    events=[encode(event, command=name, by=by, causation=None)],
                    # The event names all content that there is: none may come between.
                    guards=Guards(entries={entry: record.position}),
                    live_change=-1 if record.status == "published" else 0,
                    new_status=None,
                    sets_version=False,
                    sets_pins=True,
                    records={entry: NewRecord("retracted", record.revision, 1, NO_FINGERPRINT)},
                ),
            )
            match answer:
                case Appended(position, _):
                    return Redacted(position, by, reason), traces
                case Stale():
                    continue
            raise Corrupted(f"the redaction of {entry!r} was answered {answer!r}", feed=feed, entry=entry)
        raise Unavailable("the entry changes all the time; nothing was redacted")

    async def rewrite_log(self, feed: str, positions: Sequence[Position]) -> None:
        """Put in the log's place a log of the same events and ids in which those at `positions` have no content.

        A stream entry cannot be changed where it stands. Unavailable when another redaction rewrites the same log.
        """
        feed_keys = self._keys.feed(feed)
        keys = (feed_keys.log, feed_keys.log_rewrite, feed_keys.rewriting)
        token = secrets.token_hex(8)
        last, more = "", True
        for _ in range(ATTEMPTS_MAX):
            while more:
                args: list[str | int] = [token, last, EVENTS_PER_COPY_MAX, BYTES_PER_COPY_MAX, *map(str, positions)]
                answer = await _copy(self._redis, keys, args)
                if answer == b"taken":
                    raise Unavailable(f"another redaction rewrites the log of {feed!r}; run this one again after it")
                last, more = answer[0].decode(), bool(answer[1])
            match await _swap(self._redis, keys, (token, EVENTS_PER_COPY_MAX)):
                case b"swapped":
                    return
                case b"behind":
                    more = True
                case b"taken":
                    raise Unavailable(f"another redaction rewrites the log of {feed!r}; run this one again after it")
                case b"differs":
                    last, more = "", True
        raise Unavailable(f"the log of {feed!r} grows faster than it is written anew; run this again")

    async def left_in_stream(self, feed: str, positions: Sequence[Position]) -> list[str]:
        """Those of the positions whose content still stands in the stream."""
        log = self._keys.feed(feed).log
        found = [await command(self._redis, "XRANGE", log, str(position), str(position)) for position in positions]
        entries = [stream_entry(item) for answer in found for item in answer]
        return [entry.id.decode() for entry in entries if entry.fields[b"content"]]

    async def remove_traces(self, feed: str, entry: str, traces: Traces) -> int:
        """Remove the fingerprints of publication and commands and the quarantine's reasons; gives how many there were."""
        keys = self._keys.feed(feed)
        count = int(await _traces(self._redis, (keys.entries,), (entry, keys.commands, *traces.commands)))
        quarantined = await self._log.quarantined(feed)
        for position in set(traces.positions) & set(quarantined):
            record: dict[str, Any] = msgspec.json.decode(quarantined[position])
            record["reason"] = "the content was removed by a redaction"
            await command(self._redis, "HSET", keys.quarantine, str(position), msgspec.json.encode(record))
            count += 1
        return count

    async def empty_frames(self, feed: str, positions: Sequence[Position]) -> int:
        """Empty the frames of these positions that still wait for gateways; gives how many there were."""
        shard = self._keys.shard(self._keys.shard_of(feed))
        return int(await _frames(self._redis, (shard.frames, shard.frames_rewrite), (feed, *map(str, positions))))

    async def ask_gateways(self, feed: str, entry: str, *, token: str) -> None:
        """Put a purge record into the frames: every gateway drops what it holds of the entry, and confirms under `token`."""
        shard = self._keys.shard(self._keys.shard_of(feed))
        await command(self._redis, "XADD", shard.frames, "*", "f", feed, "k", "purge", "d", f"{token} {entry}")

    async def confirmed(self, feed: str, *, token: str) -> set[str]:
        """The gateways that confirmed so far."""
        return {name.decode() for name in await command(self._redis, "SMEMBERS", self._keys.feed(feed).purged + token)}


class _Salted(Struct, frozen=True):
    salt: str = ""


def _salt_of(content: bytes) -> bytes:
    """The content's salt: random text that stands nowhere else, by which a copy of the content is found."""
    try:
        return msgspec.json.decode(content, type=_Salted).salt.encode()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return b""

"""Imports: events that another installation recorded, as they come over HTTP, chunk by chunk.

Owns what a chunk may hold and how it is checked: content as if a desk had sent it.
Taking the events over, once and whole, is `shared.archive.restoring`'s.
"""

import time
from typing import Any, NamedTuple

import msgspec

from services.writer.sanitise import Checked
from shared.archive.exports import Closing, Header, parse
from shared.archive.restoring import Restoring
from shared.errors import CannotFold, FieldError, Invalid, Malformed, NewerLog
from shared.events import decode
from shared.ndjson import StreamEntry
from shared.position import ORIGIN, Position
from shared.quarantine import QuarantineRecord
from shared.redis import redis_errors

# As for any instant that a client gives.
AHEAD_SECONDS_MAX = 300


class Imported(NamedTuple):
    """How far the feed's events stand; `complete` once it is a feed."""

    position: Position
    complete: bool


class Chunk(NamedTuple):
    entries: list[StreamEntry]
    closing: Closing | None


class Imports:
    """Takes chunks of exports into one installation."""

    def __init__(self, restoring: Restoring) -> None:
        self._restoring = restoring

    async def take(self, feed: str, body: bytes) -> Imported:
        """Stage a chunk's events; with the closing line, make the feed of all that was staged. Safe to repeat."""
        chunk = parse_chunk(body, feed=feed, now_milliseconds=time.time_ns() // 1_000_000)
        async with redis_errors("the same events may be sent again"):
            position = ORIGIN
            if chunk.entries:
                try:
                    position = await self._restoring.stage(feed, chunk.entries)
                except NewerLog as error:
                    raise Invalid([FieldError("", error.detail)]) from error
            if chunk.closing is None:
                return Imported(position, complete=(await self._restoring.staged(feed)).live)
            end = Position.parse(chunk.closing.end)
            quarantine = chunk.closing.quarantine
            await self._restoring.finish(feed, last=end, chain=chunk.closing.chain, quarantine=quarantine)
            return Imported(end, complete=True)


def parse_chunk(body: bytes, *, feed: str, now_milliseconds: int) -> Chunk:
    """The events of a chunk, and the closing line when it ends with one. Raises Malformed or Invalid, naming the line."""
    entries: list[StreamEntry] = []
    closing: Closing | None = None
    for number, line in enumerate(body.splitlines()):
        try:
            found = parse(line)
        except ValueError as error:
            raise Malformed(f"line {number + 1}: {error}") from None
        if closing is not None:
            raise Invalid([FieldError(f"/{number}", "nothing comes after the closing line")])
        if isinstance(found, Closing):
            _check_closing(found, f"/{number}")
            closing = found
        elif not isinstance(found, Header):
            if int(found.fields[b"recorded_at"]) > now_milliseconds + AHEAD_SECONDS_MAX * 1000:
                raise Invalid([FieldError(f"/{number}/recorded_at", "lies in the future")])
            _check_content(found, f"/{number}/content")
            entries.append(found)
        elif number != 0:
            raise Invalid([FieldError(f"/{number}", "a header stands in the first line only")])
        elif found.feed != feed:
            raise Invalid([FieldError("/0/feed", f"is {found.feed[:64]!r}: a feed keeps its id")])
    if not entries and closing is None:
        raise Malformed("the body holds no event and no closing line")
    return Chunk(entries, closing)


def _check_content(entry: StreamEntry, path: str) -> None:
    """Invalid for markup or URLs that no writer lets in: whoever holds the file may have edited it."""
    try:
        content: Any = getattr(decode(entry.id, entry.fields).event, "content", None)
    except (CannotFold, NewerLog):
        return  # it will stand on no page: it is set aside, or refused where it is taken over
    checked = Checked(now_milliseconds=0)
    for field, check in (("body", checked.body), ("image", checked.image), ("url", checked.optional_url)):
        value = getattr(content, field, None)
        if value and check(value, f"{path}/{field}") != value:
            checked.wrong(f"{path}/{field}", "is not as sanitising leaves it")
    checked.refuse_if_wrong()


def _check_closing(closing: Closing, path: str) -> None:
    try:
        end = Position.parse(closing.end)
    except ValueError as error:
        raise Invalid([FieldError(f"{path}/end", str(error))]) from error
    if end.n != closing.events:
        raise Invalid([FieldError(f"{path}/events", f"is {closing.events}, and the end is {end}")])
    for text, record in closing.quarantine.items():
        try:
            told = msgspec.json.decode(record, type=QuarantineRecord)
            fits = told.position == text and Position.parse(text) <= end
        except (ValueError, msgspec.MsgspecError):
            fits = False
        if not fits:
            raise Invalid([FieldError(f"{path}/quarantine", f"{text[:40]!r} has no record of an event up to {end}")])

"""An event as one line of NDJSON: what `events`, `replay`, archives and exports all write, and read back byte for byte.

Owns the line and the chain over lines. `{"position", "recorded_at", "envelope", "content"}`: envelope and content are the
bytes of the log, embedded as the JSON that they are; content is null for an event that has none or whose content was removed.
Bytes that are no JSON (an event in quarantine, say) stand as a string, in base64.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from shared.instants import instant_of, milliseconds_of, parse_instant
from shared.position import Position


class StreamEntry(NamedTuple):
    """One stream entry, undecoded."""

    id: bytes
    fields: Mapping[bytes, bytes]

    @property
    def position(self) -> Position:
        return Position.parse(self.id.decode())


class _Line(Struct, frozen=True):
    position: str
    recorded_at: str
    envelope: Raw
    content: Raw


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Line)

# What msgspec raises for bytes that are no JSON; nested too deeply is one way not to be.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# A chain begins here, so that the chain of nothing is not that of anything else.
CHAIN_START = hashlib.sha256(b"dateline chain 1").hexdigest()


def line_of(entry: StreamEntry) -> bytes:
    """The line of a log entry, its line end included."""
    return (
        _encoder.encode(
            _Line(
                position=entry.id.decode(),
                recorded_at=instant_of(int(entry.fields[b"recorded_at"])),
                envelope=_embedded(entry.fields[b"envelope"]),
                content=_embedded(entry.fields[b"content"]),
            )
        )
        + b"\n"
    )


def parse_line(line: bytes) -> StreamEntry:
    """The log entry of a line; ValueError for what is no such line."""
    try:
        parsed = _decoder.decode(line)
        position = Position.parse(parsed.position)
        fields = {
            b"envelope": _extracted(parsed.envelope),
            b"content": _extracted(parsed.content),
            b"recorded_at": str(milliseconds_of(parse_instant(parsed.recorded_at))).encode(),
        }
    except UNREADABLE as error:
        raise ValueError(f"the line is no event: {error}") from error
    return StreamEntry(str(position).encode(), fields)


def chained(chain: str, entry: StreamEntry) -> str:
    """The chain (SHA-256 in hex) after one more event: over position, recording and envelope, whose digest stands for content.

    Content may go by redaction; the chain stays.
    """
    sha = hashlib.sha256(chain.encode())
    for part in (entry.id, entry.fields[b"recorded_at"], entry.fields[b"envelope"]):
        sha.update(b"%d:" % len(part))
        sha.update(part)
    return sha.hexdigest()


def chain_over(chain: str, entries: Iterable[StreamEntry]) -> str:
    """The chain after several more events."""
    for entry in entries:
        chain = chained(chain, entry)
    return chain


def _embedded(data: bytes) -> Raw:
    if data == b"":
        return Raw(b"null")
    try:
        # What begins otherwise, a bare string or null, would be read back as something else.
        if data[:1] == b"{" and data[-1:] == b"}" and b"\n" not in data and b"\r" not in data:
            msgspec.json.decode(data)
            return Raw(data)
    except UNREADABLE:
        pass
    return Raw(b'"%s"' % base64.b64encode(data))


def _extracted(raw: Raw) -> bytes:
    data = bytes(raw)
    if data == b"null":
        return b""
    if data[:1] == b"{":
        return data
    return base64.b64decode(msgspec.json.decode(data, type=str), validate=True)

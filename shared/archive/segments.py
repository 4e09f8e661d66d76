"""Segments and manifests: what an archive's objects hold, and how a damaged one is found.

Owns both forms. A segment is gzip of NDJSON lines; the manifest lists the segments in order, each with the SHA-256 of its
object and the chain over all events from the first to its last. Where the objects are kept is `archives`'.
"""

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from shared.errors import Corrupted, NewerLog
from shared.ndjson import CHAIN_START, StreamEntry, chain_over, chained, line_of, parse_line
from shared.position import ORIGIN, Position

ARCHIVE_FORMAT = 1
SEGMENT_EVENTS_MAX = 10_000
SEGMENT_BYTES_MAX = 8 * 1024 * 1024
N_DIGITS = 20


class Segment(Struct, frozen=True):
    """`bytes` and `sha256` are of the object, `lines_bytes` of what is in it; `chain` is that after its last event."""

    object: str
    first: str
    last: str
    events: int
    bytes: int
    lines_bytes: int
    sha256: str
    chain: str

    @property
    def first_n(self) -> int:
        return Position.parse(self.first).n

    @property
    def end(self) -> Position:
        return Position.parse(self.last)

    @property
    def full(self) -> bool:
        return self.events >= SEGMENT_EVENTS_MAX or self.lines_bytes >= SEGMENT_BYTES_MAX


class Manifest(Struct, frozen=True):
    """A feed's archive. `version` counts the manifests that stood here; `quarantine` is of archived positions."""

    format: int
    feed: str
    version: int
    segments: list[Segment]
    quarantine: Mapping[str, str]

    @property
    def end(self) -> Position:
        return self.segments[-1].end if self.segments else ORIGIN

    @property
    def chain(self) -> str:
        return self.segments[-1].chain if self.segments else CHAIN_START

    @property
    def bytes(self) -> int:
        return sum(segment.bytes for segment in self.segments)

    def holding(self, n: int) -> int | None:
        """The number of the segment that holds the feed's n-th event."""
        return next((i for i, s in enumerate(self.segments) if s.first_n <= n <= s.end.n), None)

    def chain_before(self, number: int) -> str:
        """The chain that the `number`-th segment goes on from."""
        return self.segments[number - 1].chain if number else CHAIN_START


class _Sealed(Struct, frozen=True):
    sha256: str
    manifest: Raw


class Packed(NamedTuple):
    segment: Segment
    data: bytes


class Packing:
    """Lines gathered for one segment, within its bounds; `chain` is that before the first of them."""

    def __init__(self, chain: str) -> None:
        self.chain = chain
        self.first = b""
        self.last = b""
        self.events = 0
        self._lines = bytearray()

    def add(self, entry: StreamEntry) -> None:
        self.chain = chained(self.chain, entry)
        self.first = self.first or entry.id
        self.last = entry.id
        self.events += 1
        self._lines += line_of(entry)

    @property
    def full(self) -> bool:
        return self.events >= SEGMENT_EVENTS_MAX or len(self._lines) >= SEGMENT_BYTES_MAX

    def packed(self, feed: str, *, mark: str) -> Packed:
        """The segment; `mark` tells this writing of it from every other, in the object's name."""
        # Without the time of packing the same events are the same bytes.
        data = gzip.compress(self._lines, compresslevel=6, mtime=0)
        first, last = (Position.parse(text.decode()).n for text in (self.first, self.last))
        segment = Segment(
            object=f"{feed}/{first:0{N_DIGITS}d}-{last:0{N_DIGITS}d}.{mark}.ndjson.gz",
            first=self.first.decode(),
            last=self.last.decode(),
            events=self.events,
            bytes=len(data),
            lines_bytes=len(self._lines),
            sha256=hashlib.sha256(data).hexdigest(),
            chain=self.chain,
        )
        return Packed(segment, data)


def unpacked(segment: Segment, data: bytes) -> list[bytes]:
    """The lines of a segment's object; Corrupted when it is not the object that the manifest means."""
    found = hashlib.sha256(data).hexdigest()
    if found != segment.sha256:
        raise Corrupted(
            f"the archive's object {segment.object} is damaged: its SHA-256 is {found}, not {segment.sha256}",
            object=segment.object,
        )
    lines = gzip.decompress(data).splitlines(keepends=True)
    if len(lines) != segment.events:
        raise Corrupted(
            f"the archive's object {segment.object} holds {len(lines)} events, not {segment.events}",
            object=segment.object,
        )
    return lines


def entries_of(segment: Segment, lines: Sequence[bytes], *, skip: int = 0) -> list[StreamEntry]:
    """Log entries of lines, the first of which is the segment's `skip`-th; Corrupted unless positions are gapless."""
    entries = []
    for n, line in enumerate(lines, start=segment.first_n + skip):
        try:
            entry = parse_line(line)
        except ValueError as error:
            raise Corrupted(f"the archive's object {segment.object}: {error}", object=segment.object) from error
        if entry.position.n != n:
            raise Corrupted(
                f"the archive's object {segment.object} has {entry.id.decode()} where n must be {n}",
                object=segment.object,
            )
        entries.append(entry)
    return entries


def check_chain(segment: Segment, entries: Sequence[StreamEntry], *, before: str) -> None:
    """Corrupted unless the events continue the chain `before` to that of the segment."""
    if chain_over(before, entries) != segment.chain or entries[-1].id.decode() != segment.last:
        raise Corrupted(f"the chain breaks in the archive's object {segment.object}", object=segment.object)


def seal(manifest: Manifest) -> bytes:
    body = msgspec.json.encode(manifest, order="deterministic")
    sealed = _Sealed(hashlib.sha256(body).hexdigest(), Raw(body))
    return msgspec.json.encode(sealed) + b"\n"


def unseal(data: bytes, *, feed: str, where: str) -> Manifest:
    """The manifest of `feed`; Corrupted for a damaged one, NewerLog for a form that this release does not know."""
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        if hashlib.sha256(sealed.manifest).hexdigest() != sealed.sha256:
            raise Corrupted(f"the manifest {where} is damaged: its SHA-256 is not the one that it tells", object=where)
        form = msgspec.json.decode(sealed.manifest, type=_Form)
        if form.format > ARCHIVE_FORMAT:
            raise NewerLog(f"the manifest {where} has format {form.format}, this release knows {ARCHIVE_FORMAT}")
        manifest = msgspec.json.decode(sealed.manifest, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupted(f"the manifest {where} cannot be read: {error}", object=where) from error
    n = 0
    for segment in manifest.segments:
        if segment.first_n != n + 1 or segment.end.n - n != segment.events:
            raise Corrupted(f"the manifest {where} has a gap before {segment.first}", object=where)
        n = segment.end.n
    if manifest.feed != feed:
        raise Corrupted(f"the manifest {where} is of the feed {manifest.feed!r}, not of {feed!r}", object=where)
    return manifest


class _Form(Struct, frozen=True):
    format: int

"""Exports: one feed in one file, so that it can be carried to another installation.

Owns the file's form: gzip of NDJSON lines: a header, the events (`ndjson`), and a closing line without which the file counts as
cut. The same lines, unpacked, are what the writer takes.
"""

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct

from shared.ndjson import CHAIN_START, StreamEntry, chained, parse_line

EXPORT_FORMAT = 1


class Header(Struct, frozen=True):
    dateline_export: int
    feed: str


class Closing(Struct, frozen=True):
    """`chain` and `events` are of all events up to `end`; `quarantine` holds the records of those that were set aside."""

    end: str
    events: int
    chain: str
    quarantine: Mapping[str, str]


class CannotImport(ValueError):
    """The file is cut, damaged or of another form; says where."""


def encoded(line: Header | Closing) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def parse(line: bytes) -> Header | StreamEntry | Closing:
    """One line of an export; ValueError for what is none, or of a newer form."""
    if line.startswith(b'{"position"'):
        return parse_line(line)
    try:
        if line.startswith(b'{"end"'):
            return msgspec.json.decode(line, type=Closing)
        header = msgspec.json.decode(line, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"the line is none of an export: {error}") from error
    if header.dateline_export > EXPORT_FORMAT:
        raise ValueError(f"the export has format {header.dateline_export}, this release knows {EXPORT_FORMAT}")
    return header


class Checked(Struct):
    """An export whose lines go by: what is known of it once all were seen."""

    header: Header | None = None
    closing: Closing | None = None
    events: int = 0
    chain: str = CHAIN_START

    @property
    def whole(self) -> tuple[Header, Closing]:
        """Once all lines went by."""
        if self.header is None or self.closing is None:
            raise CannotImport("the file is cut: its closing line is missing")
        return self.header, self.closing

    def lines(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, StreamEntry]]:
        """The event lines, each with its event; CannotImport at the end where the file is not whole."""
        last = b""
        for number, line in enumerate(lines, start=1):
            try:
                found = parse(line)
            except ValueError as error:
                raise CannotImport(f"line {number}: {error}") from error
            if self.closing is not None or (number == 1) != isinstance(found, Header):
                raise CannotImport(f"line {number} is not what an export has there")
            if isinstance(found, Header):
                self.header = found
            elif isinstance(found, Closing):
                self.closing = found
            else:
                self.events += 1
                if found.position.n != self.events:
                    raise CannotImport(f"line {number} has {found.id.decode()} where n must be {self.events}")
                self.chain, last = chained(self.chain, found), found.id
                yield line, found
        _, closing = self.whole
        if (closing.end.encode(), closing.events, closing.chain) != (last, self.events, self.chain):
            raise CannotImport("the events are not those that the closing line tells of")

"""Quarantine: the durable record of an event that could not be folded.

Owns the record's form. The record is an input of every fold of the feed: the position moves, nothing else does, the feed goes
on. Showing, retrying and discarding are the operators' verbs.
"""

import msgspec
from msgspec import Struct

from shared.errors import CannotFold, Corrupted
from shared.ndjson import StreamEntry


class Discarded(Struct, frozen=True):
    """An operator decided that the event stays out, for this reason; `at` in milliseconds since 1970."""

    reason: str
    by: str
    at: int


class QuarantineRecord(Struct, frozen=True, omit_defaults=True):
    """Why the event at `position` is skipped; `recorded_at` in milliseconds since 1970, as the log has it.

    A discarded one is skipped like any other, and waits for nobody any more.
    """

    position: str
    reason: str
    type: str | None
    entry: str | None
    recorded_at: int
    discarded: Discarded | None = None


def quarantine_record(entry: StreamEntry, error: CannotFold) -> bytes:
    return msgspec.json.encode(
        QuarantineRecord(
            position=entry.id.decode(),
            reason=error.detail,
            type=error.facts.get("type"),
            entry=error.facts.get("entry"),
            recorded_at=int(entry.fields[b"recorded_at"]),
        )
    )


def parse_quarantine_record(raw: bytes) -> QuarantineRecord:
    """Raises Corrupted for what no release of ours wrote."""
    try:
        return msgspec.json.decode(raw, type=QuarantineRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupted(f"a record of the quarantine cannot be read: {error}") from error

"""Quarantine: the durable record of an event that could not be folded.

Owns the record's form. The record is an input of every fold of the feed: the position moves, nothing else does, the feed goes
on. Showing, retrying and discarding are the operators' verbs.
"""

import msgspec
from msgspec import Struct

from shared.errors import CannotFold
from shared.ndjson import StreamEntry


class QuarantineRecord(Struct, frozen=True):
    """Why the event at `position` is skipped; `recorded_at` in milliseconds since 1970, as the log has it."""

    position: str
    reason: str
    type: str | None
    entry: str | None
    recorded_at: int


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

"""Soundness: whether a log holds together in itself: epochs, the order of recording, digests, and redactions of what is gone.

Owns these rules, event by event. Gapless positions are asserted by whoever reads the log, in `shared.log`.
"""

from typing import NamedTuple

import msgspec

from services.projector.verify.differences import Differences
from services.projector.verify.scratch import Scratch
from shared.errors import CannotFold, Corrupted
from shared.events import EntryRedacted, Envelope, EpochRaised, Recorded, Removed, decode
from shared.ndjson import StreamEntry
from shared.position import ORIGIN, Position


class Read(NamedTuple):
    """One log entry: the event, None where the fold skips it, and the envelope, None where it cannot be read."""

    position: Position
    recorded_at: int
    event: Recorded | None
    envelope: Envelope | None
    entry: str | None


class Soundness:
    """Reads events in their order, and notes in `differences` what does not hold together."""

    def __init__(self, scratch: Scratch) -> None:
        self.position = ORIGIN
        self.recorded_at = 0
        self.differences = Differences()
        self._scratch = scratch

    def read(self, entry: StreamEntry, *, skipped: bool, committed: bool) -> Read:
        event = None
        if not skipped:
            try:
                event = decode(entry.id, entry.fields)
            except CannotFold as error:
                self.unfolded(entry.position, error, committed=committed)
        if event is not None:
            position, recorded_at = event.position, event.recorded_at
        else:
            position, recorded_at = _whole(entry)
        envelope = event.envelope if event is not None else _envelope(entry)
        self._check_order(position, recorded_at, envelope)
        about = envelope.facts.get("entry") if envelope else None
        touched = about if isinstance(about, str) else None
        if envelope is not None:
            self._check_content(entry, position, envelope, touched)
        self.position = position
        self.recorded_at = recorded_at
        return Read(position, recorded_at, event, envelope, touched)

    def unfolded(self, position: Position, error: CannotFold, *, committed: bool) -> None:
        """An event that cannot be folded: the projector that came to it has put it into the quarantine."""
        if committed:
            self.differences.add("quarantine", position, stored=None, folded=error.detail)

    def _check_order(self, position: Position, recorded_at: int, envelope: Envelope | None) -> None:
        if recorded_at < self.recorded_at:
            self.differences.add("recorded_at", position, stored=recorded_at, folded=f"{self.recorded_at} or later")
        if position.epoch < self.position.epoch:
            self.differences.add("epoch", position, stored=position.epoch, folded=f"{self.position.epoch} or more")
        # The first event may have any epoch: a restored log begins in a new one.
        elif position.epoch > self.position.epoch and self.position != ORIGIN:
            found = envelope.type if envelope else None
            if found != EpochRaised.__name__:
                self.differences.add("epoch", position, stored=found, folded=EpochRaised.__name__)

    def _check_content(self, entry: StreamEntry, position: Position, envelope: Envelope, touched: str | None) -> None:
        if envelope.digest is not None and entry.fields[b"content"] == b"":
            self._scratch.take(position, digest=envelope.digest, entry=touched)
        elif envelope.digest is None and entry.fields[b"content"]:
            self.differences.add("content", position, stored=entry.fields[b"content"], folded=None)
        if envelope.type == EntryRedacted.__name__:
            try:
                removed = msgspec.convert(envelope.facts.get("removed"), list[Removed])
                for content in removed:
                    self._scratch.redact(Position.parse(content.position), digest=content.digest, at=position)
            except (msgspec.ValidationError, ValueError):
                self.differences.add("redaction", position, stored="what it removed cannot be read", folded="removed")


def _whole(entry: StreamEntry) -> tuple[Position, int]:
    """Where and when an event that is not decoded was recorded; Corrupted for what is no event at all."""
    try:
        entry.fields[b"envelope"], entry.fields[b"content"]
        return entry.position, int(entry.fields[b"recorded_at"])
    except (KeyError, ValueError) as error:
        raise Corrupted(f"the stream entry {entry.id!r} is no event") from error


def _envelope(entry: StreamEntry) -> Envelope | None:
    try:
        return msgspec.json.decode(entry.fields[b"envelope"], type=Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None

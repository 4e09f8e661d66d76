"""Tally: what a feed's head holds beside its position, counted again from the log.

Owns the rules by which the write side keeps status, version, pins and the number of live entries. They follow the events'
types, so that an event in quarantine counts as it counted when it was appended.
"""

from typing import NamedTuple

from shared.events import (
    EntryPinned,
    EntryPublished,
    EntryRedacted,
    EntryRetracted,
    EntryUnpinned,
    Envelope,
    FeedOpened,
    FeedRevised,
    FeedStatusChanged,
)
from shared.position import Position

_OF_FEED = {event.__name__ for event in (FeedOpened, FeedRevised, FeedStatusChanged)}
_OF_PINS = {event.__name__ for event in (FeedOpened, EntryPinned, EntryUnpinned, EntryRetracted, EntryRedacted)}


class Mark(NamedTuple):
    """Where something of the feed changed last: at `n`, by a command whose events go up to `last`.

    The append script notes the last event of the command; a head that was put together again, the event itself.
    """

    n: int
    last: int
    command: str

    def after(self, envelope: Envelope, n: int, *, changes: bool) -> "Mark":
        if changes:
            return Mark(n, n, envelope.command)
        same = self.last == n - 1 and self.command == envelope.command
        return Mark(self.n, n, self.command) if same else self

    def __str__(self) -> str:
        return str(self.n) if self.n == self.last else f"{self.n} to {self.last}"


class Tally:
    """`certain` is False once an event's envelope cannot be read: what it did to the head, nobody can tell.

    `live_certain` is False also once it is not known whether a redaction took a live entry.
    """

    def __init__(self) -> None:
        self.status: str | None = None
        self.live = 0
        self.version = Mark(0, 0, "")
        self.pins = Mark(0, 0, "")
        self.certain = True
        self.live_certain = True

    def add(self, envelope: Envelope | None, position: Position, *, was_live: bool | None) -> None:
        """Count one event; `was_live` says so of its entry before it, None when that is not known."""
        if envelope is None:
            self.certain = self.live_certain = False
            return
        self.version = self.version.after(envelope, position.n, changes=envelope.type in _OF_FEED)
        self.pins = self.pins.after(envelope, position.n, changes=envelope.type in _OF_PINS)
        match envelope.type:
            case EntryPublished.__name__:
                self.live += 1
            case EntryRetracted.__name__:
                self.live -= 1
            case FeedOpened.__name__:
                self.status = "open"
            case FeedStatusChanged.__name__:
                self.status = envelope.facts.get("status")
            case EntryRedacted.__name__:
                self.live_certain = self.live_certain and was_live is not None
                self.live -= bool(was_live)

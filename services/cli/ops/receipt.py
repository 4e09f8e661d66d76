"""The receipt of a redaction: every place where the content was or may have been, and whether it is confirmed gone.

Owns its form. Which places there are, and how each is cleared, is `redact`'s.
"""

import msgspec
from msgspec import Struct

from services.cli.terminal import plain
from shared.events import Removed


class Place(Struct, frozen=True):
    """`confirmed` only when it was looked at, or said so itself, after the removal; `detail` says what, or what is left to do."""

    place: str
    confirmed: bool
    detail: str


class Receipt(Struct, frozen=True):
    """`position` is the redaction's own; `removed` holds the digests (SHA-256) of what was removed."""

    feed: str
    entry: str
    position: str
    by: str
    reason: str
    removed: list[Removed]
    places: list[Place]

    @property
    def complete(self) -> bool:
        return all(place.confirmed for place in self.places)

    def as_json(self) -> bytes:
        return msgspec.json.encode({**msgspec.structs.asdict(self), "complete": self.complete})

    def lines(self) -> list[str]:
        """For people: one place a line, nothing cut, so that it can be filed."""
        by, reason = plain(self.by), plain(self.reason)
        return [
            f"Redacted {self.feed}/{self.entry} at {self.position} by {by}: {reason}",
            *(f"  removed the content at {removed.position}, SHA-256 {removed.digest}" for removed in self.removed),
            *(
                f"  {'confirmed  ' if place.confirmed else 'UNCONFIRMED'}  {plain(place.place)}: {plain(place.detail)}"
                for place in self.places
            ),
            "Backups, exports and caches of others made before this are not within reach: remove them there.",
        ]

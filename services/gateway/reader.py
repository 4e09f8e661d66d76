"""A reader: one stream, how far it has come in each of its feeds, and what state it is in.

Owns positions and the ids that tell them. What it is sent next is decided in `fan_out` and `catch_ups`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from services.gateway.connection import Connection
from services.gateway.cursor import Order
from services.gateway.frames import broken_off
from shared.position import Position

if TYPE_CHECKING:
    from services.gateway.channel import Channel

Positions = tuple[Position | None, ...]

# Where a Last-Event-ID is no position.
MALFORMED = "malformed"


class Wish(Struct, frozen=True):
    """What a stream request asks for.

    `lasts` says for each feed where it goes on: a position, `MALFORMED`, or None for a feed that begins anew.
    """

    feeds: tuple[str, ...]
    joined: bool
    lasts: tuple[Position | str | None, ...]
    snapshot: int | None
    order: Order
    catch_up: int | None
    min_positions: tuple[Position | None, ...]
    sees_private: bool


class Reader:
    """One stream. `positions[i]` is how far it has come in `feeds[i]`, None where it has not begun.

    It is `live` when it has all that its channel has brought, up to frame number `seen`; `ahead` when it came by a difference
    to where the channel's frames have not come yet. `folding` are the feeds in the middle of a folded difference: they are
    owed its end and a `live`. `ending` is the reason of its goodbye. After a reset it gets `snapshot` entries in its `order`.
    `lead` goes out in front of its first words, in one write with them.
    """

    __slots__ = (
        "acknowledged",
        "ahead",
        "begun",
        "channel",
        "connection",
        "ending",
        "folding",
        "lead",
        "live",
        "order",
        "positions",
        "queued",
        "seen",
        "sees_private",
        "slot",
        "snapshot",
        "stalled_since",
        "wish",
    )

    def __init__(
        self, channel: "Channel", connection: Connection, wish: Wish, *, snapshot: int, lead: bytes = b""
    ) -> None:
        self.channel = channel
        self.connection = connection
        self.sees_private = wish.sees_private
        self.order = wish.order
        self.snapshot = snapshot
        self.lead = lead
        # Until all feeds have begun; `begun` is how many have.
        self.wish: Wish | None = wish
        self.begun = 0
        self.positions: Positions = tuple(last if isinstance(last, Position) else None for last in wish.lasts)
        self.folding: frozenset[int] = frozenset()
        self.seen = 0
        self.live = False
        self.ahead = False
        self.queued = False
        self.ending: str | None = None
        self.slot: int | None = None
        self.stalled_since: float | None = None
        self.acknowledged: int | None = None

    @property
    def feeds(self) -> tuple[str, ...]:
        return self.channel.feeds

    @property
    def takes(self) -> bool:
        """Whether something may be sent to it now."""
        return self.slot is not None and self.ending is None and not self.connection.full

    def id_at(self, i: int, position: Position) -> str:
        """The id that says that it has come to `position` in feed i."""
        if not self.channel.joined:
            return str(position)
        return stream_id(self.feeds, moved(self.positions, i, position))

    def move(self, i: int, position: Position) -> None:
        self.positions = moved(self.positions, i, position)

    def send(self, data: bytes) -> None:
        """Words that are not parted: what the socket does not take goes out as soon as it does."""
        words, self.lead = self.lead + data, b""
        taken = self.connection.write(words)
        if taken < len(words):
            # A socket may take a frame again before it tells that it does: into the middle of these words.
            self.live = False
            self.connection.finish(memoryview(words)[taken:])

    def send_frames(self, wires: Sequence[bytes], data: bytes) -> int:
        """Send `wires`, joined as `data`; gives how many are on their way.

        Of those that the socket did not take nothing is kept but the rest of one that it took in part.
        """
        lead, self.lead = self.lead, b""
        taken = self.connection.write(lead + data) - len(lead)
        if taken < 0:
            self.connection.finish(lead[taken:])
            return 0
        return len(wires) if taken == len(data) else self.keep_rest(wires, taken)

    def keep_rest(self, wires: Sequence[bytes], taken: int) -> int:
        """Keep what is left of the frame in which a write broke off; gives how many frames are on their way."""
        whole, part = broken_off(wires, taken)
        self.connection.finish(memoryview(wires[whole])[part:] if part else b"")
        return whole + 1 if part else whole


def moved(positions: Positions, i: int, position: Position) -> Positions:
    return (*positions[:i], position, *positions[i + 1 :])


def stream_id(feeds: Sequence[str], positions: Positions) -> str:
    """`feed:position` pairs in feed order; feeds that have not begun are missing."""
    return ",".join(f"{feed}:{at}" for feed, at in zip(feeds, positions, strict=True) if at is not None)

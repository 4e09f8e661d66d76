"""A reader: one stream, how far it has come in each of its feeds, and what state it is in.

Owns positions and the ids that tell them. What it is sent next is `readers`', the socket is `connection`'s.
"""

from collections.abc import Sequence

from services.gateway.connection import Connection
from services.gateway.cursor import Order
from shared.position import Position

Positions = tuple[Position | None, ...]


class Reader:
    """One stream. `positions[i]` is how far it has come in `feeds[i]`, None where it has not begun.

    `joined`: its ids name every feed (`/v1/stream`). `sees_private`: it may see private feeds. After a reset it gets `snapshot`
    entries in its `order`.
    """

    def __init__(
        self,
        connection: Connection,
        feeds: tuple[str, ...],
        *,
        joined: bool,
        sees_private: bool,
        order: Order,
        snapshot: int,
    ) -> None:
        self.connection = connection
        self.feeds = feeds
        self.joined = joined
        self.sees_private = sees_private
        self.order = order
        self.snapshot = snapshot
        self.positions: Positions = (None,) * len(feeds)
        # Feeds in the middle of a folded difference: they are owed its end and a `live`.
        self.folding: set[int] = set()
        # Its stream has said its first words: from now on the readers' side sends.
        self.begun = False
        self.live = False
        self.bringing_up = False
        self.stalled_since: float | None = None
        self.acknowledged: int | None = None

    def at(self, i: int, position: Position) -> str:
        """Move on to `position` in feed i, and give the id that says so."""
        self.positions = moved(self.positions, i, position)
        return stream_id(self.feeds, self.positions) if self.joined else str(position)

    def send(self, data: bytes) -> None:
        self.connection.write(data)


def moved(positions: Positions, i: int, position: Position) -> Positions:
    return (*positions[:i], position, *positions[i + 1 :])


def stream_id(feeds: Sequence[str], positions: Positions) -> str:
    """`feed:position` pairs in feed order; feeds that have not begun are missing."""
    return ",".join(f"{feed}:{at}" for feed, at in zip(feeds, positions, strict=True) if at is not None)

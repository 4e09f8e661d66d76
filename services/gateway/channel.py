"""A channel: one set of feeds as streams follow it, its readers, and the frames that they are to get, under the channel's ids.

Owns the numbering of those frames, and that readers who stand at the same one get the very same bytes. A frame is kept only
until the readers have it: whoever is behind takes it from its feed's ring.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from services.gateway.followed import Followed
from services.gateway.reader import Positions, Reader, stream_id
from services.gateway.ring import Ready

FRAMES_MAX = 256
BYTES_MAX = 2 * 1024 * 1024


class Channel:
    """`feeds` in their order; `joined`: ids name every feed (`/v1/stream`)."""

    def __init__(self, followed: Sequence[Followed], *, joined: bool) -> None:
        self.feeds = tuple(feed.feed for feed in followed)
        self.joined = joined
        self.readers: dict[Reader, None] = {}
        self.sweeping = False
        # Numbers of the first frame that is kept, and of the next one that comes.
        self.start = 0
        self.end = 0
        self._followed = tuple(followed)
        self._frames: deque[tuple[Ready, Positions]] = deque()
        self._bytes = 0
        self._batches: dict[int, tuple[Sequence[bytes], bytes]] = {}

    @property
    def positions(self) -> Positions:
        """Where the frames of its feeds have come."""
        return tuple([followed.position for followed in self._followed])

    def append(self, ready: Ready) -> None:
        """The next frame of one of its feeds, whose position has just moved there."""
        positions = self.positions
        if None in positions:
            return  # nobody is live who could want it
        self._frames.append((ready, positions))
        self._bytes += len(ready.data)
        self.end += 1
        self._batches.clear()
        while len(self._frames) > FRAMES_MAX or (self._bytes > BYTES_MAX and len(self._frames) > 1):
            self._drop()

    def after(self, seen: int) -> tuple[Sequence[bytes], bytes] | None:
        """All frames from number `seen` on, and their bytes in one piece; None when they are not kept any more."""
        if seen < self.start:
            return None
        batch = self._batches.get(seen)
        if batch is None:
            wires = [self._wire(ready, positions) for ready, positions in list(self._frames)[seen - self.start :]]
            batch = self._batches[seen] = (wires, wires[0] if len(wires) == 1 else b"".join(wires))
        return batch

    def _wire(self, ready: Ready, positions: Positions) -> bytes:
        """Made when it is sent: thousands of channels may follow one feed."""
        return ready.wire_with(stream_id(self.feeds, positions)) if self.joined else ready.wire

    def positions_after(self, seen: int) -> Positions:
        """Where a reader stands that has had the frame before number `seen`."""
        return self._frames[seen - self.start - 1][1]

    def swept(self, end: int) -> Iterator[int]:
        """Every live reader has the frames before number `end`: drop them; gives when their events were recorded."""
        while self.start < end:
            recorded_at = self._drop()
            if recorded_at is not None:
                yield recorded_at

    def _drop(self) -> int | None:
        ready, _ = self._frames.popleft()
        self._bytes -= len(ready.data)
        self.start += 1
        self._batches.clear()
        return ready.recorded_at

"""A channel: one set of feeds as streams follow it, its readers, and the frames that they are to get, under the channel's ids.

Owns the numbering of those frames, and that readers who stand at the same one get the very same bytes. Frames are taken from
the feeds' rings when somebody looks, since thousands of channels may follow one feed, and kept only until the readers have
them: whoever is behind takes them from the rings as well.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from services.gateway.followed import Followed
from services.gateway.reader import Positions, Reader, moved, stream_id
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
        # Numbers of the first frame that is kept, and of the next one that is taken.
        self.start = 0
        self.end = 0
        self._followed = tuple(followed)
        self._positions: Positions = tuple([feed.position for feed in followed])
        self._frames: deque[tuple[Ready, Positions]] = deque()
        self._bytes = 0
        self._batches: dict[int, tuple[Sequence[bytes], bytes]] = {}

    @property
    def positions(self) -> Positions:
        """Where the frames of its feeds have come; those that are new are taken."""
        self.take()
        return self._positions

    def take(self) -> int:
        """Number the frames that are new; gives the number of the next one to come."""
        positions = tuple([followed.position for followed in self._followed])
        if positions != self._positions:
            before, self._positions = self._positions, positions
            if None not in before:  # else nobody is live who could want them
                self._take(before)
        return self.end

    def _take(self, before: Positions) -> None:
        """Number what the feeds brought after `before`, one feed after the other: between them there is no order."""
        positions = before
        for i, (followed, at) in enumerate(zip(self._followed, before, strict=True)):
            if at is None or followed.position == at:
                continue
            frames = followed.ring.after(at)
            if not frames or frames[-1].position != followed.position:
                # The ring has them no more: a number that is never kept puts behind whoever is live.
                self._frames.clear()
                self._bytes = 0
                self.end += 1
                self.start = self.end
                break
            for ready in frames:
                positions = moved(positions, i, ready.position)
                self._frames.append((ready, positions))
                self._bytes += len(ready.data)
            self.end += len(frames)
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

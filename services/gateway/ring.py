"""The ring: a feed's latest frames, ready to send, shared by all its readers.

Owns which positions it covers. A reader before its first frame takes the folded difference instead.
"""

from collections import deque
from collections.abc import Sequence

from services.gateway.frames import frame, live
from shared.position import Position

FRAMES_MAX = 256
BYTES_MAX = 2 * 1024 * 1024


class Ready:
    """One position's frame. `kind` is the event's name, "skipped" where the position has none to send.

    `recorded_at` is the event's, in milliseconds since 1970, None where the frame does not say.
    """

    __slots__ = ("_wire", "data", "feed", "kind", "position", "recorded_at")

    def __init__(self, feed: str, position: Position, kind: str, data: bytes, recorded_at: int | None = None) -> None:
        self.feed = feed
        self.position = position
        self.kind = kind
        self.data = data
        self.recorded_at = recorded_at
        self._wire: bytes | None = None

    @property
    def wire(self) -> bytes:
        """The bytes for every reader of this feed alone: encoded once."""
        if self._wire is None:
            self._wire = self.wire_with(str(self.position))
        return self._wire

    def wire_with(self, position: str) -> bytes:
        """The bytes under another id, as streams of several feeds need it."""
        if self.kind == "skipped":
            return live(self.feed, position=position)
        return frame(self.kind, self.data, position=position)


class Ring:
    """Frames of consecutive positions, bounded in number and bytes."""

    def __init__(self) -> None:
        self._frames: deque[Ready] = deque()
        self._bytes = 0

    def append(self, ready: Ready) -> None:
        """The frame of the position after the last one; after a gap the ring begins anew."""
        if self._frames and ready.position.n != self._frames[-1].position.n + 1:
            self.clear()
        self._frames.append(ready)
        self._bytes += len(ready.data)
        while len(self._frames) > FRAMES_MAX or (self._bytes > BYTES_MAX and len(self._frames) > 1):
            self._bytes -= len(self._frames.popleft().data)

    def clear(self) -> None:
        self._frames.clear()
        self._bytes = 0

    def after(self, position: Position) -> Sequence[Ready] | None:
        """All frames after `position`, None when the ring does not reach back to the next one."""
        if not self._frames or self._frames[0].position.n > position.n + 1:
            return None
        start = position.n + 1 - self._frames[0].position.n
        return [self._frames[i] for i in range(start, len(self._frames))]

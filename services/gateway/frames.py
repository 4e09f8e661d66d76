"""The wire format of Server-Sent Events: the whole of it, pure.

WHATWG HTML, section 9.2. Owns how a frame becomes bytes; `data` is JSON that was rendered elsewhere and is never encoded again.
"""

import random
from collections.abc import Sequence

# Spreads the reconnects of readers that lost the same gateway (a fixed delay makes them come back in lockstep).
RETRY_MILLISECONDS = (1_000, 4_000)
# Whoever was turned away for want of room should not ask again while there is none.
CAPACITY_RETRY_MILLISECONDS = (5_000, 20_000)

PING = b"event: ping\ndata: {}\n\n"


def frame(event: str, data: bytes, *, position: str | None = None) -> bytes:
    """One event. A line break in `data` would end the field and let content write fields of its own, so it is refused.

    JSON escapes CR, LF and NUL inside its strings; U+2028 ends no line in an event stream.
    """
    if b"\n" in data or b"\r" in data:
        raise ValueError("the data of a frame is one line of JSON")
    head = f"event: {event}\n" if position is None else f"event: {event}\nid: {position}\n"
    return b"".join((head.encode(), b"data: ", data, b"\n\n"))


def retry(reason: str | None = None) -> bytes:
    """The delay before a browser reconnects, with jitter; `reason` is that of the `bye` that follows at once."""
    return b"retry: %d\n\n" % _jittered(reason)


def live(feed: str, *, position: str) -> bytes:
    return frame("live", b'{"feed":"%s"}' % feed.encode(), position=position)


def reset(feed: str, reason: str) -> bytes:
    return frame("reset", b'{"feed":"%s","reason":"%s"}' % (feed.encode(), reason.encode()))


def bye(reason: str) -> bytes:
    return frame("bye", b'{"reason":"%s","reconnect_ms":%d}' % (reason.encode(), _jittered(reason)))


def broken_off(wires: Sequence[bytes], taken: int) -> tuple[int, int]:
    """How many frames went out whole with the first `taken` bytes of all, and how many bytes of the one after them."""
    for whole, wire in enumerate(wires):
        if taken < len(wire):
            return whole, taken
        taken -= len(wire)
    return len(wires), 0


def _jittered(reason: str | None) -> int:
    return random.randint(*(CAPACITY_RETRY_MILLISECONDS if reason == "capacity" else RETRY_MILLISECONDS))

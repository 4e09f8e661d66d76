"""The door: readers who ask for what one before them has asked for come in as they are accepted.

Owns which of them may: their request is aiohttp's parser's to read, and known from one that came the long way, through aiohttp's
handler and the routes. All others, and every answer but the stream itself, go that way.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from email.utils import formatdate

from aiohttp import hdrs
from aiohttp.http import HttpRequestParser, HttpVersion11, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from services.gateway.frames import retry
from services.gateway.moments import Moments
from services.gateway.reader import Wish
from services.gateway.readers import Readers
from shared.position import Position

# What is read of a body at a time: of requests with a body none is served here.
_PAYLOAD_BYTES = 2**16


class Door:
    """`known` gives the wish that a request of this path and Last-Event-ID, without a token, has come with before."""

    def __init__(
        self,
        moments: Moments,
        readers: Readers,
        *,
        known: Callable[[str, str | None], Wish | None],
        headers: dict[str, str],
    ) -> None:
        self._moments = moments
        self._readers = readers
        self._known = known
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"HTTP/1.1 200 OK\r\n{lines}{hdrs.DATE}: ".encode()
        self._dated = (0, b"")

    def offered(self, sock: socket.socket, here: bytes) -> bool:
        """Take the connection where its request can be answered with a stream at once."""
        message = _request(here)
        if message is None:
            return False
        wish = self._known(message.path, message.headers.get("Last-Event-ID"))
        if wish is None or self._readers.draining or self._readers.full or not self._at_hand(wish):
            return False
        descriptor = self._readers.hub.adopt(sock, read_bytes=len(here))
        if descriptor is None:
            return False
        self._readers.join(descriptor, wish, lead=self._begin_answer())
        return True

    def _at_hand(self, wish: Wish) -> bool:
        """Whether the present moments of its feeds are known to be none that one with this wish is refused at."""
        for feed, last, min_position in zip(wish.feeds, wish.lasts, wish.min_positions, strict=True):
            known = last if isinstance(last, Position) else None
            if min_position is not None:
                return False
            if self._moments.at_hand(feed, sees_private=wish.sees_private, known=known) is None:
                return False
        return True

    def _begin_answer(self) -> bytes:
        now = int(time.time())
        if self._dated[0] != now:
            self._dated = (now, self._head + formatdate(now, usegmt=True).encode() + b"\r\n\r\n")
        return self._dated[1] + retry()


def _request(here: bytes) -> RawRequestMessage | None:
    """The request, where it is a plain GET and all that has come."""
    if not here.startswith(b"GET "):
        return None
    # Without a protocol, which only bodies need: with one it is not served here.
    parser = HttpRequestParser(None, asyncio.get_running_loop(), _PAYLOAD_BYTES, auto_decompress=False)
    try:
        messages, upgraded, _ = parser.feed_data(here)
    except Exception:
        return None  # aiohttp meets it again, and answers
    if len(messages) != 1 or upgraded:
        return None
    message, payload = messages[0]
    headers = message.headers
    plain = payload is EMPTY_PAYLOAD and message.version == HttpVersion11 and not message.upgrade
    return message if plain and hdrs.AUTHORIZATION not in headers and hdrs.EXPECT not in headers else None

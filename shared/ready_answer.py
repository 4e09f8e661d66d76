"""Ready answers: the head and the body of a response that are bytes already, but for what belongs to one request.

Owns how they get onto a connection that aiohttp keeps. Serialising ten headers anew costs a tenth of a request.
"""

from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter


def ready_head(status: int, headers: Mapping[str, str]) -> bytes:
    """The status line and the headers that are the same for everybody, in HTTP/1.1 (RFC 9112)."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header has no line breaks")
    return "\r\n".join([*lines, ""]).encode()


class ReadyAnswer(web.StreamResponse):
    """For a request in HTTP/1.1. Its `headers` are those of this answer alone, which follow those of `head`."""

    def __init__(self, head: bytes, body: bytes) -> None:
        super().__init__()
        self._head = head
        self._ready = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if not self._keep_alive:
            self.headers[hdrs.CONNECTION] = "close"
        self._payload_writer = request.writer
        return self._payload_writer

    async def write_eof(self, data: bytes = b"") -> None:
        own = "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()])
        await super().write_eof(b"".join((self._head, own.encode(), b"\r\n", self._ready)))


@lru_cache(maxsize=1)
def http_date(second: int) -> str:
    """RFC 9110, section 5.6.7; put together once a second."""
    return formatdate(second, usegmt=True)

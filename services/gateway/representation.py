"""Representations (RFC 9110, section 3.2): a document as it was at a moment, as bytes and headers ready to be sent.

Owns content codings, each made once and only when somebody takes it. What stands in the document is its caller's.
"""

import asyncio
import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache

from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDict

from services.gateway.reads import Moment
from shared.http import PUBLIC_READ, not_modified
from shared.ready_answer import ReadyAnswer, http_date, ready_head

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PUBLIC = "public, max-age=0, s-maxage=1"
PRIVATE = "private, no-store"

# Less than this goes in one packet as it is.
CODED_FROM_BYTES = 1_024
# A page of 20 KB takes gzip 0.8 ms, which the event loop can spare once per moment; what is larger is for a thread.
CODED_IN_LOOP_BYTES_MAX = 32 * 1024

# Links that ask for the same page in other words.
HEADS_MAX = 16


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, 6, wbits=31)


# The preferred one first, where a client takes both alike: zstd is as small in a fifth of the time.
_CODERS: Mapping[str, Callable[[bytes], bytes]] = {"zstd": zstd.compress, "gzip": _gzip}


class Representation:
    """`etag` is as it stands in the header: a strong one names one sequence of bytes, so only weak ones' bodies are coded."""

    def __init__(self, moment: Moment, body: bytes, *, etag: str, status: int = 200, cursor: str | None = None) -> None:
        self.moment = moment
        self.body = body
        self.etag = etag
        self.status = status
        # Of the page after this one.
        self.cursor = cursor
        self._may_be_coded = etag.startswith("W/") and len(body) >= CODED_FROM_BYTES
        self._coded = {"identity": body}
        self._coding: dict[str, asyncio.Task[None]] = {}
        self._headers: dict[tuple[bool, str | None], CIMultiDict[str]] = {}
        self._heads: dict[tuple[str | None, str | None], bytes] = {}

    @property
    def size_bytes(self) -> int:
        """With all of its codings, each of which counts as no smaller than the body."""
        return 1_024 + len(self.body) * (1 + len(_CODERS) * self._may_be_coded)

    def answer(self, request: web.Request, *, private: bool, link: str | None = None) -> web.Response | None:
        """The document, or 304 to one who has it already; None where a coding has to be made first.

        `private` is what one reader alone may keep.
        """
        chosen = self._chosen(request)
        if chosen is None:
            return None
        status, coding, body = chosen
        private = private or self.moment.visibility == "private"
        response = web.Response(status=status, body=body, headers=self._headers_for(private, coding))
        if link is not None:
            response.headers[hdrs.LINK] = link
        return response

    def at_hand(self, request: web.Request, *, link: str | None) -> web.StreamResponse | None:
        """As `answer`, to a public read of a public document, with all that the edge adds but the request's id."""
        if request.version != HttpVersion11:
            return None
        chosen = self._chosen(request)
        if chosen is None:
            return None
        status, coding, body = chosen
        head = self._heads.get((coding, link))
        if head is None:
            headers = {**self._headers_for(False, coding), **PUBLIC_READ}
            if coding is not None:
                headers[hdrs.CONTENT_LENGTH] = str(len(body))
            if link is not None:
                headers[hdrs.LINK] = link
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            head = self._heads[coding, link] = ready_head(status, headers)
        response = ReadyAnswer(head, b"" if request.method == hdrs.METH_HEAD else body)
        response.headers[hdrs.DATE] = http_date(int(time.time()))
        return response

    def _chosen(self, request: web.Request) -> tuple[int, str | None, bytes] | None:
        """Status, coding and body of the answer; a 304 has no coding."""
        if self.status == 200 and not_modified(request, self.etag):
            return 304, None, b""
        coding = _coding_for(request) if self._may_be_coded else "identity"
        body = self._coded.get(coding)
        return None if body is None else (self.status, coding, body)

    async def code(self, request: web.Request) -> None:
        """Make the coding that `answer` lacks."""
        coding = _coding_for(request)
        if len(self.body) <= CODED_IN_LOOP_BYTES_MAX:
            self._coded[coding] = _CODERS[coding](self.body)
            return
        task = self._coding.get(coding)
        if task is None:
            task = self._coding[coding] = asyncio.get_running_loop().create_task(self._code(coding))
            task.add_done_callback(lambda _: self._coding.pop(coding))
        # One who leaves must not take the answer from the others.
        await asyncio.shield(task)

    async def _code(self, coding: str) -> None:
        self._coded[coding] = await asyncio.to_thread(_CODERS[coding], self.body)

    def _headers_for(self, private: bool, coding: str | None) -> CIMultiDict[str]:
        """Those of an answer in a coding, or of a 304 for None; whoever takes them copies them."""
        headers = self._headers.get((private, coding))
        if headers is None:
            headers = CIMultiDict(
                {
                    hdrs.ETAG: self.etag,
                    "Dateline-Position": str(self.moment.checkpoint),
                    hdrs.CACHE_CONTROL: PRIVATE if private else PUBLIC,
                    hdrs.VARY: hdrs.ACCEPT_ENCODING,
                }
            )
            if coding is not None:
                headers[hdrs.CONTENT_TYPE] = "application/json; charset=utf-8"
                if coding != "identity":
                    headers[hdrs.CONTENT_ENCODING] = coding
            self._headers[private, coding] = headers
        return headers


def _coding_for(request: web.Request) -> str:
    lines = request.headers.getall(hdrs.ACCEPT_ENCODING, None)
    return "identity" if lines is None else preferred_coding(", ".join(lines))


# Clients are many, their headers few.
@lru_cache(maxsize=256)
def preferred_coding(header: str) -> str:
    """The coding that an Accept-Encoding likes best of ours (RFC 9110, section 12.5.3); what it does not name it does not want.

    A part that cannot be read is passed over: it asks for nothing that we have.
    """
    weights = {name.lower(): float(weight or 1) for name, weight in _CODING.findall(header)}
    others = weights.get("*", 0.0)
    ours = {coding: weights.get(coding, others) for coding in _CODERS}
    best = max(ours, key=lambda coding: ours[coding])
    return best if ours[best] > 0 and ours[best] >= weights.get("identity", 0.0) else "identity"


_CODING = re.compile(
    r"(?:^|,)\s*([\w!#$%&'*+.^`|~-]+)\s*(?:;\s*[qQ]\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?(?=,|$)", re.ASCII
)

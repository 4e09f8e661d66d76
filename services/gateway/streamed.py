"""Long answers: a body written piece by piece, at the pace of whoever reads it.

Owns back-pressure and what becomes of an answer that fails half way. What the parts are is their callers'.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import hdrs, web

from shared.errors import Unavailable
from shared.http import REQUEST_ID, cors

# What waits in user space for one reader, beside the transport's own buffer: aiohttp waits for the socket above 64 KiB.
PIECE_BYTES = 96 * 1024
# A reader that takes nothing for so long has gone without saying so.
STALLED_SECONDS = 600.0


async def streamed(
    request: web.Request, response: web.StreamResponse, parts: AsyncGenerator[bytes, None]
) -> web.StreamResponse:
    """Answer with `parts`, joined to pieces of bounded size.

    What fails before the first piece is an answer of its own. After it the connection breaks off, so that nobody takes a
    part for the whole.
    """
    async with aclosing(_pieces(parts)) as pieces:
        first = await anext(pieces, b"")
        if request.method == hdrs.METH_HEAD:
            return response
        response.headers["X-Request-Id"] = request[REQUEST_ID]
        response.headers[hdrs.SERVER] = "Dateline"
        cors(request, response)
        await response.prepare(request)
        try:
            await _write(response, first)
            async for piece in pieces:
                await _write(response, piece)
        except Exception:
            # What is raised is counted and logged as any error, and its problem document finds no connection.
            if request.transport is not None:
                request.transport.abort()
            raise
        return response


async def _pieces(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    waiting: list[bytes] = []
    size = 0
    async with aclosing(parts):
        async for part in parts:
            waiting.append(part)
            size += len(part)
            if size >= PIECE_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


async def _write(response: web.StreamResponse, piece: bytes) -> None:
    try:
        async with asyncio.timeout(STALLED_SECONDS):
            await response.write(piece)
    except TimeoutError:
        raise Unavailable(f"the reader has taken nothing for {STALLED_SECONDS:.0f} s") from None

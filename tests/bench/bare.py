"""What the stack costs without Dateline: aiohttp routes that give stored bytes or only validate, one that lets go of a
stream's connection, and the bare hops of a publication: an append to a stream and a blocked XREAD whose answer is written to
the open responses.

`python -m tests.bench.bare PORT pages FILE`: FILE has the headers as JSON in its first line and the body after it.
`python -m tests.bench.bare PORT hops REDIS_URL`
`python -m tests.bench.bare PORT streams -`
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import uuid_utils
from aiohttp import web

from services.writer.requests import Parser
from shared.http import read_json
from shared.redis import command, connect, connect_for_blocking

# What a publication is answered with, so that both servers send as much.
ANSWER_BYTES = 450


def pages(app: web.Application, file: str) -> None:
    head, _, body = Path(file).read_bytes().partition(b"\n")
    headers: dict[str, str] = json.loads(head)
    answer = b"x" * ANSWER_BYTES
    parser = Parser(now_milliseconds=lambda: time.time_ns() // 1_000_000, new_entry_id=lambda: str(uuid_utils.uuid7()))

    async def stored(request: web.Request) -> web.Response:
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers={k: v for k, v in headers.items() if k != "Content-Type"})
        return web.Response(body=body, headers=headers)

    async def validated(request: web.Request) -> web.Response:
        parser.publish(await read_json(request))
        return web.Response(status=201, body=answer, content_type="application/json")

    app.add_routes([web.get("/page", stored), web.post("/entries", validated)])


def hops(app: web.Application, url: str) -> None:
    redis, blocking = connect(url), connect_for_blocking(url, block_seconds=1)
    open_streams: set[web.StreamResponse] = set()

    async def publish(request: web.Request) -> web.Response:
        identity = await command(redis, "XADD", "log", "*", "body", await request.read())
        return web.json_response({"id": identity.decode()})

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        open_streams.add(response)
        try:
            await asyncio.Event().wait()
        finally:
            open_streams.discard(response)
        return response

    async def tail() -> None:
        cursor = "$"
        while True:
            answer = await command(blocking, "XREAD", "BLOCK", 1000, "STREAMS", "log", cursor)
            for _, entries in answer or []:
                for identity, fields in entries:
                    cursor = identity.decode()
                    data = json.dumps(json.loads(fields[b"body"]))
                    frame = f"event: entry\nid: {cursor}\ndata: {data}\n\n".encode()
                    for response in list(open_streams):
                        await response.write(frame)

    async def tailing(_: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(tail())
        yield
        task.cancel()

    app.cleanup_ctx.append(tailing)
    app.add_routes([web.post("/", publish), web.get("/stream", stream)])


def streams(app: web.Application, _: str) -> None:
    descriptors: list[int] = []

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.force_close()
        await response.prepare(request)
        await response.write(b"retry: 1000\n\n")
        transport = request.transport
        assert transport is not None
        descriptors.append(os.dup(transport.get_extra_info("socket").fileno()))
        transport.abort()
        return response

    async def publish(request: web.Request) -> web.Response:
        frame = b"data: " + await request.read() + b"\n\n"
        for descriptor in list(descriptors):
            try:
                os.write(descriptor, frame)
            except OSError:
                descriptors.remove(descriptor)
                os.close(descriptor)
        return web.Response()

    app.add_routes([web.get("/stream", stream), web.post("/publish", publish)])


def main(port: str, which: str, given: str) -> None:
    async def healthy(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/healthz", healthy)])
    {"pages": pages, "hops": hops, "streams": streams}[which](app, given)
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])

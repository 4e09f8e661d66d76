"""What aiohttp itself costs: routes that give stored bytes, or only validate, in a process of their own.

`python -m tests.bench.bare PORT PAGE`: PAGE is a file with the headers as JSON in the first line and the body after it.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import uuid_utils
from aiohttp import web

from services.writer.requests import Parser
from shared.http import read_json
from shared.listening import listen

# What a publication is answered with, so that both servers send as much.
ANSWER_BYTES = 450


async def serve(port: int, page: Path) -> None:
    head, _, body = page.read_bytes().partition(b"\n")
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

    async def healthy(_: web.Request) -> web.Response:
        return web.Response()

    async def listening(_: str) -> None:
        pass

    app = web.Application()
    app.add_routes([web.get("/page", stored), web.post("/entries", validated), web.get("/healthz", healthy)])
    await listen(app, host="127.0.0.1", port=port, drain=None, drain_seconds=0.1, on_listening=listening)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))

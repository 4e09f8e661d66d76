"""The crowd of the bench finds what is lost, repeated and out of order: figures are only as good as that."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench.crowd import Crowd, build, crowd
from tests.bench.machine import Absent

Ask = Callable[[Crowd], Awaitable[None]]

BEGINNING = b"HTTP/1.1 200 OK\r\n\r\nretry: 10\n\nevent: live\nid: 1-5\ndata: {}\n\n"


def frames(*numbers: int, event: str = "entry") -> bytes:
    return b"".join(f"event: {event}\nid: 1-{number}\ndata: {{}}\n\n".encode() for number in numbers)


async def reported(folder: Path, kind: Any, *streams: bytes, until: int | None) -> dict[str, Any]:
    """What one reader says of these streams, one a connection, the last of which stays open; `requests` is what it sent.

    Asked once it is live at `until`, or at the first delivery where it never is.
    """
    left, requests, open_ = list(streams), [], list[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(left.pop(0))
        await writer.drain()
        if left:
            writer.close()
        else:
            open_.append(writer)

    try:
        program = await build("crowd", folder)
    except Absent as absent:
        pytest.skip(f"{absent} is not here")
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, crowd(program, server.sockets[0].getsockname()[1], "/", 1, kind) as one:
        await one.ask("join", 0, 1)
        if until is not None:
            assert not await one.until(until)
        while not (report := await one.report())["deliveries"]:
            pass
    for writer in open_:
        writer.close()
    return report | {"requests": requests}


def found(report: dict[str, Any]) -> tuple[int, int, int]:
    return report["gaps"], report["repeats"], report["resets"]


@pytest.mark.skipif(sys.platform != "linux", reason="the crowd is for Linux")
async def test_the_crowd_of_the_bench_counts_what_is_lost_and_repeated(tmp_path: Path) -> None:
    whole = await reported(
        tmp_path, "whole", BEGINNING + frames(6, 7), BEGINNING.replace(b"1-5", b"1-7") + frames(8), until=8
    )
    assert found(whole) == (0, 0, 0)
    assert (whole["deliveries"], whole["ended"]) == (3, 1)
    assert "Last-Event-ID: 1-7\r\n" in whole["requests"][1]

    assert found(await reported(tmp_path, "whole", BEGINNING + frames(6, 8), until=8)) == (1, 0, 0)
    assert found(await reported(tmp_path, "whole", BEGINNING + frames(6, 6, 7), until=7)) == (0, 1, 0)
    assert found(await reported(tmp_path, "whole", BEGINNING + frames(7, 6, 8), until=8)) == (1, 1, 0)
    # A folded difference leaves positions out, and says `live` after it.
    assert found(await reported(tmp_path, "dateline", BEGINNING + frames(8), until=None)) == (1, 0, 0)
    folded = BEGINNING + frames(8) + frames(9, event="live")
    assert found(await reported(tmp_path, "dateline", folded, until=9)) == (0, 0, 0)
    assert found(await reported(tmp_path, "whole", folded, until=9)) == (2, 0, 0)

"""Many readers at the price of one process: builds and drives `crowd.c`, which says how it works and what its readers check."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from tests.bench.machine import Absent

SECONDS_TO_COME_MAX = 60.0
JOIN_AT_ONCE = 100


async def build(name: str, folder: Path) -> Path:
    """The program of `<name>.c`, compiled into `folder` unless it is there."""
    program = folder / name
    if not program.exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise Absent("a C compiler")
        source = Path(__file__).with_name(f"{name}.c")
        process = await asyncio.create_subprocess_exec(compiler, "-O2", "-o", program, source)
        if await process.wait():
            raise Absent("a C compiler with Linux' headers")
    return program


class Crowd:
    """Readers 0 to `readers` - 1 of one stream; none of them is there until it joins."""

    def __init__(self, process: asyncio.subprocess.Process, readers: int) -> None:
        self._process = process
        self._turn = asyncio.Lock()
        self.readers = readers

    async def ask(self, *words: str | float) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        async with self._turn:
            self._process.stdin.write((" ".join(map(str, words)) + "\n").encode())
            line = await self._process.stdout.readline()
        assert line, f"the crowd has gone: {await self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def come(self) -> None:
        """All join, few at a time; returns when all are live."""
        for first in range(0, self.readers, JOIN_AT_ONCE):
            await self.ask("join", first, first + JOIN_AT_ONCE)
            late = await self.live()
            assert not late, f"{late} of {self.readers} readers are not live after {SECONDS_TO_COME_MAX:g} s"

    async def live(self, seconds_max: float = SECONDS_TO_COME_MAX) -> int:
        """Waits until all who joined and read are live; how many are not in time."""
        return int((await self.ask("live", seconds_max))["late"])

    async def until(self, number: int, seconds_max: float = SECONDS_TO_COME_MAX) -> int:
        """How many readers do not have this number in time."""
        return int((await self.ask("until", number, seconds_max))["late"])

    async def report(self) -> dict[str, Any]:
        return await self.ask("report")


@asynccontextmanager
async def crowd(
    program: Path,
    port: int,
    path: str,
    readers: int,
    kind: Literal["dateline", "whole", "marks"],
    *,
    receive_bytes: int = 0,
) -> AsyncIterator[Crowd]:
    process = await asyncio.create_subprocess_exec(
        *map(str, (program, port, path, readers, kind, receive_bytes)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Crowd(process, readers)
    finally:
        assert process.stdin
        process.stdin.close()
        await process.wait()

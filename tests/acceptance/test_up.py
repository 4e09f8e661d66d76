"""`dateline up` as a process: what it finds around it when it starts, and what it leaves when it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Installation, clean_environment, eventually, free_port, newsroom_at

DATELINE = Path(sys.executable).with_name("dateline")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path / "data", free_port()).start()
    yield installation
    installation.kill()


async def test_up_projects_in_a_directory_that_has_packages_of_the_same_names(tmp_path: Path) -> None:
    for name in ("services", "shared"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    port = free_port()
    process = subprocess.Popen(
        [DATELINE, "up", "--port", str(port)], cwd=tmp_path, env=clean_environment(), stdout=subprocess.DEVNULL
    )
    try:
        token = tmp_path / ".dateline" / "ops.token"
        await eventually(lambda: token.exists() and listening(port), what="up listens")
        async with newsroom_at(f"http://127.0.0.1:{port}", token.read_text().strip()) as newsroom:
            await newsroom.open_feed("story")
            await newsroom.publish("story", "It is on")
            assert [entry["headline"] for entry in (await newsroom.page("story"))["entries"]] == ["It is on"]
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_a_port_that_is_taken_ends_the_start_and_leaves_nothing_running(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [DATELINE, "up", "--port", str(port), "--data-dir", str(tmp_path / "data")],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr
    server = json.loads((tmp_path / "data" / "server.json").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(server["pid"], 0)


async def test_a_request_under_way_is_answered_after_sigterm_and_told_that_the_connection_ends(
    own: Installation,
) -> None:
    async with newsroom_at(own.base_url, own.token) as newsroom:
        await newsroom.open_feed("story")
    body = b'{"id": "e1", "headline": "Half is here when the signal comes"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", own.port)
    head = (
        f"POST /v1/feeds/story/entries HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {own.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body[:10])
    await writer.drain()
    # The request is under way when a later one on another connection has been answered.
    async with newsroom_at(own.base_url, own.token) as newsroom:
        assert (await newsroom.get("/healthz")).status == 200
    own.running.signal(signal.SIGTERM)
    await eventually(lambda: "stopping" in own.running.output, what="up is stopping")
    writer.write(body[10:])
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert b"connection: close" in answer.lower()
    assert own.stop() == 0
    own.start()
    async with newsroom_at(own.base_url, own.token) as newsroom:
        assert (await newsroom.entry("story", "e1"))["headline"] == "Half is here when the signal comes"


def listening(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0

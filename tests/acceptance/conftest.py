"""The running product that acceptance tests talk to: one `dateline up` for all of them, one client for each test.

Tests that stop, kill or starve processes start their own through the harness.
"""

import json
import re
import secrets
import socket
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.acceptance.harness import (
    Frame,
    FrameParser,
    Installation,
    Newsroom,
    free_port,
    newsroom_at,
)


# Of the package, not the session: it works once a second even when nobody asks anything of it.
@pytest.fixture(scope="package")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    running = Installation(tmp_path_factory.mktemp("installation") / "data", free_port()).start()
    try:
        yield running
    except BaseException:
        running.kill()
        raise
    assert running.stop() == 0, running.log_path.read_text(errors="replace")[-3000:]


@pytest.fixture(scope="package")
def quiet_reader(installation: Installation) -> "QuietReader":
    feed = unique_feed_id("quiet")
    request = urllib.request.Request(
        f"{installation.base_url}/v1/feeds/{feed}",
        method="PUT",
        data=json.dumps({"title": "Nothing happens here"}).encode(),
        headers={"Authorization": f"Bearer {installation.token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        position = response.headers["Dateline-Position"]
    reader = QuietReader(installation.port, feed, position)
    reader.start()
    return reader


# The quiet reader comes along so that its wait for a ping is over when its test runs.
@pytest_asyncio.fixture
async def newsroom(installation: Installation, quiet_reader: "QuietReader") -> AsyncIterator[Newsroom]:
    async with newsroom_at(installation.base_url, installation.token) as newsroom:
        yield newsroom


def unique_feed_id(name: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("test_")).strip("-")
    return f"{words[:48].rstrip('-')}-{secrets.token_hex(4)}"


@pytest.fixture
def feed_id(request: pytest.FixtureRequest) -> str:
    """An id that no other test uses; nothing is opened under it."""
    return unique_feed_id(request.node.name)


@pytest_asyncio.fixture
async def feed(newsroom: Newsroom, feed_id: str) -> str:
    """A feed that is open and empty."""
    await newsroom.open_feed(feed_id)
    return feed_id


class QuietReader(threading.Thread):
    """Reads a stream on which nothing happens, from the first test on, so that no test waits for a ping."""

    def __init__(self, port: int, feed: str, position: str) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.feed = feed
        self.position = position
        self.seen: list[tuple[float, Frame]] = []
        self.connected_at = 0.0
        self.failure: BaseException | None = None
        self.arrived = threading.Condition()

    def run(self) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                self.connected_at = time.monotonic()
                connection.settimeout(60)
                # HTTP/1.0: nothing is chunked, the body is all that follows the blank line.
                target = f"/v1/feeds/{self.feed}/stream?min_position={self.position}"
                connection.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
                self._read(connection)
        except Exception as failure:
            with self.arrived:
                self.failure = failure
                self.arrived.notify_all()

    def _read(self, connection: socket.socket) -> None:
        parser, head = FrameParser(), b""
        while chunk := connection.recv(65536):
            if b"\r\n\r\n" not in head:
                head += chunk
                head, found, chunk = head.partition(b"\r\n\r\n")
                head += found
                if not found:
                    continue
            frames = parser.feed(chunk)
            with self.arrived:
                self.seen.extend((time.monotonic(), frame) for frame in frames)
                self.arrived.notify_all()

    def first(self, event: str, *, timeout_seconds: float) -> tuple[float, Frame]:
        with self.arrived:
            found = self.arrived.wait_for(
                lambda: self.failure or any(frame.event == event for _, frame in self.seen), timeout_seconds
            )
            assert self.failure is None, repr(self.failure)
            assert found, f"no {event} within {timeout_seconds} s"
            return next((at, frame) for at, frame in self.seen if frame.event == event)

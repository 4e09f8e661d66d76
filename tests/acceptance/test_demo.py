"""`dateline demo` as a process: coverage before readers, a verdict, and nothing left behind."""

import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from services.cli.demo.coverage import load
from tests.acceptance.harness import Service, clean_environment, free_port

DEMO_SECONDS = 90.0


def demo(tmp_path: Path, *options: str) -> Service:
    """Started with a folder for temporary files that is the test's own, so that what stays behind is seen."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = clean_environment(TMPDIR=str(scratch))
    return Service(["demo", *options], tmp_path / "demo.log", environment)


def waited_for(service: Service, condition: Callable[[str], bool]) -> str:
    deadline = time.monotonic() + DEMO_SECONDS
    while not condition(service.output):
        assert service.process is not None and service.process.poll() is None, service.output
        assert time.monotonic() < deadline, service.output
        time.sleep(0.05)
    return service.output


def test_demo_once_ends_with_every_reader_exact(tmp_path: Path) -> None:
    service = demo(tmp_path, "--once", "--speed", "0").start()
    try:
        assert service.wait(timeout_seconds=DEMO_SECONDS) == 0, service.output
    finally:
        service.kill()
    for feed in load().feeds:
        # feed, live, retracted, corrected, pinned, key events, position, conflicts, verdict
        row = re.search(
            rf"^ *{feed.id} +(\d+) +1 +\d+ +\d+ +\d+ +1-{1 + len(feed.steps)} +(\d+) +exact *$", service.output, re.M
        )
        assert row is not None, service.output
        assert int(row[1]) >= 16
        # Two desks corrected one entry at once; the second was told so and went on from the first's.
        assert row[2] == "1"
        cut = re.search(
            rf"^ *{feed.id} +newest first, cut again and again +\d+ +(\d+) +(\d+) +exact *$", service.output, re.M
        )
        assert cut is not None and int(cut[1]) >= 2 and int(cut[2]) >= 2, service.output
    assert re.search(r"^ *all +all feeds on one stream .* exact *$", service.output, re.M)
    assert re.search(r"p50 \d+\.\d ms, p95 \d+\.\d ms", service.output)
    assert "All 16 readers hold exactly what the pages show." in service.output
    assert "Traceback" not in service.output
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_demo_stays_up_after_its_coverage_and_others_can_take_part(tmp_path: Path) -> None:
    port = free_port()
    service = demo(tmp_path, "--speed", "0", "--port", str(port)).start()
    try:
        output = waited_for(service, lambda output: "Everything stays up" in output)
        pages = re.findall(r"http://\S+/live/\S+", output)
        assert pages == [f"http://127.0.0.1:{port}/live/{feed.id}" for feed in load().feeds]
        for page in pages:
            with urllib.request.urlopen(page, timeout=10) as response:
                assert response.status == 200
        url, token, feed = re.findall(r"DATELINE_URL=(\S+) DATELINE_TOKEN=(\S+) dateline publish (\S+)", output)[0]
        request = urllib.request.Request(
            f"{url}/v1/feeds/{feed}/entries",
            data=b'{"headline": "Seen from the pier"}',
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 201
        service.signal(signal.SIGINT)
        assert service.wait() == 0, service.output
    finally:
        service.kill()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_demo_that_is_ended_early_gives_no_verdict_and_leaves_nothing(tmp_path: Path, which: signal.Signals) -> None:
    service = demo(tmp_path, "--once", "--speed", "4").start()
    try:
        waited_for(service, lambda output: " steps, at " in output)
        service.signal(which)
        assert service.wait() == 1, service.output
    finally:
        service.kill()
    assert "exact" not in service.output and "Traceback" not in service.output
    assert list((tmp_path / "tmp").iterdir()) == []

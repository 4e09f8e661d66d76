"""What a figure was measured on: the machine, a core for the server and one for the rest, and what a process has used of it."""

import asyncio
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Literal


def describe() -> str:
    """One line: machine, interpreter, libraries, commit."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    libraries = " ".join(f"{name} {version(name)}" for name in ("aiohttp", "redis", "msgspec"))
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} x {model}, {system}, {libraries}, commit {commit()}"


class Absent(Exception):
    """What a figure needs is not on this machine; the text names it."""


def raise_limit_of_files() -> None:
    """As far as the system lets, for this process and what it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def core(which: Literal["server", "rest"]) -> Iterator[None]:
    """This process, and what it starts within, runs on the one core that is the server's alone, or on another."""
    if sys.platform != "linux":
        raise Absent("Linux, with /proc and affinity,")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed) if which == "server" else max(allowed)})
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(*pids: int) -> float:
    """On a core, all threads of these processes; what the kernel does for a send on loopback, up to the receiver, is in it."""
    nanoseconds = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def connections(port: int) -> int:
    """Those on a port of 127.0.0.1 that a process holds on the server's side."""
    count = 0
    for line in _lines("/proc/net/tcp")[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        # Nobody listening (0A), and nothing that only the kernel remembers.
        count += int(local.partition(":")[2], 16) == port and state != "0A" and inode != "0"
    return count


async def settled(*pids: int, share: float = 0.05) -> None:
    """Returns when these processes have been at rest for half a second, or after half a minute."""
    quiet, used = 0, cpu_seconds(*pids)
    for _ in range(120):
        await asyncio.sleep(0.25)
        before, used = used, cpu_seconds(*pids)
        quiet = quiet + 1 if used - before < share * 0.25 else 0
        if quiet == 2:
            return


def commit() -> str:
    """The short hash, with a + when the tree has changes."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def spread(values: Sequence[float], *, digits: int = 2) -> str:
    """Median and, of the rounds, least and most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []

"""`dateline` as a process of its own, forked from one that has imported the product already.

Python and the product's imports are the most of what a short process costs, and the suite starts hundreds. From the fork on it is
`python -m services.cli.main`: own arguments, environment, session, signals and exit. Only that the imports were made before
is different; the tests of `up`, of the demo and of deploy/ start theirs from nothing.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = "services.cli.main"
LOOK_SECONDS = 0.01


class Forked:
    """A running `dateline`, with what `subprocess.Popen` has of use to a test."""

    def __init__(self, nursery: "_Nursery", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(PROGRAM, timeout or 0)
            time.sleep(LOOK_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        # Not waited for, a process that has ended keeps its number.
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    directory: Path = REPOSITORY,
) -> Forked:
    """Start `dateline` in `directory` with these arguments and descriptors, in a session of its own."""
    nursery = _nursery()
    asked = {"arguments": list(arguments), "environment": dict(environment), "directory": str(directory)}
    return Forked(nursery, nursery.ask(asked, (stdin, stdout, stderr)))


class _Nursery:
    """The process that forks, as seen by the tests."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._one_at_a_time = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self._close)

    def ask(self, asked: Mapping[str, Any], descriptors: Sequence[int] = ()) -> Any:
        with self._one_at_a_time:
            socket.send_fds(self._socket, [json.dumps(asked).encode() + b"\n"], list(descriptors))
            return json.loads(_line(self._socket.recv(4096), self._socket))

    def _close(self) -> None:
        self._socket.close()
        self._process.wait()


@functools.cache
def _nursery() -> _Nursery:
    return _Nursery()


def _line(begun: bytes, connection: socket.socket) -> bytes:
    while begun and not begun.endswith(b"\n"):
        begun += connection.recv(65536)
    return begun


# In the process that forks


def serve(connection: socket.socket) -> list[str] | None:
    """Fork when asked; gives the arguments in the child, None when the tests have ended."""
    children: set[int] = set()
    while True:
        begun, descriptors, _, _ = socket.recv_fds(connection, 65536, 3)
        if not begun:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            return None
        asked = json.loads(_line(begun, connection))
        answer: int | None
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            children.discard(pid)
        else:
            answer = os.fork()
            if not answer:
                connection.close()
                _settle(asked["environment"], asked["directory"], descriptors)
                return [PROGRAM, *asked["arguments"]]
            children.add(answer)
            for descriptor in descriptors:
                os.close(descriptor)
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _settle(environment: Mapping[str, str], directory: str, descriptors: Sequence[int]) -> None:
    os.setsid()
    os.chdir(directory)
    for own, given in enumerate(descriptors):
        os.dup2(given, own)
        os.close(given)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]  # what PYTHONUNBUFFERED asks for at a start


def _import_the_product() -> None:
    for root in ("services", "shared"):
        package = importlib.import_module(root)
        for module in pkgutil.walk_packages(package.__path__, f"{root}."):
            if not module.name.endswith(("__main__", PROGRAM)):
                importlib.import_module(module.name)
    # What is never looked at again is never copied either.
    gc.freeze()


if __name__ == "__main__":
    _import_the_product()
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        # At the top, so that it ends as any program does: exit codes, exceptions, what is done at the end.
        sys.argv = arguments
        runpy.run_module(PROGRAM, run_name="__main__", alter_sys=True)

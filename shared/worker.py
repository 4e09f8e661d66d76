"""Worker: a process that a supervisor keeps, as it sees itself: its name, and the line to the supervisor.

Owns what is said on the line, on both ends. The line ends with either process, however that ends.
"""

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from shared.errors import Misconfigured

LISTENING = "listening"
REFUSED = "refused"


def arguments(name: str, line: int) -> list[str]:
    """The command line of a worker whose end of the line has the descriptor `line`."""
    return ["--worker", name, "--line", str(line)]


class Worker:
    """`name` is unique among those of one supervisor, and stays that of the process that comes after this one."""

    def __init__(self, name: str, line: socket.socket) -> None:
        self.name = name
        self.listens = False
        self.left_alone = False
        self._line = line
        line.setblocking(False)
        # What a process starts itself must not keep its line open.
        line.set_inheritable(False)

    @classmethod
    def of(cls, words: Sequence[str]) -> "Worker | None":
        """The worker that a command line makes of this process, None for one that stands by itself."""
        match words:
            case []:
                return None
            case ["--worker", name, "--line", line]:
                return cls(name, socket.socket(fileno=int(line)))
            case _:
                raise Misconfigured("no arguments are taken here: settings are DATELINE_* variables")

    def listening(self, url: str) -> None:
        """It does its work; `url` is empty where nothing listens."""
        self.listens = True
        self._say(LISTENING, url)

    def refused(self, why: str) -> None:
        """It ends because it must not start, and no second try changes that."""
        self._say(REFUSED, why)

    def _say(self, word: str, text: str) -> None:
        # A supervisor that is gone hears nothing; `ending_with_its_supervisor` ends this process.
        with suppress(OSError):
            self._line.sendall(f"{word} {' '.join(text.split())}\n".encode())

    @contextmanager
    def ending_with_its_supervisor(self, stop: asyncio.Event) -> Iterator[None]:
        """Set `stop` when the supervisor is gone, by SIGKILL even: nobody would end this process otherwise."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(self._line)
            self.left_alone = True
            stop.set()

        # Nothing is ever said to a worker: what can be read is the end.
        loop.add_reader(self._line, ended)
        try:
            yield
        finally:
            loop.remove_reader(self._line)

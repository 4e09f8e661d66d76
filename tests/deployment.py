"""`deploy/` as data: which processes compose.yaml and the systemd units start, with which environment and grace.

Owns reading those files as their runtimes do. Whether they are right is judged in tests/unit, that they run in
tests/acceptance.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
DEPLOY = REPOSITORY / "deploy"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
CONTAINERFILE = DEPLOY / "container" / "Containerfile"
REDIS_CONF = DEPLOY / "redis" / "redis.conf"
UNITS = DEPLOY / "systemd"
ENVIRONMENT_FILE = UNITS / "environment"

# Both projectors of the units, by instance name.
INSTANCES = ("1", "2")


@dataclass(frozen=True)
class Process:
    """One process as its supervisor would start it. `stop_seconds` passes between SIGTERM and SIGKILL."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    stop_seconds: float

    def moved(self, places: Mapping[str, str]) -> "Process":
        """The same process with whole words of its arguments and values replaced: other paths, hosts, ports."""
        words = "|".join(re.escape(word) for word in sorted(places, key=len, reverse=True))
        pattern = re.compile(rf"(?<![\w.-])(?:{words})(?![\w.-])")

        def move(text: str) -> str:
            return pattern.sub(lambda found: places[found[0]], text)

        return replace(
            self,
            argv=tuple(move(argument) for argument in self.argv),
            environment={name: move(value) for name, value in self.environment.items()},
        )


class VariableMissing(Exception):
    """compose.yaml asks for a variable that has no value."""


# Compose ----------------------------------------------------------------------------------------------------------


def compose_services(variables: Mapping[str, str]) -> dict[str, Any]:
    """The services, interpolated; VariableMissing where `${NAME:?}` finds nothing."""
    document = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return cast("dict[str, Any]", _interpolated(document["services"], variables))


def compose_processes(variables: Mapping[str, str]) -> list[Process]:
    """Every container's process, replicas counted out: `projector-1`, `projector-2`."""
    processes: list[Process] = []
    for name, service in compose_services(variables).items():
        replicas = service.get("deploy", {}).get("replicas", 1)
        entrypoint = image_entrypoint() if service["image"] == "dateline" else ()
        processes.extend(
            Process(
                name=name if replicas == 1 else f"{name}-{number}",
                argv=(*entrypoint, *service["command"]),
                environment={key: str(value) for key, value in service.get("environment", {}).items()},
                stop_seconds=seconds(service["stop_grace_period"]),
            )
            for number in range(1, replicas + 1)
        )
    return processes


_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<rest>[^}]*))?\})")


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    def text_of(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        # `:-` and `:?` treat empty like unset.
        given = variables.get(found["name"]) or (found["rest"] if found["how"] == ":-" else None)
        if given is None:
            raise VariableMissing(found["name"])
        return given

    if isinstance(value, str):
        return _VARIABLE.sub(text_of, value)
    if isinstance(value, dict):
        return {key: _interpolated(member, variables) for key, member in value.items()}
    if isinstance(value, list):
        return [_interpolated(member, variables) for member in value]
    return value


# Image ------------------------------------------------------------------------------------------------------------


def image_instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions in order, continued lines joined."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for line in lines if line.strip() for word, _, rest in [line.partition(" ")]]


def image_entrypoint() -> tuple[str, ...]:
    return tuple(json.loads(next(rest for word, rest in image_instructions() if word == "ENTRYPOINT")))


# Units ------------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    section: str
    key: str
    value: str


class Unit:
    """One unit file. Keys may repeat, which is why this is not configparser's business."""

    def __init__(self, path: Path, *, instance: str = "") -> None:
        self.path = path
        self.name = path.name.replace("@.", f"@{instance}.")
        specifiers = {"%i": instance, "%%": "%"}
        self.lines = [
            line._replace(value=re.sub("%[i%]", lambda found: specifiers[found[0]], line.value))
            for line in _unit_lines(path.read_text(encoding="utf-8"))
        ]

    def all(self, key: str) -> list[str]:
        return [line.value for line in self.lines if line.key == key]

    def one(self, key: str) -> str:
        (value,) = self.all(key)
        return value

    def process(self, environment_file: Mapping[str, str]) -> Process:
        """What systemd starts; `environment_file` is what the operator wrote into the file that the unit names."""
        environment = _assignments(self.all("Environment"))
        if self.all("EnvironmentFile"):
            environment |= environment_file
        for name in self.all("UnsetEnvironment"):
            environment.pop(name, None)
        return Process(
            name=self.name.removesuffix(".service"),
            argv=tuple(shlex.split(self.one("ExecStart"))),
            environment=environment,
            stop_seconds=seconds(self.one("TimeoutStopSec")),
        )


def units() -> list[Unit]:
    """The services, templates once for each instance."""
    found: list[Unit] = []
    for path in sorted(UNITS.glob("*.service")):
        found.extend(Unit(path, instance=instance) for instance in (INSTANCES if "@." in path.name else ("",)))
    return found


def _assignments(lines: list[str]) -> dict[str, str]:
    return dict(cast("tuple[str, str]", tuple(word.split("=", 1))) for line in lines for word in shlex.split(line))


def _unit_lines(text: str) -> Iterator[Line]:
    section = ""
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            continue
        key, found, value = line.partition("=")
        if not found or not section or line.endswith("\\"):
            raise ValueError(f"neither a section nor an assignment on one line: {raw!r}")
        yield Line(section, key.strip(), value.strip())


_DURATION = re.compile(r"(\d+)(s|m|h|)")


def seconds(duration: str) -> float:
    """`30s`, `15m`, `60` (seconds) or `infinity`."""
    if duration == "infinity":
        return float("inf")
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(f"not a duration: {duration!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]

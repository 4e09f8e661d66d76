"""The front door opens quickly: a command loads what it needs and nothing of what the others do."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from services.cli.main import COMMANDS, main
from services.cli.ops import VERBS, ops

ROOT = Path(__file__).parents[2]

SHOW_MODULES = """
import sys
from services.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("LOADED", *sys.modules, file=sys.stderr)
"""

SERVICES = ("services.writer", "services.projector", "services.gateway")


def loaded_by(*arguments: str) -> set[str]:
    ended = subprocess.run(
        [sys.executable, "-c", SHOW_MODULES, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(ended.stderr.partition("LOADED ")[2].split())


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["--version"], ("shared", "redis", "aiohttp", "rich", "msgspec", *SERVICES)),
        (["config"], ("redis", "aiohttp", *SERVICES)),
        (["publish", "--help"], ("redis", "aiohttp.web", "services.cli.embedded", "services.cli.ops", *SERVICES)),
        (["tail", "--help"], ("redis", "aiohttp.web", "services.cli.embedded", "services.cli.ops", *SERVICES)),
    ],
)
def test_a_command_loads_nothing_of_what_it_does_not_do(arguments: list[str], unneeded: tuple[str, ...]) -> None:
    loaded = loaded_by(*arguments)
    assert "services.cli.main" in loaded
    assert [
        name for name in loaded if name.startswith(tuple(f"{module}." for module in unneeded)) or name in unneeded
    ] == []


def test_a_projector_loads_no_http_before_it_is_asked_to_serve_any() -> None:
    """`up` starts one at each start, and again whenever it ends."""
    shown = "import sys, services.projector.service; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", shown], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(ended.stdout.split())
    assert "services.projector.worker" in loaded
    assert loaded & {"aiohttp", "jinja2", "services.writer", "services.gateway"} == set()


@pytest.mark.parametrize(("group", "places"), [(main, COMMANDS), (ops, VERBS)])
def test_every_command_stands_at_its_place_under_its_name(group: click.Group, places: dict[str, str]) -> None:
    context = click.Context(group)
    assert group.list_commands(context) == list(places)
    for name in places:
        command = group.get_command(context, name)
        assert command is not None
        assert (command.name, bool(command.get_short_help_str())) == (name, True)


def test_what_is_no_command_is_a_usage_error() -> None:
    assert ops.get_command(click.Context(ops), "nope") is None

"""The house's import rule: arrows only downwards, services never import each other, the vocabulary stays pure."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VOCABULARY = {
    "archive.exports",
    "archive.segments",
    "documents",
    "durability",
    "epochs.incarnation",
    "errors",
    "events",
    "fingerprints",
    "fold",
    "instants",
    "ndjson",
    "position",
    "quarantine",
    "read_models",
    "upcasters",
    "write_side",
}
EDGES = {
    "accepting",
    "append",
    "archive.archives",
    "archive.archiving",
    "archive.objects",
    "archive.removal",
    "archive.restoring",
    "archive.trimming",
    "config",
    "epochs.admission",
    "epochs.raising",
    "epochs.witness",
    "http",
    "keys",
    "lanes",
    "lifecycle",
    "listening",
    "log",
    "logs",
    "loop_lag",
    "members",
    "metrics",
    "ports",
    "problems",
    "program",
    "ready_answer",
    "redis.asking",
    "redis.connecting",
    "redis.server",
    "scraping",
    "service",
    "supervisor",
    "tokens",
    "worker",
}
FLOORS = ("writer", "projector", "gateway")


def modules(folder: str) -> Iterator[tuple[str, str]]:
    """Pairs of a module and one module that it imports, wherever in the file the import stands."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{name} imports relatively"
                yield name, node.module
                yield from ((name, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("service", FLOORS)
def test_a_service_imports_no_other_service_and_not_the_command_line(service: str) -> None:
    others = tuple(f"services.{other}" for other in (*FLOORS, "cli") if other != service)
    wrong = [(name, used) for name, used in modules(f"services/{service}") if used.startswith(others)]
    assert wrong == []


def test_shared_imports_no_service() -> None:
    assert [pair for pair in modules("shared") if pair[1].startswith("services")] == []


def test_the_vocabulary_imports_no_edge_and_no_io() -> None:
    outside = ("shared.redis", "redis", "aiohttp", "asyncio", "structlog", "os", "socket", "time")
    forbidden = (*(f"shared.{edge}" for edge in EDGES), *outside)
    wrong = [
        (name, used)
        for name, used in modules("shared")
        if name.removeprefix("shared.") in VOCABULARY
        and (used in forbidden or used.startswith(tuple(f + "." for f in forbidden)))
    ]
    assert wrong == []


def test_every_shared_module_is_vocabulary_or_edge() -> None:
    shared = ROOT / "shared"
    found = {".".join(file.relative_to(shared).with_suffix("").parts) for file in shared.rglob("*.py")}
    assert {name for name in found if not name.endswith("__init__")} == VOCABULARY | EDGES


def test_every_script_stands_beside_a_module_that_calls_it() -> None:
    for script in [*(ROOT / "services").rglob("*.lua"), *(ROOT / "shared").rglob("*.lua")]:
        callers = [
            file for file in script.parent.glob("*.py") if f'"{script.name}"' in file.read_text(encoding="utf-8")
        ]
        assert len(callers) == 1, script
        text = script.read_text(encoding="utf-8")
        assert "-- KEYS" in text and "ARGV" in text, script


def test_no_thread_of_the_object_stores_library_comes_for_an_interpreter_that_ends() -> None:
    """Its asynchronous calls do, and abort the process; see `shared/archive/objects.py`."""
    files = [*(ROOT / "services").rglob("*.py"), *(ROOT / "shared").rglob("*.py")]
    named = {
        (file.name, node.attr)
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "obstore"
    }
    assert named and [pair for pair in named if pair[1].endswith("_async")] == []

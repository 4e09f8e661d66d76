"""The mutation run: a copy of the tree, one mutant at a time in it, the tests that answer for it, and who survived.

Owns the copy and the processes. Which mutants there are is `lua`'s and `patches`'; which tests, `table`'s.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.acceptance.harness import descendants
from tests.mutations import lua
from tests.mutations.mutant import Mutant
from tests.mutations.patches import PATCHES, mutant_of
from tests.mutations.table import EQUIVALENT, INTEGRATION, TESTS

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = ("services", "shared", "tests", "deploy", "pyproject.toml")
# A mutant may wait for what never comes, or loop inside the server.
MUTANT_SECONDS_MAX = 180.0


class Verdict(NamedTuple):
    """`by` is the first test that failed; None: the mutant lives."""

    mutant: Mutant
    by: str | None
    seconds: float


def scripts(root: Path = REPOSITORY) -> dict[str, Path]:
    """Every script of the product by its file's name; names are unique."""
    found: dict[str, Path] = {}
    for path in sorted([*root.glob("services/**/*.lua"), *root.glob("shared/**/*.lua")]):
        if path.name in found:
            raise ValueError(f"two scripts are called {path.name}")
        found[path.name] = path.relative_to(root)
    return found


def all_mutants(root: Path = REPOSITORY) -> dict[str, list[Mutant]]:
    """By script or Python file, what is to be killed; what nothing can tell apart is left out."""
    found = {}
    for name, path in scripts(root).items():
        mutants = lua.mutants(str(path), (root / path).read_text(encoding="utf-8"))
        found[name] = [mutant for mutant in mutants if mutant.what not in EQUIVALENT.get(name, {})]
    for patch in PATCHES:
        found.setdefault(patch.path, []).append(mutant_of(patch, (root / patch.path).read_text(encoding="utf-8")))
    return found


def answering(name: str, mutant: Mutant) -> Sequence[str]:
    if name in TESTS:
        return TESTS[name]
    return next(patch.tests for patch in PATCHES if patch.path == mutant.path and patch.what == mutant.what)


@contextmanager
def copied_tree(root: Path = REPOSITORY) -> Iterator[Path]:
    """A copy to mutate: the working tree is never touched."""
    with tempfile.TemporaryDirectory(prefix="dateline-mutations-") as directory:
        copy = Path(directory)
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(root / name, copy / name)
        yield copy


def judge(copy: Path, mutant: Mutant, tests: Sequence[str]) -> Verdict:
    """Run the tests against one mutant, and put the file back as it was."""
    file = copy / mutant.path
    whole = file.read_text(encoding="utf-8")
    started = time.monotonic()
    try:
        _write(file, mutant.applied_to(whole))
        by = failure(copy, tests)
    finally:
        _write(file, whole)
    return Verdict(mutant, by, time.monotonic() - started)


def failure(copy: Path, tests: Sequence[str]) -> str | None:
    """The first test that fails in the copy; None when all pass. Tests are names of files, each perhaps with `::test`."""
    files = [f"{INTEGRATION}/{name.replace('::', '.py::') if '::' in name else name + '.py'}" for name in tests]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *files]
    with (copy / "pytest.log").open("w+b") as log:
        process = subprocess.Popen(
            command,
            cwd=copy,
            env=_environment(copy),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(MUTANT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            return f"no end within {MUTANT_SECONDS_MAX:.0f} s"
        finally:
            # A server caught in a script of a mutant hears no SIGTERM.
            for pid in [*descendants(process.pid), process.pid] if process.poll() is None else []:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        output = log.read().decode(errors="replace")
    if code == 0:
        return None
    if code != 1 and "errors during collection" not in output and "error during collection" not in output:
        raise RuntimeError(f"pytest ended with {code}:\n{output[-3000:]}")
    return next((line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))), output[-300:])


def run(names: Sequence[str], *, on_verdict: Callable[[Verdict], None], one_in: int = 1) -> list[Verdict]:
    """Judge every mutant of `names`, or one in so many of them; the tests must pass on the tree as it is."""
    mutants = all_mutants()
    verdicts = []
    with copied_tree() as copy:
        chosen = [(name, mutant) for name in names for mutant in mutants[name]][::one_in]
        for tests in dict.fromkeys(tuple(answering(name, mutant)) for name, mutant in chosen):
            by = failure(copy, tests)
            if by is not None:
                raise RuntimeError(f"{', '.join(tests)} fail on the tree as it is: {by}")
        for name, mutant in chosen:
            verdicts.append(judge(copy, mutant, answering(name, mutant)))
            on_verdict(verdicts[-1])
    return verdicts


def _environment(copy: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST_")}
    # One kind of server is enough: without the system's programs on its path the tests run on the wheel's alone.
    return {**kept, "PYTHONPATH": str(copy), "PATH": str(Path(sys.executable).parent), "PYTHONDONTWRITEBYTECODE": ""}


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    # Two versions of one size within one second look the same to Python's cache.
    for cached in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        cached.unlink()

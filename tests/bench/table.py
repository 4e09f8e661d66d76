"""What is printed: figures with their spread, each with its goal beside it, and what was lost or repeated."""

import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.bench.machine import spread


class Goal(NamedTuple):
    sign: str
    bound: float
    reached: Callable[[float, float], bool]


def at_most(bound: float) -> Goal:
    return Goal("<=", bound, operator.le)


def at_least(bound: float) -> Goal:
    return Goal(">=", bound, operator.ge)


class Given(NamedTuple):
    """What the command line asks for; None where a table takes its own."""

    rounds: int
    readers: int | None
    seconds: float | None
    minutes: float
    long: bool


class Table:
    """One run's table. A wrong delivery is no figure: it is counted, and ends the run with exit code 1."""

    def __init__(self) -> None:
        self.faults = 0

    def title(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def figure(
        self, name: str, values: Sequence[float], unit: str, goal: Goal | None = None, *, digits: int = 2
    ) -> None:
        """One line: the median of the rounds, the least and the most, and whether the median reaches the goal."""
        line = f"  {name:58} {spread(values, digits=digits):>28} {unit:10}"
        if goal is not None:
            verdict = "reached" if goal.reached(statistics.median(values), goal.bound) else "MISSED"
            line += f" goal {goal.sign} {goal.bound:g}: {verdict}"
        print(line.rstrip(), flush=True)

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def check(self, right: bool, text: str) -> None:
        if not right:
            self.faults += 1
            print(f"  WRONG: {text}", flush=True)

    def check_report(self, where: str, report: Mapping[str, Any], *, ended: bool = False) -> None:
        """What the readers of a crowd found; `ended` where streams may end."""
        wrong = {name: report[name] for name in ("gaps", "repeats", "resets") if report[name]}
        if not ended and report["ended"]:
            wrong["ended"] = report["ended"]
        self.check(not wrong, f"{where}: {wrong}")


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(one, other, strict=True)]

"""A mutant: one place of one file, and the text that stands there instead. Owns no opinion on whether it should die."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`path` is relative to the repository; `what` says in words what was taken away."""

    path: str
    line: int
    what: str
    start: int
    end: int
    replacement: str

    def applied_to(self, text: str) -> str:
        return text[: self.start] + self.replacement + text[self.end :]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def line_of(text: str, start: int) -> int:
    return text.count("\n", 0, start) + 1

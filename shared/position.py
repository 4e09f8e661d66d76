"""Positions: an event's place in its feed's log, as every part of Dateline writes, reads and compares it.

Owns the text form `<epoch>-<n>` and its order. What a position means for a reader (stale, ahead) is decided where it is used.
"""

import re
from functools import lru_cache
from typing import NamedTuple, Self

_TEXT = re.compile(r"([1-9][0-9]{0,17})-([1-9][0-9]{0,17})")


class Position(NamedTuple):
    """`epoch` and `n` both count from 1; positions compare as two integers, never as text (CONTRACT: Words)."""

    epoch: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `<epoch>-<n>`; ValueError for anything else, leading zeros included."""
        return cls(*_parsed(text))

    def next(self) -> "Position":
        return Position(self.epoch, self.n + 1)

    def __str__(self) -> str:
        return f"{self.epoch}-{self.n}"


# One event's position is read at each of its steps through a process.
@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[int, int]:
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"a position is <epoch>-<n>, two whole numbers from 1, not {text[:40]!r}")
    return int(found[1]), int(found[2])


# Before the first event: what a fold and a difference from the start begin at. Never written anywhere.
ORIGIN = Position(0, 0)

"""Differences: what stands somewhere, and what the fold of the log gives instead, named so that an operator finds it.

Owns the form and the bound: all are counted, the first are kept, and long values are cut around where they part.
"""

from collections.abc import Iterator

from msgspec import Struct

SHOWN_MAX = 100
VALUE_CHARACTERS_MAX = 160
# What is shown of a long value before the place where it parts from the other.
LEAD_CHARACTERS = 40

Value = bytes | str | int | None


class Difference(Struct, frozen=True):
    """`what` is the thing (document, index, head …), `which` the one of its kind; None is: not there."""

    what: str
    which: str
    stored: str | None
    folded: str | None


class Differences:
    """The first SHOWN_MAX differences and the number of all."""

    def __init__(self) -> None:
        self.shown: list[Difference] = []
        self.count = 0

    def add(self, what: str, which: object, *, stored: Value, folded: Value) -> None:
        """Note one difference."""
        self.count += 1
        if len(self.shown) < SHOWN_MAX:
            left, right = _cut(_text(stored), _text(folded))
            self.shown.append(Difference(what, str(which), left, right))

    def equal(self, what: str, which: object, *, stored: Value, folded: Value) -> None:
        """Note a difference if there is one."""
        if stored != folded:
            self.add(what, which, stored=stored, folded=folded)

    def extend(self, others: "Differences") -> None:
        self.count += others.count
        self.shown += others.shown[: SHOWN_MAX - len(self.shown)]

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.shown)


def _text(value: Value) -> str | None:
    if value is None:
        return None
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _cut(left: str | None, right: str | None) -> tuple[str | None, str | None]:
    if left is None or right is None:
        return _piece(left, 0), _piece(right, 0)
    same = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    start = max(0, same - LEAD_CHARACTERS) if max(len(left), len(right)) > VALUE_CHARACTERS_MAX else 0
    return _piece(left, start), _piece(right, start)


def _piece(text: str | None, start: int) -> str | None:
    if text is None:
        return None
    end = start + VALUE_CHARACTERS_MAX
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")

"""Query parameters: read, checked and named in the refusal. Pure.

Owns their syntax. A parameter that a call does not know is refused like an unknown field: ignored, it would give another
answer than was asked for.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar, cast
from urllib.parse import urlencode

from services.gateway.cursor import Filters, Order
from shared.errors import FieldError, Invalid
from shared.instants import milliseconds_of, parse_instant
from shared.position import Position

PAGE_DEFAULT = 20
PAGE_MAX = 100
TAG_CHARACTERS_MAX = 64
CATCH_UP_MAX = 1_000_000

_T = TypeVar("_T")


def only(query: Iterable[str], *known: str) -> None:
    """Invalid for a parameter that the call does not have."""
    for name in query:
        if name not in known:
            raise refuse(name, "is not a parameter here")


def filters(query: Mapping[str, str]) -> Filters:
    return Filters(
        order=order(query),
        since=_read(query, "since", parse_instant),
        until=_read(query, "until", parse_instant),
        tag=_read(query, "tag", _tag),
        key_events=_read(query, "key_events", _boolean) or False,
    )


def order(query: Mapping[str, str]) -> Order:
    return _read(query, "order", _order) or "newest"


def limit(query: Mapping[str, str]) -> int:
    return _read(query, "limit", _between(1, PAGE_MAX)) or PAGE_DEFAULT


def snapshot(query: Mapping[str, str]) -> int | None:
    """How many entries a stream begins with, None when it begins with none."""
    return _read(query, "snapshot", _between(1, PAGE_MAX))


def catch_up(query: Mapping[str, str]) -> int | None:
    """From how many changed entries on a reader would rather forget what it holds."""
    return _read(query, "catch_up", _between(0, CATCH_UP_MAX))


def position(query: Mapping[str, str], name: str) -> Position | None:
    return _read(query, name, Position.parse)


class At(NamedTuple):
    """A moment of the past as it was asked for, in one text form: a position, or an instant in milliseconds since 1970."""

    text: str
    position: Position | None
    milliseconds: int | None


def at(query: Mapping[str, str]) -> At:
    return _read(query, "at", _at) or At("", None, None)


def cursor(query: Mapping[str, str], read: Callable[[str], _T]) -> _T | None:
    return _read(query, "cursor", read)


def next_link(path: str, query: Iterable[tuple[str, str]], cursor: str) -> str:
    """RFC 8288: the same request, one page further."""
    kept = [(name, value) for name, value in query if name not in ("cursor", "min_position")]
    return f'<{path}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'


def refuse(name: str, problem: str) -> Invalid:
    return Invalid([FieldError(f"/{name}", problem)])


def _read(query: Mapping[str, str], name: str, parse: Callable[[str], _T]) -> _T | None:
    """The parsed parameter, None when it is absent; Invalid names it."""
    text = query.get(name)
    if text is None:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise refuse(name, str(error)) from None


def _between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 9 and least <= int(text) <= most):
            raise ValueError(f"is a whole number from {least} to {most}")
        return int(text)

    return parse


def _order(text: str) -> Order:
    if text not in ("newest", "oldest"):
        raise ValueError("is newest or oldest")
    return cast("Order", text)


def _at(text: str) -> At:
    try:
        position = Position.parse(text)
        return At(str(position), position, None)
    except ValueError:
        pass
    try:
        instant = parse_instant(text)
    except ValueError:
        raise ValueError("is a position or an instant, such as 1-57 or 2022-01-10T18:38:00Z") from None
    return At(instant, None, milliseconds_of(instant))


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("is true or false")
    return text == "true"


def _tag(text: str) -> str:
    if not 1 <= len(text) <= TAG_CHARACTERS_MAX:
        raise ValueError(f"has 1 to {TAG_CHARACTERS_MAX} characters")
    return text

"""Mutants of a Lua script: each branch never or always taken, each operand of `and` and `or`, each write left out.

Owns a tokenizer and the extents of operands, for the Lua that Dateline writes: no long strings, no goto, no semicolons.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.mutations.mutant import Mutant, line_of


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*)
      | (?P<text>'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")
      | (?P<number>\d[\w.]*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<mark>\.\.\.|\.\.|[=~<>]=|[-+*/%^#<>=(){}\[\];:,.])""",
    re.VERBOSE,
)
_KEYWORDS = _words(
    "and break do else elseif end false for function if in local nil not or repeat return then true until while"
)
_OPEN = {"(": ")", "{": "}", "[": "]", "function": "end"}
_VALUES = frozenset({"end", "false", "nil", "true", ")", "}", "]", "..."})
# What stands before a call that is part of an expression, and not a statement of its own.
_WITHIN = _words("= ( { [ , and or not return if elseif while until in # .. + - * / % ^ == ~= < > <= >= local")
_WRITES = re.compile(r"redis\.call\('(?!H?M?GET|Z?L?RANGE|TIME|EXISTS|XRANGE|XREVRANGE|INFO)")


class Token(NamedTuple):
    text: str
    start: int
    end: int


def mutants(path: str, source: str) -> list[Mutant]:
    """Every mutant of a script, in order of its lines."""
    tokens = tokens_of(source)
    found = [
        Mutant(path, line_of(source, start), what, start, end, replacement)
        for start, end, replacement, what in (
            *_branches(source, tokens),
            *_operands(source, tokens),
            *_bounds(source, tokens),
            *_calls(source, tokens),
            *_caps(source),
        )
    ]
    return sorted(found, key=lambda mutant: (mutant.start, mutant.what))


def tokens_of(source: str) -> list[Token]:
    tokens = []
    at = 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            raise ValueError(f"not a Lua token in line {line_of(source, at)}: {source[at : at + 20]!r}")
        if match.lastgroup != "space":
            tokens.append(Token(match[0], match.start(), match.end()))
        at = match.end()
    return tokens


_Change = tuple[int, int, str, str]


def _branches(source: str, tokens: list[Token]) -> Iterator[_Change]:
    for number, token in enumerate(tokens):
        if token.text not in ("if", "elseif"):
            continue
        then = next(n for n in range(number, len(tokens)) if tokens[n].text == "then")
        start, end = tokens[number + 1].start, tokens[then - 1].end
        condition = _short(source[start:end])
        yield start, end, "false", f"never: if {condition}"
        # A return that always happens is found by every test: that branch is a guard, and a guard is taken away.
        if tokens[then + 1].text not in ("return", "break"):
            yield start, end, "true", f"always: if {condition}"


def _operands(source: str, tokens: list[Token]) -> Iterator[_Change]:
    for number, token in enumerate(tokens):
        if token.text not in ("and", "or"):
            continue
        first, last = _left(tokens, number), _right(tokens, number)
        left = (tokens[first].start, tokens[number - 1].end)
        right = (tokens[number + 1].start, tokens[last].end)
        yield left[0], right[0], "", f"without `{_short(source[slice(*left)])} {token.text}`"
        yield left[1], right[1], "", f"without `{token.text} {_short(source[slice(*right)])}`"


def _left(tokens: list[Token], number: int) -> int:
    """The first token of the operand on the left of an operator; `and` binds tighter than `or`."""
    depth = 0
    ends = {"=", "return", "if", "elseif", "until", "while", "then", "do", "else", ",", "local"}
    ends |= {"or"} if tokens[number].text == "and" else set()
    for n in range(number - 1, -1, -1):
        text = tokens[n].text
        if depth == 0 and (text in ends or text in _OPEN):
            return n + 1
        depth += (text in _OPEN.values()) - (text in _OPEN)
    raise ValueError("an operator without a left side")


def _right(tokens: list[Token], number: int) -> int:
    """The last token of the operand on the right of an operator."""
    depth = 0
    ends = {"then", "do", "or", ",", "and"} if tokens[number].text == "and" else {"then", "do", "or", ","}
    for n in range(number + 1, len(tokens)):
        text = tokens[n].text
        if depth == 0 and (text in ends or text in _OPEN.values()):
            return n - 1
        depth += (text in _OPEN) - (text in _OPEN.values())
        if depth == 0 and n + 1 < len(tokens) and _ends_statement(tokens[n], tokens[n + 1]):
            return n
    return len(tokens) - 1


def _ends_statement(token: Token, following: Token) -> bool:
    """Lua has no statement separator: a statement ends where a value is followed by what cannot go on with it."""
    value = token.text in _VALUES or (token.text not in _KEYWORDS and re.match(r"[\w'\"]", token.text) is not None)
    goes_on = re.match(r"[\w'\"]", following.text) is None or following.text in ("and", "or")
    return value and not goes_on


def _bounds(source: str, tokens: list[Token]) -> Iterator[_Change]:
    """`math.max(a, b)` is a guard too: against what runs backwards or grows without end."""
    for number in range(len(tokens) - 3):
        if [t.text for t in tokens[number : number + 2]] != ["math", "."] or tokens[number + 2].text not in (
            "max",
            "min",
        ):
            continue
        depth, comma, close = 0, None, None
        for n in range(number + 3, len(tokens)):
            depth += (tokens[n].text in _OPEN) - (tokens[n].text in _OPEN.values())
            if depth == 1 and tokens[n].text == ",":
                comma = n
            if depth == 0:
                close = n
                break
        if comma is None or close is None:
            raise ValueError(f"a bound of one in line {line_of(source, tokens[number].start)}")
        whole = tokens[number].start, tokens[close].end
        for first, last in ((number + 4, comma - 1), (comma + 1, close - 1)):
            kept = source[tokens[first].start : tokens[last].end]
            yield *whole, kept, f"only `{_short(kept)}` of `{_short(source[slice(*whole)])}`"


def _calls(source: str, tokens: list[Token]) -> Iterator[_Change]:
    for number, token in enumerate(tokens):
        if token.text != "redis" or not _WRITES.match(source, token.start):
            continue
        if number and tokens[number - 1].text in _WITHIN:
            continue
        depth = 0
        for n in range(number + 3, len(tokens)):
            depth += (tokens[n].text in _OPEN) - (tokens[n].text in _OPEN.values())
            if depth == 0:
                end = tokens[n].end
                yield token.start, end, "do end", f"left out: {_short(source[token.start : end])}"
                break


def _caps(source: str) -> Iterator[_Change]:
    for found in re.finditer(r"'MAXLEN', (?:'~', )?[\w()\[\]]+, ", source):
        yield found.start(), found.end(), "", "a stream without a cap"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 90 else text[:87] + "…"

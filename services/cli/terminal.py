"""Text for a terminal: what comes from entries, made harmless and plain.

Owns the rule that nothing from a server steers the terminal (escape sequences, forged lines, reversed text), and the plain
form of bodies. Layout and colour are left to the commands.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from html.parser import HTMLParser
from typing import Any
from zoneinfo import ZoneInfo

# C0 with DEL, C1 (0x9b alone is a control sequence introducer to some terminals), and what reorders text around it.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTROL_PICTURES = 0x2400
# A quote that brings its own marks, in the manner of its language, keeps them.
_QUOTES = ("“", "„", "«", "‘", '"')


def plain(text: str) -> str:
    """One line: white space that breaks lines becomes a space, other control characters become visible or go."""
    return _CONTROL.sub(_visible, text)


def plain_lines(text: str) -> list[str]:
    """The lines of a text, each made plain; empty ones at either end are dropped."""
    return [plain(line) for line in text.strip().splitlines()]


def plain_html(html: str) -> str:
    """The text of an inline fragment, `br` as a line end. Not yet harmless: `plain` comes after."""
    reader = _TextReader()
    reader.feed(html)
    reader.close()
    return "".join(reader.pieces)


def escaped_json(text: str) -> str:
    """JSON that is safe to show: control characters left in its strings, which JSON allows, become \\u escapes."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def body_lines(body: Sequence[Mapping[str, Any]]) -> list[str]:
    """A body as plain lines. Block types that this client does not know are left out."""
    lines: list[str] = []
    for block in body:
        match block["type"]:
            case "text":
                lines += plain_lines(plain_html(block["html"]))
            case "quote":
                quoted = " ".join(plain_lines(plain_html(block["html"])))
                by = f" — {plain(block['attribution'])}" if block["attribution"] else ""
                quoted = quoted if quoted[:1] in _QUOTES else f"“{quoted}”"
                lines.append(quoted + by)
            case "image":
                lines.append(f"[image: {plain(block['alt'])}] {plain(block['url'])}")
            case "link_card":
                lines.append(f"→ {plain(block['title'])} {plain(block['url'])}")
            case "embed":
                lines.append(f"→ {plain(block['url'])}")
            case "list":
                lines += [f"• {' '.join(plain_lines(plain_html(item)))}" for item in block["items"]]
            case _:
                continue
    return lines


def title_of(entry: Mapping[str, Any]) -> str:
    """What an entry is called where one line must do: its headline, else how its text begins."""
    if entry["headline"]:
        return plain(entry["headline"])
    lines = body_lines(entry["body"])
    return f"{lines[0][:80]}…" if lines and len(lines[0]) > 80 else lines[0] if lines else "(no text)"


def zone_of(feed_document: Mapping[str, Any] | None) -> tzinfo:
    """The feed's own time zone; UTC while it is not known or this machine does not know it."""
    try:
        return ZoneInfo(feed_document["timezone"]) if feed_document is not None else UTC
    except (KeyError, ValueError, OSError):
        return UTC


def clock(instant: str, zone: tzinfo, *, today: datetime) -> str:
    """An instant as the feed's readers read it: the time, before it the day when that is not today."""
    try:
        at = datetime.fromisoformat(instant).astimezone(zone)
    except (ValueError, OverflowError):
        return plain(instant)
    return f"{at:%H:%M}" if at.date() == today.astimezone(zone).date() else f"{at:%Y-%m-%d %H:%M}"


def _visible(found: re.Match[str]) -> str:
    character = found.group()
    if character in "\t\n\r\v\f\x85\u2028\u2029":
        return " "
    code = ord(character)
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    return "\u2421" if code == 0x7F else ""


class _TextReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

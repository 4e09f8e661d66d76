"""The ticker: what frames look like as lines, and that nothing in them steers the terminal."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.follow import Frame, Reader
from services.cli.problem import Problem
from services.cli.tail import Line, Ticker
from services.cli.target import explain, target
from services.cli.terminal import body_lines, clock, escaped_json, plain, plain_html, title_of
from shared.errors import FieldError
from shared.position import Position

NOW = datetime(2022, 1, 10, 20, 0, tzinfo=UTC)


# Harmless text


def test_escape_sequences_become_visible_and_do_nothing() -> None:
    assert plain("\x1b]0;title\x07 \x1b[31mred\x7f") == "␛]0;title␇ ␛[31mred␡"
    # The one-character form of ESC [ that some terminals obey.
    assert plain("a\x9b31mb") == "a31mb"


def test_a_headline_cannot_forge_a_second_line_or_turn_text_around() -> None:
    assert plain("one\r\ntwo\u2028three\tfour") == "one  two three four"
    assert plain("abc\u202edef\u2066ghi") == "abcdefghi"


@given(st.text())
def test_plain_text_never_holds_a_control_character(text: str) -> None:
    shown = plain(text) + escaped_json(text) + "".join(body_lines([{"type": "text", "html": text}]))
    assert not [character for character in shown if ord(character) < 32 or 127 <= ord(character) < 160]


def test_html_becomes_text_with_its_line_ends_and_characters() -> None:
    assert plain_html('a <a href="https://example.org">b</a><br>c &amp; &lt;d&gt;') == "a b\nc & <d>"


def test_every_block_has_a_plain_form_and_unknown_ones_are_left_out() -> None:
    body: list[dict[str, Any]] = [
        {"type": "quote", "html": "It holds", "attribution": "A. N."},
        {"type": "quote", "html": "«Aguanta»", "attribution": None},
        {"type": "image", "url": "https://example.org/i", "alt": "A pier", "caption": None, "credit": None},
        {"type": "link_card", "url": "https://example.org/l", "title": "More"},
        {"type": "embed", "url": "https://example.org/e", "provider": None},
        {"type": "list", "items": ["<em>one</em>", "two"]},
        {"type": "poll", "question": "?"},
    ]
    assert body_lines(body) == [
        "“It holds” — A. N.",
        "«Aguanta»",
        "[image: A pier] https://example.org/i",
        "→ More https://example.org/l",
        "→ https://example.org/e",
        "• one",
        "• two",
    ]


def test_an_entry_without_a_headline_is_called_by_its_first_words() -> None:
    assert title_of({"headline": None, "body": [{"type": "text", "html": "word " * 40}]}).endswith("…")
    assert title_of({"headline": None, "body": []}) == "(no text)"


def test_times_are_those_of_the_feeds_own_zone_with_the_day_when_it_is_another() -> None:
    paris = ZoneInfo("Europe/Paris")
    assert clock("2022-01-10T18:38:00.000Z", paris, today=NOW) == "19:38"
    assert clock("2022-01-09T18:38:00.000Z", paris, today=NOW) == "2022-01-09 19:38"
    assert clock("0001-01-01T00:00:00.000Z", ZoneInfo("America/Montevideo"), today=NOW) == "0001-01-01T00:00:00.000Z"


# Lines


def entry(n: int, *, first: int = 2, **fields: Any) -> dict[str, Any]:
    document = {
        "id": "a",
        "feed": "f",
        "status": "published",
        "revision": 1,
        "published_at": "2022-01-10T18:38:00.000Z",
        "headline": "Headline",
        "body": [{"type": "text", "html": "Body"}],
        "authors": [],
        "tags": [],
        "pinned": False,
        "pinned_position": None,
        "key_event": False,
        "correction": None,
        "first_position": f"1-{first}",
        "position": f"1-{n}",
    }
    return {**document, **fields}


FEED = {"id": "f", "title": "Feed", "summary": None, "status": "open", "timezone": "Europe/Paris"}
TOMBSTONE = {
    "id": "a",
    "feed": "f",
    "status": "retracted",
    "published_at": "2022-01-10T18:38:00.000Z",
    "reason": "Wrong",
    "first_position": "1-2",
    "position": "1-9",
}


class Desk:
    """Gives frames to a ticker and takes its lines as text."""

    def __init__(self, *, order: Any = "newest", several: bool = False) -> None:
        self.reader = Reader(["f"], order=order)
        self.ticker = Ticker(several=several)

    def send(self, event: str, data: dict[str, Any], n: int | None = None) -> list[str]:
        position = Position(1, n) if n is not None else None
        frame = Frame(event, data, str(position), "f", position, str(position), connection=1, resumed=False)
        return [shown(line) for line in self.ticker.lines(frame, self.reader, now=NOW)]

    def begin(self, *entries: dict[str, Any], total: int | None = None) -> list[str]:
        page = {
            "feed": "f",
            "position": "1-2",
            "total": len(entries) if total is None else total,
            "pinned": [],
            "entries": list(entries),
            "next": None,
            "feed_document": FEED,
        }
        return self.send("snapshot", page, 2)


def shown(line: Line) -> str:
    return f"{line.time or ''}|{line.text.plain}"


def test_it_begins_with_the_feed_and_its_entries_in_the_order_of_time() -> None:
    later = entry(3, first=3, id="b", published_at="2022-01-10T19:00:00.000Z", key_event=True, pinned=True)
    assert Desk().begin(later, entry(2), total=5) == [
        "|— Feed (open, 5 entries) —",
        "|— 3 more entries —",
        "19:38|Headline",
        "|Body",
        "20:00|[pinned] [key event] Headline",
        "|Body",
    ]
    assert Desk(order="oldest").begin(entry(2), total=2)[-1] == "|— 1 more entry —"


def test_a_new_entry_shows_headline_body_and_authors() -> None:
    desk = Desk()
    desk.begin()
    lines = desk.send("entry", entry(3, first=3, authors=[{"name": "X"}, {"name": "Y"}]), 3)
    assert lines == ["19:38|Headline", "|Body", "|by X, Y"]


def test_a_correction_shows_the_text_again_and_its_note() -> None:
    desk = Desk()
    desk.begin(entry(2))
    corrected = entry(3, revision=2, headline="Better", correction={"note": "A word", "at": "2022-01-10T18:40:00.000Z"})
    assert desk.send("entry", corrected, 3) == ["19:38|[corrected] Better", "|Body", "|correction: A word"]


def test_flags_and_moves_are_marked_and_do_not_repeat_the_text() -> None:
    desk = Desk()
    desk.begin(entry(2))
    assert desk.send("entry", entry(3, pinned=True, pinned_position="1-3"), 3) == ["19:38|[pinned] Headline"]
    assert desk.send("entry", entry(4, key_event=True), 4) == ["19:38|[pin taken off] [key event] Headline"]
    moved = entry(5, revision=2, published_at="2022-01-10T17:00:00.000Z")
    assert desk.send("entry", moved, 5)[0] == "18:00|[moved from 19:38] [no longer a key event] Headline"


def test_a_retraction_gives_the_reason_and_not_the_headline() -> None:
    desk = Desk()
    desk.begin(entry(2))
    assert desk.send("retraction", TOMBSTONE, 9) == ["19:38|[retracted] a: Wrong"]


def test_what_was_shown_already_is_not_shown_again() -> None:
    desk = Desk()
    desk.begin(entry(2))
    assert desk.send("entry", entry(2), 2) == []


def test_pings_and_events_that_nobody_knows_are_silent() -> None:
    desk = Desk()
    assert desk.send("ping", {}) == [] and desk.send("poll", {"feed": "f"}) == []


def test_with_several_feeds_every_line_names_its_own() -> None:
    desk = Desk(several=True)
    assert desk.begin(entry(2))[:2] == ["|— f  Feed (open, 1 entry) —", "19:38|f  Headline"]


# Which server, with which token


def test_the_token_in_the_data_dir_is_only_sent_to_this_machine(tmp_path: Path) -> None:
    (tmp_path / "ops.token").write_text("secret\n")
    for url in ("http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080"):
        assert target(url=url, token=None, data_dir=tmp_path).token == "secret"
    for url in ("https://news.example.org", "http://10.0.0.1:8080", "http://127.0.0.1.example.org"):
        assert target(url=url, token=None, data_dir=tmp_path).token is None


def test_a_given_token_wins_and_none_is_needed(tmp_path: Path) -> None:
    (tmp_path / "ops.token").write_text("secret\n")
    assert target(url="http://localhost", token="given", data_dir=tmp_path).token == "given"
    assert target(url="http://localhost", token=None, data_dir=tmp_path / "none").token is None


def test_what_is_no_url_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="not the URL of a server"):
        target(url="localhost:8080", token=None, data_dir=tmp_path)


def test_a_problem_names_every_field_by_its_path() -> None:
    errors = [FieldError("/body/0/url", "is no URL"), FieldError("", "is\x1b odd")]
    assert explain(Problem(422, "invalid", "…", errors=errors)).splitlines() == [
        "not accepted (422 invalid)",
        "  /body/0/url: is no URL",
        "  /: is␛ odd",
    ]

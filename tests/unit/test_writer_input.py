"""What desks send: sanitised, checked against every limit, and refused with the path of the field that is wrong."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.writer.commands import CorrectEntry, PublishEntry, RetractEntry
from services.writer.requests import Parser, request_fingerprint
from services.writer.sanitise import clean_html, is_url
from shared.documents import TextBlock
from shared.errors import Invalid, Malformed
from shared.instants import milliseconds_of

NOW = milliseconds_of("2022-01-10T18:38:00.000Z")


def parser() -> Parser:
    return Parser(now_milliseconds=lambda: NOW, new_entry_id=lambda: "generated")


def publish(**fields: Any) -> PublishEntry:
    return parser().publish(msgspec.json.encode(fields))


def wrong(parse: Callable[[], object]) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        parse()
    return [(path, problem) for path, problem in caught.value.errors]


def paths(**fields: Any) -> list[str]:
    return [path for path, _ in wrong(lambda: publish(**fields))]


@given(st.text(max_size=200) | st.from_regex(r"(<[a-z]+ ?[a-z]*=?['\"]?[a-z:/]*['\"]?>|</[a-z]+>|&[a-z]+;|[ <>&'\"])*"))
@settings(deadline=None)
def test_sanitising_twice_changes_nothing_more(html: str) -> None:
    once = clean_html(html)
    assert clean_html(once) == once


@pytest.mark.parametrize(
    ("html", "clean"),
    [
        ("plain & simple", "plain &amp; simple"),
        ("<strong>a</strong> <em>b</em><br>c", "<strong>a</strong> <em>b</em><br>c"),
        ('<a href="https://example.org/x" onclick="x()" target=_blank>a</a>', '<a href="https://example.org/x">a</a>'),
        ('<a href="javascript:alert(1)">a</a>', "<a>a</a>"),
        ('<a href="//example.org">a</a>', "<a>a</a>"),
        ('<a href="/relative">a</a>', "<a>a</a>"),
        ('<a href="mailto:desk@example.org">a</a>', '<a href="mailto:desk@example.org">a</a>'),
        ("<script>alert(1)</script>b", "b"),
        ("<p>a</p><img src=x onerror=alert(1)>", "a"),
        ("<style>x</style><svg onload=alert(1)>b", "b"),
        ("<b>bold</b>", "bold"),
    ],
)
def test_only_the_inline_subset_is_left(html: str, clean: str) -> None:
    assert clean_html(html) == clean


@pytest.mark.parametrize("url", ["http://a", "https://example.org/ä?q=1#f", "mailto:a@b", "HTTPS://EXAMPLE.org:8080/"])
def test_absolute_web_and_mail_urls_are_urls(url: str) -> None:
    assert is_url(url)


@pytest.mark.parametrize(
    "url",
    ["", "a", "/a", "//a", "ftp://a", "javascript:alert(1)", "https://", "https:a", "mailto:a", "https://a b", "https://a\n",
     "https://a:99999", "https://[", "data:text/html,x", " https://a", "https://a\"onx=", "java\tscript:alert(1)"],
)  # fmt: skip
def test_nothing_else_is_a_url(url: str) -> None:
    assert not is_url(url)


def test_a_full_entry_is_taken_as_it_was_sent() -> None:
    command = publish(
        id="A_b-1", published_at="2022-01-10T19:38:00+01:00", headline="H", body=[{"type": "text", "html": "t"}],
        authors=[{"name": "n"}], tags=["x", "y", "x"], key_event=True,
    )  # fmt: skip
    assert (command.entry, command.chosen, command.published_at) == ("A_b-1", True, "2022-01-10T18:38:00.000Z")
    assert command.content.tags == ["x", "y"]
    assert command.content.body == [TextBlock(html="t")]


def test_an_entry_without_an_id_gets_one() -> None:
    command = publish(headline="H")
    assert (command.entry, command.chosen) == ("generated", False)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "/headline"),
        ({"headline": "  "}, "/headline"),
        ({"headline": "x" * 501}, "/headline"),
        ({"headline": 5}, "/headline"),
        ({"headline": "x", "colour": "red"}, "/colour"),
        ({"headline": "x", "id": "a b"}, "/id"),
        ({"headline": "x", "id": ""}, "/id"),
        ({"headline": "x", "id": "x" * 65}, "/id"),
        ({"headline": "x", "published_at": "yesterday"}, "/published_at"),
        ({"headline": "x", "published_at": "2022-01-10T18:43:00.001Z"}, "/published_at"),
        ({"headline": "x", "body": [{"type": "text", "html": "x"}] * 101}, "/body"),
        ({"body": [{"type": "text", "html": "ok"}, {"type": "text", "html": "<script>x</script>"}]}, "/body/1/html"),
        ({"body": [{"type": "text"}]}, "/body/0/html"),
        ({"body": [{"type": "video"}]}, "/body/0/type"),
        ({"body": [{"type": "text", "html": "x", "y": 1}]}, "/body/0/y"),
        ({"body": [{"type": "image", "url": "javascript:x", "alt": ""}]}, "/body/0/url"),
        ({"body": [{"type": "link_card", "url": "http://a", "title": " "}]}, "/body/0/title"),
        ({"body": [{"type": "link_card", "url": "http://a", "title": "t", "image": "x"}]}, "/body/0/image"),
        (
            {"body": [{"type": "link_card", "url": "http://a", "title": "t", "published_at": "x"}]},
            "/body/0/published_at",
        ),
        ({"body": [{"type": "embed", "url": "x"}]}, "/body/0/url"),
        ({"body": [{"type": "list", "items": []}]}, "/body/0/items"),
        ({"body": [{"type": "list", "items": ["a", " "]}]}, "/body/0/items/1"),
        ({"headline": "x", "authors": [{"name": ""}]}, "/authors/0/name"),
        ({"headline": "x", "tags": ["t"] * 33}, "/tags"),
        ({"headline": "x", "tags": ["t", "x" * 65]}, "/tags/1"),
        ({"headline": "x", "key_event": "yes"}, "/key_event"),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], path: str) -> None:
    assert paths(**fields) == [path]


def test_a_refusal_names_every_field_that_is_wrong() -> None:
    assert paths(headline="x" * 501, tags=[""], published_at="x") == ["/published_at", "/headline", "/tags/0"]


def test_an_instant_up_to_five_minutes_ahead_is_published() -> None:
    assert publish(headline="x", published_at="2022-01-10T18:43:00.000Z").published_at == "2022-01-10T18:43:00.000Z"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "/title"),
        ({"title": " "}, "/title"),
        ({"title": "t", "language": "english please"}, "/language"),
        ({"title": "t", "timezone": "Europe/Atlantis"}, "/timezone"),
        ({"title": "t", "topics": ["x"] * 17}, "/topics"),
        ({"title": "t", "image": {"url": "x", "alt": ""}}, "/image/url"),
        ({"title": "t", "url": "example.org"}, "/url"),
        ({"title": "t", "visibility": "secret"}, "/visibility"),
        ({"title": "t", "status": "closed"}, "/status"),
    ],
)
def test_a_feed_is_refused_by_field_too(fields: dict[str, Any], path: str) -> None:
    body = msgspec.json.encode(fields)
    assert [found for found, _ in wrong(lambda: parser().open_feed(body, only_open=False))] == [path]


@pytest.mark.parametrize("language", ["fr", "pt-BR", "zh-Hant-TW", "sr-Latn", "es-419", "de-1996", "en-x-desk", "und"])
def test_language_tags_of_bcp_47_are_taken(language: str) -> None:
    body = msgspec.json.encode({"title": "t", "language": language})
    assert parser().open_feed(body, only_open=False).fields.language == language


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"headline": "\xff"}', b'{"headline": "\xed\xa0\x80"}', b"[" * 100_000,
     b'{"headline": 5, ]', b'{"headline": "x"} x', b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_what_is_no_json_is_malformed_not_invalid(body: bytes) -> None:
    with pytest.raises(Malformed):
        parser().publish(body)


def test_a_correction_keeps_what_is_absent_and_clears_what_is_null() -> None:
    command = parser().correct(b'{"headline":null,"body":null,"tags":["x"]}', entry="e", revisions=frozenset({1}))
    assert command.changes.headline is None
    assert command.changes.body == []
    assert command.changes.authors is msgspec.UNSET


def test_a_time_cannot_be_cleared() -> None:
    body = b'{"published_at":null}'
    assert wrong(lambda: parser().correct(body, entry="e", revisions=None))[0][0] == "/published_at"


def test_a_batch_names_the_command_and_its_field() -> None:
    commands = [
        {"type": "publish", "headline": "ok"},
        {"type": "correct", "id": "e", "revision": 1, "headline": "x" * 501},
        {"type": "retract", "id": "a b"},
    ]
    body = msgspec.json.encode({"commands": commands})
    assert [path for path, _ in wrong(lambda: parser().batch(body))] == ["/commands/1/headline", "/commands/2/id"]


@pytest.mark.parametrize(
    ("commands", "path"),
    [
        ([], "/commands"),
        ([{"type": "pin", "id": "e"}] * 201, "/commands"),
        ([{"type": "pin"}], "/commands/0/id"),
        ([{"type": "correct", "id": "e", "headline": "x"}], "/commands/0/revision"),
        ([{"type": "destroy", "id": "e"}], "/commands/0/type"),
        ([{"type": "pin", "id": "e", "x": 1}], "/commands/0/x"),
    ],
)
def test_a_batch_is_bounded_and_typed(commands: list[dict[str, Any]], path: str) -> None:
    body = msgspec.json.encode({"commands": commands})
    assert [found for found, _ in wrong(lambda: parser().batch(body))] == [path]


def test_a_batch_takes_all_seven_commands() -> None:
    kinds = ["publish", "correct", "retract", "pin", "unpin", "mark_key_event", "unmark_key_event"]
    extra: dict[str, dict[str, Any]] = {"publish": {"headline": "x"}, "correct": {"revision": 3, "headline": "y"}}
    commands = [{"type": kind, "id": "e", **extra.get(kind, {})} for kind in kinds]
    parsed = parser().batch(msgspec.json.encode({"commands": commands}))
    assert [type(command).__name__ for command in parsed] == [
        "PublishEntry", "CorrectEntry", "RetractEntry", "PinEntry", "UnpinEntry", "MarkKeyEvent", "UnmarkKeyEvent",
    ]  # fmt: skip
    assert isinstance(parsed[1], CorrectEntry)
    assert parsed[1].revisions == frozenset({3})
    assert isinstance(parsed[2], RetractEntry)


def test_the_same_content_has_one_fingerprint_however_it_is_written() -> None:
    first = publish(
        id="e", headline="x", published_at="2022-01-10T18:00:00Z", body=[{"type": "text", "html": "<i>a</i>"}]
    )
    again = publish(
        published_at="2022-01-10T19:00:00.0004+01:00", body=[{"html": "a", "type": "text"}], headline="x", id="e"
    )
    other = publish(id="e", headline="x", body=[{"type": "text", "html": "a"}])
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_requests_are_told_apart_by_method_path_and_content() -> None:
    same = [request_fingerprint("POST", "/a", body) for body in (b'{"a":1,"b":2}', b'{ "b":2, "a":1 }')]
    assert same[0] == same[1]
    assert (
        len({same[0], request_fingerprint("PUT", "/a", b'{"a":1,"b":2}'), request_fingerprint("POST", "/b", b"")}) == 3
    )


def test_html_with_more_markup_than_any_text_has_is_refused_before_it_is_parsed() -> None:
    # Its parsing takes time with the square of its nesting: 250 KB of it would stop the process for seconds.
    assert paths(body=[{"type": "text", "html": "<div>" * 2_001 + "x"}]) == ["/body/0/html"]
    many = [{"type": "text", "html": "<br>" * 1_999 + "x"}] * 6
    assert paths(body=many) == ["/body/5/html"]


def test_an_unknown_field_is_named_as_a_pointer_writes_it() -> None:
    assert paths(headline="x", **{"a/b~c": 1}) == ["/a~1b~0c"]

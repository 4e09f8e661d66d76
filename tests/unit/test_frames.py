"""The wire format, read back by a parser that was written from the standard and shares nothing with what it reads."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway import frames
from tests.integration.gateway_kit import Event, SseParser, WireError

HOSTILE = [
    "\r",
    "\n",
    "\r\n",
    "\n\n",
    "\0",
    "\u2028",
    "\u2029",
    "\u0085",
    "\ufeff",
    "\x0b\x0c\x1c\x1d\x1e",
    "data: x",
    "\ndata: x\n\n",
    "\r\rid: 9-9\r\revent: reset\r\r",
    "\nretry: 1\n",
    ": a comment",
    "</script>",
    '"}\n\nevent: bye\ndata: {"',
    "\\n\\r\\u0000",
    "\U0001f4f0",
]
texts = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40)), max_size=12).map("".join)


def parsed(data: bytes, *, chunk: int | None = None) -> list[Event]:
    """The events of some bytes, which must end where an event ends; `chunk` feeds them so many at a time."""
    parser = SseParser()
    events = [
        event
        for i in range(0, len(data), chunk or len(data))
        for event in parser.feed(data[i : i + (chunk or len(data))])
    ]
    parser.end()
    return events


@given(text=texts, key=texts)
def test_whatever_a_document_says_comes_back_as_one_event(text: str, key: str) -> None:
    document = {"headline": text, key: [text, {"html": text}]}
    data = frames.frame("entry", msgspec.json.encode(document), position="1-7")
    assert parsed(data) == [Event("entry", "1-7", document)]


@settings(max_examples=12, deadline=None)
@given(text=texts.filter(bool), chunk=st.integers(1, 7))
def test_hostile_text_of_200_kib_comes_back_whole_however_the_bytes_are_cut(text: str, chunk: int) -> None:
    long = (text * (200 * 1024 // len(text.encode()) + 1))[: 200 * 1024]
    data = frames.frame("entry", msgspec.json.encode({"headline": long}), position="1-7")
    assert parsed(data, chunk=chunk * 16_411) == [Event("entry", "1-7", {"headline": long})]


def test_a_frame_fed_byte_by_byte_is_the_same_frame() -> None:
    document = {"headline": "".join(HOSTILE)}
    data = frames.frame("entry", msgspec.json.encode(document), position="1-7")
    assert parsed(data, chunk=1) == [Event("entry", "1-7", document)]


@pytest.mark.parametrize("data", [b"{}\n", b'{"a":\r1}', b"{}\r\n", b"\n", b"{}\n\nevent: bye\ndata: {}"])
def test_data_with_a_line_break_is_refused(data: bytes) -> None:
    """A pretty-printing encoder would let content end the field and write fields of its own."""
    with pytest.raises(ValueError, match="one line"):
        frames.frame("entry", data, position="1-1")


def test_the_parser_of_these_tests_takes_no_part_for_a_whole() -> None:
    for broken in (
        b"event: a\ndata: {}\n",
        b"event: a\ndata: {}\n\nevent: b",
        b"foo: 1\n\n",
        b"event: a\ndata: {}\ndata: {}\n\n",
    ):
        with pytest.raises(WireError):
            parsed(broken)


def test_a_frame_without_a_position_has_no_id_line() -> None:
    assert frames.frame("reset", b"{}") == b"event: reset\ndata: {}\n\n"


def test_a_ping_can_be_seen_by_scripts_and_moves_no_id() -> None:
    assert parsed(frames.PING) == [Event("ping", None, {})]


def test_live_names_the_feed_and_its_position() -> None:
    assert parsed(frames.live("story", position="2-9")) == [Event("live", "2-9", {"feed": "story"})]


@pytest.mark.parametrize("reason", ["epoch", "repaired", "position", "behind"])
def test_a_reset_names_its_reason_and_moves_no_id(reason: str) -> None:
    assert parsed(frames.reset("story", reason)) == [Event("reset", None, {"feed": "story", "reason": reason})]


def _one(data: bytes) -> Any:
    (event,) = parsed(data)
    return event


def test_the_delay_before_a_reconnect_is_spread() -> None:
    """A fixed delay brings all readers of a lost gateway back in lockstep."""
    least, most = frames.RETRY_MILLISECONDS
    delays = {_one(frames.retry()).data for _ in range(200)}
    assert len(delays) > 100
    assert least <= min(delays) and max(delays) <= most


def test_a_goodbye_spreads_the_reconnects_too() -> None:
    least, most = frames.RETRY_MILLISECONDS
    goodbyes = [_one(frames.bye("draining")) for _ in range(200)]
    assert {(bye.kind, bye.id, bye.data["reason"]) for bye in goodbyes} == {("bye", None, "draining")}
    delays = {bye.data["reconnect_ms"] for bye in goodbyes}
    assert len(delays) > 100
    assert least <= min(delays) and max(delays) <= most


def test_data_is_passed_on_byte_by_byte_and_never_encoded_again() -> None:
    data = json.dumps({"b": 1, "a": "ü"}, ensure_ascii=False, separators=(", ", ": ")).encode()
    assert b"data: " + data + b"\n\n" in frames.frame("entry", data, position="1-1")

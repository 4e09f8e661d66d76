"""An event as a line: whatever stands in the log comes back byte for byte, and the chain tells what it is over."""

import contextlib
import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.instants import milliseconds_of
from shared.ndjson import CHAIN_START, StreamEntry, chained, line_of, parse_line

whole = st.integers(1, 10**18 - 1)
recordings = st.integers(milliseconds_of("0001-01-01T00:00:00.000Z"), milliseconds_of("9999-12-31T23:59:59.999Z"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4).map(msgspec.json.encode)
# What is almost JSON, is JSON but no object, or would break a line.
AWKWARD = (
    b"", b"null", b'"e30="', b"[]", b"1", b"{", b"}", b"{}{}", b" {}", b"{} ", b"{ }", b'{"a":1,"a":2}', b'{"a":\n1}',
     b'{"a":1}\r\n', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":NaN}', b'{"a":"\xe2\x80\xa8"}', b"\x00",
     b'{"a":' * 5000 + b"1" + b"}" * 5000,
)  # fmt: skip
data = json_objects | st.sampled_from(AWKWARD) | st.binary()
entries = st.builds(
    lambda epoch, n, at, envelope, content: entry_of(f"{epoch}-{n}", at, envelope, content),
    whole, whole, recordings, data, data,
)  # fmt: skip


def entry_of(position: str, recorded_at: int, envelope: bytes, content: bytes) -> StreamEntry:
    fields = {b"envelope": envelope, b"content": content, b"recorded_at": str(recorded_at).encode()}
    return StreamEntry(position.encode(), fields)


@pytest.mark.parametrize("text", AWKWARD)
def test_bytes_that_are_no_json_object_come_back_too(text: bytes) -> None:
    entry = entry_of("1-7", 1000, text, text)
    line = line_of(entry)
    assert line.count(b"\n") == 1
    assert parse_line(line) == entry


@given(entries)
def test_any_log_entry_comes_back_byte_for_byte_from_one_line(entry: StreamEntry) -> None:
    line = line_of(entry)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert b"\r" not in line
    assert parse_line(line) == entry


@given(json_objects, json_objects)
def test_an_events_json_stands_in_its_line_as_the_json_that_it_is(envelope: bytes, content: bytes) -> None:
    line = line_of(entry_of("1-7", 1000, envelope, content))
    assert line == (
        b'{"position":"1-7","recorded_at":"1970-01-01T00:00:01.000Z","envelope":%b,"content":%b}\n'
        % (envelope, content)
    )


def test_content_that_is_not_there_is_null() -> None:
    assert line_of(entry_of("1-7", 0, b"{}", b"")).endswith(b'"content":null}\n')


def line(**changes: Any) -> bytes:
    parts: dict[str, Any] = {
        "position": "1-7",
        "recorded_at": "1970-01-01T00:00:01.000Z",
        "envelope": {},
        "content": None,
    }
    return msgspec.json.encode({name: value for name, value in (parts | changes).items() if value is not ...})


def test_the_line_that_bad_ones_differ_from_is_good() -> None:
    assert parse_line(line()) == entry_of("1-7", 1000, b"{}", b"")


@pytest.mark.parametrize(
    "bad",
    [
        b"", b"\n", b"null", b"[]", b"{}", b"{", b"\xff", line() + line(), line()[:-1],
        *(line(**{name: ...}) for name in ("position", "recorded_at", "envelope", "content")),
        *(line(position=position) for position in ("7", "0-1", "1-0", "01-7", 7, None)),
        *(line(recorded_at=at) for at in (1000, "1000", "1970-01-01", "1970-01-01T00:00:01", "yesterday", None)),
        *(line(content=content) for content in (1, True, [], [1], "no base64", "e30", "é")),
        *(line(envelope=envelope) for envelope in (1, False, ["e30="], "no base64")),
        line()[:-5] + b"[" * 5000 + b"]" * 5000 + b"}",
        line()[:-5] + b'"\xff"}',
    ],
)  # fmt: skip
def test_what_is_no_such_line_is_a_value_error(bad: bytes) -> None:
    with pytest.raises(ValueError):
        parse_line(bad)


@given(st.binary())
def test_bytes_from_anywhere_are_an_event_or_a_value_error(found: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert parse_line(found)


def with_field(entry: StreamEntry, field: bytes, value: bytes) -> StreamEntry:
    return StreamEntry(entry.id, {**entry.fields, field: value})


@given(entries, st.binary())
def test_the_chain_does_not_see_the_content(entry: StreamEntry, content: bytes) -> None:
    assert chained(CHAIN_START, with_field(entry, b"content", content)) == chained(CHAIN_START, entry)


@given(entries, entries)
def test_the_chain_sees_position_recording_and_envelope(entry: StreamEntry, other: StreamEntry) -> None:
    was = chained(CHAIN_START, entry)
    assert (chained(CHAIN_START, StreamEntry(other.id, entry.fields)) == was) == (other.id == entry.id)
    for field in (b"recorded_at", b"envelope"):
        changed = with_field(entry, field, other.fields[field])
        assert (chained(CHAIN_START, changed) == was) == (changed == entry)


@given(entries, entries)
def test_the_chain_sees_the_order_and_what_came_before(first: StreamEntry, second: StreamEntry) -> None:
    one_way = chained(chained(CHAIN_START, first), second)
    assert chained(CHAIN_START, second) != one_way
    if first.fields != second.fields or first.id != second.id:
        same = all(first.fields[field] == second.fields[field] for field in (b"recorded_at", b"envelope"))
        other_way = chained(chained(CHAIN_START, second), first)
        assert (other_way == one_way) == (same and first.id == second.id)


def test_what_moves_between_fields_changes_the_chain() -> None:
    assert chained(CHAIN_START, entry_of("1-1", 11, b"1{}", b"")) != chained(
        CHAIN_START, entry_of("1-1", 1, b"11{}", b"")
    )


def test_the_chain_is_the_one_that_stands_in_archives() -> None:
    """Written out by hand: another chain would refuse every archive there is."""
    start = hashlib.sha256(b"dateline chain 1").hexdigest()
    by_hand = hashlib.sha256(start.encode() + b"3:1-74:10002:{}").hexdigest()
    assert start == CHAIN_START
    assert chained(start, entry_of("1-7", 1000, b"{}", b"anything")) == by_hand

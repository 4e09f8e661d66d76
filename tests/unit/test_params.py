"""Query parameters: what is read, and that every refusal is Invalid and names its parameter."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import params
from services.gateway.cursor import Filters
from shared.errors import Invalid
from shared.instants import parse_instant
from shared.position import Position


def refused(read: Callable[[Mapping[str, str]], object], name: str, text: str) -> str:
    with pytest.raises(Invalid) as caught:
        read({name: text})
    ((path, said),) = caught.value.errors
    assert path == f"/{name}"
    return said


def test_an_empty_query_has_the_defaults_of_the_contract() -> None:
    assert params.filters({}) == Filters(order="newest", since=None, until=None, tag=None, key_events=False)
    assert params.limit({}) == 20
    assert params.snapshot({}) is None
    assert params.catch_up({}) is None
    assert params.position({}, "after") is None


def test_a_parameter_that_the_call_does_not_have_is_refused_by_name() -> None:
    """Ignored, a misspelt filter would give another answer than was asked for."""
    params.only({"limit": "1"}, "limit", "order")
    params.only({}, "limit")
    for query in ({"limit": "1", "Order": "newest"}, {"utm_source": "x"}, {"": ""}):
        with pytest.raises(Invalid) as caught:
            params.only(query, "limit", "order")
        assert [error.path for error in caught.value.errors] == ["/" + list(query)[-1]]


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("100", 100), ("020", 20)])
def test_a_limit_lies_between_1_and_100(text: str, value: int) -> None:
    assert params.limit({"limit": text}) == value
    assert params.snapshot({"snapshot": text}) == value


@pytest.mark.parametrize(
    "text", ["", "0", "101", "-1", "+5", "5.0", "1e1", "٥", "²", " 5", "5 ", "0x5", "9" * 10, "9" * 5000, "5\n", "None"]
)
def test_any_other_limit_is_refused(text: str) -> None:
    assert "1 to 100" in refused(params.limit, "limit", text)
    assert "1 to 100" in refused(params.snapshot, "snapshot", text)


def test_catch_up_of_nothing_at_all_is_a_wish_too() -> None:
    assert params.catch_up({"catch_up": "0"}) == 0


@pytest.mark.parametrize("text", ["", "-1", "1000001", "x", "٥"])
def test_any_other_catch_up_is_refused(text: str) -> None:
    refused(params.catch_up, "catch_up", text)


@pytest.mark.parametrize("text", ["", "Newest", "asc", "newest ", "oldest,newest"])
def test_an_order_is_one_of_two_words(text: str) -> None:
    refused(params.filters, "order", text)


@pytest.mark.parametrize("text", ["", "1", "True", "yes", "false "])
def test_key_events_is_true_or_false(text: str) -> None:
    refused(params.filters, "key_events", text)
    assert params.filters({"key_events": "false"}) == Filters()
    assert params.filters({"key_events": "true"}).key_events


@pytest.mark.parametrize("text", ["", "x" * 65])
def test_a_tag_has_1_to_64_characters(text: str) -> None:
    refused(params.filters, "tag", text)
    assert params.filters({"tag": "ü" * 64}).tag == "ü" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2024-05-01",
        "2024-05-01T12:00:00",
        "2024-05-01T12:00Z",
        "2024-13-01T12:00:00Z",
        "2024-05-01T25:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "10000-01-01T00:00:00Z",
        "٢٠٢٤-05-01T12:00:00Z",
        "2024-05-01T12:00:00Z\n",
        "2024-05-01T12:00:00.Z",
        "now",
    ],
)
def test_an_instant_is_rfc_3339_with_an_offset(text: str) -> None:
    refused(params.filters, "since", text)
    refused(params.filters, "until", text)


@given(
    at=st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)),
    minutes=st.integers(-23 * 60, 23 * 60),
)
def test_an_instant_means_the_same_whatever_its_offset(at: datetime, minutes: int) -> None:
    sign, size = ("-" if minutes < 0 else "+"), abs(minutes)
    text = f"{at.isoformat(timespec='microseconds')}{sign}{size // 60:02}:{size % 60:02}"
    read = params.filters({"since": text}).since
    assert read is not None
    expected = datetime.fromisoformat(text).astimezone(UTC)
    assert datetime.fromisoformat(read) == expected.replace(microsecond=expected.microsecond // 1000 * 1000)
    assert parse_instant(read) == read


@pytest.mark.parametrize(
    "text", ["", "7", "1-", "-7", "01-7", "1-07", "0-7", "1-0", "1-7 ", "1-7\n", "١-٧", "1-" + "9" * 19]
)
def test_a_position_is_two_whole_numbers(text: str) -> None:
    said = refused(lambda query: params.position(query, "min_position"), "min_position", text)
    assert "<epoch>-<n>" in said
    assert params.position({"after": "3-77"}, "after") == Position(3, 77)


_READERS: list[tuple[str, Callable[[Mapping[str, str]], Any]]] = [
    ("order", params.filters),
    ("since", params.filters),
    ("until", params.filters),
    ("tag", params.filters),
    ("key_events", params.filters),
    ("limit", params.limit),
    ("snapshot", params.snapshot),
    ("catch_up", params.catch_up),
    ("after", lambda query: params.position(query, "after")),
]


@given(text=st.text(max_size=80), reader=st.sampled_from(_READERS))
def test_any_text_is_read_or_refused_by_name_and_nothing_else(
    text: str, reader: tuple[str, Callable[[Mapping[str, str]], Any]]
) -> None:
    name, read = reader
    refused_paths = [f"/{name}"]
    try:
        read({name: text})
    except Invalid as refusal:
        refused_paths = [error.path for error in refusal.errors]
    assert refused_paths == [f"/{name}"]

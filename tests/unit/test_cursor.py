"""Cursors: a round trip for every walk, and ValueError alone for everything that is no cursor of it."""

import base64

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.cursor import Filters, Order, read_cursor, write_cursor
from services.gateway.listing import FeedFilters, Place, _write, read_listing_cursor
from shared.instants import instant_of
from shared.position import Position

# Text that may come out of an URL: no lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
instants = st.integers(-62_135_596_800_000, 253_402_300_799_999).map(instant_of)
orders: st.SearchStrategy[Order] = st.sampled_from(["newest", "oldest"])
filters = st.builds(
    Filters,
    order=orders,
    since=st.none() | instants,
    until=st.none() | instants,
    tag=st.none() | texts,
    key_events=st.booleans(),
)
feeds = st.from_regex(r"[a-z0-9][a-z0-9-]{0,63}", fullmatch=True)
sort_keys = st.builds(
    lambda at, n, entry: f"{at}{n:020d}{entry}",
    instants,
    st.integers(1, 10**18 - 1),
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
)

KEY = "2024-05-01T12:00:00.000Z" + "00000000000000000007" + "entry-1"


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")


@given(feed=feeds, walk=filters, key=sort_keys)
def test_a_cursor_gives_back_its_key(feed: str, walk: Filters, key: str) -> None:
    assert read_cursor(write_cursor(feed, walk, key=key), feed, walk) == key


@given(feed=feeds, walk=filters, key=sort_keys)
def test_a_cursor_stands_in_an_url_as_it_is(feed: str, walk: Filters, key: str) -> None:
    assert set(write_cursor(feed, walk, key=key)) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )


@given(feed=feeds, walk=filters, other=filters, key=sort_keys)
@example(feed="a", walk=Filters(), other=Filters(order="oldest"), key=KEY)
@example(feed="a", walk=Filters(), other=Filters(key_events=True), key=KEY)
@example(feed="a", walk=Filters(tag="x"), other=Filters(tag="y"), key=KEY)
@example(feed="a", walk=Filters(since="2024-05-01T12:00:00.000Z"), other=Filters(), key=KEY)
@example(feed="a", walk=Filters(until="2024-05-01T12:00:00.000Z"), other=Filters(), key=KEY)
def test_a_cursor_goes_on_as_no_other_walk(feed: str, walk: Filters, other: Filters, key: str) -> None:
    cursor = write_cursor(feed, walk, key=key)
    if walk != other:
        with pytest.raises(ValueError, match="another feed, order or filter"):
            read_cursor(cursor, feed, other)


@given(feed=feeds, other=feeds, walk=filters, key=sort_keys)
def test_a_cursor_belongs_to_its_feed(feed: str, other: str, walk: Filters, key: str) -> None:
    cursor = write_cursor(feed, walk, key=key)
    if feed != other:
        with pytest.raises(ValueError, match="another feed"):
            read_cursor(cursor, other, walk)


def refused_or_read(text: str) -> None:
    """ValueError is a refusal; whatever is read instead must be a whole key, since it becomes the bound of a range."""
    try:
        key = read_cursor(text, "story", Filters())
    except ValueError:
        return
    assert len(key) > 44
    assert key.isascii()
    Position(1, int(key[24:44]))


@given(text=st.text(max_size=300))
@example("")
@example("=")
@example("a")
@example("A" * 4001)
@example("\ud800")
@example("é")
@example("AAAA\n")
def test_any_text_is_refused_as_no_cursor(text: str) -> None:
    refused_or_read(text)


@given(data=st.data(), key=sort_keys)
def test_a_mangled_cursor_is_refused_or_still_names_a_key(data: st.DataObject, key: str) -> None:
    """Cut, doubled, or with a character changed: never anything but ValueError."""
    cursor = write_cursor("story", Filters(), key=key)
    at = data.draw(st.integers(0, len(cursor)))
    how = data.draw(st.sampled_from(["cut", "insert", "replace", "double"]))
    character = data.draw(st.characters())
    mangled = {
        "cut": cursor[:at],
        "insert": cursor[:at] + character + cursor[at:],
        "replace": cursor[:at] + character + cursor[at + 1 :],
        "double": cursor + cursor,
    }[how]
    refused_or_read(mangled)


@given(raw=st.binary(max_size=300))
@example(b"\xff\xfe")
@example(b"[" * 5000)
@example(b'[1,"story",{"x":' + b"[" * 3000)
@example(b'[1,"story",{},' + b"9" * 5000 + b"]")
@example(b'[1,"story",{},"\\ud800"]')
@example(b'[1,"story\\u0000",{},"x"]')
def test_any_bytes_in_a_cursor_are_refused(raw: bytes) -> None:
    refused_or_read(base64.urlsafe_b64encode(raw).decode().rstrip("="))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        [1, "story", {}],
        [1, "story", {}, KEY, "more"],
        [2, "story", {}, KEY],
        ["1", "story", {}, KEY],
        [1, "story", {"order": "sideways"}, KEY],
        [1, "story", {"unknown": 1}, KEY],
        [1, "story", {}, ""],
        [1, "story", {}, "+"],
        [1, "story", {}, "-"],
        [1, "story", {}, "[" + KEY],
        [1, "story", {}, KEY[:44]],
        [1, "story", {}, KEY + "\n"],
        [1, "story", {}, KEY + "x" * 64],
        [1, "story", {}, KEY.replace("2024", "٢٠٢٤")],
    ],
)
def test_a_forged_cursor_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        read_cursor(encoded(value), "story", Filters())


# The list of feeds has cursors of its own

feed_filters = st.builds(
    FeedFilters,
    topic=st.none() | texts,
    status=st.none() | st.sampled_from(["open", "paused", "closed"]),
    language=st.none() | texts,
)


@given(walk=feed_filters, other=feed_filters, activity=st.integers(0, 10**14), feed=feeds)
def test_a_cursor_of_the_list_gives_back_its_place_to_its_own_filter(
    walk: FeedFilters, other: FeedFilters, activity: int, feed: str
) -> None:
    cursor = _write(walk, Place(activity, feed))
    assert read_listing_cursor(cursor, walk) == Place(activity, feed)
    if walk != other:
        with pytest.raises(ValueError, match="another filter"):
            read_listing_cursor(cursor, other)


@given(raw=st.binary(max_size=200))
@example(b"[" * 5000)
@example(b'[{"x":' + b"[" * 3000)
@example(b'[{},1,"\\ud800"]')
@example(b"[{}," + b"9" * 5000 + b',"a"]')
@example(b"[{}," + b"9" * 400 + b',"a"]')
@example(b'[{},1e400,"a"]')
@example(b'[{},NaN,"a"]')
@example(b'[{},1,"a b"]')
@example(b'[{},1,""]')
def test_any_bytes_in_a_cursor_of_the_list_are_refused(raw: bytes) -> None:
    try:
        place = read_listing_cursor(base64.urlsafe_b64encode(raw).decode().rstrip("="), FeedFilters())
    except ValueError:
        return
    # What is read goes into a range of scores and a comparison of ids.
    assert 0 <= place.activity < 10**15
    assert place.feed and place.feed.isascii()


@given(text=st.text(max_size=100))
@example("\ud800")
def test_any_text_is_refused_as_no_cursor_of_the_list(text: str) -> None:
    try:
        place = read_listing_cursor(text, FeedFilters())
    except ValueError:
        return
    assert place.feed and place.feed.isascii()


def test_a_cursor_of_a_page_is_none_of_the_list_and_the_other_way_round() -> None:
    with pytest.raises(ValueError):
        read_listing_cursor(write_cursor("story", Filters(), key=KEY), FeedFilters())
    with pytest.raises(ValueError):
        read_cursor(_write(FeedFilters(), Place(1, "story")), "story", Filters())

"""Positions, instants, keys and events: the words that everything else is made of."""

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.documents import Author, TextBlock
from shared.errors import CannotFold, Corrupted, NewerLog
from shared.events import (
    EntryChanges,
    EntryContent,
    EntryCorrected,
    EntryPinned,
    EntryPublished,
    Event,
    FeedChanges,
    FeedRevised,
    decode,
    encode,
)
from shared.instants import INSTANT_CHARACTERS, instant_of, milliseconds_of, parse_instant
from shared.keys import SHARD_TAGS, SHARDS, Keys
from shared.position import Position

whole = st.integers(1, 10**18 - 1)


@given(whole, whole)
def test_a_position_reads_back_what_it_writes(epoch: int, n: int) -> None:
    assert Position.parse(str(Position(epoch, n))) == (epoch, n)


def test_positions_compare_as_integers_not_as_text() -> None:
    assert Position.parse("1-10") > Position.parse("1-9")
    assert Position.parse("10-1") > Position.parse("9-999")


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1", "0-1", "1-0", "01-1", "1-01", "1-1 ", "١-١", "1-1-1", "1-" + "9" * 19]
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a position is"):
        Position.parse(text)


offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29), timezones=offsets))
def test_an_instant_is_the_same_moment_in_utc_with_milliseconds(at: datetime) -> None:
    instant = parse_instant(at.isoformat())
    assert len(instant) == INSTANT_CHARACTERS
    assert instant.endswith("Z")
    lost = at.astimezone(UTC) - datetime.fromisoformat(instant)
    assert timedelta() <= lost < timedelta(milliseconds=1)


@given(st.integers(milliseconds_of("0001-01-01T00:00:00.000Z"), milliseconds_of("9999-12-31T23:59:59.999Z")))
def test_milliseconds_and_instants_are_the_same_thing(milliseconds: int) -> None:
    assert milliseconds_of(instant_of(milliseconds)) == milliseconds


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
def test_instants_sort_as_text(a: datetime, b: datetime) -> None:
    first, second = parse_instant(a.isoformat()), parse_instant(b.isoformat())
    if first != second:
        assert (first < second) == (a < b)


@pytest.mark.parametrize(
    "text",
    ["2022-01-10", "2022-01-10T18:38:00", "2022-01-10T18:38Z", "2022-13-01T00:00:00Z", "2022-01-10T24:00:01Z",
     "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "10000-01-01T00:00:00Z",
     "2022-01-10T18:38:60Z", "now", "1641839880", "2022-01-10T18:38:00.Z", "2022-01-10T18:38:00+0100"],
)  # fmt: skip
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="instant"):
        parse_instant(text)


def test_offsets_and_fractions_are_read_as_rfc_3339_has_them() -> None:
    assert parse_instant("2022-01-10t19:38:00.1239+01:00") == "2022-01-10T18:38:00.123Z"
    assert parse_instant("2022-01-10 18:38:00z") == "2022-01-10T18:38:00.000Z"


def crc16(data: bytes) -> int:
    """The CRC of Redis Cluster's key slots: CCITT, XMODEM."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x1021) & 0xFFFF if crc & 0x8000 else (crc << 1) & 0xFFFF
    return crc


@pytest.mark.parametrize("masters", [2, 4, 8, 16])
def test_shards_spread_evenly_over_the_masters_of_a_cluster(masters: int) -> None:
    assert crc16(b"123456789") == 0x31C3
    slots = [crc16(tag.encode()) % 16384 for tag in SHARD_TAGS]
    per_master = [sum(slot * masters // 16384 == master for slot in slots) for master in range(masters)]
    assert per_master == [SHARDS // masters] * masters


@given(st.from_regex(r"[a-z0-9][a-z0-9-]{0,63}", fullmatch=True))
def test_all_keys_of_a_feed_and_its_shard_share_one_hash_tag(feed: str) -> None:
    keys = Keys()
    tag = "{" + SHARD_TAGS[keys.shard_of(feed)] + "}"
    names = [*keys.feed(feed), *keys.shard(keys.shard_of(feed)), *keys.feed(feed).of_generation(7)]
    assert all(f":{tag}:" in name for name in names)


def published(headline: str = "h") -> EntryPublished:
    content = EntryContent(headline=headline, body=[TextBlock(html="x")], authors=[Author(name="a")], tags=["t"])
    return EntryPublished(entry="e", published_at=None, key_event=False, content=content)


def stored(event: Event, **changes: bytes) -> dict[bytes, bytes]:
    encoded = encode(event, command="c", by="ops", causation="r")
    fields = {b"envelope": encoded.envelope, b"content": encoded.content, b"recorded_at": b"1000"}
    return fields | {name.encode(): value for name, value in changes.items()}


@pytest.mark.parametrize(
    "event",
    [
        published(),
        EntryCorrected(
            entry="e", revision=2, published_at=None, content=EntryChanges(headline=None, correction_note=None)
        ),
        EntryPinned(entry="e"),
        FeedRevised(content=FeedChanges(title="t", summary=None)),
    ],
)
def test_an_event_reads_back_what_was_written(event: Event) -> None:
    recorded = decode(b"1-7", stored(event))
    assert recorded.event == event
    assert (recorded.position, recorded.recorded_at) == (Position(1, 7), 1000)
    assert (recorded.envelope.command, recorded.envelope.by, recorded.envelope.causation) == ("c", "ops", "r")


def test_the_envelope_holds_nothing_of_the_content_and_its_digest_is_salted() -> None:
    first, second = (encode(published("a secret"), command="c", by="ops", causation=None) for _ in range(2))
    assert b"secret" not in first.envelope
    digests = [msgspec.json.decode(encoded.envelope)["digest"] for encoded in (first, second)]
    assert digests[0] != digests[1]


def test_content_that_does_not_match_its_digest_cannot_be_folded() -> None:
    fields = stored(published())
    with pytest.raises(CannotFold, match="digest"):
        decode(b"1-1", fields | {b"content": fields[b"content"].replace(b'"h"', b'"H"')})


@pytest.mark.parametrize(
    ("old", "new"), [(b'"version":1', b'"version":2'), (b'"EntryPublished"', b'"EntryTranslated"')]
)
def test_an_event_of_a_newer_release_is_neither_read_nor_set_aside(old: bytes, new: bytes) -> None:
    fields = stored(published())
    with pytest.raises(NewerLog):
        decode(b"1-1", fields | {b"envelope": fields[b"envelope"].replace(old, new)})


@pytest.mark.parametrize("missing", [b"envelope", b"content", b"recorded_at"])
def test_a_stream_entry_that_is_no_event_is_corruption(missing: bytes) -> None:
    fields = stored(published())
    del fields[missing]
    with pytest.raises(Corrupted):
        decode(b"1-1", fields)


@pytest.mark.parametrize("envelope", [b"", b"{", b"[]", b"\xff", b'{"type":"EntryPinned"}'])
def test_an_envelope_that_cannot_be_read_cannot_be_folded(envelope: bytes) -> None:
    with pytest.raises(CannotFold):
        decode(b"1-1", stored(published(), envelope=envelope))

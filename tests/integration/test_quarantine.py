"""The quarantine as operators work on it, on real servers: seen, given up, tried again.

Owns `services.projector.quarantine`. That a record is an input of every fold is test_commit's, that it leaves with a flip
test_rebuild's.
"""

from typing import Any

import msgspec
import pytest

from services.projector.quarantine import Quarantine
from shared.errors import CannotFold, Corrupted, NewerLog, NotQuarantined
from shared.events import Encoded, EntryPinned, Event
from shared.keys import Keys
from shared.position import Position
from shared.quarantine import Discarded, QuarantineRecord, parse_quarantine_record
from shared.redis import Redis, command
from tests.integration.builders import damaged, dump, encoded, published
from tests.integration.rebuild_kit import Owner, an_owner

FEED = "final"
DAMAGED, EARLY = Position(1, 3), Position(1, 4)


@pytest.fixture
async def owner(redis: Redis, keys: Keys) -> Owner:
    """A damaged event, and one about an entry that is not there yet."""
    events: list[Event | Encoded] = [
        published("e1"),
        damaged(published("e2")),
        EntryPinned("e9"),
        published("e9"),
    ]
    return await an_owner(redis, keys, FEED, events)


@pytest.fixture
def quarantine(redis: Redis, keys: Keys, owner: Owner) -> Quarantine:
    return Quarantine(redis, keys)


async def test_records_are_listed_in_order_with_what_each_is_about(quarantine: Quarantine) -> None:
    records = await quarantine.records(FEED)
    assert [(record.position, record.type, record.entry) for record in records] == [
        (str(DAMAGED), "EntryPublished", None),
        (str(EARLY), "EntryPinned", "e9"),
    ]
    assert await quarantine.records("no-such-feed") == []


async def test_the_event_of_a_record_is_the_logs(quarantine: Quarantine) -> None:
    entry = await quarantine.event(FEED, EARLY)
    assert b"EntryPinned" in entry.fields[b"envelope"]


async def test_a_position_that_is_not_in_quarantine_is_not_found(quarantine: Quarantine) -> None:
    with pytest.raises(NotQuarantined, match="1-2"):
        await quarantine.record(FEED, Position(1, 2))
    with pytest.raises(NotQuarantined):
        await quarantine.discard(FEED, Position(1, 2), reason="no", by="ops:anna")
    with pytest.raises(NotQuarantined):
        await quarantine.retry(FEED, Position(1, 2), by="ops:anna")
    with pytest.raises(NotQuarantined):
        await quarantine.event(FEED, Position(1, 99))


async def test_a_discarded_record_is_kept_with_who_and_why_and_the_first_reason_stands(quarantine: Quarantine) -> None:
    record = await quarantine.discard(FEED, DAMAGED, reason="a test feed", by="ops:anna")
    assert record.discarded is not None
    assert (record.discarded.reason, record.discarded.by) == ("a test feed", "ops:anna")
    assert await quarantine.discard(FEED, DAMAGED, reason="another", by="ops:ben") == record
    assert await quarantine.record(FEED, DAMAGED) == record


async def test_what_was_discarded_is_skipped_as_before(owner: Owner, quarantine: Quarantine) -> None:
    await quarantine.discard(FEED, DAMAGED, reason="a test feed", by="ops:anna")
    await owner.ask()
    site = await owner.built()
    assert await owner.keys_of(site.generation) == await owner.keys_of(1)


async def test_a_record_that_another_changed_meanwhile_is_looked_at_again(
    redis: Redis, keys: Keys, quarantine: Quarantine, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = quarantine._raw
    seen = [await raw(FEED, DAMAGED)]
    other = await quarantine.discard(FEED, DAMAGED, reason="first", by="ops:ben")

    async def late(feed: str, position: Position) -> Any:
        return seen.pop() if seen else await raw(feed, position)

    monkeypatch.setattr(quarantine, "_raw", late)
    assert await quarantine.discard(FEED, DAMAGED, reason="second", by="ops:anna") == other


async def test_a_retry_of_an_event_that_cannot_even_be_read_asks_for_nothing(
    redis: Redis, keys: Keys, quarantine: Quarantine
) -> None:
    before = await dump(redis, keys)
    with pytest.raises(CannotFold, match="digest"):
        await quarantine.retry(FEED, DAMAGED, by="ops:anna")
    assert await dump(redis, keys) == before


async def test_a_retry_of_an_event_of_a_newer_release_asks_for_nothing(redis: Redis, keys: Keys, owner: Owner) -> None:
    feed = keys.feed(FEED)
    envelope = msgspec.json.decode(encoded(published("later")).envelope) | {"version": 9}
    fields = ("envelope", msgspec.json.encode(envelope), "content", "", "recorded_at", "1")
    await command(redis, "XADD", feed.log, "1-6", *fields)
    await command(
        redis, "HSET", feed.quarantine, "1-6", msgspec.json.encode(QuarantineRecord("1-6", "", None, None, 1))
    )
    with pytest.raises(NewerLog, match="version 9"):
        await Quarantine(redis, keys).retry(FEED, Position(1, 6), by="ops:anna")
    assert not await redis.exists(feed.build)


async def test_a_retry_asks_for_a_repair_of_this_position(owner: Owner, quarantine: Quarantine) -> None:
    build = await quarantine.retry(FEED, EARLY, by="ops:anna")
    assert (build.reason, build.by, build.without) == ("repair", "ops:anna", frozenset({EARLY}))
    assert "1-4" in build.because
    # There is still no such entry at this place.
    with pytest.raises(CannotFold, match="no such entry"):
        await owner.built()


def test_records_of_before_and_after_are_read_and_others_are_corruption() -> None:
    old = b'{"position":"1-3","reason":"r","type":null,"entry":null,"recorded_at":1}'
    record = parse_quarantine_record(old)
    assert record == QuarantineRecord("1-3", "r", None, None, 1)
    assert msgspec.json.encode(record) == old
    discarded = msgspec.structs.replace(record, discarded=Discarded("why", "ops:anna", 2))
    assert parse_quarantine_record(msgspec.json.encode(discarded)) == discarded
    for other in (b"", b"[]", b"{}", b"\xff"):
        with pytest.raises(Corrupted):
            parse_quarantine_record(other)

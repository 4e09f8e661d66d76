"""Verify on real servers: a clean feed is clean whatever goes on meanwhile, and each kind of damage is found and named.

Owns `services.projector.verify` against feeds that desks wrote. The verb as a process is tests/acceptance/test_verify's.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.projector.verify import feed as feed_module
from services.projector.verify import generation as generation_module
from services.projector.verify import refold as refold_module
from services.projector.verify import write_side as write_side_module
from services.projector.verify.differences import SHOWN_MAX, VALUE_CHARACTERS_MAX
from services.projector.verify.feed import Report, verify_feed
from services.projector.verify.found_keys import FoundKeys
from services.projector.verify.stored import Slice, Stored
from services.projector.worker import BLOCK_SECONDS, Projector
from services.writer.commands import Command, MarkKeyEvent, UnmarkKeyEvent
from services.writer.redaction import Redactions
from shared.errors import FeedNotFound, Refused
from shared.events import Envelope
from shared.keys import Keys
from shared.log import Log, stream_entry
from shared.metrics import Metrics
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.redis import Redis, command, connect_for_blocking
from tests.integration.builders import (
    Projection,
    appending_entry,
    carry_out,
    checkpoint,
    correcting,
    damaged,
    desk_of,
    dump,
    log_entries,
    opening,
    pinning,
    project,
    published,
    publishing,
    retracting,
    revising,
    unpinning,
)
from tests.integration.gateway_kit import on_one_server

pytestmark = on_one_server

FEED = "final"
SKIPPED = "1-25"


async def verified(redis: Redis, keys: Keys, feed: str = FEED) -> Report:
    with FoundKeys(redis, keys) as found_keys:
        await found_keys.walk()
        return await verify_feed(redis, keys, feed, found_keys, progress=lambda stage: None)


def named(report: Report) -> set[tuple[str, str]]:
    assert report.ok == (not report.differences and not report.unjudged and report.refused is None)
    return {(difference.what, difference.which) for difference in report.differences}


async def write_a_history(redis: Redis, keys: Keys) -> None:
    """A feed with every kind of event, one of them in quarantine."""
    desk = desk_of(redis, keys)
    await carry_out(desk, FEED, opening())
    for number in range(12):
        tags = [["goal"], ["goal", "card"], []][number % 3]
        await carry_out(desk, FEED, publishing(f"e{number}", tags=tags, key_event=number % 2 == 0, text="<em>1</em>"))
    await carry_out(desk, FEED, correcting("e1", 1, headline="Half-time", correction_note="the score"))
    await carry_out(desk, FEED, correcting("e2", 1, published_at="2022-01-10T18:38:00.000Z"))
    await carry_out(desk, FEED, pinning("e3"), publishing("after-the-pin"), batch=True)
    await carry_out(desk, FEED, pinning("e4"))
    await carry_out(desk, FEED, unpinning("e4"))
    await carry_out(desk, FEED, MarkKeyEvent("e5"), UnmarkKeyEvent("e6"), batch=True)
    await carry_out(desk, FEED, retracting("e7", "wrong match"))
    await carry_out(desk, FEED, revising(title="The final", status="paused"))
    await Log(redis, keys).append(FEED, appending_entry("broken", event=damaged(published("broken"))))
    await carry_out(desk, FEED, publishing("last", tags=["end"]))


@pytest.fixture
async def history(redis: Redis, keys: Keys) -> None:
    await write_a_history(redis, keys)
    await project(redis, keys, FEED)


async def test_a_feed_as_it_should_be_is_ok_and_nothing_is_written(redis: Redis, keys: Keys, history: None) -> None:
    before = await dump(redis, keys)
    report = await verified(redis, keys)
    assert report.ok and report.differences_count == 0, report
    assert (report.events, report.entries, report.skipped) == (26, 15, 1)
    assert (report.generation, report.checkpoint, report.head) == (1, "1-26", "1-26")
    assert await dump(redis, keys) == before


async def test_a_feed_that_is_not_there_is_an_error(redis: Redis, keys: Keys) -> None:
    with pytest.raises(FeedNotFound):
        await verified(redis, keys)


async def test_a_feed_that_no_projector_came_to_yet_is_compared_as_far_as_it_is(redis: Redis, keys: Keys) -> None:
    await write_a_history(redis, keys)
    report = await verified(redis, keys)
    assert report.ok and report.generation is None and report.events == 26
    await Projection(redis, keys, FEED).take_shard()
    await Projection(redis, keys, FEED).step(events_max=9)
    report = await verified(redis, keys)
    assert report.ok and (report.checkpoint, report.head) == ("1-9", "1-26")


# Damage


async def raw(redis: Redis, *args: Any) -> Any:
    return await command(redis, *args)


async def rewrite(redis: Redis, keys: Keys, change: Callable[[list[StreamEntry]], list[StreamEntry]]) -> None:
    """Put another stream in the log's place."""
    log = keys.feed(FEED).log
    entries = change(await log_entries(redis, keys, FEED))
    await command(redis, "DEL", log)
    for entry in entries:
        fields = [part for pair in entry.fields.items() for part in pair]
        await command(redis, "XADD", log, entry.id, *fields)


def changing(n: int, **fields: bytes) -> Callable[[list[StreamEntry]], list[StreamEntry]]:
    def change(entries: list[StreamEntry]) -> list[StreamEntry]:
        old = entries[n - 1]
        entries[n - 1] = StreamEntry(old.id, {**old.fields, **{name.encode(): value for name, value in fields.items()}})
        return entries

    return change


async def one_byte_of_a_document(redis: Redis, keys: Keys) -> None:
    documents = keys.feed(FEED).of_generation(1).documents
    stored = await raw(redis, "HGET", documents, "e1")
    await raw(redis, "HSET", documents, "e1", stored.replace(b"Half-time", b"half-time"))


async def a_document_too_many(redis: Redis, keys: Keys) -> None:
    await raw(redis, "HSET", keys.feed(FEED).of_generation(1).documents, "nobody", "{}")


async def a_document_missing(redis: Redis, keys: Keys) -> None:
    await raw(redis, "HDEL", keys.feed(FEED).of_generation(1).documents, "e7")


async def a_member_missing(redis: Redis, keys: Keys) -> None:
    await raw(redis, "ZREMRANGEBYRANK", keys.feed(FEED).of_generation(1).indexes + "chronological", 3, 3)


async def a_member_too_many(redis: Redis, keys: Keys) -> None:
    await raw(redis, "ZADD", keys.feed(FEED).of_generation(1).indexes + "tag:goal", 0, "0" * 44 + "e7")


async def a_member_in_the_place_of_another(redis: Redis, keys: Keys) -> None:
    index = keys.feed(FEED).of_generation(1).indexes + "changed"
    await raw(redis, "ZREMRANGEBYRANK", index, 3, 3)
    await raw(redis, "ZADD", index, 0, b"\xff\xfe")


async def a_member_with_a_score(redis: Redis, keys: Keys) -> None:
    index = keys.feed(FEED).of_generation(1).indexes + "pinned"
    [member] = await raw(redis, "ZRANGE", index, 0, -1)
    await raw(redis, "ZADD", index, 1, member)


async def an_index_missing(redis: Redis, keys: Keys) -> None:
    await raw(redis, "DEL", keys.feed(FEED).of_generation(1).indexes + "tag:card")


async def an_index_too_many(redis: Redis, keys: Keys) -> None:
    await raw(redis, "ZADD", keys.feed(FEED).of_generation(1).indexes + "tag:ghost", 0, "boo")


async def an_index_of_another_type(redis: Redis, keys: Keys) -> None:
    await raw(redis, "SET", keys.feed(FEED).of_generation(1).indexes + "first_published", "x")


async def an_index_without_its_name(redis: Redis, keys: Keys) -> None:
    await raw(redis, "SREM", keys.feed(FEED).of_generation(1).names, "tag:card")


async def a_name_without_its_index(redis: Redis, keys: Keys) -> None:
    await raw(redis, "SADD", keys.feed(FEED).of_generation(1).names, "tag:ghost")


async def another_feed_document(redis: Redis, keys: Keys) -> None:
    await raw(redis, "APPEND", keys.feed(FEED).of_generation(1).feed, " ")


async def a_type_that_is_not_the_documents(redis: Redis, keys: Keys) -> None:
    await raw(redis, "SET", keys.feed(FEED).of_generation(1).documents, "x")


def meta(field: str, value: str | None) -> "Damage":
    async def damage(redis: Redis, keys: Keys) -> None:
        key = keys.feed(FEED).of_generation(1).meta
        await (raw(redis, "HDEL", key, field) if value is None else raw(redis, "HSET", key, field, value))

    return damage


def head(field: str, value: str | None) -> "Damage":
    async def damage(redis: Redis, keys: Keys) -> None:
        key = keys.feed(FEED).head
        await (raw(redis, "HDEL", key, field) if value is None else raw(redis, "HSET", key, field, value))

    return damage


def record(entry: str, *, changed: Callable[[list[str]], list[str]] | None) -> "Damage":
    async def damage(redis: Redis, keys: Keys) -> None:
        key = keys.feed(FEED).entries
        if changed is None:
            await raw(redis, "HDEL", key, entry)
            return
        stored = await raw(redis, "HGET", key, entry) or b"published 1 1-3 f"
        await raw(redis, "HSET", key, entry, " ".join(changed(stored.decode().split(" "))))

    return damage


def log_with(change: Callable[[list[StreamEntry]], list[StreamEntry]]) -> "Damage":
    async def damage(redis: Redis, keys: Keys) -> None:
        await rewrite(redis, keys, change)

    return damage


def without(n: int) -> Callable[[list[StreamEntry]], list[StreamEntry]]:
    return lambda entries: entries[: n - 1] + entries[n:]


async def a_lost_dirty_flag(redis: Redis, keys: Keys) -> None:
    await carry_out(desk_of(redis, keys), FEED, publishing("unseen"))
    await raw(redis, "SREM", keys.shard(keys.shard_of(FEED)).dirty, FEED)


async def another_activity(redis: Redis, keys: Keys) -> None:
    await raw(redis, "ZINCRBY", keys.shard(keys.shard_of(FEED)).feeds, "0.5", FEED)


async def a_lost_quarantine_record(redis: Redis, keys: Keys) -> None:
    await raw(redis, "HDEL", keys.feed(FEED).quarantine, SKIPPED)


async def a_quarantine_record_of_nothing(redis: Redis, keys: Keys) -> None:
    stored = await raw(redis, "HGET", keys.feed(FEED).quarantine, SKIPPED)
    await raw(redis, "HSET", keys.feed(FEED).quarantine, "1-99", stored.replace(SKIPPED.encode(), b"1-99"))


async def a_quarantine_record_of_a_good_event(redis: Redis, keys: Keys) -> None:
    stored = await raw(redis, "HGET", keys.feed(FEED).quarantine, SKIPPED)
    await raw(redis, "HSET", keys.feed(FEED).quarantine, "1-14", stored)


async def a_generation_that_was_never_given(redis: Redis, keys: Keys) -> None:
    await raw(redis, "DEL", keys.feed(FEED).generations)


async def no_active_generation(redis: Redis, keys: Keys) -> None:
    await raw(redis, "DEL", keys.feed(FEED).active)


async def an_epoch_that_nobody_raised(redis: Redis, keys: Keys) -> None:
    def renamed(entries: list[StreamEntry]) -> list[StreamEntry]:
        return [*entries[:-1], StreamEntry(b"2-26", entries[-1].fields)]

    await rewrite(redis, keys, renamed)


Damage = Callable[[Redis, Keys], Awaitable[None]]

DAMAGES: Mapping[str, tuple[Damage, tuple[str, str]]] = {
    "one byte of a document": (one_byte_of_a_document, ("document", "e1")),
    "a document too many": (a_document_too_many, ("document", "nobody")),
    "a document missing": (a_document_missing, ("document", "e7")),
    "a member missing": (a_member_missing, ("index", "chronological")),
    "a member too many": (a_member_too_many, ("index", "tag:goal")),
    "a member in the place of another": (a_member_in_the_place_of_another, ("index", "changed")),
    "a member with a score": (a_member_with_a_score, ("index", "pinned")),
    "an index missing": (an_index_missing, ("index", "tag:card")),
    "an index too many": (an_index_too_many, ("index", "tag:ghost")),
    "an index of another type": (an_index_of_another_type, ("index", "first_published")),
    "an index without its name": (an_index_without_its_name, ("names", "tag:card")),
    "a name without its index": (a_name_without_its_index, ("names", "tag:ghost")),
    "another feed document": (another_feed_document, ("feed document", "feed")),
    "documents of another type": (a_type_that_is_not_the_documents, ("key", "documents")),
    "a checkpoint before": (meta("checkpoint", "1-25"), ("feed document", "feed")),
    "a checkpoint after the log": (meta("checkpoint", "1-27"), ("checkpoint", "generation")),
    "a checkpoint that is none": (meta("checkpoint", "yesterday"), ("log", FEED)),
    "no checkpoint": (meta("checkpoint", None), ("generation", "checkpoint")),
    "no read models": (meta("read_models", None), ("generation", "read_models")),
    "another position of the feed's change": (meta("feed_position", "1-1"), ("feed_position", "generation")),
    "no active generation": (no_active_generation, ("dirty", "feed")),
    "a generation that was never given": (a_generation_that_was_never_given, ("active", "generation")),
    "a head before the log's end": (head("n", "25"), ("head", "position")),
    "a head of another epoch": (head("epoch", "2"), ("head", "position")),
    "another instant in the head": (head("recorded_at", "5"), ("head", "recorded_at")),
    "another status in the head": (head("status", "closed"), ("head", "status")),
    "another version in the head": (head("version", "1"), ("head", "version")),
    "other pins in the head": (head("pins", "20"), ("head", "pins")),
    "another live count": (head("live", "3"), ("head", "live")),
    "no live count": (head("live", None), ("head", "live")),
    "another status of a record": (record("e1", changed=lambda r: ["retracted", *r[1:]]), ("entries", "e1")),
    "another revision of a record": (record("e1", changed=lambda r: [r[0], "1", *r[2:]]), ("entries", "e1")),
    "another position of a record": (record("e1", changed=lambda r: [*r[:2], "1-3", r[3]]), ("entries", "e1")),
    "another fingerprint": (record("e0", changed=lambda r: [*r[:3], "f"]), ("entries", "e0")),
    "another position of a skipped event's record": (
        record("broken", changed=lambda r: [*r[:2], "1-3", r[3]]),
        ("entries", "broken"),
    ),
    "a record missing": (record("last", changed=None), ("entries", "last")),
    "a record too many": (record("nobody", changed=lambda r: r), ("entries", "nobody")),
    "a lost dirty flag": (a_lost_dirty_flag, ("dirty", "feed")),
    "another activity": (another_activity, ("feeds", "activity")),
    "a content removed without a redaction": (log_with(changing(3, content=b"")), ("content", "1-3")),
    "a content of another digest": (log_with(changing(3, content=b"{}")), ("quarantine", "1-3")),
    "a content where an event has none": (log_with(changing(16, content=b"x")), ("content", "1-16")),
    "an instant that runs backwards": (log_with(changing(9, recorded_at=b"1000")), ("recorded_at", "1-9")),
    "an event missing": (log_with(without(9)), ("log", FEED)),
    "the log's end missing": (log_with(without(26)), ("checkpoint", "generation")),
    "the log's beginning missing": (log_with(without(1)), ("log", FEED)),
    "an entry of the stream that is no event": (log_with(changing(9, recorded_at=b"noon")), ("log", FEED)),
    "an epoch that nobody raised": (an_epoch_that_nobody_raised, ("epoch", "2-26")),
    "a lost quarantine record": (a_lost_quarantine_record, ("quarantine", SKIPPED)),
    "a quarantine record of no event": (a_quarantine_record_of_nothing, ("quarantine", "1-99")),
    "a quarantine record of a good event": (a_quarantine_record_of_a_good_event, ("document", "e1")),
}


@pytest.mark.parametrize("kind", DAMAGES)
async def test_damage_is_found_and_named(redis: Redis, keys: Keys, history: None, kind: str) -> None:
    assert (await verified(redis, keys)).ok
    damage, found = DAMAGES[kind]
    await damage(redis, keys)
    report = await verified(redis, keys)
    names = {(what, which.rpartition(":")[2] if what == "key" else which) for what, which in named(report)}
    assert found in names, report


async def test_a_difference_says_what_is_stored_and_what_the_log_gives_around_the_place_where_they_part(
    redis: Redis, keys: Keys, history: None
) -> None:
    await one_byte_of_a_document(redis, keys)
    [difference] = (await verified(redis, keys)).differences
    assert difference.stored is not None and difference.folded is not None
    assert "half-time" in difference.stored and "Half-time" in difference.folded
    assert len(difference.stored) <= VALUE_CHARACTERS_MAX + 2


async def test_all_differences_are_counted_and_the_first_are_shown(redis: Redis, keys: Keys, history: None) -> None:
    documents = keys.feed(FEED).of_generation(1).documents
    for number in range(SHOWN_MAX + 5):
        await raw(redis, "HSET", documents, f"x{number}", "{}")
    report = await verified(redis, keys)
    assert (report.differences_count, len(report.differences)) == (SHOWN_MAX + 5, SHOWN_MAX)


@pytest.mark.parametrize(("field", "value"), [("fold", "99"), ("read_models", "chronological,by_mood")])
async def test_a_generation_of_another_release_is_refused_without_a_list_of_differences(
    redis: Redis, keys: Keys, history: None, field: str, value: str
) -> None:
    await meta(field, value)(redis, keys)
    report = await verified(redis, keys)
    assert not report.ok and not report.differences
    assert report.refused is not None and value.rpartition(",")[2] in report.refused


async def test_an_event_of_a_newer_release_is_refused(redis: Redis, keys: Keys, history: None) -> None:
    newer = Envelope("EntryTranslated", 1, "c", "ann", None, None, {"entry": "e1"})
    await rewrite(redis, keys, changing(26, envelope=msgspec.json.encode(newer), content=b""))
    report = await verified(redis, keys)
    assert not report.ok and report.refused is not None and "EntryTranslated" in report.refused


# Redaction


async def redact(redis: Redis, keys: Keys, entry: str, *, removed: bool = True) -> None:
    redactions = Redactions(redis, keys, Log(redis, keys))
    _, traces = await redactions.append(FEED, entry, reason="order 7", by="ops:ann")
    if removed:
        await redactions.rewrite_log(FEED, [Position.parse(content.position) for content in traces.removed])
        await redactions.remove_traces(FEED, entry, traces)


@pytest.mark.parametrize("entry", ["e1", "e7", "broken"])
async def test_a_redacted_entry_verifies(redis: Redis, keys: Keys, history: None, entry: str) -> None:
    await redact(redis, keys, entry)
    await project(redis, keys, FEED)
    report = await verified(redis, keys)
    assert report.ok, report


async def test_a_redaction_that_left_the_content_in_the_log_is_found(redis: Redis, keys: Keys, history: None) -> None:
    await redact(redis, keys, "e1", removed=False)
    await project(redis, keys, FEED)
    assert named(await verified(redis, keys)) == {("content", "1-3"), ("content", "1-14")}


async def test_a_redaction_that_the_projector_comes_to_late_makes_no_difference(
    redis: Redis, keys: Keys, history: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redact(redis, keys, "e1")
    projection = Projection(redis, keys, FEED)
    looked = write_side_module.WriteSideCheck.head

    async def then_project(check: Any, moment: Any) -> None:
        await looked(check, moment)
        await projection.to_head()

    monkeypatch.setattr(write_side_module.WriteSideCheck, "head", then_project)
    report = await verified(redis, keys)
    assert report.ok, report


async def test_a_redaction_that_the_projector_never_comes_to_leaves_its_entry_unjudged(
    redis: Redis, keys: Keys, history: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "SETTLE_SECONDS_MAX", 0.3)
    await redact(redis, keys, "e1")
    report = await verified(redis, keys)
    assert not report.ok and report.unjudged == ["e1"] and not report.differences


# While desks write and projectors commit


class Meanwhile:
    """Does something before each slice of documents that verify reads, and says how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], Awaitable[None]]) -> None:
        self.times = 0
        read = Stored.documents

        async def after_the_act(stored: Stored, *args: Any) -> Slice:
            self.times += 1
            await act(self.times)
            return await read(stored, *args)

        monkeypatch.setattr(Stored, "documents", after_the_act)
        monkeypatch.setattr(generation_module, "ENTRIES_PER_SLICE", 4)
        monkeypatch.setattr(write_side_module, "ENTRIES_PER_SLICE", 4)
        monkeypatch.setattr(refold_module, "EVENTS_PER_CHUNK", 7)


async def test_slices_of_different_moments_make_no_difference(
    redis: Redis, keys: Keys, history: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of(redis, keys)
    projection = Projection(redis, keys, FEED)

    async def act(times: int) -> None:
        if times > 12:
            return
        entry = f"e{(times * 5) % 7}"
        looked = await Log(redis, keys).look(FEED, entries=[entry], pins=False, command=None)
        found = looked.records[entry]
        assert found is not None
        await carry_out(desk, FEED, correcting(entry, found.revision, tags=[f"t{times}"], headline=f"h{times}"))
        await carry_out(desk, FEED, publishing(f"new-{times}", tags=["goal"]))
        await carry_out(desk, FEED, MarkKeyEvent(f"new-{times}"))
        if times % 3 == 0:
            await carry_out(desk, FEED, retracting(f"new-{times - 1}"))
        await projection.to_head()

    meanwhile = Meanwhile(monkeypatch, act)
    report = await verified(redis, keys)
    assert report.ok, report
    assert meanwhile.times > 6 and report.events > 26 + 12


async def test_damage_is_found_though_everything_moves(
    redis: Redis, keys: Keys, history: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of(redis, keys)
    await a_member_too_many(redis, keys)
    await raw(redis, "HSET", keys.feed(FEED).of_generation(1).documents, "e9", "{}")

    async def act(times: int) -> None:
        if times < 8:
            await carry_out(desk, FEED, publishing(f"new-{times}", tags=["goal"]))
            await project(redis, keys, FEED)

    Meanwhile(monkeypatch, act)
    report = await verified(redis, keys)
    assert named(report) == {("document", "e9"), ("index", "tag:goal")} and report.differences_count == 2


async def test_an_entry_that_changes_between_any_two_looks_is_said_to_be_unjudged(
    redis: Redis, keys: Keys, history: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of(redis, keys)
    monkeypatch.setattr(generation_module, "LOOKS_MAX", 5)
    monkeypatch.setattr(feed_module, "SETTLE_SECONDS_MAX", 0.1)

    async def act(times: int) -> None:
        await carry_out(desk, FEED, correcting("e0", times, headline=f"h{times}"))
        await project(redis, keys, FEED)

    Meanwhile(monkeypatch, act)
    report = await verified(redis, keys)
    assert report.unjudged == ["e0"] and not report.differences


async def copy_generation(redis: Redis, keys: Keys, before: int, after: int) -> None:
    """Another generation with everything that this one has, and make it active, in one step."""
    feed = keys.feed(FEED)
    pipeline = redis.pipeline(transaction=True)
    prefix = f"{feed.generation}{before}:"
    for key in [key.decode() async for key in redis.scan_iter(match=f"{prefix}*", count=1000)]:
        pipeline.copy(key, f"{feed.generation}{after}:{key.removeprefix(prefix)}")
    pipeline.set(feed.generations, after)
    pipeline.set(feed.active, after)
    await pipeline.execute()


async def remove_generation(redis: Redis, keys: Keys, generation: int) -> None:
    async for key in redis.scan_iter(match=f"{keys.feed(FEED).generation}{generation}:*", count=1000):
        await raw(redis, "UNLINK", key)


async def test_a_generation_that_is_switched_meanwhile_is_compared_anew(
    redis: Redis, keys: Keys, history: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(times: int) -> None:
        if times == 3:
            await copy_generation(redis, keys, 1, 2)
            await remove_generation(redis, keys, 1)
            await carry_out(desk_of(redis, keys), FEED, publishing("new", tags=["new"]))
            await project(redis, keys, FEED)

    Meanwhile(monkeypatch, act)
    report = await verified(redis, keys)
    assert report.ok and report.generation == 2 and report.checkpoint == "1-27", report


async def test_damage_to_the_generation_that_was_switched_to_is_found_and_that_of_the_former_one_forgotten(
    redis: Redis, keys: Keys, history: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = keys.feed(FEED)
    await raw(redis, "HSET", feed.of_generation(1).documents, "e0", "damaged")

    async def act(times: int) -> None:
        if times == 3:
            await copy_generation(redis, keys, 1, 2)
            pristine = await raw(redis, "HGET", feed.of_generation(2).documents, "e1")
            await raw(redis, "HSET", feed.of_generation(2).documents, "e0", pristine, "e3", "x")
            await raw(redis, "ZADD", feed.of_generation(2).indexes + "tag:ghost", 0, "boo")

    Meanwhile(monkeypatch, act)
    report = await verified(redis, keys)
    assert named(report) == {("document", "e0"), ("document", "e3"), ("index", "tag:ghost")}
    assert "damaged" not in [difference.stored for difference in report.differences]


async def test_an_event_that_left_the_quarantine_is_folded_in_its_place(
    redis: Redis, keys: Keys, history: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record stood in the quarantine, though the event can be folded; it was taken out and the feed built anew."""
    feed = keys.feed(FEED)
    stored = await raw(redis, "HGET", feed.quarantine, SKIPPED)
    position = await checkpoint(redis, keys, FEED)
    await carry_out(desk_of(redis, keys), FEED, publishing("held-back"))
    held_back = str(Position.parse(position or "").next())
    [entry] = [e for e in await log_entries(redis, keys, FEED) if e.id.decode() == held_back]
    its = {**msgspec.json.decode(stored), "position": held_back, "recorded_at": int(entry.fields[b"recorded_at"])}
    await raw(redis, "HSET", feed.quarantine, held_back, msgspec.json.encode(its))
    await project(redis, keys, FEED)
    report = await verified(redis, keys)
    assert report.ok and report.skipped == 2, report

    async def act(times: int) -> None:
        if times == 2:
            await raw(redis, "HDEL", feed.quarantine, held_back)
            await raw(redis, "DEL", feed.active)
            await project(redis, keys, FEED)

    Meanwhile(monkeypatch, act)
    report = await verified(redis, keys)
    assert report.ok and report.skipped == 1 and report.generation == 2, report


async def test_a_feed_verifies_while_desks_write_and_a_projector_commits(
    server: Any, redis: Redis, keys: Keys, history: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "ENTRIES_PER_SLICE", 4)
    blocking = connect_for_blocking(server.url, block_seconds=BLOCK_SECONDS)
    await raw(redis, "DEL", keys.shard(keys.shard_of(FEED)).lease)
    projector = asyncio.create_task(Projector(redis, blocking, keys, Metrics(), owner="p").run())
    writing = asyncio.create_task(write_at_random(redis, keys))
    try:
        for _ in range(4):
            report = await verified(redis, keys)
            assert report.ok, report
        assert not writing.done()
    finally:
        for task in (writing, projector):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await blocking.aclose()


async def write_at_random(redis: Redis, keys: Keys) -> None:
    desk = desk_of(redis, keys)
    number = 0
    while True:
        number += 1
        commands: list[Command] = [publishing(f"w{number}", tags=[f"t{number % 5}"]), pinning("e0"), unpinning("e0")]
        for one in (*commands, correcting("e8", number, headline=f"h{number}"), retracting(f"w{number - 3}")):
            with suppress(Refused):
                await carry_out(desk, FEED, one)


# Any damage to any key


KINDS = ("publish", "publish", "publish", "correct", "retract", "pin", "unpin", "mark", "unmark", "revise")
steps = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 7), st.integers(0, 9)), min_size=8, max_size=20)


async def write(redis: Redis, keys: Keys, plan: list[tuple[str, int, int]]) -> None:
    desk = desk_of(redis, keys)
    await carry_out(desk, FEED, opening())
    await carry_out(desk, FEED, publishing("e0", tags=["goal"], key_event=True))
    revisions: dict[str, int] = {"e0": 1}
    for kind, number, variant in plan:
        entry = f"e{number}"
        one: Mapping[str, Command] = {
            "publish": publishing(entry, tags=["goal", "card"][: variant % 3], key_event=variant > 5),
            "correct": correcting(entry, revisions.get(entry, 1), headline=f"h{variant}"),
            "retract": retracting(entry),
            "pin": pinning(entry),
            "unpin": unpinning(entry),
            "mark": MarkKeyEvent(entry),
            "unmark": UnmarkKeyEvent(entry),
            "revise": revising(title=f"t{variant}"),
        }
        with suppress(Refused):
            outcome = await carry_out(desk, FEED, one[kind])
            revisions[entry] = getattr(outcome.documents[0], "revision", 1)
    await project(redis, keys, FEED)


def is_compared(key: str) -> bool:
    """What verify answers for: a feed's truth and read models; not hints, leases, idempotency and what builds leave."""
    shard, _, part = key.partition(f":f:{FEED}:")
    return (
        shard.endswith(":feeds") or part in ("log", "head", "entries", "active", "quarantine") or part.startswith("g1:")
    )


async def harm(redis: Redis, key: str, kind: str, choose: Callable[[int], int]) -> str:
    """Change one thing of one key; gives what."""
    if choose(8) == 0:
        await raw(redis, "DEL", key)
        return "deleted"
    if choose(8) == 0:
        await raw(redis, "DEL", key)
        await (raw(redis, "SADD", key, "x") if kind != "set" else raw(redis, "SET", key, "x"))
        return "of another type"
    if kind == "string":
        value = bytearray(await raw(redis, "GET", key))
        value[choose(len(value))] ^= 1
        await raw(redis, "SET", key, bytes(value))
        return f"now {bytes(value)!r}"
    if kind == "hash":
        fields = sorted(await raw(redis, "HKEYS", key))
        field = fields[choose(len(fields))]
        value = bytearray(await raw(redis, "HGET", key, field))
        if choose(3) == 0:
            await raw(redis, "HDEL", key, field)
            return f"without {field!r}"
        value[choose(len(value))] ^= 1
        await raw(redis, "HSET", key, field, bytes(value))
        return f"{field!r} is now {bytes(value)!r}"
    if kind == "set":
        members = sorted(await raw(redis, "SMEMBERS", key))
        await raw(redis, "SREM", key, members[choose(len(members))])
        return "without a member"
    if kind == "zset":
        members = await raw(redis, "ZRANGE", key, 0, -1)
        member = members[choose(len(members))]
        match choose(3):
            case 0:
                await raw(redis, "ZREM", key, member)
            case 1:
                await raw(redis, "ZINCRBY", key, 1, member)
            case _:
                await raw(redis, "ZREM", key, member)
                await raw(redis, "ZADD", key, 0, member[:-1] + bytes([member[-1] ^ 1]))
        return f"{member!r} is gone or another"
    entries = [stream_entry(item) for item in await raw(redis, "XRANGE", key, "-", "+")]
    at = choose(len(entries))
    what = f"without {entries[at].id!r}"
    if choose(2):
        del entries[at]
    else:
        content = bytearray(entries[at].fields[b"content"]) or bytearray(b"x")
        content[choose(len(content))] ^= 1
        entries[at] = StreamEntry(entries[at].id, {**entries[at].fields, b"content": bytes(content)})
        what = f"{entries[at].id!r} has another content"
    await raw(redis, "DEL", key)
    for entry in entries:
        await raw(redis, "XADD", key, entry.id, *(part for pair in entry.fields.items() for part in pair))
    return what


@settings(
    max_examples=15,
    # Shrinking means hundreds of histories more; what was damaged says the failure itself.
    phases=[Phase.generate],
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=steps, choices=st.lists(st.integers(0, 2**16), min_size=12, max_size=12))
async def test_any_damage_to_any_key_of_any_history_is_found(
    redis: Redis, keys: Keys, plan: list[tuple[str, int, int]], choices: list[int]
) -> None:
    fresh = Keys(f"{keys.prefix}-{secrets.token_hex(4)}")
    await write(redis, fresh, plan)
    report = await verified(redis, fresh)
    assert report.ok, report
    dumped = await dump(redis, fresh)
    compared = [key for key in sorted(dumped) if is_compared(key)]
    left = iter(choices)
    key = compared[next(left) % len(compared)]
    what = await harm(redis, key, dumped[key][0], lambda count: next(left) % count)
    with FoundKeys(redis, fresh) as found_keys:
        await found_keys.walk()
        report = await verify_feed(redis, fresh, FEED, found_keys, progress=lambda stage: None)
    assert not report.ok, (key, what)


async def test_all_feeds_are_found_by_their_keys_even_those_that_no_list_names(
    redis: Redis, keys: Keys, history: None
) -> None:
    await carry_out(desk_of(redis, keys), "other", opening())
    await raw(redis, "DEL", keys.shard(keys.shard_of(FEED)).feeds)
    with FoundKeys(redis, keys) as found_keys:
        await found_keys.walk()
        assert found_keys.feeds() == [FEED, "other"]
        assert list(found_keys.of(FEED, b"2")) == []
        assert "tag:goal" in found_keys.of(FEED, b"1")


async def test_appends_that_are_one_command_share_their_mark_in_the_head(redis: Redis, keys: Keys) -> None:
    """Pins and version of a batch are those of its last event, whichever event of it changed them."""
    desk = desk_of(redis, keys)
    await carry_out(desk, FEED, opening())
    await carry_out(desk, FEED, publishing("a"), pinning("a"), publishing("b"), batch=True)
    assert await raw(redis, "HGET", keys.feed(FEED).head, "pins") == b"4"
    assert (await verified(redis, keys)).ok
    await raw(redis, "HSET", keys.feed(FEED).head, "pins", "2")
    assert named(await verified(redis, keys)) == {("head", "pins")}

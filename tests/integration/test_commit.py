"""Commits on real servers: guards that refuse without a trace, frames, quarantine, and the proof that a generation equals the
fold of its log, byte by byte, at every checkpoint.

Owns `pending`, `prepare` and the commit script. Leases are test_lease's, when to commit is test_projector's.
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.projector.commit import BYTES_PER_COMMIT_MAX, EVENTS_PER_COMMIT_MAX, Commits, Frame, prepare
from shared.append import Append, Appended, Guards
from shared.documents import parse_document, parse_feed
from shared.epochs.admission import Admission
from shared.errors import Corrupted, NewerLog
from shared.events import (
    Encoded,
    EntryChanges,
    EntryCorrected,
    EntryPinned,
    EntryPublished,
    EntryRetracted,
    EntryUnpinned,
    Event,
    FeedChanges,
    FeedOpened,
    FeedRevised,
    FeedStatusChanged,
    KeyEventMarked,
    KeyEventUnmarked,
    RetractionReason,
)
from shared.fold import FOLD_VERSION
from shared.instants import milliseconds_of
from shared.keys import Keys
from shared.log import Log, stream_entry
from shared.position import Position
from shared.quarantine import QuarantineRecord
from shared.read_models import READ_MODELS
from shared.redis import Redis, command
from tests.integration.builders import (
    FIELDS,
    Fold,
    Projection,
    appending,
    appending_entry,
    checkpoint,
    content,
    damaged,
    dump,
    encoded,
    folded,
    frames_of,
    generation_of,
    is_dirty,
    log_entries,
    log_positions,
    open_feed,
    published,
)

FEED = "final"
FRAME_BYTES_MAX = 16 * 1024


@pytest.fixture
def log(redis: Redis, keys: Keys) -> Log:
    return Log(redis, keys)


@pytest.fixture
async def projection(redis: Redis, keys: Keys, log: Log) -> Projection:
    """A feed of four events, e1 to e3 published, of which nothing is projected yet."""
    await open_feed(log, FEED)
    for entry in ("e1", "e2", "e3"):
        await log.append(FEED, appending_entry(entry))
    projection = Projection(redis, keys, FEED)
    await projection.take_shard()
    return projection


async def add(log: Log, *events: Event | Encoded) -> None:
    """Append without guards or records: the projector looks at neither."""
    assert isinstance(await log.append(FEED, appending(*events)), Appended)


async def assert_equals_its_fold(redis: Redis, keys: Keys, *, feed: str = FEED, generation: int = 1) -> None:
    whole = folded(feed, await log_entries(redis, keys, feed))
    assert await generation_of(redis, keys, feed, generation) == whole


# Guards


async def raise_the_fence(projection: Projection) -> None:
    await command(projection.redis, "HSET", lease_of(projection), "fence", "2")


async def lose_the_lease(projection: Projection) -> None:
    await command(projection.redis, "DEL", lease_of(projection))


async def switch_the_generation(projection: Projection) -> None:
    """Another generation at the same checkpoint becomes the active one."""
    keys = projection.keys.feed(FEED)
    for of_one, of_two in zip(keys.of_generation(1)[:3], keys.of_generation(2)[:3], strict=True):
        await command(projection.redis, "COPY", of_one, of_two)
    await command(projection.redis, "SET", keys.active, "2")


async def drop_the_generation(projection: Projection) -> None:
    await command(projection.redis, "DEL", projection.keys.feed(FEED).active)


async def commit_before_it(projection: Projection) -> None:
    await projection.step(events_max=1)


def lease_of(projection: Projection) -> str:
    return projection.keys.shard(projection.keys.shard_of(FEED)).lease


REFUSALS: Mapping[str, tuple[Callable[[Projection], Any], str]] = {
    "another projector raised the fence": (raise_the_fence, "fenced"),
    "the lease is gone": (lose_the_lease, "fenced"),
    "another generation is active": (switch_the_generation, "moved"),
    "the generation is gone": (drop_the_generation, "moved"),
    "the checkpoint moved": (commit_before_it, "moved"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_commit_whose_guard_does_not_hold_changes_nothing(projection: Projection, refusal: str) -> None:
    happen, answer = REFUSALS[refusal]
    await projection.step(events_max=2)
    item = await projection.prepared()
    await happen(projection)
    before = await dump(projection.redis, projection.keys)
    assert await projection.commit(item) == answer
    assert await dump(projection.redis, projection.keys) == before


@pytest.mark.parametrize("refusal", ["another projector raised the fence", "the lease is gone"])
async def test_a_first_commit_without_the_fence_changes_nothing(projection: Projection, refusal: str) -> None:
    happen, answer = REFUSALS[refusal]
    item = await projection.prepared()
    await happen(projection)
    before = await dump(projection.redis, projection.keys)
    assert await projection.commit(item) == answer
    assert await dump(projection.redis, projection.keys) == before


async def test_a_first_commit_while_a_generation_exists_changes_nothing(projection: Projection) -> None:
    first, second = await projection.prepared(), await projection.prepared()
    assert [first[2], second[2]] == [1, 2]
    assert await projection.commit(first) == "committed"
    before = await dump(projection.redis, projection.keys)
    assert await projection.commit(second) == "moved"
    assert await dump(projection.redis, projection.keys) == before


@pytest.mark.parametrize("events_max", [2, None])
async def test_a_commit_sent_twice_takes_effect_once(projection: Projection, events_max: int | None) -> None:
    for _ in range(2):
        item = await projection.prepared(events_max=events_max)
        assert await projection.commit(item) == "committed"
        once = await dump(projection.redis, projection.keys)
        assert await projection.commit(item) == "moved"
        assert await dump(projection.redis, projection.keys) == once
        if events_max is None:
            break
    await assert_equals_its_fold(projection.redis, projection.keys)


async def test_the_commits_of_several_feeds_stand_or_fall_each_by_itself(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    number = 0
    while Keys.shard_of(f"n{number}") != Keys.shard_of(FEED):
        number += 1
    other = f"n{number}"
    await open_feed(log, other)
    commits = Commits(redis, keys)
    pending = await commits.pending([FEED, other])
    items = [(item, prepare(item), 1) for item in pending]
    await projection.step(events_max=1)
    assert await commits.commit(items, fence=1) == ["moved", "committed"]
    assert await checkpoint(redis, keys, FEED) == "1-1"
    await assert_equals_its_fold(redis, keys, feed=other)


# What a commit leaves


async def test_a_feed_is_dirty_until_a_commit_reaches_its_head(
    redis: Redis, keys: Keys, projection: Projection
) -> None:
    for reached in ("1-1", "1-2", "1-3"):
        await projection.step(events_max=1)
        assert await checkpoint(redis, keys, FEED) == reached
        assert await is_dirty(redis, keys, FEED)
    await projection.step(events_max=1)
    assert not await is_dirty(redis, keys, FEED)


async def test_a_feed_that_moved_on_while_a_commit_was_under_way_stays_dirty(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    item = await projection.prepared()
    await log.append(FEED, appending_entry("e4"))
    assert await projection.commit(item) == "committed"
    assert await is_dirty(redis, keys, FEED)


async def test_a_feed_of_another_epoch_than_the_commits_stays_dirty(
    redis: Redis, keys: Keys, projection: Projection
) -> None:
    item = await projection.prepared()
    await command(redis, "HSET", keys.feed(FEED).head, "epoch", "2")
    assert await projection.commit(item) == "committed"
    assert await is_dirty(redis, keys, FEED)


async def test_a_feed_without_a_head_stays_dirty(redis: Redis, keys: Keys, projection: Projection) -> None:
    item = await projection.prepared()
    await command(redis, "DEL", keys.feed(FEED).head)
    assert await projection.commit(item) == "committed"
    assert await is_dirty(redis, keys, FEED)


async def test_the_first_commit_makes_a_generation_that_names_its_read_models_and_its_fold(
    redis: Redis, keys: Keys, projection: Projection
) -> None:
    await projection.step()
    assert await redis.get(keys.feed(FEED).active) == b"1"
    models, fold = await command(redis, "HMGET", keys.feed(FEED).of_generation(1).meta, "read_models", "fold")
    assert models.decode().split(",") == list(READ_MODELS)
    assert int(fold) == FOLD_VERSION


async def test_feeds_are_listed_by_their_last_activity(redis: Redis, keys: Keys, projection: Projection) -> None:
    feeds = keys.shard(keys.shard_of(FEED)).feeds
    for _ in range(2):
        await projection.step(events_max=2)
        feed = parse_feed((await generation_of(redis, keys, FEED, 1))["feed"])
        assert await redis.zscore(feeds, FEED) == milliseconds_of(feed.updated_at)
    recorded = [int(entry.fields[b"recorded_at"]) for entry in await log_entries(redis, keys, FEED)]
    assert await redis.zscore(feeds, FEED) == recorded[-1]


async def test_the_feeds_own_last_change_is_kept_apart_from_its_entries(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    async def feed_position() -> Any:
        return (await generation_of(redis, keys, FEED, 1))["feed_position"]

    await projection.step()
    assert await feed_position() == b"1-1"
    await add(log, FeedRevised(content=FeedChanges(title="Replay")))
    await projection.step()
    assert await feed_position() == b"1-5"
    await add(log, published("e4"))
    await projection.step()
    assert await feed_position() == b"1-5"


async def test_a_generation_keeps_exactly_the_read_models_that_it_names(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    await projection.step(events_max=1)
    its = keys.feed(FEED).of_generation(1)
    await command(redis, "HSET", its.meta, "read_models", "chronological,changed")
    await add(log, published("e4", key_event=True, content=content(tags=["goal"])))
    await projection.to_head()
    assert set((await generation_of(redis, keys, FEED, 1))["indexes"]) == {"chronological", "changed"}
    assert await command(redis, "HGET", its.meta, "read_models") == b"chronological,changed"


async def test_a_generation_names_an_index_as_long_as_it_has_a_member(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    """Whoever removes the generation finds its indexes by these names."""

    async def tags() -> set[bytes]:
        await projection.to_head()
        names: set[bytes] = await command(redis, "SMEMBERS", keys.feed(FEED).of_generation(1).names)
        assert b"chronological" in names
        return {name for name in names if name.startswith(b"tag:")}

    await add(log, published("e4", content=content(tags=["goal"])))
    await add(log, published("e5", content=content(tags=["goal", "team"])))
    assert await tags() == {b"tag:goal", b"tag:team"}
    await add(log, EntryRetracted(entry="e5", content=RetractionReason(None)))
    assert await tags() == {b"tag:goal"}


async def test_a_server_that_forgot_the_scripts_gets_them_again(
    redis: Redis, keys: Keys, projection: Projection
) -> None:
    await projection.step(events_max=2)
    await command(redis, "SCRIPT FLUSH")
    item = await projection.prepared()
    await command(redis, "SCRIPT FLUSH")
    assert await projection.commit(item) == "committed"
    await assert_equals_its_fold(redis, keys)


# Bounds


async def test_a_commit_takes_at_most_100_events(redis: Redis, keys: Keys, log: Log, projection: Projection) -> None:
    await add(log, *[published(f"b{number}") for number in range(150)])
    await add(log, *[published(f"c{number}") for number in range(100)])
    sizes = []
    for more in (True, True, False):
        pending, commit, _ = item = await projection.prepared()
        assert pending.more is commit.more is more
        sizes.append(len(commit.frames))
        assert await projection.commit(item) == "committed"
    assert EVENTS_PER_COMMIT_MAX == 100 and sizes == [100, 100, 54]
    await assert_equals_its_fold(redis, keys)


async def test_a_commit_takes_at_most_1_megabyte_and_one_event_however_large(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    sizes = [BYTES_PER_COMMIT_MAX // 2, BYTES_PER_COMMIT_MAX // 2, BYTES_PER_COMMIT_MAX + 1, 10, 10]
    for number, size in enumerate(sizes):
        await add(log, published(f"b{number}", headline="x" * size))
    taken = []
    while True:
        _, commit, _ = item = await projection.prepared()
        taken.append([str(frame.position) for frame in commit.frames])
        assert await projection.commit(item) == "committed"
        if not commit.more:
            break
    assert taken == [["1-1", "1-2", "1-3", "1-4", "1-5"], ["1-6"], ["1-7"], ["1-8", "1-9"]]
    await assert_equals_its_fold(redis, keys)


async def test_a_commit_is_bounded_by_what_it_renders_too(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    """Flags are small, and each renders its whole entry."""
    await add(log, published("large", headline="x" * (BYTES_PER_COMMIT_MAX // 4)))
    await projection.to_head()
    flags: list[Event] = [KeyEventMarked(entry="large"), KeyEventUnmarked(entry="large")] * 5
    await add(log, *flags)
    sizes = []
    for more in (True, True, False):
        pending, commit, _ = item = await projection.prepared()
        assert (pending.more, commit.more) == (False, more)
        sizes.append(len(commit.frames))
        assert await projection.commit(item) == "committed"
    assert sizes == [4, 4, 2]
    await assert_equals_its_fold(redis, keys)


# Frames


async def test_frames_carry_every_position_in_order_with_its_kind_and_its_document(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    await add(
        log,
        EntryCorrected(entry="e1", revision=2, published_at=None, content=EntryChanges(headline="Goal")),
        EntryPinned(entry="e1"),
        KeyEventMarked(entry="e2"),
        EntryRetracted(entry="e2", content=RetractionReason("wrong match")),
        FeedRevised(content=FeedChanges(title="Replay")),
        EntryPinned(entry="e9"),
        FeedStatusChanged(status="closed"),
    )
    while (await projection.commits.pending([FEED]))[0].entries:
        await projection.step(events_max=3)
    frames = await frames_of(redis, keys, FEED)
    assert [(position, kind) for position, kind, _ in frames] == [
        ("1-1", "feed"),
        ("1-2", "entry"),
        ("1-3", "entry"),
        ("1-4", "entry"),
        ("1-5", "entry"),
        ("1-6", "entry"),
        ("1-7", "entry"),
        ("1-8", "retraction"),
        ("1-9", "feed"),
        ("1-10", "skipped"),
        ("1-11", "feed"),
    ]
    whole = Fold(FEED)
    assert frames == [whole.step(entry) for entry in await log_entries(redis, keys, FEED)]
    for position, kind, data in frames:
        if kind != "skipped":
            shown = parse_feed(data) if kind == "feed" else parse_document(data)
            assert shown.position == position
    raw = await command(redis, "XRANGE", keys.shard(keys.shard_of(FEED)).frames, "-", "+")
    instants = [stream_entry(item).fields.get(b"r") for item in raw]
    recorded = [entry.fields[b"recorded_at"] for entry in await log_entries(redis, keys, FEED)]
    assert instants == [None if kind == "skipped" else at for (_, kind, _), at in zip(frames, recorded, strict=True)]


@pytest.mark.parametrize(("beyond", "carried"), [(0, True), (1, False)])
async def test_a_frame_over_16_kib_goes_without_its_payload(
    redis: Redis, keys: Keys, log: Log, projection: Projection, beyond: int, carried: bool
) -> None:
    await projection.step()
    await add(log, published("probe", headline="x"))
    [probe] = (await projection.step()).frames
    await add(log, published("large", headline="x" * (1 + FRAME_BYTES_MAX + beyond - len(probe.data))))
    [large] = (await projection.step()).frames
    assert len(large.data) == FRAME_BYTES_MAX + beyond
    assert (await frames_of(redis, keys, FEED))[-1] == ("1-6", "entry", large.data if carried else b"")
    assert (await generation_of(redis, keys, FEED, 1))["documents"][b"large"] == large.data


async def test_the_frames_are_capped(redis: Redis, keys: Keys, projection: Projection) -> None:
    frames = keys.shard(keys.shard_of(FEED)).frames
    pipeline = redis.pipeline(transaction=False)
    for _ in range(2000):
        pipeline.xadd(frames, {"f": "another", "p": "1-1", "k": "entry", "d": ""})
    await pipeline.execute()
    await projection.step()
    assert await redis.xlen(frames) < 1200
    assert len(await frames_of(redis, keys, FEED)) == 4


# Quarantine


def garbled(event: Event) -> Encoded:
    """A digest that holds, over content that is no JSON."""
    content = b'{"salt": "'
    envelope = msgspec.json.decode(encoded(event).envelope)
    envelope["digest"] = hashlib.sha256(content).hexdigest()
    return Encoded(msgspec.json.encode(envelope), content)


def enveloped(**facts: Any) -> Encoded:
    envelope = msgspec.json.decode(encoded(EntryPinned(entry="e1")).envelope)
    return Encoded(msgspec.json.encode({**envelope, **facts}), b"")


UNFOLDABLE: Mapping[str, tuple[Event | Encoded, str, str | None]] = {
    "a content that is not its digest's": (damaged(published("e9")), "digest", None),
    "a content that cannot be read": (garbled(published("e9")), "cannot be read", None),
    "an envelope that cannot be read": (Encoded(b"{", b""), "envelope", None),
    "an envelope that is not UTF-8": (Encoded(b'{"type": "\xff"}', b""), "envelope", None),
    "a fact that is missing": (enveloped(facts={"entry": None}), "cannot be read", None),
    "a revision that does not follow": (
        EntryCorrected(entry="e1", revision=3, published_at=None, content=EntryChanges(headline="Goal")),
        "revision 3 of an entry at 1",
        "e1",
    ),
    "a revision that stands already": (
        EntryCorrected(entry="e1", revision=1, published_at=None, content=EntryChanges(headline="Goal")),
        "revision 1 of an entry at 1",
        "e1",
    ),
    "an entry that does not exist": (EntryPinned(entry="e9"), "no such entry", "e9"),
    "an entry that exists already": (published("e1"), "exists already", "e1"),
    "a feed that is open already": (FeedOpened(FIELDS), "open already", None),
}


@pytest.mark.parametrize("what", UNFOLDABLE)
async def test_an_event_that_cannot_be_folded_moves_the_position_and_nothing_else(
    redis: Redis, keys: Keys, log: Log, projection: Projection, what: str
) -> None:
    event, reason, entry = UNFOLDABLE[what]
    await projection.step()
    before = await generation_of(redis, keys, FEED, 1)
    await add(log, event)
    commit = await projection.step()
    assert commit.frames == [Frame(Position(1, 5), "skipped", b"")] and commit.folded == 0
    after = await generation_of(redis, keys, FEED, 1)
    feed = msgspec.structs.replace(parse_feed(before["feed"]), position="1-5")
    assert after == {**before, "checkpoint": "1-5", "feed": msgspec.json.encode(feed)}
    assert (await frames_of(redis, keys, FEED))[-1] == ("1-5", "skipped", b"")
    assert not await is_dirty(redis, keys, FEED)
    [(position, record)] = (await log.quarantined(FEED)).items()
    kept = msgspec.json.decode(record, type=QuarantineRecord)
    assert (position, kept.position, kept.entry) == (Position(1, 5), "1-5", entry)
    assert reason in kept.reason
    assert kept.recorded_at == await log.recorded_at(FEED, Position(1, 5))
    # The feed goes on.
    await add(log, published("e5"))
    await projection.step()
    await assert_equals_its_fold(redis, keys)


async def test_an_event_of_a_retracted_entry_is_quarantined(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    retraction = EntryRetracted(entry="e1", content=RetractionReason(None))
    await add(log, retraction, KeyEventMarked(entry="e1"), retraction)
    await projection.step()
    assert set(await log.quarantined(FEED)) == {Position(1, 6), Position(1, 7)}
    await assert_equals_its_fold(redis, keys)


async def test_a_feed_whose_opening_is_quarantined_stays_without_a_document_and_goes_on(
    redis: Redis, keys: Keys, log: Log
) -> None:
    await open_feed(log, FEED, event=damaged(FeedOpened(FIELDS)))
    await log.append(FEED, appending_entry("e1"))
    projection = Projection(redis, keys, FEED)
    await projection.to_head()
    assert set(await log.quarantined(FEED)) == {Position(1, 1), Position(1, 2)}
    assert await checkpoint(redis, keys, FEED) == "1-2" and not await is_dirty(redis, keys, FEED)
    assert not await redis.exists(keys.shard(keys.shard_of(FEED)).feeds)
    await assert_equals_its_fold(redis, keys)
    # A later fold goes on from a checkpoint without a feed.
    await add(log, FeedOpened(FIELDS), published("e2"))
    await projection.to_head()
    await assert_equals_its_fold(redis, keys)
    assert set((await generation_of(redis, keys, FEED, 1))["documents"]) == {b"e2"}


async def test_what_was_skipped_once_is_skipped_by_every_later_fold(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    """The record decides, not whether this release could fold the event: generations must agree."""
    kept = b'{"position": "1-3", "reason": "an older release could not", "type": null, "entry": null, "recorded_at": 0}'
    await command(redis, "HSET", keys.feed(FEED).quarantine, "1-3", kept)
    commit = await projection.step()
    assert [frame.kind for frame in commit.frames] == ["feed", "entry", "skipped", "entry"]
    assert (commit.quarantine, commit.folded) == ({}, 3)
    generation = await generation_of(redis, keys, FEED, 1)
    assert set(generation["documents"]) == {b"e1", b"e3"}
    assert parse_feed(generation["feed"]).entry_count == 2
    assert await log.quarantined(FEED) == {Position(1, 3): kept}


async def test_a_second_fold_quarantines_the_same_events_and_comes_to_the_same_bytes(
    redis: Redis, keys: Keys, log: Log, projection: Projection
) -> None:
    await add(log, damaged(published("e4")), EntryPinned(entry="e4"), published("e5"))
    await projection.to_head()
    quarantined = await log.quarantined(FEED)
    await command(redis, "DEL", keys.feed(FEED).active)
    await projection.to_head()
    assert await log.quarantined(FEED) == quarantined
    assert set(quarantined) == {Position(1, 5), Position(1, 6)}
    assert await generation_of(redis, keys, FEED, 2) == await generation_of(redis, keys, FEED, 1)


# What is left to a newer release, and what stops the process


@pytest.mark.parametrize(
    "event", [enveloped(version=2), enveloped(type="EntryTranslated"), enveloped(type="EntryTranslated", version=7)]
)
async def test_an_event_of_a_newer_release_is_not_quarantined(
    redis: Redis, keys: Keys, log: Log, projection: Projection, event: Encoded
) -> None:
    await projection.step()
    await add(log, published("e4"), event)
    before = await dump(redis, keys)
    with pytest.raises(NewerLog):
        await projection.prepared()
    [pending] = await projection.commits.pending([FEED])
    with pytest.raises(NewerLog):
        prepare(pending)
    assert await dump(redis, keys) == before


async def test_a_generation_with_a_read_model_of_a_newer_release_is_left_alone(
    redis: Redis, keys: Keys, projection: Projection
) -> None:
    await projection.step(events_max=2)
    await command(redis, "HSET", keys.feed(FEED).of_generation(1).meta, "read_models", "chronological,by_mood")
    before = await dump(redis, keys)
    with pytest.raises(NewerLog, match="by_mood"):
        await projection.prepared()
    assert await dump(redis, keys) == before


async def test_a_generation_of_a_newer_fold_is_left_alone(redis: Redis, keys: Keys, projection: Projection) -> None:
    """An older release must not spoil what a newer one built."""
    await projection.step(events_max=2)
    await command(redis, "HSET", keys.feed(FEED).of_generation(1).meta, "fold", str(FOLD_VERSION + 1))
    before = await dump(redis, keys)
    with pytest.raises(NewerLog, match=f"fold {FOLD_VERSION + 1}"):
        await projection.prepared()
    assert await dump(redis, keys) == before


async def test_a_generation_of_an_older_fold_is_folded_no_further_and_nothing_of_it_is_read(
    redis: Redis, keys: Keys, projection: Projection
) -> None:
    """Two folds must not mix in one generation."""
    await projection.step(events_max=2)
    its = keys.feed(FEED).of_generation(1)
    await command(redis, "HSET", its.meta, "fold", str(FOLD_VERSION - 1), "read_models", "of_old")
    await command(redis, "SET", its.feed, "what this release cannot read")
    [pending] = await projection.commits.pending([FEED])
    assert pending.outdated
    assert pending.entries == []


async def raw_event(redis: Redis, keys: Keys, position: str) -> None:
    event = encoded(published("e9"))
    fields = ("envelope", event.envelope, "content", event.content, "recorded_at", "1")
    await command(redis, "XADD", keys.feed(FEED).log, position, *fields)


@pytest.mark.parametrize("projected", [False, True])
async def test_a_gap_in_the_log_is_corruption(
    redis: Redis, keys: Keys, projection: Projection, projected: bool
) -> None:
    if projected:
        await projection.step()
    await raw_event(redis, keys, "1-6")
    before = await dump(redis, keys)
    with pytest.raises(Corrupted, match="1-6 where n must be 5"):
        await projection.prepared()
    assert await dump(redis, keys) == before


async def test_a_log_that_lost_its_beginning_is_corruption(redis: Redis, keys: Keys, projection: Projection) -> None:
    await command(redis, "XTRIM", keys.feed(FEED).log, "MINID", "1-2")
    with pytest.raises(Corrupted, match="1-2 where n must be 1"):
        await projection.prepared()


async def test_a_stream_entry_that_is_no_event_is_corruption(redis: Redis, keys: Keys, projection: Projection) -> None:
    await command(redis, "XADD", keys.feed(FEED).log, "1-5", "what", "no code of ours writes")
    with pytest.raises(Corrupted, match="no event"):
        await projection.prepared()


async def test_a_generation_without_a_checkpoint_is_corruption(
    redis: Redis, keys: Keys, projection: Projection
) -> None:
    await projection.step(events_max=2)
    await command(redis, "HDEL", keys.feed(FEED).of_generation(1).meta, "checkpoint")
    with pytest.raises(Corrupted, match="no checkpoint"):
        await projection.prepared()


async def test_the_fold_goes_on_into_a_new_epoch(redis: Redis, keys: Keys, projection: Projection) -> None:
    await projection.step()
    await raw_event(redis, keys, "2-5")
    await command(redis, "HSET", keys.feed(FEED).head, "epoch", "2", "n", "5")
    await projection.step()
    assert await checkpoint(redis, keys, FEED) == "2-5" and not await is_dirty(redis, keys, FEED)
    await assert_equals_its_fold(redis, keys)


# Any history, any batches

INSTANTS = (
    None,
    "2022-01-10T18:38:00.000Z",
    "2022-01-10T18:38:00.000Z",
    "2022-01-10T19:05:00.000Z",
    "0001-01-01T00:00:00.000Z",
)
TAGS = ((), ("goal",), ("goal", "card"), ("Übertragung:1",))
# As often as they stand here.
KINDS = (
    *("publish",) * 5,
    *("correct",) * 5,
    *("pin", "pin", "unpin"),
    *("mark", "mark", "unmark"),
    *("revise", "status", "retract"),
    *("open", "damage", "misrevise"),
)

Op = tuple[str, int, int]
ops = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 19)), min_size=25, max_size=60)


def history(steps: list[Op]) -> list[Event | Encoded]:
    """Events that fit more often than not: corrections follow the revision that the entry would have."""
    revisions: dict[str, int] = {}
    events: list[Event | Encoded] = []
    for kind, number, variant in steps:
        entry = f"e{number}"
        if kind == "correct" and entry in revisions:
            revisions[entry] += 1
        if kind == "publish":
            revisions.setdefault(entry, 1)
        events.append(event_of(kind, entry, variant, revisions.get(entry, 1)))
        if kind == "retract":
            # Whatever comes after does not fit any more.
            revisions.pop(entry, None)
    return events


def event_of(kind: str, entry: str, variant: int, revision: int) -> Event | Encoded:
    at, tags = INSTANTS[variant % len(INSTANTS)], TAGS[variant % len(TAGS)]
    changes: dict[str, Any] = {"headline": f"h{variant}"} if variant % 3 else {"tags": list(tags)}
    if variant % 5 == 0:
        changes["correction_note"] = None if variant else "a note"
    simple: dict[str, Event | Encoded] = {
        "publish": EntryPublished(entry, at, variant % 2 == 0, content(f"h{variant}", tags=tags)),
        "correct": EntryCorrected(entry, revision, at, EntryChanges(**changes)),
        "misrevise": EntryCorrected(entry, revision + 1 + variant, at, EntryChanges(**changes)),
        "retract": EntryRetracted(entry, RetractionReason(None if variant % 2 else "r")),
        "pin": EntryPinned(entry),
        "unpin": EntryUnpinned(entry),
        "mark": KeyEventMarked(entry),
        "unmark": KeyEventUnmarked(entry),
        "revise": FeedRevised(FeedChanges(title=f"t{variant}")),
        "status": FeedStatusChanged(("open", "paused", "closed")[variant % 3]),
        "open": FeedOpened(FIELDS),
        "damage": damaged(published(entry)),
    }
    return simple[kind]


def opening_with(steps: list[Op], *, opens: bool) -> Append:
    events = ([FeedOpened(FIELDS)] if opens else [damaged(FeedOpened(FIELDS))]) + history(steps)
    return appending(*events, guards=Guards(opens=True), new_status="open", sets_version=True)


@settings(
    max_examples=15,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=ops, opens=st.integers(0, 9), batches=st.lists(st.integers(1, 9), min_size=1, max_size=8))
async def test_a_generation_equals_the_fold_of_its_log_at_every_checkpoint_whatever_the_batches(
    redis: Redis, keys: Keys, steps: list[Op], opens: int, batches: list[int]
) -> None:
    fresh = Keys(f"{keys.prefix}-{secrets.token_hex(4)}")
    await Admission(redis, fresh).admit()
    log = Log(redis, fresh)
    assert isinstance(await log.append(FEED, opening_with(steps, opens=opens > 0)), Appended)
    entries = await log_entries(redis, fresh, FEED)
    projection = Projection(redis, fresh, FEED)
    await projection.take_shard()
    whole = Fold(FEED)
    frames = []
    done = 0
    turn = 0
    while done < len(entries):
        commit = await projection.step(events_max=batches[turn % len(batches)])
        turn += 1
        frames += [whole.step(entry) for entry in entries[done : done + len(commit.frames)]]
        done += len(commit.frames)
        assert await generation_of(redis, fresh, FEED, 1) == whole.generation()
        assert await is_dirty(redis, fresh, FEED) == (done < len(entries))
    assert await frames_of(redis, fresh, FEED) == frames
    skipped = {position for position, kind, _ in frames if kind == "skipped"}
    assert {str(position) for position in await log.quarantined(FEED)} == skipped
    assert await log_positions(redis, fresh, FEED) == [position for position, _, _ in frames]

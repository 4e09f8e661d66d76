"""Rebuilds on real servers: a build equals the live fold byte by byte, every step is taken once or not at all, and the flip
happens at the very checkpoint of the live generation.

Owns slices, the flip and their guards. The small scripts' guards are test_rebuild_guards', when steps are taken test_builder's.
"""

from collections.abc import Awaitable, Callable, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.projector import rebuild as rebuild_module
from services.projector.flip import flip
from services.projector.retired import only_active_generation, remove_piece, rest
from shared.errors import CannotFold, Corrupted
from shared.events import Encoded, EntryPinned, EpochRaised, Event, FeedOpened, decode
from shared.fold import FOLD_VERSION
from shared.keys import Keys
from shared.log import Log, stream_entry
from shared.position import Position
from shared.read_models import READ_MODELS
from shared.redis import Redis, command
from tests.integration.builders import (
    FIELDS,
    appending,
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
from tests.integration.rebuild_kit import Owner, an_owner, append, history

FEED = "final"


@pytest.fixture
async def owner(redis: Redis, keys: Keys) -> Owner:
    """A feed of some events, all committed in generation 1, for which a build was asked."""
    owner = await an_owner(redis, keys, FEED, history(1, events=30))
    await owner.ask()
    return owner


# A build is the fold


@given(seed=st.integers(0, 2**32), events=st.integers(0, 60), slice_events=st.integers(1, 20))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_build_equals_the_live_generation_in_every_key_whatever_the_slices(
    redis: Redis, keys: Keys, seed: int, events: int, slice_events: int
) -> None:
    feed = f"f{seed}-{events}-{slice_events}"
    owner = await an_owner(redis, keys, feed, history(seed, events=events))
    await owner.ask()
    site = await owner.built(events_max=slice_events)
    assert site.generation != await owner.active()
    assert await owner.keys_of(site.generation) == await owner.keys_of(await owner.active())


async def test_documents_and_members_of_any_length_and_script_are_built_byte_for_byte(redis: Redis, keys: Keys) -> None:
    sizes = (1, 31, 32, 255, 256, 65_535, 65_536)
    texts = [letter * size for letter in ("x", "é", "🥅") for size in sizes] + ["a\nb", "\u0000", '"\\']
    events = [published(f"é{n}\n", content=content(text, tags=[text[:300]])) for n, text in enumerate(texts)]
    owner = await an_owner(redis, keys, FEED, events)
    await owner.ask()
    site = await owner.built()
    assert len((await owner.keys_of(site.generation))["documents"]) == len(texts)
    assert await owner.keys_of(site.generation) == await owner.keys_of(1)


async def test_a_build_whose_documents_are_cached_by_nobody_is_the_same(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_module, "CACHED_BYTES_MAX", 0)
    site = await owner.built(events_max=4)
    assert await owner.keys_of(site.generation) == await owner.keys_of(1)


async def test_a_slice_ends_before_an_event_whose_document_did_not_fit_into_it(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_module, "BYTES_PER_SLICE_MAX", 1)
    assert await owner.begin() == "begun"
    site = await owner.site()
    await owner.slice(site)
    assert site.checkpoint.n == 1
    site = await owner.built()
    assert await owner.keys_of(site.generation) == await owner.keys_of(1)


async def test_the_cache_keeps_what_changed_last_within_its_bytes(
    monkeypatch: pytest.MonkeyPatch, owner: Owner
) -> None:
    monkeypatch.setattr(rebuild_module, "CACHED_BYTES_MAX", 1000)
    site = await owner.built()
    cache = rebuild_module.Cache()
    [document] = [d for d in [site.known.get(f"e{i}") for i in range(8)] if d is not None][:1]
    for number in range(5):
        cache.keep(f"n{number}", document, 400)
    assert [cache.get(f"n{number}") is not None for number in range(5)] == [False, False, False, True, True]
    cache.keep("n4", document, 500)
    assert cache.get("n3") is not None
    cache.keep("n4", document, 700)
    assert cache.get("n3") is None


async def test_nobody_is_told_of_a_build(redis: Redis, keys: Keys, owner: Owner) -> None:
    shard = keys.shard(keys.shard_of(FEED))
    watched = (
        shard.frames,
        shard.dirty,
        shard.feeds,
        shard.doorbell,
        keys.feed(FEED).quarantine,
        keys.feed(FEED).active,
    )
    before = {name: value for name, value in (await dump(redis, keys)).items() if name in watched}
    await owner.built()
    assert {name: value for name, value in (await dump(redis, keys)).items() if name in watched} == before


async def test_a_build_follows_the_live_checkpoint_and_never_passes_it(redis: Redis, keys: Keys, owner: Owner) -> None:
    log = Log(redis, keys)
    await append(log, FEED, [published("late")])
    site = await owner.built()
    assert str(site.checkpoint) == await checkpoint(redis, keys, FEED) != (await log_positions(redis, keys, FEED))[-1]


async def test_an_event_that_does_not_fit_and_is_not_in_quarantine_is_named(redis: Redis, keys: Keys) -> None:
    owner = await an_owner(redis, keys, FEED, [published("e1"), damaged(published("e2")), published("e3")])
    await command(redis, "HDEL", keys.feed(FEED).quarantine, "1-3")
    await owner.ask()
    assert await owner.begin() == "begun"
    with pytest.raises(CannotFold, match="1-3"):
        await owner.slice(await owner.site())


# Asking


async def test_a_second_rebuild_joins_the_first(owner: Owner) -> None:
    first = await owner.latest()
    assert (await owner.ask()).token == first.token
    await owner.begin()
    assert (await owner.ask(throttle=5.0)).token == first.token
    assert (await owner.latest()).throttle is None


async def test_a_build_that_is_done_is_not_joined(owner: Owner) -> None:
    first = await owner.latest()
    assert await owner.flip(await owner.built()) == "flipped"
    assert (await owner.ask()).token != first.token


async def test_a_repair_takes_the_place_of_a_rebuild_and_two_repairs_become_one(owner: Owner) -> None:
    await owner.begin()
    begun = await owner.latest()
    await owner.ask(reason="repair", without=[Position(1, 2)], because="one")
    assert (await owner.survey()).retired == [begun.generation]
    repair = await owner.ask(reason="repair", without=[Position(1, 3)], because="two")
    assert repair.reason == "repair"
    assert repair.without == {Position(1, 2), Position(1, 3)}
    assert (await owner.ask()).token == repair.token
    assert (await owner.latest()) == repair


async def test_a_request_that_another_overtook_is_decided_again(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the script another operator's repair came: it is not thrown away."""
    seen = await owner.latest()
    await owner.ask(reason="repair", without=[Position(1, 2)])
    looks = [seen]
    latest = owner.builds.latest

    async def late(feed: str) -> object:
        return looks.pop() if looks else await latest(feed)

    monkeypatch.setattr(owner.builds, "latest", late)
    asked = await owner.ask(reason="repair", without=[Position(1, 3)])
    assert asked.without == {Position(1, 2), Position(1, 3)}


# Guards of the steps


async def raise_the_fence(owner: Owner) -> None:
    await command(owner.redis, "HSET", owner.keys.shard(owner.keys.shard_of(FEED)).lease, "fence", "2")


async def ask_anew(owner: Owner) -> None:
    assert await owner.builds.ask_anew(FEED, reason="redaction", by="ops:anna") is not None


async def put_a_token(owner: Owner) -> None:
    """Another build of which nothing but the token differs."""
    await command(owner.redis, "HSET", owner.keys.feed(FEED).build, "token", "another")


async def commit(owner: Owner) -> None:
    await Log(owner.redis, owner.keys).append(FEED, appending(published("late")))
    await owner.step()


async def switch_the_generation(owner: Owner) -> None:
    keys = owner.keys.feed(FEED)
    await command(owner.redis, "COPY", keys.of_generation(1).meta, keys.of_generation(9).meta)
    await command(owner.redis, "SET", keys.active, "9")


async def flip_before(owner: Owner) -> None:
    assert await owner.flip(await owner.site()) == "flipped"


async def fold_past_it(owner: Owner) -> None:
    await command(owner.redis, "HSET", owner.keys.feed(FEED).of_generation(2).meta, "checkpoint", "1-1")


Happening = Callable[[Owner], Awaitable[None]]

NO_LONGER_OURS: Mapping[str, tuple[Happening, str]] = {
    "another projector raised the fence": (raise_the_fence, "fenced"),
    "another build was asked for": (put_a_token, "dropped"),
}
NOT_BUILT: Mapping[str, tuple[Happening, str]] = {
    **NO_LONGER_OURS,
    "the build's checkpoint moved": (fold_past_it, "moved"),
}
NOT_FLIPPED: Mapping[str, tuple[Happening, str]] = {
    **NO_LONGER_OURS,
    "it was flipped already": (flip_before, "dropped"),
    "another generation is active": (switch_the_generation, "moved"),
    "the live checkpoint moved": (commit, "moved"),
    "the build's checkpoint is another": (fold_past_it, "moved"),
}


@pytest.mark.parametrize("refusal", NOT_BUILT)
async def test_a_slice_whose_guard_does_not_hold_changes_nothing(owner: Owner, refusal: str) -> None:
    happen, answer = NOT_BUILT[refusal]
    assert await owner.begin() == "begun"
    site = await owner.site()
    assert await owner.slice(site, events_max=5) == "built"
    await happen(owner)
    before = await dump(owner.redis, owner.keys)
    assert await owner.slice(site, events_max=5) == answer
    assert await dump(owner.redis, owner.keys) == before


async def test_a_slice_of_a_build_that_was_asked_anew_changes_nothing(owner: Owner) -> None:
    assert await owner.begin() == "begun"
    site = await owner.site()
    await ask_anew(owner)
    before = await dump(owner.redis, owner.keys)
    assert await owner.slice(site) == "dropped"
    assert await dump(owner.redis, owner.keys) == before


@pytest.mark.parametrize("refusal", NOT_FLIPPED)
async def test_a_flip_whose_guard_does_not_hold_changes_nothing(owner: Owner, refusal: str) -> None:
    happen, answer = NOT_FLIPPED[refusal]
    site = await owner.built()
    survey = await owner.survey()
    await happen(owner)
    before = await dump(owner.redis, owner.keys)
    assert await rebuild_flip(owner, site, survey) == answer
    assert await dump(owner.redis, owner.keys) == before


async def rebuild_flip(owner: Owner, site: rebuild_module.Site, survey: rebuild_module.Survey) -> str:
    return await flip(owner.redis, owner.keys, site, survey, fence=1)


# The flip


async def test_after_the_flip_the_built_generation_is_the_live_one_and_goes_on(
    redis: Redis, keys: Keys, owner: Owner
) -> None:
    site = await owner.built()
    before = await generation_of(redis, keys, FEED, 1)
    assert await owner.flip(site) == "flipped"
    assert await owner.active() == site.generation == 2
    assert await generation_of(redis, keys, FEED, 2) == before
    assert (await frames_of(redis, keys, FEED))[-1] == (str(site.checkpoint), "flip", b"2")
    await append(Log(redis, keys), FEED, history(2, events=20))
    await owner.to_head()
    assert await generation_of(redis, keys, FEED, 2) == folded(FEED, await log_entries(redis, keys, FEED))


async def test_a_flip_names_the_read_models_and_the_fold_of_this_release(
    redis: Redis, keys: Keys, owner: Owner
) -> None:
    await command(redis, "HSET", keys.feed(FEED).of_generation(1).meta, "read_models", "chronological,changed")
    site = await owner.built()
    assert await owner.flip(site) == "flipped"
    meta = keys.feed(FEED).of_generation(2).meta
    assert await command(redis, "HMGET", meta, "read_models", "fold") == [
        ",".join(READ_MODELS).encode(),
        str(FOLD_VERSION).encode(),
    ]


async def test_a_repair_takes_its_records_out_and_raises_the_epoch_in_the_flip(redis: Redis, keys: Keys) -> None:
    events: list[Event | Encoded] = [
        published("e1"),
        damaged(published("e2")),
        damaged(published("e3")),
        EntryPinned("e1"),
    ]
    owner = await an_owner(redis, keys, FEED, events)
    await mend(redis, keys, at="1-3", event=published("e2"))
    await owner.ask(reason="repair", without=[Position(1, 3)], because="mended by hand")
    assert await owner.flip(await owner.built()) == "flipped"
    assert await command(redis, "HKEYS", keys.feed(FEED).quarantine) == [b"1-4"]
    assert (await log_positions(redis, keys, FEED))[-1] == "2-6"
    last = (await log_entries(redis, keys, FEED))[-1]
    assert decode(last.id, last.fields).event == EpochRaised("repaired", "mended by hand")
    head = await Log(redis, keys).head(FEED)
    assert head is not None and head.position == Position(2, 6)
    assert await is_dirty(redis, keys, FEED)
    await owner.to_head()
    assert await generation_of(redis, keys, FEED, 2) == folded(FEED, await log_entries(redis, keys, FEED))
    kinds = [(position, kind) for position, kind, _ in await frames_of(redis, keys, FEED)]
    assert kinds[-2:] == [("1-5", "flip"), ("2-6", "epoch")]


async def test_a_repair_whose_event_still_does_not_fold_changes_nothing(redis: Redis, keys: Keys) -> None:
    owner = await an_owner(redis, keys, FEED, [published("e1"), damaged(published("e2")), EntryPinned("e1")])
    await owner.ask(reason="repair", without=[Position(1, 3)])
    with pytest.raises(CannotFold, match="1-3"):
        await owner.built()


async def test_a_repair_of_a_feed_whose_head_is_not_its_logs_last_event_is_corruption(redis: Redis, keys: Keys) -> None:
    owner = await an_owner(redis, keys, FEED, [published("e1"), damaged(published("e2"))])
    await mend(redis, keys, at="1-3", event=published("e2"))
    await owner.ask(reason="repair", without=[Position(1, 3)])
    site = await owner.built()
    await command(redis, "HSET", keys.feed(FEED).head, "n", "9")
    before = await dump(redis, keys)
    with pytest.raises(Corrupted, match="head"):
        await owner.flip(site)
    assert await dump(redis, keys) == before


async def mend(redis: Redis, keys: Keys, *, at: str, event: object) -> None:
    """As a later release would: the event at this position can be read. The log is written anew for it."""
    log = keys.feed(FEED).log
    entries = await log_entries(redis, keys, FEED)
    await command(redis, "DEL", log)
    for entry in entries:
        fields = dict(entry.fields)
        if entry.id.decode() == at:
            whole = encoded(event)  # type: ignore[arg-type]  # any event
            fields |= {b"envelope": whole.envelope, b"content": whole.content}
        await command(redis, "XADD", log, entry.id, *[part for pair in fields.items() for part in pair])


# What is left behind


async def test_the_old_generation_goes_in_pieces_and_the_feed_leaves_the_shards_list(
    redis: Redis, keys: Keys, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.projector.retired.INDEXES_PER_PIECE_MAX", 2)
    assert await owner.flip(await owner.built()) == "flipped"
    assert not await rest(redis, keys, FEED)
    pieces = 1
    while await remove_piece(redis, keys, FEED, 1):
        pieces += 1
        assert await owner.generations() == {1, 2}
    assert pieces > 2
    assert await owner.generations() == {2}
    assert await rest(redis, keys, FEED)
    assert not await redis.exists(keys.shard(keys.shard_of(FEED)).builds, keys.feed(FEED).retired)


async def test_a_feed_with_a_build_stays_on_the_shards_list(redis: Redis, keys: Keys, owner: Owner) -> None:
    assert not await rest(redis, keys, FEED)
    await owner.begin()
    assert not await rest(redis, keys, FEED)
    assert await redis.exists(keys.shard(keys.shard_of(FEED)).builds)


@pytest.mark.parametrize("generation", [1, 2])
async def test_neither_the_active_generation_nor_one_being_built_is_ever_removed(
    redis: Redis, keys: Keys, owner: Owner, generation: int
) -> None:
    await owner.built()
    if generation == 1:
        await command(redis, "SADD", keys.feed(FEED).retired, "1")
    before = await dump(redis, keys)
    assert not await remove_piece(redis, keys, FEED, generation)
    assert await dump(redis, keys) == before


async def test_a_build_that_fails_is_named_and_leaves_nothing(redis: Redis, keys: Keys, owner: Owner) -> None:
    await owner.built()
    assert await owner.rebuilds.fail(await owner.latest(), "the event at 1-3", fence=1) == "failed"
    failed = await owner.latest()
    assert (failed.state, failed.detail) == ("failed", "the event at 1-3")
    await owner.clear_away()
    assert await owner.generations() == {1}
    assert await owner.latest() == failed


async def test_a_redaction_gets_a_feed_with_no_generation_but_the_active_one(
    redis: Redis, keys: Keys, owner: Owner
) -> None:
    assert await owner.flip(await owner.built()) == "flipped"
    await owner.ask()
    await owner.begin()
    site = await owner.site()
    await owner.slice(site, events_max=7)
    assert await owner.generations() == {1, 2, 3}
    assert await only_active_generation(redis, keys, FEED, by="ops:anna") == 2
    assert await owner.generations() == {2}
    again = await owner.latest()
    assert (again.state, again.reason, again.by) == ("asked", "redaction", "ops:anna")
    assert await owner.slice(site) == "dropped"
    assert await owner.flip(await owner.built()) == "flipped"


async def test_a_redaction_asks_for_no_build_where_none_was_under_way(redis: Redis, keys: Keys, owner: Owner) -> None:
    assert await owner.flip(await owner.built()) == "flipped"
    assert await only_active_generation(redis, keys, FEED, by="ops:anna") == 1
    assert (await owner.latest()).state == "flipped"
    assert await only_active_generation(redis, keys, "no-such-feed", by="ops:anna") == 0


# The scripts, where only they can tell


async def test_a_build_tells_how_far_it_is(owner: Owner) -> None:
    site = await owner.built(events_max=7)
    latest = await owner.latest()
    assert (latest.checkpoint, latest.events) == (site.checkpoint, site.checkpoint.n)


async def test_a_feed_whose_opening_is_in_quarantine_is_built_without_a_document(redis: Redis, keys: Keys) -> None:
    await open_feed(Log(redis, keys), FEED, event=damaged(FeedOpened(FIELDS)))
    owner = Owner(redis, keys, FEED)
    await owner.to_head()
    await owner.ask()
    site = await owner.built()
    assert await owner.keys_of(site.generation) == await owner.keys_of(1)
    assert not await redis.exists(keys.feed(FEED).of_generation(2).feed)


async def test_doorbells_and_frames_stay_capped(redis: Redis, keys: Keys) -> None:
    owner = await an_owner(redis, keys, FEED, [damaged(published("e1"))])
    await mend(redis, keys, at="1-2", event=published("e1"))
    shard = keys.shard(keys.shard_of(FEED))
    await owner.ask(reason="repair", without=[Position(1, 2)])

    async def crowd(stream: str) -> None:
        pipeline = redis.pipeline(transaction=False)
        for _ in range(1500):
            pipeline.execute_command("XADD", stream, "*", "f", "another", "feed", "another")
        await pipeline.execute()

    site = await owner.built()
    await crowd(shard.doorbell)
    await crowd(shard.frames)
    assert await owner.flip(site) == "flipped"
    assert await redis.xlen(shard.frames) < 1200
    assert await redis.xlen(shard.doorbell) < 1200


async def test_a_repair_rings_for_the_raised_epoch_and_says_why(redis: Redis, keys: Keys) -> None:
    owner = await an_owner(redis, keys, FEED, [damaged(published("e1"))])
    await mend(redis, keys, at="1-2", event=published("e1"))
    await owner.ask(reason="repair", without=[Position(1, 2)], because="mended")
    site = await owner.built()
    doorbell, head = keys.shard(keys.shard_of(FEED)).doorbell, keys.feed(FEED).head
    await command(redis, "DEL", doorbell)
    await command(redis, "HSET", head, "recorded_at", "5")
    assert await owner.flip(site) == "flipped"
    [rung] = await command(redis, "XRANGE", doorbell, "-", "+")
    assert stream_entry(rung).fields == {b"feed": FEED.encode()}
    reason, because, at, recorded_at = await command(
        redis, "HMGET", head, "raised_reason", "raised_because", "raised_at", "recorded_at"
    )
    assert (reason, because, at) == (b"repaired", b"mended", recorded_at)
    assert int(at) > 5


async def test_the_instant_of_a_repair_does_not_run_backwards(redis: Redis, keys: Keys) -> None:
    owner = await an_owner(redis, keys, FEED, [damaged(published("e1"))])
    await mend(redis, keys, at="1-2", event=published("e1"))
    await owner.ask(reason="repair", without=[Position(1, 2)])
    site = await owner.built()
    late = 9_000_000_000_000
    await command(redis, "HSET", keys.feed(FEED).head, "recorded_at", late)
    assert await owner.flip(site) == "flipped"
    assert (await log_entries(redis, keys, FEED))[-1].fields[b"recorded_at"] == str(late).encode()


@pytest.mark.parametrize("damage", ["log", "head"])
async def test_a_repair_of_a_feed_without_log_or_head_is_corruption(redis: Redis, keys: Keys, damage: str) -> None:
    owner = await an_owner(redis, keys, FEED, [damaged(published("e1"))])
    await mend(redis, keys, at="1-2", event=published("e1"))
    await owner.ask(reason="repair", without=[Position(1, 2)])
    site = await owner.built()
    await command(redis, "DEL", getattr(keys.feed(FEED), damage))
    with pytest.raises(Corrupted, match="head"):
        await owner.flip(site)


async def test_a_plain_flip_asks_neither_for_admission_nor_for_the_head(redis: Redis, keys: Keys, owner: Owner) -> None:
    site = await owner.built()
    await command(redis, "DEL", keys.feed(FEED).head, keys.shard(keys.shard_of(FEED)).incarnation)
    assert await owner.flip(site) == "flipped"


async def test_a_repair_waits_until_the_server_is_admitted(redis: Redis, keys: Keys) -> None:
    owner = await an_owner(redis, keys, FEED, [damaged(published("e1"))])
    await mend(redis, keys, at="1-2", event=published("e1"))
    await owner.ask(reason="repair", without=[Position(1, 2)])
    site = await owner.built()
    await command(redis, "HSET", keys.shard(keys.shard_of(FEED)).incarnation, "server", "another")
    before = await dump(redis, keys)
    assert await owner.flip(site) == "unadmitted"
    assert await dump(redis, keys) == before

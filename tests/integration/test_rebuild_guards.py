"""The guards of the small scripts of a rebuild, one by one, called by hand: asking, beginning, giving up, looking, clearing away.

Owns what those scripts alone decide. Slices and the flip are test_rebuild's, when what is done is test_builder's.
"""

import secrets

import pytest

from services.projector import builds as builds_module
from services.projector import quarantine as quarantine_module
from services.projector import rebuild as rebuild_module
from services.projector.rebuild import Rebuilds
from shared.fold import FOLD_VERSION
from shared.keys import Keys
from shared.log import stream_entry
from shared.position import ORIGIN, Position
from shared.redis import Arg, Redis, Script, command
from tests.integration.builders import dump
from tests.integration.rebuild_kit import BEGIN, FAIL, REST, RETIRE

FEED = "final"
ASK = Script(builds_module.__file__, "ask.lua")
BEFORE = Script(rebuild_module.__file__, "before.lua", read_only=True)
DISCARD = Script(quarantine_module.__file__, "discard.lua")


@pytest.fixture
def keys() -> Keys:
    return Keys("t" + secrets.token_hex(6))


async def hash_of(redis: Redis, key: str) -> dict[str, str]:
    found = await command(redis, "HGETALL", key)
    return {field.decode(): value.decode() for field, value in found.items()}


async def members_of(redis: Redis, key: str) -> set[bytes]:
    found: set[bytes] = await command(redis, "SMEMBERS", key)
    return found


async def milliseconds(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return int(seconds * 1000 + microseconds // 1000)


# Asking


async def ask(redis: Redis, keys: Keys, token: str, *, seen: str) -> int:
    its, shard = keys.feed(FEED), keys.shard(keys.shard_of(FEED))
    names = (its.build, shard.builds, its.retired, shard.doorbell)
    return int(await ASK(redis, names, (FEED, seen, "token", token, "by", "ops:anna")))


async def test_a_request_takes_the_place_of_what_the_caller_saw_rings_the_owner_and_stands_on_the_list(
    redis: Redis, keys: Keys
) -> None:
    its, shard = keys.feed(FEED), keys.shard(keys.shard_of(FEED))
    assert await ask(redis, keys, "one", seen="") == 1
    assert await hash_of(redis, its.build) == {"state": "asked", "token": "one", "by": "ops:anna"}
    assert await members_of(redis, shard.builds) == {FEED.encode()}
    [rung] = await command(redis, "XRANGE", shard.doorbell, "-", "+")
    assert stream_entry(rung).fields == {b"feed": FEED.encode(), b"build": b"1"}
    before = await dump(redis, keys)
    for seen in ("", "another"):
        assert await ask(redis, keys, "two", seen=seen) == 0
    assert await dump(redis, keys) == before


async def test_what_a_build_under_way_made_is_to_be_removed_and_what_readers_have_is_not(
    redis: Redis, keys: Keys
) -> None:
    its = keys.feed(FEED)
    await command(redis, "HSET", its.build, "token", "one", "state", "flipped", "generation", 2, "detail", "old")
    assert await ask(redis, keys, "two", seen="one") == 1
    assert await hash_of(redis, its.build) == {"state": "asked", "token": "two", "by": "ops:anna"}
    assert await members_of(redis, its.retired) == set()
    await command(redis, "HSET", its.build, "state", "building", "generation", 3)
    assert await ask(redis, keys, "three", seen="two") == 1
    assert await hash_of(redis, its.build) == {"state": "asked", "token": "three", "by": "ops:anna"}
    assert await members_of(redis, its.retired) == {b"3"}


async def test_the_doorbell_of_requests_is_capped(redis: Redis, keys: Keys) -> None:
    doorbell = keys.shard(keys.shard_of(FEED)).doorbell
    pipeline = redis.pipeline(transaction=False)
    for _ in range(1500):
        pipeline.xadd(doorbell, {"feed": "another"})
    await pipeline.execute()
    await ask(redis, keys, "one", seen="")
    assert await command(redis, "XLEN", doorbell) < 1200


# Beginning and giving up


async def asked(redis: Redis, keys: Keys) -> None:
    await command(redis, "HSET", keys.shard(keys.shard_of(FEED)).lease, "fence", 7)
    await command(redis, "HSET", keys.feed(FEED).build, "token", "one", "state", "asked")


async def begin(redis: Redis, keys: Keys, *, fence: int = 7, token: str = "one") -> bytes:
    its = keys.feed(FEED)
    names = (keys.shard(keys.shard_of(FEED)).lease, its.build, its.generations)
    answer: bytes = await BEGIN(redis, names, (fence, token, 5, "changed", its.generation))
    return answer


async def fail(redis: Redis, keys: Keys, *, fence: int = 7, token: str = "one") -> bytes:
    its = keys.feed(FEED)
    names = (keys.shard(keys.shard_of(FEED)).lease, its.build, its.retired)
    answer: bytes = await FAIL(redis, names, (fence, token, "the event at 1-3"))
    return answer


async def test_a_build_is_begun_once_by_the_owner_alone_as_it_was_asked(redis: Redis, keys: Keys) -> None:
    its = keys.feed(FEED)
    await asked(redis, keys)
    await command(redis, "SET", its.generations, 3)
    before = await dump(redis, keys)
    assert await begin(redis, keys, fence=6) == b"fenced"
    assert await begin(redis, keys, token="two") == b"dropped"
    assert await dump(redis, keys) == before
    began = await milliseconds(redis)
    assert await begin(redis, keys) == b"begun"
    build = await hash_of(redis, its.build)
    at = build["started_at"]
    assert began <= int(at) <= await milliseconds(redis)
    assert build == {"token": "one", "state": "building", "generation": "4", "started_at": at, "updated_at": at}
    assert await hash_of(redis, its.of_generation(4).meta) == {"fold": "5", "read_models": "changed"}
    before = await dump(redis, keys)
    assert await begin(redis, keys) == b"dropped"
    assert await dump(redis, keys) == before


async def test_only_the_owner_gives_a_build_up_and_only_the_one_that_it_means(redis: Redis, keys: Keys) -> None:
    its = keys.feed(FEED)
    await asked(redis, keys)
    before = await dump(redis, keys)
    assert await fail(redis, keys, fence=8) == b"fenced"
    assert await fail(redis, keys, token="two") == b"dropped"
    assert await dump(redis, keys) == before
    began = await milliseconds(redis)
    assert await fail(redis, keys) == b"failed"
    build = await hash_of(redis, its.build)
    assert began <= int(build["updated_at"]) <= await milliseconds(redis)
    assert (build["state"], build["detail"]) == ("failed", "the event at 1-3")
    assert not await redis.exists(its.retired), "it had made nothing"
    await command(redis, "HSET", its.build, "state", "building", "generation", 4)
    assert await fail(redis, keys) == b"failed"
    assert await members_of(redis, its.retired) == {b"4"}


# Looking


async def test_documents_are_read_up_to_so_many_bytes_and_the_first_one_always(redis: Redis, keys: Keys) -> None:
    documents = keys.feed(FEED).of_generation(1).documents
    await command(redis, "HSET", documents, "a", "x" * 10, "b", "x" * 10, "c", "x" * 10)
    for bytes_max, entries, found in ((5, "abc", 1), (10, "abc", 1), (20, "abc", 2), (30, "abc", 3), (5, "naxb", 1)):
        answer = await BEFORE(redis, (documents,), (bytes_max, *entries))
        assert len(answer) == found, (bytes_max, entries)
    assert await BEFORE(redis, (documents,), (10, "n", "m", "a")) == [None, None, b"x" * 10]


async def test_feeds_without_a_generation_are_neither_outdated_nor_in_the_way(redis: Redis, keys: Keys) -> None:
    shard = keys.shard_of(FEED)
    await command(redis, "ZADD", keys.shard(shard).feeds, 1, "ghost", 2, "husk", 3, FEED)
    await command(redis, "SET", keys.prefix_of_feeds(shard) + "husk:active", "1")
    await command(redis, "SET", keys.feed(FEED).active, "2")
    meta = keys.feed(FEED).of_generation(2).meta
    rebuilds = Rebuilds(redis, keys)
    for fold, outdated in ((FOLD_VERSION + 1, []), (FOLD_VERSION, []), (FOLD_VERSION - 1, [FEED])):
        await command(redis, "HSET", meta, "fold", fold)
        assert await rebuilds.outdated(shard, start=0) == (3, outdated)
    assert await rebuilds.outdated(shard, start=2) == (1, [FEED])
    assert await rebuilds.outdated(shard, start=3) == (0, [])


async def test_a_survey_tells_of_the_build_and_of_the_live_generation_as_far_as_there_are_any(
    redis: Redis, keys: Keys
) -> None:
    its = keys.feed(FEED)
    rebuilds = Rebuilds(redis, keys)
    nothing = await rebuilds.survey(FEED)
    assert (nothing.build, nothing.active, nothing.target, nothing.made_by) == (None, None, ORIGIN, None)
    assert (nothing.checkpoint, nothing.feed, nothing.quarantined, nothing.retired) == (ORIGIN, None, frozenset(), [])
    await command(redis, "SET", its.active, 1)
    await command(redis, "HSET", its.of_generation(1).meta, "checkpoint", "1-9")
    await command(redis, "HSET", its.quarantine, "1-3", "{}")
    await command(redis, "SADD", its.retired, 3)
    fields: tuple[Arg, ...] = ("token", "one", "state", "asked", "reason", "rebuild", "by", "ops:anna", "because", "")
    more: tuple[Arg, ...] = ("without", "", "throttle", "", "fold", 1, "read_models", "changed", "requested_at", 1)
    await command(redis, "HSET", its.build, *fields, *more)
    waiting = await rebuilds.survey(FEED)
    assert waiting.build is not None and (waiting.build.token, waiting.build.generation) == ("one", None)
    assert (waiting.active, waiting.target, waiting.made_by) == (1, Position(1, 9), None)
    assert (waiting.quarantined, waiting.retired) == (frozenset({b"1-3"}), [3])
    await command(redis, "HSET", its.build, "state", "building", "generation", 2)
    built = its.of_generation(2)
    await command(redis, "HSET", built.meta, "checkpoint", "1-4", "fold", 1, "read_models", "changed,pinned")
    await command(redis, "SET", built.feed, "{}")
    survey = await rebuilds.survey(FEED)
    assert (survey.checkpoint, survey.feed) == (Position(1, 4), b"{}")
    assert survey.made_by is not None and (survey.made_by.fold, len(survey.made_by.models)) == (1, 2)


# Clearing away


async def test_a_feed_rests_when_nothing_of_it_is_left_to_build_or_to_remove(redis: Redis, keys: Keys) -> None:
    its, builds = keys.feed(FEED), keys.shard(keys.shard_of(FEED)).builds
    await command(redis, "SADD", builds, FEED, "another")

    async def rests() -> int:
        return int(await REST(redis, (its.build, its.retired, builds), (FEED,)))

    for state in ("asked", "building"):
        await command(redis, "HSET", its.build, "state", state)
        assert await rests() == 0
    await command(redis, "HSET", its.build, "state", "flipped")
    await command(redis, "SADD", its.retired, 1)
    assert await rests() == 0
    assert await members_of(redis, builds) == {FEED.encode(), b"another"}
    await command(redis, "DEL", its.retired)
    assert await rests() == 1
    assert await members_of(redis, builds) == {b"another"}


async def test_a_retired_generation_goes_piece_by_piece_and_neither_the_active_one_nor_another(
    redis: Redis, keys: Keys
) -> None:
    its = keys.feed(FEED)
    for number in (1, 2):
        parts = its.of_generation(number)
        await command(redis, "SADD", parts.names, "a", "b", "c")
        for index in "abc":
            await command(redis, "ZADD", parts.indexes + index, 0, "member")
        await command(redis, "HSET", parts.documents, "e1", "{}")
        await command(redis, "SET", parts.feed, "{}")
        await command(redis, "HSET", parts.meta, "checkpoint", "1-1")
    await command(redis, "SET", its.active, 1)
    await command(redis, "SADD", its.retired, 1)

    async def piece(number: int) -> int:
        parts = its.of_generation(number)
        names = (its.retired, its.active, parts.names, parts.documents, parts.feed, parts.meta)
        return int(await RETIRE(redis, names, (number, parts.indexes, 2)))

    before = await dump(redis, keys)
    assert [await piece(1), await piece(2)] == [0, 0], "it is the active one; it is not to be removed"
    assert await dump(redis, keys) == before
    await command(redis, "SADD", its.retired, 2)
    parts = its.of_generation(2)
    assert await piece(2) == 1
    assert await redis.exists(*(parts.indexes + index for index in "abc")) == 1
    assert await redis.exists(parts.documents, parts.feed, parts.meta) == 3
    assert await piece(2) == 0
    assert await dump(redis, keys) == {key: held for key, held in before.items() if ":g2:" not in key}


async def test_a_record_is_discarded_only_as_it_was_seen(redis: Redis, keys: Keys) -> None:
    quarantine = keys.feed(FEED).quarantine
    await command(redis, "HSET", quarantine, "1-3", "seen", "1-4", "seen")
    for position, seen, answer in (("1-3", "other", 0), ("1-9", "seen", 0), ("1-3", "seen", 1), ("1-3", "seen", 0)):
        assert await DISCARD(redis, (quarantine,), (position, seen, "discarded")) == answer
    assert await hash_of(redis, quarantine) == {"1-3": "discarded", "1-4": "seen"}

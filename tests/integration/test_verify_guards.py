"""The scripts that read what verify compares, one by one: what they answer of what stands there, and of what does not.

Owns the answers of `services.projector.verify.stored`. What verify makes of them is test_verify's.
"""

import secrets

import pytest

from services.projector.verify.stored import Flipped, Head, Moment, Sizes, Slice, Stored, Walked, WrongType
from shared.keys import Keys
from shared.position import Position
from shared.redis import Redis, command

FEED = "final"
NOTHING = Moment(
    generation=None,
    checkpoint=None,
    read_models=None,
    fold_version=None,
    feed_position=None,
    feed=None,
    highest_generation=None,
    head=Head(None, None, None, None, None, None, None),
    last=None,
    first=None,
    activity=None,
    dirty=False,
    records=0,
    quarantined=0,
)


@pytest.fixture
def keys() -> Keys:
    return Keys("t" + secrets.token_hex(6))


@pytest.fixture
def stored(redis: Redis, keys: Keys) -> Stored:
    return Stored(redis, keys, FEED)


@pytest.fixture
async def written(redis: Redis, keys: Keys, stored: Stored) -> Stored:
    """A feed of two events and one document, in generation 3."""
    its, shard = keys.feed(FEED), keys.shard(keys.shard_of(FEED))
    generation = its.of_generation(3)
    for position in ("1-1", "2-2"):
        await command(redis, "XADD", its.log, position, "envelope", "{}")
    await command(redis, "HSET", its.head, "epoch", 2, "n", 2, "recorded_at", 7, "status", "open", "live", 1)
    await command(redis, "HSET", its.head, "version", 1, "pins", 1)
    await command(redis, "HSET", its.entries, "e1", "published 1 2-2 f", "e2", "published 1 2-2 f")
    await command(redis, "HSET", its.quarantine, "1-1", "{}")
    await command(redis, "SET", its.active, 3)
    await command(redis, "SET", its.generations, 4)
    await command(redis, "HSET", generation.meta, "checkpoint", "2-2", "read_models", "changed", "fold", 5)
    await command(redis, "HSET", generation.meta, "feed_position", "1-1")
    await command(redis, "HSET", generation.documents, "e1", "{}")
    await command(redis, "SET", generation.feed, "{}")
    await command(redis, "ZADD", generation.indexes + "changed", 0, "m1", 1, "m2")
    await command(redis, "SADD", generation.names, "changed", "tag:goal")
    await command(redis, "ZADD", shard.feeds, 9, FEED)
    await command(redis, "SADD", shard.dirty, FEED)
    return stored


async def test_the_moment_of_a_feed_says_what_stands_and_what_does_not(written: Stored) -> None:
    assert await written.moment() == Moment(
        generation=b"3",
        checkpoint=Position(2, 2),
        read_models=b"changed",
        fold_version=b"5",
        feed_position=b"1-1",
        feed=b"{}",
        highest_generation=b"4",
        head=Head(b"2", b"2", b"7", b"open", b"1", b"1", b"1"),
        last=Position(2, 2),
        first=Position(1, 1),
        activity=b"9",
        dirty=True,
        records=2,
        quarantined=1,
    )


async def test_of_no_entries_only_the_end_of_the_log_is_told(written: Stored) -> None:
    assert await written.records([]) == (Position(2, 2), [])


async def test_the_moment_of_a_feed_that_is_not_there_is_of_nothing(redis: Redis, keys: Keys, stored: Stored) -> None:
    assert await stored.moment() == NOTHING
    await command(redis, "SET", keys.feed(FEED).active, 3)
    assert await stored.moment() == NOTHING._replace(generation=b"3")


async def test_every_key_of_another_type_than_belongs_there_is_named_and_nothing_is_read(
    redis: Redis, keys: Keys, written: Stored
) -> None:
    its, shard = keys.feed(FEED), keys.shard(keys.shard_of(FEED))
    generation = its.of_generation(3)
    belongs = {
        generation.meta: "hash",
        generation.documents: "hash",
        generation.feed: "string",
        generation.names: "set",
    }
    await damage(redis, *belongs)
    assert await written.moment() == [WrongType(key, "list", kind) for key, kind in belongs.items()]
    belongs = {
        its.log: "stream",
        its.head: "hash",
        its.entries: "hash",
        its.active: "string",
        its.generations: "string",
        its.quarantine: "hash",
        shard.feeds: "zset",
        shard.dirty: "set",
    }
    await damage(redis, *belongs)
    assert await written.moment() == [WrongType(key, "list", kind) for key, kind in belongs.items()]


async def damage(redis: Redis, *names: str) -> None:
    await command(redis, "DEL", *names)
    for name in names:
        await command(redis, "RPUSH", name, "what no code of ours writes")


async def test_documents_and_members_sizes_and_names_are_of_one_checkpoint(written: Stored) -> None:
    at = Position(2, 2)
    assert await written.documents(b"3", ["e1", "nobody"], {"changed": ["m1", "m2", "m3"], "none": ["m1"]}) == Slice(
        at, [b"{}", None], [("changed", b"m2", b"1"), ("changed", b"m3", None), ("none", b"m1", None)]
    )
    assert await written.sizes(b"3", ["changed", "tag:goal", "none"]) == Sizes(
        at,
        documents=1,
        names=2,
        members={"changed": 2, "tag:goal": 0, "none": 0},
        named=frozenset({"changed", "tag:goal"}),
    )
    expected = {"documents": [b"e1"], "names": [b"changed", b"tag:goal"], "i:changed": [b"m1", b"m2"], "i:none": []}
    for key, names in expected.items():
        [walked] = [Walked(one.checkpoint, sorted(one.names)) async for one in written.walk(b"3", key)]
        assert walked == Walked(at, names)


@pytest.mark.parametrize("active", [None, "4"])
async def test_what_is_asked_of_a_generation_that_is_not_active_is_not_answered_of_another(
    redis: Redis, keys: Keys, written: Stored, active: str | None
) -> None:
    await command(redis, "DEL", keys.feed(FEED).active)
    if active is not None:
        await command(redis, "SET", keys.feed(FEED).active, active)
    with pytest.raises(Flipped):
        await written.documents(b"3", ["e1"], {"changed": ["m1"]})
    with pytest.raises(Flipped):
        await written.sizes(b"3", ["changed"])
    with pytest.raises(Flipped):
        [_ async for _ in written.walk(b"3", "documents")]


async def test_records_come_with_the_end_of_the_log_if_there_is_one(redis: Redis, keys: Keys, written: Stored) -> None:
    record = b"published 1 2-2 f"
    assert await written.records(["e1", "nobody", "e2"]) == (Position(2, 2), [record, None, record])
    await command(redis, "DEL", keys.feed(FEED).log)
    assert await written.records(["e1"]) == (None, [record])

"""The guards of the scripts that trim and restore a log and note its archive, one by one, called by hand.

Owns what those scripts alone decide. Archives and restoring as a whole are test_archive's and test_restoring's.
"""

import pytest

from shared.archive import archiving as archiving_module
from shared.archive import restoring as restoring_module
from shared.archive import trimming as trimming_module
from shared.errors import Corrupted
from shared.keys import Keys
from shared.log import Log
from shared.redis import Redis, Script, command
from tests.integration.builders import appending_entry, dump, log_positions, open_feed, project

FEED = "final"
PLACE = "file:///archive"
ARCHIVED = Script(archiving_module.__file__, "archived.lua")
TRIM = Script(trimming_module.__file__, "trim.lua")
RESTORED = Script(restoring_module.__file__, "restored.lua")


async def note(redis: Redis, keys: Keys, to: str, *, place: str = PLACE, known: str = PLACE) -> int:
    return int(await ARCHIVED(redis, (keys.feed(FEED).archive,), (place, to, "chain", known, 7)))


async def noted(redis: Redis, keys: Keys) -> list[bytes | None]:
    found: list[bytes | None] = await command(redis, "HMGET", keys.feed(FEED).archive, "url", "archived_to")
    return found


async def archived_feed(redis: Redis, keys: Keys) -> None:
    """Six events, projected, of which five are said to be archived."""
    log = Log(redis, keys)
    await open_feed(log, FEED)
    for number in range(5):
        await log.append(FEED, appending_entry(f"e{number}"))
    await project(redis, keys, FEED)
    assert await note(redis, keys, "1-5", known="") == 1


async def trim(redis: Redis, keys: Keys, to: str) -> list[bytes | int]:
    its = keys.feed(FEED)
    answer: list[bytes | int] = await TRIM(
        redis, (its.log, its.head, its.active, its.build, its.archive), (its.generation, to, PLACE)
    )
    return answer


async def test_a_note_of_an_archive_is_taken_unless_it_is_older_or_another_run_moved_it(
    redis: Redis, keys: Keys
) -> None:
    assert await note(redis, keys, "1-5", known="") == 1
    # A later run of the same place goes on; an older one, or the same sent twice, is no harm and changes nothing.
    assert await note(redis, keys, "1-9") == 1
    assert await note(redis, keys, "1-7") == 1
    assert await noted(redis, keys) == [PLACE.encode(), b"1-9"]
    # A run that began when nothing was archived, or elsewhere, and means another place.
    assert await note(redis, keys, "1-12", place="file:///other", known="") == 0
    assert await note(redis, keys, "1-12", place="file:///other", known="file:///third") == 0
    assert await noted(redis, keys) == [PLACE.encode(), b"1-9"]
    # Two runs that began before anything was archived, to one place: the second goes on where the first was.
    assert await note(redis, keys, "1-10", known="") == 1
    assert await note(redis, keys, "1-3", place="file:///other", known=PLACE) == 1
    assert await noted(redis, keys) == [b"file:///other", b"1-3"]


async def test_how_far_a_log_was_trimmed_is_noted_and_never_less(redis: Redis, keys: Keys) -> None:
    await archived_feed(redis, keys)
    trimmed = (keys.feed(FEED).archive, "trimmed_to")
    assert await trim(redis, keys, "1-3") == [b"trimmed", 3]
    assert await command(redis, "HGET", *trimmed) == b"1-3"
    assert await trim(redis, keys, "1-2") == [b"trimmed", 0]
    assert await command(redis, "HGET", *trimmed) == b"1-3"
    assert await trim(redis, keys, "1-5") == [b"trimmed", 2]
    assert await command(redis, "HGET", *trimmed) == b"1-5"
    assert await log_positions(redis, keys, FEED) == ["1-6"]


@pytest.mark.parametrize("lost", ["head", "log"])
async def test_a_feed_that_lost_its_head_or_its_log_is_corruption_and_not_trimmed(
    redis: Redis, keys: Keys, lost: str
) -> None:
    await archived_feed(redis, keys)
    await command(redis, "DEL", getattr(keys.feed(FEED), lost))
    before = await dump(redis, keys)
    with pytest.raises(Corrupted, match="not the last event"):
        await trim(redis, keys, "1-3")
    assert await dump(redis, keys) == before


async def test_what_is_noted_of_nothing_keeps_everything(redis: Redis, keys: Keys) -> None:
    await archived_feed(redis, keys)
    await command(redis, "HDEL", keys.feed(FEED).archive, "archived_to")
    assert await trim(redis, keys, "1-3") == [b"kept", b"the archive does not reach so far"]
    await note(redis, keys, "1-5")
    await command(redis, "HSET", keys.feed(FEED).build, "state", "asked")
    assert await trim(redis, keys, "1-3") == [b"kept", b"a generation that is being built is not so far"]
    await command(redis, "DEL", keys.feed(FEED).build, keys.feed(FEED).active)
    assert await trim(redis, keys, "1-3") == [b"kept", b"the live generation is not so far"]
    assert len(await log_positions(redis, keys, FEED)) == 6


# Restoring


async def stage(redis: Redis, keys: Keys, *, records: bool = True) -> None:
    its = keys.feed(FEED)
    await command(redis, "XADD", its.restore_log, "1-1", "envelope", "{}", "content", "", "recorded_at", "1")
    await command(redis, "HSET", its.restore_head, "epoch", "1", "n", "1", "recorded_at", "1", "chain", "c")
    if records:
        await command(redis, "HSET", its.restore_entries, "e1", "published 1 1-1 f")


async def make(
    redis: Redis, keys: Keys, *, last: str = "1-1", chain: str = "c", seen: str = "", epoch: str = ""
) -> bytes:
    its, shard = keys.feed(FEED), keys.shard(keys.shard_of(FEED))
    names = (its.restore_log, its.restore_head, its.restore_entries, its.log, its.head, its.entries, its.quarantine)
    on_shard = (shard.dirty, shard.doorbell, shard.incarnation, shard.witnessed)
    args = (FEED, last, chain, seen, epoch, "{raised}", "some were lost", 1, "1-1", '{"reason":"r"}')
    answer: bytes = await RESTORED(redis, (*names, *on_shard), args)
    return answer


@pytest.mark.parametrize("records", [True, False])
async def test_what_was_staged_becomes_the_feed_with_its_quarantine_and_somebody_is_told(
    redis: Redis, keys: Keys, records: bool
) -> None:
    await stage(redis, keys, records=records)
    its, shard = keys.feed(FEED), keys.shard(keys.shard_of(FEED))
    assert await make(redis, keys) == b"restored"
    assert await command(redis, "HGETALL", its.head) == {b"epoch": b"1", b"n": b"1", b"recorded_at": b"1"}
    assert await log_positions(redis, keys, FEED) == ["1-1"]
    assert await command(redis, "HLEN", its.entries) == int(records)
    assert await command(redis, "HGETALL", its.quarantine) == {b"1-1": b'{"reason":"r"}'}
    assert await command(redis, "SMEMBERS", shard.dirty) == {FEED.encode()}
    rings = await command(redis, "XRANGE", shard.doorbell, "-", "+")
    assert [fields for _, fields in rings] == [{b"feed": FEED.encode()}]
    assert await command(redis, "EXISTS", its.restore_log, its.restore_head, its.restore_entries) == 0


@pytest.mark.parametrize(("last", "chain"), [("1-2", "c"), ("1-1", "other")])
async def test_something_else_that_is_staged_is_not_made_a_feed(
    redis: Redis, keys: Keys, last: str, chain: str
) -> None:
    await stage(redis, keys)
    before = await dump(redis, keys)
    assert await make(redis, keys, last=last, chain=chain) == b"moved"
    assert await dump(redis, keys) == before


async def test_nothing_staged_makes_no_feed(redis: Redis, keys: Keys) -> None:
    before = await dump(redis, keys)
    assert await make(redis, keys) == b"moved"
    assert await dump(redis, keys) == before
    # Nor does a head that lost its log.
    await command(redis, "HSET", keys.feed(FEED).restore_head, "epoch", "1", "n", "1", "recorded_at", "1", "chain", "c")
    before = await dump(redis, keys)
    assert await make(redis, keys) == b"moved"
    assert await dump(redis, keys) == before


async def test_the_doorbell_of_restored_feeds_is_capped(redis: Redis, keys: Keys) -> None:
    doorbell = keys.shard(keys.shard_of(FEED)).doorbell
    pipeline = redis.pipeline(transaction=False)
    for _ in range(1500):
        pipeline.execute_command("XADD", doorbell, "*", "feed", FEED)
    await pipeline.execute()
    await stage(redis, keys)
    assert await make(redis, keys) == b"restored"
    assert await command(redis, "XLEN", doorbell) < 1500


async def test_what_came_back_short_goes_on_in_a_new_epoch_from_the_same_act_on(redis: Redis, keys: Keys) -> None:
    its, shard = keys.feed(FEED), keys.shard(keys.shard_of(FEED))
    await command(redis, "HSET", shard.witnessed, FEED, "1-3", "another", "1-9")
    await stage(redis, keys)
    before = await dump(redis, keys)
    assert await make(redis, keys, seen="") == b"witnessed", "decided before they reported"
    assert await dump(redis, keys) == before
    ahead = 2**52
    await command(redis, "HSET", its.restore_head, "recorded_at", ahead)
    assert await make(redis, keys, seen="1-3", epoch="2") == b"restored"
    assert await log_positions(redis, keys, FEED) == ["1-1", "2-2"]
    [(_, fields)] = await command(redis, "XRANGE", its.log, "2-2", "2-2")
    stamp = str(ahead).encode()
    assert fields == {b"envelope": b"{raised}", b"content": b"", b"recorded_at": stamp}, "the clock never runs back"
    assert await command(redis, "HGETALL", its.head) == {
        b"epoch": b"2",
        b"n": b"2",
        b"recorded_at": stamp,
        b"lost_epoch": b"2",
        b"raised_reason": b"epoch",
        b"raised_because": b"some were lost",
        b"raised_at": stamp,
    }
    assert await command(redis, "HGETALL", shard.witnessed) == {b"another": b"1-9"}


async def test_a_new_epoch_is_stamped_by_the_servers_clock(redis: Redis, keys: Keys) -> None:
    await stage(redis, keys)
    seconds, _ = await command(redis, "TIME")
    assert await make(redis, keys, epoch="2") == b"restored"
    stamp = int(await command(redis, "HGET", keys.feed(FEED).head, "raised_at"))
    assert int(seconds) * 1000 <= stamp < int(seconds) * 1000 + 60_000


async def test_a_server_that_is_not_admitted_makes_no_feed_of_what_is_staged(redis: Redis, keys: Keys) -> None:
    await stage(redis, keys)
    await command(redis, "HSET", keys.shard(keys.shard_of(FEED)).incarnation, "server", "another")
    before = await dump(redis, keys)
    assert await make(redis, keys) == b"unadmitted"
    assert await dump(redis, keys) == before

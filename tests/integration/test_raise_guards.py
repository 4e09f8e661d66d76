"""The guards of the scripts that raise an epoch, say where a log stands and note what witnesses saw, one by one.

Owns what those scripts alone decide, called by hand. Servers that really lose something are test_epochs'.
"""

import secrets

import pytest
from redis.exceptions import ResponseError

from shared.epochs import raising as raising_module
from shared.epochs.raising import Epochs, Standing
from shared.epochs.witness import report
from shared.errors import Corrupted
from shared.keys import Keys
from shared.log import Log
from shared.position import Position
from shared.redis import Redis, Script, command
from tests.integration.builders import appending_entry, dump, log_entries, open_feed

FEED = "final"
RAISE = Script(raising_module.__file__, "raise.lua")
ANOTHER = "another-process another-history"


@pytest.fixture
def keys() -> Keys:
    """Keys of the test's own; the one shard that matters is admitted by hand."""
    return Keys("t" + secrets.token_hex(6))


@pytest.fixture
async def process(redis: Redis, keys: Keys) -> str:
    """The process that answers, admitted, with a feed of two events that nobody has to look at."""
    process = (await Epochs(redis, keys).process()).server
    shard = keys.shard(keys.shard_of(FEED))
    await command(redis, "HSET", shard.incarnation, "server", process)
    log = Log(redis, keys)
    await open_feed(log, FEED)
    await log.append(FEED, appending_entry("e1"))
    await command(redis, "DEL", shard.dirty, shard.doorbell)
    return process


async def raised(
    redis: Redis,
    keys: Keys,
    server: str,
    *,
    head: str = "1-2",
    epoch: int = 2,
    reason: str = "repaired",
    settles: bool = False,
) -> list[bytes]:
    its, shard = keys.feed(FEED), keys.shard(keys.shard_of(FEED))
    answer: list[bytes] = await RAISE(
        redis,
        (its.log, its.head, shard.dirty, shard.doorbell, shard.incarnation, shard.witnessed),
        (FEED, server, head, epoch, "{}", reason, "tried", "1" if settles else ""),
    )
    return answer


async def head_of(redis: Redis, keys: Keys) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await command(redis, "HGETALL", keys.feed(FEED).head)
    return found


async def admit_another(redis: Redis, keys: Keys) -> None:
    await command(redis, "HSET", keys.shard(keys.shard_of(FEED)).incarnation, "server", ANOTHER)


# What a raise writes


async def test_a_raise_writes_its_event_the_head_and_the_hints_and_forgets_what_was_reported(
    redis: Redis, keys: Keys, process: str
) -> None:
    its, shard = keys.feed(FEED), keys.shard(keys.shard_of(FEED))
    await command(redis, "HSET", shard.witnessed, FEED, "1-9", "another", "1-3")
    before, head = await dump(redis, keys), await head_of(redis, keys)
    began = await milliseconds(redis)
    assert await raised(redis, keys, process) == [b"raised", b"2", b"3"]
    after = await dump(redis, keys)
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    assert changed == {its.log, its.head, shard.dirty, shard.doorbell, shard.witnessed}
    entries = await log_entries(redis, keys, FEED)
    stamp = entries[-1].fields[b"recorded_at"]
    assert [entry.id for entry in entries] == [b"1-1", b"1-2", b"2-3"]
    assert entries[-1].fields == {b"envelope": b"{}", b"content": b"", b"recorded_at": stamp}
    assert began <= int(stamp) <= await milliseconds(redis)
    assert await head_of(redis, keys) == head | {
        b"epoch": b"2",
        b"n": b"3",
        b"recorded_at": stamp,
        b"raised_reason": b"repaired",
        b"raised_because": b"tried",
        b"raised_at": stamp,
    }
    assert await command(redis, "HGETALL", shard.witnessed) == {b"another": b"1-3"}
    assert await command(redis, "SMEMBERS", shard.dirty) == {FEED.encode()}
    rings = await command(redis, "XRANGE", shard.doorbell, "-", "+")
    assert [fields for _, fields in rings] == [{b"feed": FEED.encode()}]


async def test_readers_are_told_of_a_loss_by_the_last_epoch_that_was_raised_for_one(
    redis: Redis, keys: Keys, process: str
) -> None:
    assert (await raised(redis, keys, process, reason="epoch"))[0] == b"raised"
    assert (await head_of(redis, keys))[b"lost_epoch"] == b"2"
    assert (await raised(redis, keys, process, head="2-3", epoch=3))[0] == b"raised"
    head = await head_of(redis, keys)
    assert (head[b"raised_reason"], head[b"lost_epoch"]) == (b"repaired", b"2")


async def test_a_server_in_doubt_settles_a_feed_once_and_another_settles_it_again(
    redis: Redis, keys: Keys, process: str
) -> None:
    await admit_another(redis, keys)
    await command(redis, "HSET", keys.feed(FEED).head, "settled", ANOTHER)
    assert (await raised(redis, keys, process, settles=True))[0] == b"raised"
    assert (await head_of(redis, keys))[b"settled"] == process.encode()
    before = await dump(redis, keys)
    assert await raised(redis, keys, process, head="2-3", epoch=3, settles=True) == [b"settled"]
    assert await dump(redis, keys) == before
    # What a witness saw is heeded all the same, before and after the server is admitted.
    assert (await raised(redis, keys, process, head="2-3", epoch=3))[0] == b"raised"


async def test_the_record_of_time_does_not_run_backwards_in_a_new_epoch_and_n_stays_a_whole_number(
    redis: Redis, keys: Keys, process: str
) -> None:
    its = keys.feed(FEED)
    future, n = await milliseconds(redis) + 86_400_000, 10**15
    await command(redis, "XADD", its.log, f"1-{n}", "envelope", "{}", "content", "", "recorded_at", future)
    await command(redis, "HSET", its.head, "n", n, "recorded_at", future)
    assert await raised(redis, keys, process, head=f"1-{n}") == [b"raised", b"2", f"{n + 1}".encode()]
    assert (await log_entries(redis, keys, FEED))[-1].fields[b"recorded_at"] == f"{future}".encode()
    assert (await head_of(redis, keys))[b"recorded_at"] == f"{future}".encode()


async def test_the_doorbell_of_raised_epochs_is_capped(redis: Redis, keys: Keys, process: str) -> None:
    doorbell = keys.shard(keys.shard_of(FEED)).doorbell
    pipeline = redis.pipeline(transaction=False)
    for _ in range(1500):
        pipeline.xadd(doorbell, {"feed": "another"})
    await pipeline.execute()
    await raised(redis, keys, process)
    assert await command(redis, "XLEN", doorbell) < 1200


# What a raise refuses


async def test_a_raise_that_was_decided_on_something_else_changes_nothing(
    redis: Redis, keys: Keys, process: str
) -> None:
    before = await dump(redis, keys)
    assert await raised(redis, keys, ANOTHER) == [b"moved"]
    assert await raised(redis, keys, process, settles=True) == [b"settled"]
    for head in ("1-1", "1-3", "2-2"):
        assert await raised(redis, keys, process, head=head) == [b"stale"]
    for epoch in (0, 1):
        with pytest.raises(ResponseError, match="an epoch only grows"):
            await raised(redis, keys, process, epoch=epoch)
    assert await dump(redis, keys) == before


async def test_a_feed_that_is_not_there_has_no_epoch_to_raise(redis: Redis, keys: Keys) -> None:
    process = (await Epochs(redis, keys).process()).server
    before = await dump(redis, keys)
    assert await raised(redis, keys, process) == [b"stale"]
    assert await dump(redis, keys) == before


@pytest.mark.parametrize("damage", ["no log", "an event more"])
async def test_a_head_that_is_not_the_logs_last_event_is_corruption_and_no_epoch_is_raised(
    redis: Redis, keys: Keys, process: str, damage: str
) -> None:
    log = keys.feed(FEED).log
    if damage == "no log":
        await command(redis, "DEL", log)
    else:
        await command(redis, "XADD", log, "1-3", "envelope", "{}", "content", "", "recorded_at", "1")
    before = await dump(redis, keys)
    with pytest.raises(Corrupted, match=FEED):
        await raised(redis, keys, process)
    assert await dump(redis, keys) == before


# Where a log stands


async def standing(redis: Redis, keys: Keys, seen: str | None, *, feed: str = FEED) -> Standing:
    """Where it stands if a witness reported `seen`."""
    witnessed = keys.shard(keys.shard_of(feed)).witnessed
    await command(redis, "HDEL", witnessed, feed)
    if seen is not None:
        await command(redis, "HSET", witnessed, feed, seen)
    [found] = await Epochs(redis, keys).standings([feed])
    return found


async def lost(redis: Redis, keys: Keys, *seen: str) -> dict[str, bool]:
    return {position: (await standing(redis, keys, position)).lost for position in seen}


async def test_a_position_is_lost_that_readers_may_hold_in_the_logs_epoch_and_the_log_does_not(
    redis: Redis, keys: Keys, process: str
) -> None:
    await raised(redis, keys, process)
    await Log(redis, keys).append(FEED, appending_entry("e2"))
    head = Position(2, 4)
    assert await standing(redis, keys, None) == Standing(FEED, head, None, lost=False)
    assert await standing(redis, keys, "2-5") == Standing(FEED, head, Position(2, 5), lost=True)
    # Above the head, in an epoch above it, below it in another history; held; of an epoch whose readers are reset anyway.
    expected = {"2-10": True, "3-1": True, "2-2": True, "2-4": False, "2-3": False, "1-90": False, "1-1": False}
    assert await lost(redis, keys, *expected) == expected


async def test_what_was_trimmed_is_not_lost_but_what_the_log_begins_before_and_lacks_is(
    redis: Redis, keys: Keys, process: str
) -> None:
    await raised(redis, keys, process)
    await command(redis, "XTRIM", keys.feed(FEED).log, "MINID", "1-2")
    assert await lost(redis, keys, "2-1", "2-2") == {"2-1": False, "2-2": True}
    # A log that is gone whole is corruption, for others to find; only what lies above the head needs no log to be missed.
    await command(redis, "DEL", keys.feed(FEED).log)
    assert await lost(redis, keys, "2-2", "2-3", "2-4") == {"2-2": False, "2-3": False, "2-4": True}


async def test_a_feed_that_is_not_there_stands_nowhere_whatever_was_seen_of_it(redis: Redis, keys: Keys) -> None:
    assert await standing(redis, keys, None, feed="gone") == Standing("gone", None, None, lost=False)
    assert await standing(redis, keys, "3-9", feed="gone") == Standing("gone", None, Position(3, 9), lost=False)


async def test_a_loss_is_made_visible_once_above_every_epoch_in_which_anybody_can_hold_a_position(
    redis: Redis, keys: Keys, process: str
) -> None:
    found = await standing(redis, keys, "4-9")
    assert await Epochs(redis, keys).make_losses_visible([FEED], server=process) == [found]
    assert (await standing(redis, keys, "4-9")).head == Position(5, 3)
    assert await Epochs(redis, keys).make_losses_visible([FEED], server=process) == []


# What witnesses report


async def test_of_what_witnesses_report_of_a_feed_the_highest_position_stays(redis: Redis, keys: Keys) -> None:
    reports = {"1-9": "1-9", "1-3": "1-9", "1-10": "1-10", "2-1": "2-1", "1-90": "2-1", "10-1": "10-1", "9-5": "10-1"}
    for position, stays in reports.items():
        await report(redis, keys, {FEED: Position.parse(position)})
        assert (await standing_reports(redis, keys))[FEED.encode()] == stays.encode(), position
    same_shard = next(f"f{n}" for n in range(1000) if Keys.shard_of(f"f{n}") == Keys.shard_of(FEED))
    await report(redis, keys, {FEED: Position(10, 2), same_shard: Position(1, 1)})
    assert await standing_reports(redis, keys) == {FEED.encode(): b"10-2", same_shard.encode(): b"1-1"}


async def standing_reports(redis: Redis, keys: Keys) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await command(redis, "HGETALL", keys.shard(keys.shard_of(FEED)).witnessed)
    return found


async def milliseconds(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return int(seconds * 1000 + microseconds // 1000)

"""The append script on real servers: positions, command ids, guards that refuse without a trace, and the clock.

Owns what one call of the log's append does. Decisions are test_desk's, lost replies test_lost_replies'.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from shared.append import EVENTS_PER_APPEND_MAX, Append, Appended, Conflict, Guards, Known, NewRecord, Stale, Unadmitted
from shared.epochs.raising import Epochs
from shared.epochs.witness import report
from shared.errors import Corrupted
from shared.events import EntryPinned, FeedOpened, FeedRevised, FeedStatusChanged
from shared.keys import Keys
from shared.log import Head, Log
from shared.position import Position
from shared.redis import Redis, command
from tests.integration.builders import (
    FIELDS,
    appending,
    appending_entry,
    carry_out,
    desk_of,
    dump,
    encoded,
    is_dirty,
    log_entries,
    log_positions,
    open_feed,
    opening,
    published,
    publishing,
)

FEED = "final"
DAY_SECONDS = 86_400
DAY_MILLISECONDS = DAY_SECONDS * 1000


@pytest.fixture
def log(redis: Redis, keys: Keys) -> Log:
    return Log(redis, keys)


@pytest.fixture
async def opened(log: Log) -> Log:
    """A feed of three events: opened, e1 published, e1 pinned."""
    await open_feed(log, FEED)
    await log.append(FEED, appending_entry("e1"))
    pin = appending(
        EntryPinned(entry="e1"),
        guards=Guards(entries={"e1": Position(1, 2)}),
        sets_pins=True,
        records={"e1": NewRecord("published", 1, 1, "f")},
    )
    assert isinstance(await log.append(FEED, pin), Appended)
    return log


async def head_of(log: Log) -> Head:
    head = (await log.look(FEED, entries=[], pins=False, command=None)).head
    assert head is not None
    return head


async def server_milliseconds(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return seconds * 1000 + microseconds // 1000


# Positions


async def test_a_batch_of_200_events_is_one_call(redis: Redis, keys: Keys, log: Log) -> None:
    await open_feed(log, FEED)
    names = [f"e{i}" for i in range(EVENTS_PER_APPEND_MAX)]
    append = appending(
        *[published(name) for name in names],
        guards=Guards(version=1, pins=1, entries=dict.fromkeys(names)),
        live_change=len(names),
        records={name: NewRecord("published", 1, number, f"f-{name}") for number, name in enumerate(names, start=1)},
    )
    answer = await log.append(FEED, append)
    assert isinstance(answer, Appended) and answer.last == Position(1, 201)
    entries = await log_entries(redis, keys, FEED)
    assert [entry.id.decode() for entry in entries] == [f"1-{n}" for n in range(1, 202)]
    assert [entry.fields[b"envelope"] for entry in entries[1:]] == [event.envelope for event in append.events]
    assert [entry.fields[b"content"] for entry in entries[1:]] == [event.content for event in append.events]
    looked = await log.look(FEED, entries=names, pins=False, command=None)
    assert {name: record and (record.position, record.fingerprint) for name, record in looked.records.items()} == {
        name: (Position(1, number), f"f-{name}") for number, name in enumerate(names, start=2)
    }
    assert looked.head is not None and looked.head.live == 200


async def test_n_goes_on_in_the_epoch_that_the_head_names(redis: Redis, keys: Keys, opened: Log) -> None:
    await command(redis, "XADD", keys.feed(FEED).log, "2-4", "envelope", "{}", "content", "", "recorded_at", "1")
    await command(redis, "HSET", keys.feed(FEED).head, "epoch", "2", "n", "4")
    answer = await opened.append(FEED, appending_entry("e2"))
    assert isinstance(answer, Appended) and answer.last == Position(2, 5)
    assert (await opened.look(FEED, entries=["e2"], pins=False, command=None)).records["e2"] == (
        "published",
        1,
        Position(2, 5),
        "f",
    )


async def test_positions_beyond_what_a_double_prints_plainly_stay_whole_numbers(
    redis: Redis, keys: Keys, opened: Log
) -> None:
    n = 10**15
    await command(redis, "XADD", keys.feed(FEED).log, f"1-{n}", "envelope", "{}", "content", "", "recorded_at", "1")
    await command(redis, "HSET", keys.feed(FEED).head, "n", str(n))
    answer = await opened.append(FEED, appending_entry("e2"))
    assert isinstance(answer, Appended) and answer.last == Position(1, n + 1)
    assert (await log_positions(redis, keys, FEED))[-1] == f"1-{n + 1}"


# What an append leaves


async def test_the_head_keeps_status_live_count_and_the_last_change_of_the_feed_and_of_its_pins(
    redis: Redis, log: Log
) -> None:
    await open_feed(log, FEED)
    at_opening = await head_of(log)
    assert at_opening[:1] + at_opening[2:] == (Position(1, 1), "open", 1, 1, 0)
    await log.append(FEED, appending_entry("e1"))
    assert (await head_of(log))[2:] == ("open", 1, 1, 1)
    await log.append(FEED, appending(EntryPinned(entry="e1"), sets_pins=True))
    assert (await head_of(log))[2:] == ("open", 1, 3, 1)
    await log.append(FEED, appending(FeedStatusChanged(status="closed"), new_status="closed", sets_version=True))
    assert (await head_of(log))[2:] == ("closed", 4, 3, 1)
    await log.append(FEED, appending(EntryPinned(entry="e1"), live_change=-1))
    head = await head_of(log)
    assert (head.position, head.live) == (Position(1, 5), 0)


async def test_an_append_marks_the_feed_dirty_and_rings_the_doorbell(redis: Redis, keys: Keys, log: Log) -> None:
    await open_feed(log, FEED)
    assert await is_dirty(redis, keys, FEED)
    doorbell = keys.shard(keys.shard_of(FEED)).doorbell
    rung = cast("Any", await redis.xrange(doorbell))
    assert [fields for _, fields in rung] == [{b"feed": FEED.encode(), b"position": b"1-1"}]
    await log.append(FEED, appending_entry("e1"))
    assert await redis.xlen(doorbell) == 2


async def test_the_doorbell_is_capped(redis: Redis, keys: Keys, log: Log) -> None:
    await open_feed(log, FEED)
    doorbell = keys.shard(keys.shard_of(FEED)).doorbell
    pipeline = redis.pipeline(transaction=False)
    for _ in range(2000):
        pipeline.xadd(doorbell, {"feed": "another"})
    await pipeline.execute()
    await log.append(FEED, appending_entry("e1"))
    assert await redis.xlen(doorbell) < 1200


async def test_an_append_of_no_events_remembers_its_command_and_touches_nothing_else(
    redis: Redis, keys: Keys, opened: Log
) -> None:
    await command(redis, "SREM", keys.shard(keys.shard_of(FEED)).dirty, FEED)
    before = await dump(redis, keys)
    answer = await opened.append(FEED, appending(command="nothing", guards=Guards(entries={"e1": Position(1, 3)})))
    assert isinstance(answer, Appended) and answer.last == Position(1, 3)
    after = await dump(redis, keys)
    assert {key for key in after if after[key] != before.get(key)} == {commands_bucket(keys, await today(redis))}
    again = await opened.append(FEED, appending(command="nothing"))
    assert isinstance(again, Known) and (again.events, again.last) == (0, Position(1, 3))


# Command ids


def commands_bucket(keys: Keys, day: int) -> str:
    return f"{keys.feed(FEED).commands}{day}"


async def today(redis: Redis) -> int:
    return await server_milliseconds(redis) // DAY_MILLISECONDS


async def test_the_same_command_again_is_known_and_appends_nothing(redis: Redis, keys: Keys, opened: Log) -> None:
    append = appending_entry("e2", command="publish-e2")
    first = await opened.append(FEED, append)
    assert isinstance(first, Appended)
    before = await dump(redis, keys)
    again = await opened.append(FEED, append)
    assert isinstance(again, Known)
    assert (again.fingerprint, again.events, again.last) == ("f", 1, first.last)
    assert without_touch(keys, await dump(redis, keys)) == before


async def test_the_same_command_from_many_callers_at_once_is_appended_once(
    redis: Redis, keys: Keys, opened: Log
) -> None:
    answers = await asyncio.gather(
        *[opened.append(FEED, appending_entry("e2", command="publish-e2")) for _ in range(16)]
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["Appended"] + ["Known"] * 15
    assert await log_positions(redis, keys, FEED) == ["1-1", "1-2", "1-3", "1-4"]


async def test_the_same_command_with_another_fingerprint_conflicts(redis: Redis, keys: Keys, opened: Log) -> None:
    await opened.append(FEED, appending_entry("e2", command="publish", fingerprint="one"))
    before = await dump(redis, keys)
    answer = await opened.append(FEED, appending_entry("e3", command="publish", fingerprint="two"))
    assert isinstance(answer, Conflict)
    assert without_touch(keys, await dump(redis, keys)) == before


@pytest.mark.parametrize("fingerprint", ["f", "other"])
async def test_a_known_command_still_writes_so_that_a_replica_can_confirm_it(
    redis: Redis, keys: Keys, opened: Log, fingerprint: str
) -> None:
    touch = keys.shard(keys.shard_of(FEED)).touch
    await opened.append(FEED, appending_entry("e2", command="publish-e2"))
    assert not await redis.exists(touch)
    await opened.append(FEED, appending_entry("e2", command="publish-e2", fingerprint=fingerprint))
    assert await redis.get(touch) == b"publish-e2"
    assert 0 < await redis.ttl(touch) <= 60


@pytest.mark.parametrize("days_ago", [0, 1, 2])
async def test_a_command_of_today_and_of_the_two_days_before_is_known(
    redis: Redis, keys: Keys, opened: Log, days_ago: int
) -> None:
    bucket = commands_bucket(keys, await today(redis) - days_ago)
    await command(redis, "HSET", bucket, "old", "f 0123456789ab 1 1-2")
    before = await dump(redis, keys)
    known = Known("f", "0123456789ab", 1, Position(1, 2))
    assert await opened.append(FEED, appending_entry("e2", command="old")) == known
    assert isinstance(await opened.append(FEED, appending_entry("e2", command="old", fingerprint="g")), Conflict)
    assert without_touch(keys, await dump(redis, keys)) == before


async def test_a_command_of_three_days_ago_is_forgotten(redis: Redis, keys: Keys, opened: Log) -> None:
    bucket = commands_bucket(keys, await today(redis) - 3)
    await command(redis, "HSET", bucket, "old", "f 0123456789ab 1 1-2")
    assert isinstance(await opened.append(FEED, appending_entry("e2", command="old")), Appended)


async def test_the_commands_of_a_day_expire_after_the_last_look_into_them(
    redis: Redis, keys: Keys, opened: Log
) -> None:
    left = await redis.ttl(commands_bucket(keys, await today(redis)))
    # Remembered for 48 hours at least, whatever the time of day, and not for ever.
    assert 3 * DAY_SECONDS < left <= 4 * DAY_SECONDS


def without_touch(keys: Keys, dumped: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in dumped.items() if key != keys.shard(keys.shard_of(FEED)).touch}


# Guards

REFUSALS: dict[str, tuple[Callable[[], Append], str]] = {
    "opening a feed that is open": (
        lambda: appending(FeedOpened(FIELDS), guards=Guards(opens=True), sets_version=True, new_status="open"),
        "feed",
    ),
    "a feed that was revised since": (
        lambda: appending(published("e2"), guards=Guards(version=2)),
        "version",
    ),
    "pins that changed since": (lambda: appending(EntryPinned(entry="e1"), guards=Guards(pins=1)), "pins"),
    "an entry that moved since": (
        lambda: appending(EntryPinned(entry="e1"), guards=Guards(entries={"e1": Position(1, 2)})),
        "e1",
    ),
    "an entry that must not exist": (lambda: appending(published("e1"), guards=Guards(entries={"e1": None})), "e1"),
    "an entry that must exist": (
        lambda: appending(EntryPinned(entry="e9"), guards=Guards(entries={"e9": Position(1, 2)})),
        "e9",
    ),
    "the last of many entries": (
        lambda: appending(
            published("e2"), guards=Guards(entries={"e1": Position(1, 3), "e2": None, "e3": Position(1, 1)})
        ),
        "e3",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_guard_that_does_not_hold_refuses_and_changes_nothing(
    redis: Redis, keys: Keys, opened: Log, refusal: str
) -> None:
    append, what = REFUSALS[refusal]
    before = await dump(redis, keys)
    assert await opened.append(FEED, append()) == Stale(what)
    assert await dump(redis, keys) == before


async def test_an_append_to_a_feed_that_does_not_exist_refuses_and_changes_nothing(
    redis: Redis, keys: Keys, log: Log
) -> None:
    before = await dump(redis, keys)
    assert await log.append(FEED, appending_entry("e1")) == Stale("feed")
    assert await dump(redis, keys) == before


async def test_guards_that_hold_let_the_append_through(opened: Log) -> None:
    guards = Guards(version=1, pins=3, entries={"e1": Position(1, 3), "e2": None})
    assert isinstance(await opened.append(FEED, appending(published("e2"), guards=guards)), Appended)


async def test_a_refused_command_is_not_remembered(redis: Redis, keys: Keys, opened: Log) -> None:
    refused = appending(FeedRevised(content=cast("Any", {})), command="c", guards=Guards(version=7))
    assert await opened.append(FEED, refused) == Stale("version")
    assert isinstance(await opened.append(FEED, appending_entry("e2", command="c", fingerprint="g")), Appended)


# The server, and what was seen before it


async def test_a_server_process_that_was_not_admitted_takes_no_append_and_changes_nothing(
    redis: Redis, keys: Keys, opened: Log
) -> None:
    append = appending_entry("e2", command="publish-e2")
    assert isinstance(await opened.append(FEED, append), Appended)
    await command(redis, "HSET", keys.shard(keys.shard_of(FEED)).incarnation, "server", "another-process its-history")
    before = await dump(redis, keys)
    unadmitted = Unadmitted((await Epochs(redis, keys).process()).server)
    # Nor does it say of a command that it is known: what it knows may not be what was acknowledged.
    assert await opened.append(FEED, append) == unadmitted
    assert await opened.append(FEED, appending_entry("e3")) == unadmitted
    assert await dump(redis, keys) == before


async def test_a_feed_that_was_lost_whole_begins_above_what_readers_may_hold_of_it(
    redis: Redis, keys: Keys, log: Log
) -> None:
    await report(redis, keys, {FEED: Position(3, 9)})
    assert await open_feed(log, FEED) == Position(4, 1)
    assert (await head_of(log)).position == Position(4, 1)
    # Of a feed that is there witnesses are heeded when a server is admitted, not by an append.
    await report(redis, keys, {FEED: Position(7, 9)})
    answer = await log.append(FEED, appending_entry("e1"))
    assert isinstance(answer, Appended) and answer.last == Position(4, 2)


# The clock


async def test_an_event_is_stamped_with_the_servers_time(redis: Redis, keys: Keys, opened: Log) -> None:
    before = await server_milliseconds(redis)
    answer = await opened.append(FEED, appending_entry("e2"))
    after = await server_milliseconds(redis)
    assert isinstance(answer, Appended) and before <= answer.recorded_at <= after
    assert (await log_entries(redis, keys, FEED))[-1].fields[b"recorded_at"] == str(answer.recorded_at).encode()
    assert await opened.recorded_at(FEED, answer.last) == answer.recorded_at


async def test_the_record_of_time_never_runs_backwards(redis: Redis, keys: Keys, opened: Log) -> None:
    future = await server_milliseconds(redis) + DAY_MILLISECONDS
    await command(redis, "HSET", keys.feed(FEED).head, "recorded_at", str(future))
    for entry in ("e2", "e3"):
        answer = await opened.append(FEED, appending_entry(entry))
        assert isinstance(answer, Appended) and answer.recorded_at == future
    stamps = [int(entry.fields[b"recorded_at"]) for entry in await log_entries(redis, keys, FEED)]
    assert stamps == sorted(stamps) and stamps[-2:] == [future, future]
    assert (await head_of(opened)).recorded_at == future


# Damage


async def an_event_more(redis: Redis, keys: Keys) -> None:
    event = encoded(published("e9"))
    fields = ("envelope", event.envelope, "content", event.content, "recorded_at", "1")
    await command(redis, "XADD", keys.feed(FEED).log, "1-4", *fields)


async def an_event_less(redis: Redis, keys: Keys) -> None:
    await command(redis, "HSET", keys.feed(FEED).head, "n", "4")


async def another_epoch(redis: Redis, keys: Keys) -> None:
    await command(redis, "HSET", keys.feed(FEED).head, "epoch", "2")


async def no_log(redis: Redis, keys: Keys) -> None:
    await command(redis, "DEL", keys.feed(FEED).log)


Damage = Callable[[Redis, Keys], Any]


@pytest.mark.parametrize("damage", [an_event_more, an_event_less, another_epoch, no_log])
async def test_a_head_that_is_not_the_logs_last_event_is_corruption_and_nothing_is_written(
    redis: Redis, keys: Keys, opened: Log, damage: Damage
) -> None:
    await damage(redis, keys)
    before = await dump(redis, keys)
    with pytest.raises(Corrupted, match=FEED):
        await opened.append(FEED, appending_entry("e2"))
    assert await dump(redis, keys) == before


async def test_a_log_without_a_head_is_corruption_and_nothing_is_written(redis: Redis, keys: Keys, opened: Log) -> None:
    await command(redis, "DEL", keys.feed(FEED).head)
    before = await dump(redis, keys)
    with pytest.raises(Corrupted, match=FEED):
        await open_feed(opened, FEED)
    assert await dump(redis, keys) == before


async def test_a_key_of_another_type_is_corruption(redis: Redis, keys: Keys, opened: Log) -> None:
    await command(redis, "DEL", keys.feed(FEED).entries)
    await command(redis, "SET", keys.feed(FEED).entries, "what no code of ours writes")
    before = await dump(redis, keys)
    with pytest.raises(Corrupted, match="WRONGTYPE"):
        await opened.append(FEED, appending_entry("e2"))
    assert await dump(redis, keys) == before


async def test_a_server_that_forgot_the_scripts_gets_them_again(redis: Redis, keys: Keys, opened: Log) -> None:
    await command(redis, "SCRIPT FLUSH")
    assert isinstance(await opened.append(FEED, appending_entry("e2")), Appended)
    assert await log_positions(redis, keys, FEED) == ["1-1", "1-2", "1-3", "1-4"]


# Many at once


async def test_positions_are_gapless_and_a_batchs_consecutive_under_16_concurrent_desks(
    redis: Redis, keys: Keys
) -> None:
    await carry_out(desk_of(redis, keys), FEED, opening())

    async def work(number: int) -> list[list[str]]:
        desk = desk_of(redis, keys)
        answered = []
        for turn in range(4):
            single = await carry_out(desk, FEED, publishing(f"{number}-{turn}"))
            batch = await carry_out(desk, FEED, *[publishing(f"{number}-{turn}-{i}") for i in range(3)], batch=True)
            answered += [[str(single.position)], [cast("Any", document).position for document in batch.documents]]
        return answered

    answered = [positions for desk in await asyncio.gather(*map(work, range(16))) for positions in desk]
    logged = await log_positions(redis, keys, FEED)
    assert logged == [f"1-{n}" for n in range(1, 1 + 1 + 16 * 4 * 4)]
    assert sorted(position for positions in answered for position in positions) == sorted(logged[1:])
    for positions in answered:
        first = int(positions[0].removeprefix("1-"))
        assert positions == [f"1-{first + i}" for i in range(len(positions))]

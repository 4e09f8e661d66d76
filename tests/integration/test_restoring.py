"""Restoring: recorded events brought into an installation that does not have the feed, whole at the end or not at all."""

import secrets
from collections.abc import Sequence
from typing import Any, cast

import pytest

from services.writer.outcome import Outcome
from shared.archive import restoring as restoring_module
from shared.archive.restoring import Restoring, in_chunks
from shared.epochs.admission import Admission
from shared.epochs.raising import Epochs, Raise
from shared.epochs.witness import report
from shared.errors import EntryExists, EntryRetracted, HistoryDiffers, Invalid, RevisionConflict, Unavailable
from shared.events import EntryRedacted, Removed
from shared.keys import Keys
from shared.log import Head, Log
from shared.ndjson import CHAIN_START, StreamEntry, chain_over
from shared.position import Position
from shared.redis import Redis, command
from tests.integration.builders import (
    appending,
    appending_entry,
    carry_out,
    correcting,
    damaged,
    desk_of,
    dump,
    generation_of,
    is_dirty,
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

FEED = "final"


@pytest.fixture
async def others(redis: Redis) -> Keys:
    """The keys of another installation, on the same server."""
    others = Keys("t" + secrets.token_hex(6))
    await Admission(redis, others).admit()
    return others


async def newsroom(redis: Redis, keys: Keys) -> list[StreamEntry]:
    """A feed with every kind of event, one of which cannot be folded; gives its log."""
    desk = desk_of(redis, keys)
    await carry_out(desk, FEED, opening())
    await carry_out(desk, FEED, publishing("a"), publishing("b", key_event=True), batch=True)
    await carry_out(desk, FEED, publishing("c", published_at="2020-01-01T00:00:00.000Z"))
    await carry_out(desk, FEED, correcting("a", 1, headline="Corrected"))
    await carry_out(desk, FEED, pinning("b"))
    await carry_out(desk, FEED, pinning("c"), unpinning("c"), batch=True)
    await carry_out(desk, FEED, retracting("b", "an error"))
    await carry_out(desk, FEED, publishing("secret"))
    await Log(redis, keys).append(FEED, appending_entry("bad", event=damaged(published("bad"))))
    redaction = EntryRedacted(entry="secret", reason="order 7", removed=[Removed("1-10", "d")])
    looked = await Log(redis, keys).look(FEED, entries=["secret"], pins=False, command=None)
    record = looked.records["secret"]
    assert record is not None
    await Log(redis, keys).append(
        FEED,
        appending(
            redaction,
            live_change=-1,
            sets_pins=True,
            records={"secret": restoring_record(record.revision)},
        ),
    )
    await carry_out(desk, FEED, revising(title="The final"))
    await carry_out(desk, FEED, publishing("d"))
    await project(redis, keys, FEED)
    return await log_entries(redis, keys, FEED)


def restoring_record(revision: int) -> Any:
    from shared.append import NewRecord

    return NewRecord("retracted", revision, 1, "-")


async def bring(redis: Redis, keys: Keys, entries: Sequence[StreamEntry], *, of: Keys | None = None) -> bool:
    """Stage the events in pieces of three and make the feed of them, with the quarantine of the installation `of`."""
    restoring = Restoring(redis, keys)
    for i in range(0, len(entries), 3):
        await restoring.stage(FEED, entries[i : i + 3])
    quarantine = await Log(redis, of).quarantined(FEED) if of else {}
    records = {str(position): record.decode() for position, record in quarantine.items()}
    return await finish(restoring, entries, quarantine=records)


async def finish(
    restoring: Restoring, entries: Sequence[StreamEntry], *, quarantine: dict[str, str] | None = None
) -> bool:
    return await restoring.finish(
        FEED, last=entries[-1].position, chain=chain_over(CHAIN_START, entries), quarantine=quarantine or {}
    )


async def write_side(redis: Redis, keys: Keys) -> tuple[Head, dict[bytes, bytes]]:
    head = await Log(redis, keys).head(FEED)
    assert head is not None
    return head, await command(redis, "HGETALL", keys.feed(FEED).entries)


async def test_a_restored_feed_is_the_same_on_the_write_side_and_in_its_documents(
    redis: Redis, keys: Keys, others: Keys
) -> None:
    entries = await newsroom(redis, keys)
    assert await bring(redis, others, entries, of=keys)
    assert await is_dirty(redis, others, FEED)
    assert await log_entries(redis, others, FEED) == entries
    was, is_now = await write_side(redis, keys), await write_side(redis, others)
    # Appends note the last event of a batch, here it is the event itself; the guards compare it with itself alone.
    assert is_now[0]._replace(pins=0) == was[0]._replace(pins=0)
    # An event that cannot be read tells no fingerprint, nor does one that was redacted.
    assert {k: v for k, v in is_now[1].items() if k != b"bad"} == {k: v for k, v in was[1].items() if k != b"bad"}
    assert is_now[1][b"bad"] == b"published 1 1-11 -"

    await project(redis, others, FEED)
    assert await generation_of(redis, others, FEED, 1) == await generation_of(redis, keys, FEED, 1)
    assert await Log(redis, others).quarantined(FEED) == await Log(redis, keys).quarantined(FEED)
    assert [key for key in await dump(redis, others) if "restore" in key] == []


async def test_desks_go_on_writing_into_a_restored_feed(redis: Redis, keys: Keys, others: Keys) -> None:
    entries = await newsroom(redis, keys)
    await bring(redis, others, entries, of=keys)
    await project(redis, others, FEED)
    desk = desk_of(redis, others)

    again: Outcome = await carry_out(desk, FEED, publishing("c", published_at="2020-01-01T00:00:00.000Z"))
    assert not again.created and len(await log_entries(redis, others, FEED)) == len(entries)
    with pytest.raises(EntryExists):
        await carry_out(desk, FEED, publishing("c", headline="Another"))
    with pytest.raises(EntryRetracted):
        await carry_out(desk, FEED, publishing("b"))
    with pytest.raises(RevisionConflict):
        await carry_out(desk, FEED, correcting("a", 1, headline="Too late"))
    corrected = await carry_out(desk, FEED, correcting("a", 2, headline="In time"))
    assert corrected.position == entries[-1].position.next()
    await carry_out(desk, FEED, pinning("a"))
    await carry_out(desk, FEED, revising(status="closed"))


async def test_until_the_end_there_is_no_feed_and_a_desk_may_open_one_of_that_name(
    redis: Redis, keys: Keys, others: Keys
) -> None:
    entries = await newsroom(redis, keys)
    restoring = Restoring(redis, others)
    await restoring.stage(FEED, entries)
    assert await Log(redis, others).head(FEED) is None
    assert not await is_dirty(redis, others, FEED)
    await carry_out(desk_of(redis, others), FEED, opening())
    standing = await log_entries(redis, others, FEED)

    with pytest.raises(HistoryDiffers, match="already, with other events"):
        await restoring.stage(FEED, entries[-1:])
    with pytest.raises(HistoryDiffers, match="already, with other events"):
        await finish(restoring, entries)
    assert await log_entries(redis, others, FEED) == standing


async def test_repeating_any_step_changes_nothing(redis: Redis, keys: Keys, others: Keys) -> None:
    entries = await newsroom(redis, keys)
    restoring = Restoring(redis, others)
    assert await restoring.stage(FEED, entries[:5]) == Position(1, 5)
    before = await dump(redis, others)
    assert await restoring.stage(FEED, entries[:5]) == Position(1, 5)
    assert await restoring.stage(FEED, entries[2:4]) == Position(1, 5)
    assert await dump(redis, others) == before
    # Other pieces than before are as good.
    assert await restoring.stage(FEED, entries[3:]) == entries[-1].position
    assert await finish(restoring, entries)
    before = await dump(redis, others)
    assert await restoring.stage(FEED, entries[:5]) == entries[-1].position
    assert not await finish(restoring, entries)
    assert await dump(redis, others) == before


async def test_a_crash_after_any_step_is_gone_on_from(
    redis: Redis, keys: Keys, others: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = await newsroom(redis, keys)
    calls = 0

    class Crash(Exception):
        pass

    class Crashing:
        def __init__(self, script: Any, after: int) -> None:
            self.script, self.after, self.calls = script, after, 0

        async def __call__(self, *args: Any) -> Any:
            nonlocal calls
            answer = await self.script(*args)
            self.calls += 1
            calls += 1
            if self.calls == self.after:
                raise Crash
            return answer

    for crash_at in (1, 2, 3):
        with monkeypatch.context() as patched:
            patched.setattr(restoring_module, "_restore", Crashing(restoring_module._restore, crash_at))
            patched.setattr(restoring_module, "_restored", Crashing(restoring_module._restored, 1))
            with pytest.raises(Crash):
                await bring(redis, others, entries, of=keys)
    with monkeypatch.context() as patched:
        patched.setattr(restoring_module, "_restored", Crashing(restoring_module._restored, 1))
        with pytest.raises(Crash):
            await bring(redis, others, entries, of=keys)
    assert not await bring(redis, others, entries, of=keys), "it was done, and only the answer was lost"
    await project(redis, others, FEED)
    assert await generation_of(redis, others, FEED, 1) == await generation_of(redis, keys, FEED, 1)


async def test_what_readers_hold_beyond_what_came_back_is_lost_and_made_visible(
    redis: Redis, keys: Keys, others: Keys
) -> None:
    entries = await newsroom(redis, keys)
    end = entries[-1].position
    await report(redis, others, {FEED: Position(1, end.n + 3)})
    assert await bring(redis, others, entries, of=keys)
    head = await Log(redis, others).head(FEED)
    assert head is not None and head.position == Position(2, end.n + 1)
    # Once: the repetition of an act whose answer was lost raises nothing more.
    assert not await finish(Restoring(redis, others), entries)
    assert await Log(redis, others).head(FEED) == head


@pytest.mark.parametrize(
    ("seen", "end"),
    [("1-99", "2-5"), ("2-5", "2-5"), ("2-4", "2-5"), ("2-3", "3-6"), ("2-6", "3-6"), ("3-2", "4-6")],
    ids=["older epoch", "the end", "within", "another history", "beyond", "newer epoch"],
)
async def test_only_what_is_not_in_the_history_that_came_back_is_lost(
    redis: Redis, others: Keys, keys: Keys, seen: str, end: str
) -> None:
    entries = (await newsroom(redis, keys))[:5]
    came = [*entries[:3], *(StreamEntry(b"2-%d" % e.position.n, e.fields) for e in entries[3:])]
    await report(redis, others, {FEED: Position.parse(seen)})
    assert await bring(redis, others, came)
    head = await Log(redis, others).head(FEED)
    assert head is not None and str(head.position) == end


async def test_a_restored_head_tells_why_epochs_were_raised_and_since_when_history_is_lost(
    redis: Redis, keys: Keys, others: Keys
) -> None:
    await newsroom(redis, keys)
    epochs = Epochs(redis, keys)
    server = (await epochs.process()).server
    for reason, because in (("epoch", "a backup"), ("repaired", "an event was folded after all")):
        [standing] = await epochs.standings([FEED])
        [answer] = await epochs.raise_all([Raise(standing, cast("Any", reason), because)], server=server)
        assert answer == "raised"
    entries = await log_entries(redis, keys, FEED)
    await bring(redis, others, entries, of=keys)
    told = ["raised_reason", "raised_because", "raised_at", "lost_epoch"]
    was, is_now = [await command(redis, "HMGET", k.feed(FEED).head, *told) for k in (keys, others)]
    assert is_now == was
    assert is_now[0] == b"repaired" and is_now[3] == b"2"


async def test_nothing_is_made_a_feed_before_the_server_process_is_admitted(redis: Redis, keys: Keys) -> None:
    entries = await newsroom(redis, keys)
    strange = Keys("t" + secrets.token_hex(6))
    with pytest.raises(Unavailable, match="not admitted"):
        await bring(redis, strange, entries, of=keys)
    assert await Log(redis, strange).head(FEED) is None
    await Admission(redis, strange).admit()
    assert await bring(redis, strange, entries, of=keys), "what was staged is still there"


async def test_events_that_do_not_go_on_from_what_is_staged_are_refused(redis: Redis, keys: Keys, others: Keys) -> None:
    entries = await newsroom(redis, keys)
    restoring = Restoring(redis, others)
    with pytest.raises(HistoryDiffers, match="stands at n 0"):
        await restoring.stage(FEED, entries[3:])
    await restoring.stage(FEED, entries[:4])
    with pytest.raises(HistoryDiffers, match="stands at n 4"):
        await restoring.stage(FEED, entries[5:])
    other = StreamEntry(entries[3].id, {**entries[3].fields, b"content": b"{}"})
    with pytest.raises(HistoryDiffers, match="stands at n 4"):
        await restoring.stage(FEED, [other, *entries[4:]])
    for wrong in ([entries[4], entries[6]], [entries[5], entries[4]], [entries[4], backdated(entries[5])]):
        with pytest.raises(Invalid):
            await restoring.stage(FEED, wrong)
    with pytest.raises(HistoryDiffers, match="is not what ends at"):
        await finish(restoring, entries)
    with pytest.raises(HistoryDiffers, match="is not what ends at"):
        await restoring.finish(FEED, last=Position(1, 4), chain=CHAIN_START, quarantine={})
    assert await Log(redis, others).head(FEED) is None


def backdated(entry: StreamEntry) -> StreamEntry:
    return StreamEntry(entry.id, {**entry.fields, b"recorded_at": b"1"})


async def test_another_history_from_the_first_event_on_takes_the_place_of_what_was_staged(
    redis: Redis, keys: Keys, others: Keys
) -> None:
    entries = await newsroom(redis, keys)
    restoring = Restoring(redis, others)
    await restoring.stage(FEED, [entries[0], *entries[1:5]])
    third = Keys(others.prefix + "c")
    await carry_out(desk_of(redis, third), FEED, opening(title="Another"))
    await carry_out(desk_of(redis, third), FEED, publishing("z"))
    another = await log_entries(redis, third, FEED)
    await restoring.stage(FEED, another)
    assert await finish(restoring, another)
    assert await log_entries(redis, others, FEED) == another
    assert set((await write_side(redis, others))[1]) == {b"z"}


async def test_two_at_once_bring_one_feed(
    redis: Redis, keys: Keys, others: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = await newsroom(redis, keys)
    first, second = Restoring(redis, others), Restoring(redis, others)
    stage = Restoring._stage

    async def overtaken(self: Restoring, *args: Any, **more: Any) -> Any:
        monkeypatch.setattr(Restoring, "_stage", stage)
        await second.stage(FEED, entries[:4])
        return await stage(self, *args, **more)

    monkeypatch.setattr(Restoring, "_stage", overtaken)
    await first.stage(FEED, entries[:6])
    await first.stage(FEED, entries[6:])
    assert await finish(first, entries)
    assert not await finish(second, entries)
    assert await log_entries(redis, others, FEED) == entries


async def test_a_feed_opened_between_look_and_act_is_left_alone(redis: Redis, keys: Keys, others: Keys) -> None:
    """The scripts look for themselves: nothing is staged beside a feed, and no feed is written over."""
    entries = await newsroom(redis, keys)
    restoring = Restoring(redis, others)
    await restoring.stage(FEED, entries)
    await carry_out(desk_of(redis, others), FEED, opening())
    before = await dump(redis, others)
    assert await restoring._stage(FEED, await restoring._standing(FEED), entries[:1], anew=True) == b"exists"
    with pytest.raises(HistoryDiffers):
        await finish(restoring, entries)
    # A log without a head is damage, and nothing to write over either.
    await command(redis, "RENAME", others.feed(FEED).head, others.feed(FEED).head + "x")
    with pytest.raises(HistoryDiffers):
        await finish(restoring, entries)
    await command(redis, "RENAME", others.feed(FEED).head + "x", others.feed(FEED).head)
    assert await dump(redis, others) == before


async def test_the_last_event_staged_decides_what_may_follow(redis: Redis, keys: Keys, others: Keys) -> None:
    entries = await newsroom(redis, keys)
    restoring = Restoring(redis, others)
    await restoring.stage(FEED, entries[:2])
    early = await restoring._standing(FEED)
    await restoring.stage(FEED, entries[2:4])
    assert await restoring._stage(FEED, early, entries[2:3], anew=False) == b"moved"
    await command(redis, "HSET", others.feed(FEED).restore_head, "chain", CHAIN_START)
    with pytest.raises(HistoryDiffers, match="is not what ends"):
        await finish(restoring, entries[:4])


async def test_a_new_epoch_goes_on_and_none_goes_back(redis: Redis, keys: Keys, others: Keys) -> None:
    entries = (await newsroom(redis, keys))[:6]
    raised = [*entries[:3], *(StreamEntry(b"2-%d" % e.position.n, e.fields) for e in entries[3:])]
    restoring = Restoring(redis, others)
    await restoring.stage(FEED, raised[:4])
    with pytest.raises(HistoryDiffers):
        await restoring.stage(FEED, entries[4:5])
    await restoring.stage(FEED, raised[4:])
    await finish(restoring, raised)
    head = await Log(redis, others).head(FEED)
    assert head is not None and head.position == Position(2, 6)


async def test_pieces_stay_within_what_one_call_may_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring_module, "BYTES_PER_CHUNK_MAX", 100)
    monkeypatch.setattr(restoring_module, "EVENTS_PER_CHUNK_MAX", 4)

    async def events(sizes: Sequence[int]) -> Any:
        for n, size in enumerate(sizes, start=1):
            yield StreamEntry(b"1-%d" % n, {b"content": b"x" * size})

    sizes = [
        [len(e.fields[b"content"]) for e in chunk] async for chunk in in_chunks(events([60, 60, 150, 1, 1, 1, 1, 1]))
    ]
    assert sizes == [[60], [60], [150], [1, 1, 1, 1], [1]]

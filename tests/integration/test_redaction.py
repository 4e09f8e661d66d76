"""Redaction on the write side, on real servers: the content goes from everywhere, positions and digests stay."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from services.writer import redaction as redaction_module
from services.writer.redaction import Redacted, Redactions, Traces
from shared.errors import EntryNotFound, EntryRetracted, IdempotencyKeyReused, Unavailable
from shared.events import EntryRedacted, Envelope, decode
from shared.keys import Keys
from shared.log import Log
from shared.position import Position
from shared.redis import Redis, Script, command
from tests.integration.builders import (
    appending_entry,
    carry_out,
    correcting,
    damaged,
    desk_of,
    dump,
    folded,
    frames_of,
    generation_of,
    log_entries,
    log_positions,
    open_feed,
    opening,
    pinning,
    project,
    published,
    publishing,
    retracting,
)

COPY = Script(redaction_module.__file__, "redact_copy.lua")
SWAP = Script(redaction_module.__file__, "redact_swap.lua")

FEED = "final"
SECRET = "the name of the child"


async def newsroom(redis: Redis, keys: Keys) -> Redactions:
    """A feed in which `named` was published, corrected, pinned and retracted, with other entries around it."""
    desk = desk_of(redis, keys)
    await carry_out(desk, FEED, opening())
    await carry_out(desk, FEED, publishing("first"))
    await carry_out(desk, FEED, publishing("named", headline=SECRET, tags=["court"], key_event=True), key="key-1")
    await carry_out(desk, FEED, correcting("named", 1, headline=f"{SECRET} again", correction_note=SECRET))
    await carry_out(desk, FEED, pinning("named"))
    await carry_out(desk, FEED, retracting("named", f"because {SECRET}"))
    await carry_out(desk, FEED, publishing("last"))
    return Redactions(redis, keys, Log(redis, keys))


async def redact(redactions: Redactions, entry: str = "named") -> tuple[Redacted, Traces]:
    redacted, traces = await redactions.append(FEED, entry, reason="order 7", by="ops:ann")
    await redactions.rewrite_log(FEED, [Position.parse(removed.position) for removed in traces.removed])
    await redactions.remove_traces(FEED, entry, traces)
    await redactions.empty_frames(FEED, traces.positions)
    return redacted, traces


async def test_the_content_is_nowhere_and_positions_envelopes_and_digests_are_as_they_were(
    redis: Redis, keys: Keys
) -> None:
    redactions = await newsroom(redis, keys)
    await project(redis, keys, FEED)
    before = await log_entries(redis, keys, FEED)
    redacted, traces = await redact(redactions)
    await project(redis, keys, FEED)
    after = await log_entries(redis, keys, FEED)
    assert [e.id for e in after] == [*(e.id for e in before), str(redacted.position).encode()]
    kept = [(e.fields[b"envelope"], e.fields[b"recorded_at"]) for e in after[:-1]]
    assert kept == [(e.fields[b"envelope"], e.fields[b"recorded_at"]) for e in before]
    assert SECRET not in repr(await dump(redis, keys)), "everything under the prefix"
    assert SECRET not in repr(after) and SECRET not in repr(await frames_of(redis, keys, FEED))
    recorded = decode(after[-1].id, after[-1].fields)
    assert isinstance(recorded.event, EntryRedacted) and recorded.envelope.by == "ops:ann"
    digests = {e.id.decode(): msgspec.json.decode(e.fields[b"envelope"], type=Envelope).digest for e in before}
    assert {r.position: r.digest for r in recorded.event.removed} == {
        position: digest for position, digest in digests.items() if position in ("1-3", "1-4", "1-6")
    }
    assert recorded.event.removed == list(traces.removed)


async def test_a_generation_folded_before_the_removal_equals_the_fold_of_the_log_after_it(
    redis: Redis, keys: Keys
) -> None:
    redactions = await newsroom(redis, keys)
    await project(redis, keys, FEED)
    await redact(redactions)
    await project(redis, keys, FEED)
    assert await generation_of(redis, keys, FEED, 1) == folded(FEED, await log_entries(redis, keys, FEED))


async def test_a_live_entry_becomes_a_tombstone_and_no_longer_counts(redis: Redis, keys: Keys) -> None:
    redactions = await newsroom(redis, keys)
    await redact(redactions, "last")
    await project(redis, keys, FEED)
    looked = await Log(redis, keys).look(FEED, entries=["last", "named"], pins=False, command=None)
    assert looked.head is not None and looked.head.live == 1 and looked.feed is not None
    assert looked.feed.entry_count == 1
    record = looked.records["last"]
    assert record is not None and (record.status, record.fingerprint) == ("retracted", "-")
    tombstone = msgspec.to_builtins(looked.documents["last"])
    assert (tombstone["status"], tombstone["reason"], tombstone["position"]) == ("retracted", None, "1-8")
    with pytest.raises(EntryRetracted):
        await carry_out(desk_of(redis, keys), FEED, publishing("last"))


async def test_the_command_that_brought_the_content_stays_known_and_appends_nothing(redis: Redis, keys: Keys) -> None:
    redactions = await newsroom(redis, keys)
    again = publishing("named", headline=SECRET, tags=["court"], key_event=True)
    assert (await carry_out(desk_of(redis, keys), FEED, again, key="key-1")).replayed
    await redact(redactions)
    count = len(await log_positions(redis, keys, FEED))
    with pytest.raises(IdempotencyKeyReused):
        await carry_out(desk_of(redis, keys), FEED, again, key="key-1")
    assert len(await log_positions(redis, keys, FEED)) == count


async def test_frames_are_emptied_under_their_ids_and_other_frames_stay(redis: Redis, keys: Keys) -> None:
    redactions = await newsroom(redis, keys)
    await project(redis, keys, FEED)
    frames = keys.shard(keys.shard_of(FEED)).frames
    before = await command(redis, "XRANGE", frames, "-", "+")
    _, traces = await redactions.append(FEED, "named", reason="r", by="b")
    assert await redactions.empty_frames(FEED, traces.positions) == 4
    after = await command(redis, "XRANGE", frames, "-", "+")
    assert [frame[0] for frame in after] == [frame[0] for frame in before]
    named = {"1-3", "1-4", "1-5", "1-6"}
    assert {at for at, _, data in await frames_of(redis, keys, FEED) if data == b""} == named
    assert await redactions.empty_frames(FEED, traces.positions) == 0, "done once, there is nothing to do"
    assert not await command(redis, "EXISTS", keys.shard(keys.shard_of(FEED)).frames_rewrite)


async def test_an_event_in_quarantine_loses_its_content_and_its_reason(redis: Redis, keys: Keys) -> None:
    redactions = await newsroom(redis, keys)
    await Log(redis, keys).append(FEED, appending_entry("odd", event=damaged(published("odd", headline=SECRET))))
    await project(redis, keys, FEED)
    redacted, _ = await redact(redactions, "odd")
    await project(redis, keys, FEED)
    quarantined = await Log(redis, keys).quarantined(FEED)
    assert msgspec.json.decode(quarantined[Position(1, 8)])["reason"] == "the content was removed by a redaction"
    entries = await log_entries(redis, keys, FEED)
    assert entries[7].fields[b"content"] == b"" and redacted.position == Position(1, 9)


async def test_what_desks_append_while_the_log_is_written_anew_is_kept(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction_module, "EVENTS_PER_COPY_MAX", 3)
    redactions = await newsroom(redis, keys)
    desk = desk_of(redis, keys)
    writing = asyncio.create_task(write_on(desk))
    await redact(redactions)
    written = await writing
    positions = await log_positions(redis, keys, FEED)
    assert positions == [f"1-{n}" for n in range(1, len(positions) + 1)] and len(positions) == 8 + written
    assert (await carry_out(desk, FEED, publishing("after"))).position == Position(1, len(positions) + 1)


async def write_on(desk: Any) -> int:
    for number in range(40):
        await carry_out(desk, FEED, publishing(f"meanwhile-{number}"))
    return 40


async def test_a_second_redaction_of_the_same_entry_finds_the_first_and_clears_what_it_left(
    redis: Redis, keys: Keys
) -> None:
    redactions = await newsroom(redis, keys)
    first, _ = await redactions.append(FEED, "named", reason="order 7", by="ops:ann")
    second, traces = await redact(redactions)
    assert second == first and second.reason == "order 7" and len(traces.left) == 3
    assert (await redactions.traces(FEED, "named")).left == []
    positions = await log_positions(redis, keys, FEED)
    third, traces = await redact(redactions)
    assert third == first and traces.left == [] and await log_positions(redis, keys, FEED) == positions


async def test_an_entry_that_never_was_is_refused(redis: Redis, keys: Keys) -> None:
    redactions = await newsroom(redis, keys)
    before = await dump(redis, keys)
    with pytest.raises(EntryNotFound):
        await redactions.append(FEED, "other", reason="r", by="b")
    assert await dump(redis, keys) == before


async def test_a_correction_that_comes_first_is_named_too(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    redactions = await newsroom(redis, keys)
    traces, raced = redactions.traces, False

    async def race(feed: str, entry: str) -> Traces:
        nonlocal raced
        found = await traces(feed, entry)
        if not raced:
            raced = True
            await carry_out(desk_of(redis, keys), FEED, correcting("last", 1, headline="Changed at that moment"))
        return found

    monkeypatch.setattr(redactions, "traces", race)
    _, found = await redactions.append(FEED, "last", reason="r", by="b")
    assert [removed.position for removed in found.removed] == ["1-7", "1-8"]


# The two scripts that put a log in the place of a log


async def copied(redis: Redis, keys: Keys, *, token: str = "t", empty: str = "1-3") -> tuple[str, ...]:
    its = keys.feed(FEED)
    scripts = (its.log, its.log_rewrite, its.rewriting)
    await COPY(redis, scripts, (token, "", 100, 10**6, empty))
    return scripts


async def in_the_log(redis: Redis, keys: Keys) -> str:
    return repr(await command(redis, "XRANGE", keys.feed(FEED).log, "-", "+"))


async def append_two(redis: Redis, keys: Keys) -> None:
    for _ in range(2):
        await carry_out(desk_of(redis, keys), FEED, publishing(secrets.token_hex(4)))


async def change_the_copy(redis: Redis, keys: Keys) -> None:
    await command(redis, "XTRIM", keys.feed(FEED).log_rewrite, "MAXLEN", 5)


async def another_takes_it(redis: Redis, keys: Keys) -> None:
    await command(redis, "SET", keys.feed(FEED).rewriting, "other")


@pytest.mark.parametrize(
    ("meanwhile", "answer"),
    [(append_two, b"behind"), (change_the_copy, b"differs"), (another_takes_it, b"taken")],
)
async def test_a_copy_that_is_not_of_the_whole_log_never_takes_its_place(
    redis: Redis, keys: Keys, meanwhile: Callable[[Redis, Keys], Awaitable[None]], answer: bytes
) -> None:
    await newsroom(redis, keys)
    scripts = await copied(redis, keys)
    await meanwhile(redis, keys)
    before = await in_the_log(redis, keys)
    assert await SWAP(redis, scripts, ("t", 1)) == answer
    assert await in_the_log(redis, keys) == before


async def test_the_last_few_events_are_copied_as_the_log_is_swapped(redis: Redis, keys: Keys) -> None:
    await newsroom(redis, keys)
    scripts = await copied(redis, keys)
    await append_two(redis, keys)
    before = await log_entries(redis, keys, FEED)
    assert await SWAP(redis, scripts, ("t", 2)) == b"swapped"
    after = await log_entries(redis, keys, FEED)
    assert after[-2:] == before[-2:] and after[2].fields[b"content"] == b"" and len(after) == len(before) == 9


async def test_a_log_that_was_trimmed_meanwhile_stays_trimmed(redis: Redis, keys: Keys) -> None:
    await newsroom(redis, keys)
    scripts = await copied(redis, keys)
    await command(redis, "XTRIM", keys.feed(FEED).log, "MINID", "1-3")
    assert await SWAP(redis, scripts, ("t", 1)) == b"swapped"
    entries = await log_entries(redis, keys, FEED)
    assert [e.id for e in entries] == [b"1-3", b"1-4", b"1-5", b"1-6", b"1-7"] and entries[0].fields[b"content"] == b""
    assert not await command(redis, "EXISTS", scripts[1], scripts[2])


async def test_one_redaction_at_a_time_writes_a_log_anew(redis: Redis, keys: Keys) -> None:
    redactions = await newsroom(redis, keys)
    await another_takes_it(redis, keys)
    before = await dump(redis, keys)
    with pytest.raises(Unavailable):
        await redactions.rewrite_log(FEED, [Position(1, 3)])
    assert {k: v[:2] for k, v in (await dump(redis, keys)).items()} == {k: v[:2] for k, v in before.items()}
    ttl = await command(redis, "TTL", keys.feed(FEED).rewriting)
    assert ttl == -1, "what another holds is not renewed"


async def test_who_rewrites_and_dies_holds_up_the_next_for_a_minute_at_most(redis: Redis, keys: Keys) -> None:
    await newsroom(redis, keys)
    _, _, rewriting = await copied(redis, keys)
    assert 0 < await command(redis, "TTL", rewriting) <= 60


async def test_a_leftover_copy_is_begun_anew(redis: Redis, keys: Keys) -> None:
    redactions = await newsroom(redis, keys)
    await copied(redis, keys, empty="1-7")
    await command(redis, "DEL", keys.feed(FEED).rewriting)
    await redactions.rewrite_log(FEED, [Position(1, 3)])
    assert [e.fields[b"content"] == b"" for e in await log_entries(redis, keys, FEED)][2:] == [
        True,
        False,
        True,  # a pin has no content
        False,
        False,
    ]


async def test_large_contents_are_copied_in_bounded_pieces(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction_module, "BYTES_PER_COPY_MAX", 10)
    redactions = await newsroom(redis, keys)
    its = keys.feed(FEED)
    scripts = (its.log, its.log_rewrite, its.rewriting)
    last, more = await COPY(redis, scripts, ("t", "", 100, 10))
    assert (last, more) == (b"1-1", 1)
    await command(redis, "DEL", its.rewriting)
    await redactions.rewrite_log(FEED, [Position(1, 3)])
    assert len(await log_positions(redis, keys, FEED)) == 7


async def test_another_feed_of_the_shard_is_not_touched(redis: Redis, keys: Keys) -> None:
    redactions = await newsroom(redis, keys)
    number = 0
    while keys.shard_of(f"other-{number}") != keys.shard_of(FEED):
        number += 1
    other = f"other-{number}"
    log = Log(redis, keys)
    await open_feed(log, other)
    for entry in ("a", "b", "named"):
        await log.append(other, appending_entry(entry))
    await project(redis, keys, other)
    await project(redis, keys, FEED)
    before = (await log_entries(redis, keys, other), await frames_of(redis, keys, other))
    await redact(redactions)
    assert (await log_entries(redis, keys, other), await frames_of(redis, keys, other)) == before

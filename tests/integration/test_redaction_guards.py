"""The guards of redaction's scripts, one by one: what is there is removed, what is not there hinders nothing.

Owns what those scripts alone decide. Redaction as a whole is test_redaction's.
"""

import secrets

import pytest

from services.writer import redaction as redaction_module
from services.writer.redaction import Redactions
from shared.keys import Keys
from shared.log import Log
from shared.position import Position
from shared.redis import Redis, Script, command
from shared.write_side import NO_FINGERPRINT
from tests.integration.builders import (
    carry_out,
    desk_of,
    dump,
    log_entries,
    opening,
    publishing,
)

SWAP = Script(redaction_module.__file__, "redact_swap.lua")
FEED = "final"


async def a_feed(redis: Redis, keys: Keys, *, entries: int = 2) -> Redactions:
    desk = desk_of(redis, keys)
    await carry_out(desk, FEED, opening())
    for number in range(entries):
        await carry_out(desk, FEED, publishing(f"e{number}"), key=f"key-{number}")
    return Redactions(redis, keys, Log(redis, keys))


async def test_the_fingerprints_of_a_publication_that_is_still_recorded_go(redis: Redis, keys: Keys) -> None:
    """Whoever finds the redaction in the log already may find a record that was made again meanwhile."""
    redactions = await a_feed(redis, keys)
    before = await command(redis, "HGET", keys.feed(FEED).entries, "e1")
    traces = await redactions.traces(FEED, "e1")
    assert await redactions.remove_traces(FEED, "e1", traces) == 2
    status, revision, position, fingerprint = (await command(redis, "HGET", keys.feed(FEED).entries, "e1")).split(b" ")
    assert before.startswith(b" ".join((status, revision, position)) + b" ")
    assert fingerprint == NO_FINGERPRINT.encode()
    # Said once: a second run has nothing left to remove, and changes nothing.
    after = await dump(redis, keys)
    assert await redactions.remove_traces(FEED, "e1", traces) == 0
    assert await dump(redis, keys) == after


async def test_an_entry_that_has_no_record_hinders_nothing(redis: Redis, keys: Keys) -> None:
    redactions = await a_feed(redis, keys)
    traces = await redactions.traces(FEED, "e1")
    await command(redis, "HDEL", keys.feed(FEED).entries, "e1")
    assert await redactions.remove_traces(FEED, "e1", traces) == 1
    assert not await command(redis, "HEXISTS", keys.feed(FEED).entries, "e1")


async def test_a_copy_that_is_gone_is_made_again_and_never_takes_the_logs_place(redis: Redis, keys: Keys) -> None:
    await a_feed(redis, keys)
    its = keys.feed(FEED)
    await command(redis, "SET", its.rewriting, "t")
    before = await dump(redis, keys)
    assert await SWAP(redis, (its.log, its.log_rewrite, its.rewriting), ("t", 100)) == b"behind"
    assert await dump(redis, keys) == before


async def test_a_long_log_is_copied_piece_by_piece_before_the_first_attempt_to_swap(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt is for what desks append meanwhile, not for each piece: of those there are few."""
    monkeypatch.setattr(redaction_module, "EVENTS_PER_COPY_MAX", 2)
    redactions = await a_feed(redis, keys, entries=2 * redaction_module.ATTEMPTS_MAX + 5)
    await redactions.rewrite_log(FEED, [Position(1, 3)])
    entries = await log_entries(redis, keys, FEED)
    assert [entry.fields[b"content"] == b"" for entry in entries].index(True) == 2
    assert len(entries) == 2 * redaction_module.ATTEMPTS_MAX + 6


async def test_a_frame_that_names_no_position_stays_as_it_is(redis: Redis, keys: Keys) -> None:
    redactions = await a_feed(redis, keys)
    frames = keys.shard(keys.shard_of(FEED)).frames
    token = secrets.token_hex(4)
    await redactions.ask_gateways(FEED, "e1", token=token)
    before = await command(redis, "XRANGE", frames, "-", "+")
    assert await redactions.empty_frames(FEED, [Position(1, 3)]) == 0
    assert await command(redis, "XRANGE", frames, "-", "+") == before


async def test_what_a_run_that_broke_off_left_of_new_frames_does_not_come_among_them(redis: Redis, keys: Keys) -> None:
    """A script that runs out of memory half way does not roll back."""
    redactions = await a_feed(redis, keys)
    shard = keys.shard(keys.shard_of(FEED))
    await command(redis, "XADD", shard.frames_rewrite, "1-1", "f", "left", "p", "1-1", "d", "over")
    await command(redis, "XADD", shard.frames, "2-1", "f", FEED, "p", "1-3", "d", "content")
    assert await redactions.empty_frames(FEED, [Position(1, 3)]) == 1
    assert [frame[0] for frame in await command(redis, "XRANGE", shard.frames, "-", "+")] == [b"2-1"]
    assert not await command(redis, "EXISTS", shard.frames_rewrite)

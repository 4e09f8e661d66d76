"""Servers that come back with less than they acknowledged, and those that do not: which epochs grow, and when appends wait."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.writer.desk import Desk
from shared.append import Appended, Unadmitted
from shared.epochs import admission as admission_module
from shared.epochs.admission import Admission
from shared.epochs.raising import Epochs
from shared.epochs.witness import Witness, report
from shared.errors import Unavailable
from shared.events import EpochRaised
from shared.keys import SHARDS, Keys
from shared.log import Log
from shared.position import Position
from shared.redis import Redis, command
from tests.integration.builders import (
    appending_entry,
    carry_out,
    desk_of,
    events_of,
    eventually,
    feed_in_shard,
    log_positions,
    open_feed,
    opening,
    project,
    publishing,
)
from tests.integration.own_server import EVERYSEC, FSYNC, OwnServer, Servers, binary_of

KEYS = Keys("e")
FEED = feed_in_shard(3)
# In another shard, in the same one, and one that no projector has seen.
OTHERS = (feed_in_shard(4), "feed-of-many")


@pytest.fixture(params=["valkey", "redis"])
async def servers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Servers]:
    servers = Servers(binary_of(request.param), tmp_path)
    yield servers
    await servers.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Witnesses are waited for, not long."""
    monkeypatch.setattr(admission_module, "WITNESS_SECONDS", 0.1)


async def installed(redis: Redis, *, entries: int = 3) -> None:
    """An admitted installation of three feeds, the first with entries; one of them was never projected."""
    await Admission(redis, KEYS).admit()
    log = Log(redis, KEYS)
    for feed in (FEED, *OTHERS):
        await open_feed(log, feed)
    for number in range(entries):
        assert isinstance(await log.append(FEED, appending_entry(f"e{number}")), Appended)
    for feed in (FEED, OTHERS[0]):
        await project(redis, KEYS, feed)


async def positions(redis: Redis) -> dict[str, str]:
    """The last position of each feed."""
    return {feed: (await log_positions(redis, KEYS, feed))[-1] for feed in (FEED, *OTHERS)}


async def because(redis: Redis, feed: str = FEED) -> str:
    """Why the feed's last event raised its epoch."""
    event = (await events_of(redis, KEYS, feed))[-1]
    assert isinstance(event, EpochRaised)
    assert event.reason == "epoch"
    told = await command(redis, "HGET", KEYS.feed(feed).head, "raised_because")
    assert told.decode() == event.because
    return event.because


KEPT = {FEED: "1-4", OTHERS[0]: "1-1", OTHERS[1]: "1-1"}
RAISED = {FEED: "2-5", OTHERS[0]: "2-2", OTHERS[1]: "2-2"}


# Appends ------------------------------------------------------------------------------------------------------------


async def test_a_desk_has_the_server_admitted_and_carries_the_request_out(servers: Servers, quick: None) -> None:
    server = servers.make(**FSYNC)
    redis = await server.start()
    await installed(redis)
    desk = desk_of(redis, KEYS)
    assert (await carry_out(desk, FEED, publishing("before"))).position == Position(1, 5)
    await server.restart()
    assert (await carry_out(desk, FEED, publishing("after"))).position == Position(1, 6)


async def test_a_desk_that_remembers_a_feed_publishes_into_its_new_epoch(servers: Servers, quick: None) -> None:
    server = servers.make(**EVERYSEC)
    redis = await server.start()
    await installed(redis)
    desk = desk_of(redis, KEYS)
    await carry_out(desk, FEED, publishing())
    await server.restart()
    assert (await carry_out(desk, FEED, publishing())).position == Position(2, 7)


async def test_a_desk_does_not_wait_for_ever(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    server = servers.make(**FSYNC)
    redis = await server.start()
    await installed(redis)
    await server.restart()
    monkeypatch.setattr("services.writer.desk.ADMISSION_SECONDS_MAX", 0.1)
    monkeypatch.setattr(admission_module, "WITNESS_SECONDS", 30)
    desk: Desk = desk_of(redis, KEYS)
    with pytest.raises(Unavailable, match="nothing was appended") as refused:
        await carry_out(desk, FEED, publishing("e9"))
    assert refused.value.code == "unavailable"
    assert await positions(redis) == KEPT


# Which restarts are trusted -----------------------------------------------------------------------------------------


async def test_the_first_start_admits_the_server_and_raises_nothing(servers: Servers) -> None:
    redis = await servers.make(**EVERYSEC).start()
    await installed(redis)
    assert await positions(redis) == KEPT
    process = await Epochs(redis, KEYS).process()
    stored = await Admission(redis, KEYS).incarnations()
    assert [(one.server, one.kept) for one in stored if one] == [(process.server, "memory")] * SHARDS


@pytest.mark.parametrize("end", ["kill", "terminate"])
async def test_a_restart_on_a_synced_log_keeps_the_epochs(servers: Servers, quick: None, end: str) -> None:
    server = servers.make(**FSYNC)
    redis = await server.start()
    await installed(redis)
    assert server.process is not None
    getattr(server.process, end)()
    server.process.wait()
    await server.start()
    await Admission(redis, KEYS).admit()
    assert await positions(redis) == KEPT


async def test_a_restart_of_a_server_that_did_not_sync_each_write_raises_every_epoch(
    servers: Servers, quick: None
) -> None:
    server = servers.make(**EVERYSEC)
    redis = await server.start()
    await installed(redis)
    server.settings |= FSYNC
    await server.restart()
    await Admission(redis, KEYS).admit()
    assert await positions(redis) == RAISED
    assert "with durability memory" in await because(redis)
    await server.restart()
    await Admission(redis, KEYS).admit()
    assert await positions(redis) == RAISED


async def test_a_durability_that_was_lowered_once_counts(servers: Servers, quick: None) -> None:
    server = servers.make(**FSYNC)
    redis = await server.start()
    await installed(redis)
    await command(redis, "CONFIG", "SET", "appendfsync", "everysec")
    await Admission(redis, KEYS).note()
    await command(redis, "CONFIG", "SET", "appendfsync", "always")
    await Admission(redis, KEYS).note()
    await server.restart()
    await Admission(redis, KEYS).admit()
    assert await positions(redis) == RAISED


@pytest.mark.parametrize(("settings", "after"), [(FSYNC, KEPT), (EVERYSEC, RAISED)], ids=["fsync", "memory"])
async def test_data_of_a_release_without_incarnations_is_trusted_where_each_write_is_synced(
    servers: Servers, quick: None, settings: dict[str, str], after: dict[str, str]
) -> None:
    redis = await servers.make(**settings).start()
    await installed(redis)
    await command(redis, "DEL", *(KEYS.shard(shard).incarnation for shard in range(SHARDS)))
    await Admission(redis, KEYS).admit()
    assert await positions(redis) == after


async def test_a_promoted_replica_raises_every_epoch(servers: Servers, quick: None) -> None:
    primary, replica = servers.make(**FSYNC), servers.make("two", **FSYNC)
    await installed(await primary.start())
    redis = await replica.start()
    await replica.follow(primary)
    with pytest.raises(Unavailable, match="replica"):
        await Admission(redis, KEYS).admit()
    primary.kill()
    await replica.promote()
    await Admission(redis, KEYS).admit()
    assert await positions(redis) == RAISED
    assert "promoted replica" in await because(redis)


async def test_a_replica_that_was_promoted_and_restarted_is_not_taken_for_its_primary(
    servers: Servers, quick: None
) -> None:
    primary, replica = servers.make(**FSYNC), servers.make("two", **FSYNC)
    at_primary = await primary.start()
    await installed(at_primary)
    redis = await replica.start()
    await replica.follow(primary)
    await Admission(at_primary, KEYS).admit()
    await in_step(primary, replica)
    primary.kill()
    await command(redis, "REPLICAOF", "NO", "ONE")
    await replica.restart()
    await Admission(redis, KEYS).admit()
    assert await positions(redis) == RAISED
    assert "may be one of the 1 replicas" in await because(redis)


async def test_a_primary_that_followed_another_and_came_back_raises_every_epoch(servers: Servers, quick: None) -> None:
    """The same process, run id and incarnation; what it acknowledged after the other was promoted is gone."""
    first, second = servers.make(**FSYNC), servers.make("two", **FSYNC)
    redis = await first.start()
    await installed(redis, entries=2)
    await second.start()
    await second.follow(first)
    await Admission(redis, KEYS).admit()
    await in_step(first, second)
    await second.promote()
    assert isinstance(await Log(redis, KEYS).append(FEED, appending_entry("acknowledged")), Appended)
    await first.follow(second)
    await first.promote()
    assert isinstance(await Log(redis, KEYS).append(FEED, appending_entry("e9")), Unadmitted)
    await Admission(redis, KEYS).admit()
    assert (await positions(redis))[FEED] == "2-4"


async def test_a_first_replica_of_a_primary_is_no_reason(servers: Servers) -> None:
    primary, replica = servers.make(**FSYNC), servers.make("two", **FSYNC)
    redis = await primary.start()
    await installed(redis)
    await replica.start()
    await replica.follow(primary)
    await Admission(redis, KEYS).admit()
    assert await positions(redis) == KEPT


async def in_step(primary: OwnServer, replica: OwnServer) -> None:
    """Wait until the replica has what the primary's incarnation says."""
    key = KEYS.shard(SHARDS - 1).incarnation
    expected = await command(primary.client(), "HGETALL", key)

    async def same() -> bool:
        return bool(await command(replica.client(), "HGETALL", key) == expected)

    await eventually(same)


# Witnesses ----------------------------------------------------------------------------------------------------------


async def a_backup_restored(server: OwnServer, redis: Redis, *, more: int = 2) -> Position:
    """The server comes back with an older copy of its files; gives what was acknowledged before."""
    backup = server.backup()
    last = None
    for number in range(more):
        last = await Log(redis, KEYS).append(FEED, appending_entry(f"lost-{number}"))
    assert isinstance(last, Appended)
    server.kill()
    server.restore(backup)
    await server.start()
    return last.last


async def test_a_living_process_that_saw_more_makes_the_loss_of_a_restored_backup_visible(
    servers: Servers, quick: None
) -> None:
    server = servers.make(**FSYNC)
    redis = await server.start()
    await installed(redis)
    witness = Witness(redis, KEYS)
    await witness.check()
    witness.saw(OTHERS[0], Position(1, 1))
    witness.saw(FEED, Position(1, 6))
    assert await a_backup_restored(server, redis) == Position(1, 6)
    await asyncio.gather(witness.check(), Admission(redis, KEYS).admit())
    assert await positions(redis) == {**KEPT, FEED: "2-5"}
    assert await because(redis) == "a witness saw 1-6, the log has 1-4"


async def test_what_was_reported_before_the_admission_is_heeded_by_it(servers: Servers, quick: None) -> None:
    server = servers.make(**FSYNC)
    redis = await server.start()
    await installed(redis)
    await a_backup_restored(server, redis)
    await report(redis, KEYS, {FEED: Position(1, 6), OTHERS[1]: Position(1, 1)})
    await report(redis, KEYS, {FEED: Position(1, 5)})
    await Admission(redis, KEYS).admit()
    assert await positions(redis) == {**KEPT, FEED: "2-5"}


async def test_a_late_witness_raises_later(servers: Servers, quick: None) -> None:
    server = servers.make(**FSYNC)
    redis = await server.start()
    await installed(redis)
    witness = Witness(redis, KEYS)
    await witness.check()
    witness.saw(FEED, Position(1, 6))
    await a_backup_restored(server, redis)
    await Admission(redis, KEYS).admit()
    assert isinstance(await Log(redis, KEYS).append(FEED, appending_entry("e7")), Appended)
    await witness.check()
    assert (await log_positions(redis, KEYS, FEED))[-2:] == ["1-5", "2-6"]
    await witness.check()
    await Admission(redis, KEYS).admit()
    assert (await positions(redis))[FEED] == "2-6"


async def test_a_server_that_lost_everything_is_no_first_start_to_those_who_saw_more(
    servers: Servers, quick: None
) -> None:
    server = servers.make(appendonly="no")
    redis = await server.start()
    await installed(redis)
    desk = desk_of(redis, KEYS)
    witness = Witness(redis, KEYS)
    await witness.check()
    witness.saw(FEED, Position(1, 4))
    await server.restart()
    await witness.check()
    opened = await carry_out(desk, FEED, opening())
    assert opened.position == Position(2, 1)


async def test_a_witness_tells_before_anything_is_dropped(servers: Servers) -> None:
    server = servers.make(**FSYNC)
    redis = await server.start()
    await installed(redis)
    heard: list[Any] = []
    witness = Witness(redis, KEYS, on_restart=lambda: heard.append("restarted"))
    await witness.check()
    await witness.check()
    assert heard == []
    witness.saw(FEED, Position(1, 4))
    await server.restart()
    await witness.check()
    assert heard == ["restarted"]
    seen = await command(redis, "HGET", KEYS.shard(KEYS.shard_of(FEED)).witnessed, FEED)
    assert seen == b"1-4"


# Two at once, and none that goes on to the end ----------------------------------------------------------------------


async def test_two_admissions_at_once_raise_each_epoch_once(servers: Servers, quick: None) -> None:
    server = servers.make(**EVERYSEC)
    redis = await server.start()
    await installed(redis)
    await server.restart()
    await asyncio.gather(*(Admission(redis, KEYS).admit() for _ in range(4)))
    assert await positions(redis) == RAISED


class Died(Exception):
    """The process ended here."""


class Mortal:
    """A client of a process that ends before the `steps`-th thing that it asks of the server."""

    def __init__(self, redis: Redis, steps: int) -> None:
        self._redis = redis
        self.steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._redis, name)

    def _step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Died

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        self._step()
        return await self._redis.execute_command(*args, **kwargs)  # type: ignore[no-untyped-call]

    def pipeline(self, **kwargs: Any) -> Any:
        pipeline = self._redis.pipeline(**kwargs)
        execute = pipeline.execute

        async def mortal_execute() -> Any:
            self._step()
            return await execute()

        pipeline.execute = mortal_execute  # type: ignore[assignment,method-assign]
        return pipeline


async def test_an_admission_that_ends_anywhere_is_finished_by_the_next(
    servers: Servers, quick: None, long: bool
) -> None:
    """At every third step, or every one under --long; the next server process, though synced, raises what was left."""
    step, stride = 0, 1 if long else 3
    ended = True
    server = servers.make(**EVERYSEC)
    redis = await server.start()
    await installed(redis)
    before = {feed: Position.parse(position) for feed, position in (await positions(redis)).items()}
    while ended:
        await command(redis, "CONFIG", "SET", "appendfsync", "everysec")
        await Admission(redis, KEYS).note()
        await server.restart()
        await command(redis, "CONFIG", "SET", "appendfsync", "always")
        mortal: Any = Mortal(redis, step)
        try:
            await Admission(mortal, KEYS).admit(alone=True)
            ended = False
        except Died:
            step += stride
        await Admission(redis, KEYS).admit(alone=True)
        after = {feed: Position.parse(position) for feed, position in (await positions(redis)).items()}
        assert after == {feed: Position(at.epoch + 1, at.n + 1) for feed, at in before.items()}
        before = after
    assert step > 2 * SHARDS


async def test_doubts_outlive_another_restart_between_two_steps(servers: Servers, quick: None) -> None:
    server = servers.make(**EVERYSEC)
    redis = await server.start()
    await installed(redis)
    server.settings |= FSYNC
    await server.restart()
    ended = 0
    for steps in range(8, 60, 4):
        mortal: Any = Mortal(redis, steps)
        try:
            await Admission(mortal, KEYS).admit(alone=True)
            break
        except Died:
            ended += 1
        await server.restart()
    assert ended > 2
    for feed, position in (await positions(redis)).items():
        assert Position.parse(position).epoch >= 2, feed

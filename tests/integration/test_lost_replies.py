"""Lost replies on real servers, behind a proxy: whatever is lost at whatever byte, acknowledged means in the log, once.

Owns what a cut, a silence or a late arrival between Dateline and its log may do. What one call does is test_append's.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.writer.outcome import Outcome
from shared.documents import render
from shared.errors import OutcomeUnknown, Unavailable
from shared.events import EntryPublished
from shared.keys import Keys
from shared.log import Log
from shared.redis import UNREACHABLE, Redis, command, connect
from tests.integration.builders import (
    APPEND,
    COMMIT,
    LOOK,
    Fold,
    Projection,
    appending_entry,
    carry_out,
    checkpoint,
    correcting,
    desk_of,
    dump,
    entry_of,
    events_of,
    eventually,
    folded,
    frames_of,
    generation_of,
    log_entries,
    log_positions,
    opening,
    pinning,
    publishing,
    retracting,
)
from tests.proxy import Direction, Fault, Proxy

FEED = "final"
OF_APPEND = APPEND.sha.encode()
OF_LOOK = LOOK.sha.encode()
OF_COMMIT = COMMIT.sha.encode()

# Long for a server on the same machine, short for a test that waits for it in vain.
PATIENCE_SECONDS = 0.5
FAR_AWAY = 10**9


@asynccontextmanager
async def behind_a_proxy(url: str, *, timeout_seconds: float = 3.0) -> AsyncIterator[tuple[Proxy, Redis]]:
    async with Proxy(url) as proxy:
        client = connect(proxy.url, timeout_seconds=timeout_seconds)
        try:
            await client.ping()
            yield proxy, client
        finally:
            await client.aclose()


@pytest.fixture
async def proxied(server: Any, redis: Redis, keys: Keys) -> AsyncIterator[tuple[Proxy, Redis]]:
    """A proxy and a client behind it; the feed is open, and the server knows the scripts."""
    await carry_out(desk_of(redis, keys), FEED, opening())
    async with behind_a_proxy(server.url) as pair:
        yield pair


@pytest.fixture
async def impatient(server: Any, redis: Redis, keys: Keys) -> AsyncIterator[tuple[Proxy, Redis]]:
    await carry_out(desk_of(redis, keys), FEED, opening())
    async with behind_a_proxy(server.url, timeout_seconds=PATIENCE_SECONDS) as pair:
        yield pair


async def published_entries(redis: Redis, keys: Keys) -> list[str]:
    """The entries of the log's publications in order; positions are gapless besides."""
    positions = await log_positions(redis, keys, FEED)
    assert positions == [f"1-{n}" for n in range(1, len(positions) + 1)]
    return [event.entry for event in await events_of(redis, keys, FEED) if isinstance(event, EntryPublished)]


async def assert_acknowledged_once(redis: Redis, keys: Keys, outcomes: Iterable[Outcome]) -> None:
    """Every entry of the log was acknowledged and the other way round, with the very document that the log makes."""
    whole = Fold(FEED)
    for entry in await log_entries(redis, keys, FEED):
        whole.step(entry)
    answered = {entry_of(outcome).id: outcome for outcome in outcomes}
    assert sorted(await published_entries(redis, keys)) == sorted(answered)
    for entry_id, outcome in answered.items():
        document = whole.state.entries[entry_id]
        assert str(outcome.position) == document.position
        assert render(outcome.documents[0]) == render(document)


async def length_of(
    proxy: Proxy, direction: Direction, act: Callable[[], Awaitable[Any]], *, of: bytes = OF_APPEND
) -> int:
    """How many bytes the request, or the reply, of one append has."""
    measuring = proxy.cut(direction, after_bytes=FAR_AWAY, of=of)
    await act()
    proxy.mend()
    assert measuring.passed_bytes > 0
    return measuring.passed_bytes


async def at_each(url: str, after_bytes: Iterable[int], act: Callable[[Proxy, Redis, int], Awaitable[Fault]]) -> None:
    """`act` after each number of bytes, each on a connection of its own, all at once; its fault struck each time."""

    async def one(number: int) -> None:
        async with behind_a_proxy(url) as (proxy, client):
            fault = await act(proxy, client, number)
            assert fault.fired, number

    await asyncio.gather(*map(one, after_bytes))


# Lost once: redis-py sends again


@pytest.mark.parametrize("with_key", [True, False])
async def test_an_append_whose_reply_is_lost_at_any_byte_is_acknowledged_once(
    server: Any, proxied: tuple[Proxy, Redis], redis: Redis, keys: Keys, with_key: bool
) -> None:
    proxy, client = proxied
    outcomes = []

    async def publish() -> None:
        outcomes.append(await carry_out(desk_of(client, keys), FEED, publishing()))

    async def publish_losing(proxy: Proxy, client: Redis, after_bytes: int) -> Fault:
        fault = proxy.cut("reply", after_bytes=after_bytes, of=OF_APPEND)
        key = f"k{after_bytes}" if with_key else None
        outcome = await carry_out(desk_of(client, keys), FEED, publishing(), key=key)
        # The re-sent append is recognised as the same attempt: to the desk nothing happened.
        assert outcome.created and not outcome.replayed
        outcomes.append(outcome)
        return fault

    reply_bytes = await length_of(proxy, "reply", publish)
    assert reply_bytes > 40
    await at_each(server.url, range(reply_bytes), publish_losing)
    await assert_acknowledged_once(redis, keys, outcomes)


async def test_an_append_whose_request_is_cut_anywhere_is_acknowledged_once(
    server: Any, proxied: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = proxied
    outcomes = []

    async def publish() -> None:
        outcomes.append(await carry_out(desk_of(client, keys), FEED, publishing()))

    async def publish_losing(proxy: Proxy, client: Redis, after_bytes: int) -> Fault:
        fault = proxy.cut("request", after_bytes=after_bytes, of=OF_APPEND)
        outcomes.append(await carry_out(desk_of(client, keys), FEED, publishing()))
        return fault

    request_bytes = await length_of(proxy, "request", publish)
    ends = {*range(4), *range(request_bytes - 4, request_bytes)}
    await at_each(server.url, sorted(ends | set(range(0, request_bytes, 61))), publish_losing)
    await assert_acknowledged_once(redis, keys, outcomes)


async def test_a_batch_and_changes_whose_replies_are_lost_happen_once(
    proxied: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = proxied
    desk = desk_of(client, keys)

    async def losing(*commands: Any, batch: bool = False) -> Outcome:
        fault = proxy.cut("reply", after_bytes=7, of=OF_APPEND)
        outcome = await carry_out(desk, FEED, *commands, batch=batch)
        assert fault.fired == 1
        return outcome

    await losing(publishing("e1"), publishing("e2"), pinning("e1"), batch=True)
    assert entry_of(await losing(correcting("e1", 1, headline="Goal"))).revision == 2
    assert entry_of(await losing(pinning("e2"))).position == "1-6"
    assert (await losing(retracting("e2"))).documents[0].position == "1-7"
    assert await log_positions(redis, keys, FEED) == [f"1-{n}" for n in range(1, 8)]


async def test_an_append_that_had_to_bring_its_script_is_acknowledged_once(
    proxied: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = proxied
    await command(redis, "SCRIPT FLUSH")
    fault = proxy.cut("reply", after_bytes=3, of=b"\r\nEVAL\r\n")
    outcome = await carry_out(desk_of(client, keys), FEED, publishing())
    assert fault.fired == 1 and outcome.created
    await assert_acknowledged_once(redis, keys, [outcome])


async def test_a_look_whose_reply_is_lost_is_looked_again(
    proxied: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = proxied
    fault = proxy.cut("reply", after_bytes=11, of=OF_LOOK)
    outcome = await carry_out(desk_of(client, keys), FEED, publishing())
    assert fault.fired == 1
    await assert_acknowledged_once(redis, keys, [outcome])


# Lost for good: the outcome cannot be known

LOSSES: dict[str, Callable[[Proxy], list[Fault]]] = {
    "both replies, whole": lambda proxy: [proxy.cut("reply", of=OF_APPEND, times=2)],
    "both replies, in the middle": lambda proxy: [proxy.cut("reply", after_bytes=20, of=OF_APPEND, times=2)],
    "both requests, whole": lambda proxy: [proxy.cut("request", of=OF_APPEND, times=2)],
    "both requests, in the middle": lambda proxy: [proxy.cut("request", after_bytes=300, of=OF_APPEND, times=2)],
    "both into silence": lambda proxy: [proxy.drop("reply", of=OF_APPEND, times=2)],
    "the reply, then the time of what stands in the log": lambda proxy: [
        proxy.cut("reply", of=OF_APPEND),
        proxy.cut("reply", of=b"\r\nXRANGE\r\n", times=2),
    ],
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("by", ["key", "entry id"])
async def test_after_an_unknown_outcome_the_same_request_makes_one_entry(
    impatient: tuple[Proxy, Redis], redis: Redis, keys: Keys, loss: str, by: str
) -> None:
    proxy, client = impatient
    desk = desk_of(client, keys)
    entry, key = (None, "k") if by == "key" else ("e1", None)
    faults = LOSSES[loss](proxy)
    with pytest.raises(OutcomeUnknown):
        await carry_out(desk, FEED, publishing(entry), key=key)
    assert all(fault.fired for fault in faults)
    patient = desk_of(redis, keys)
    outcomes = [await carry_out(patient, FEED, publishing(entry), key=key) for _ in range(2)]
    assert outcomes[0].documents == outcomes[1].documents
    await assert_acknowledged_once(redis, keys, outcomes[:1])
    stood_already = "requests" not in loss
    assert outcomes[0].created is not stood_already
    assert outcomes[0].replayed is (stood_already and by == "key")


async def test_an_unknown_outcome_without_key_or_id_is_in_the_log_once_at_most(
    impatient: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = impatient
    proxy.cut("reply", of=OF_APPEND, times=None)
    for _ in range(3):
        with pytest.raises(OutcomeUnknown):
            await carry_out(desk_of(client, keys), FEED, publishing())
    assert len(set(await published_entries(redis, keys))) == 3


async def test_when_not_even_the_look_is_answered_nothing_was_appended(
    impatient: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = impatient
    before = await dump(redis, keys)
    proxy.drop("reply", of=OF_LOOK, times=None)
    with pytest.raises(Unavailable, match="nothing was appended") as raised:
        await carry_out(desk_of(client, keys), FEED, publishing(), key="k")
    assert not isinstance(raised.value, OutcomeUnknown)
    assert await dump(redis, keys) == before


async def test_while_the_server_is_down_requests_are_unavailable_and_afterwards_they_are_not(
    impatient: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = impatient
    proxy.down = True
    await proxy.cut_all()
    with pytest.raises(Unavailable):
        await carry_out(desk_of(client, keys), FEED, publishing("e1"))
    proxy.down = False
    outcome = await carry_out(desk_of(client, keys), FEED, publishing("e1"))
    await assert_acknowledged_once(redis, keys, [outcome])


async def test_a_replay_that_cannot_be_looked_up_says_that_the_request_stands(
    impatient: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    """Another attempt under the same key came first; the look for what it made is lost."""
    proxy, client = impatient

    class Late(Log):
        async def look(self, *args: Any, **more: Any) -> Any:
            looked = await super().look(*args, **more)
            if not await published_entries(redis, keys):
                await carry_out(desk_of(redis, keys), FEED, publishing("e1"), key="k")
                proxy.cut("reply", of=OF_LOOK, times=2)
            return looked

    desk = desk_of(client, keys)
    desk._log = Late(client, keys)
    with pytest.raises(Unavailable, match="stands in the log"):
        await carry_out(desk, FEED, publishing("e1"), key="k")
    assert await published_entries(redis, keys) == ["e1"]


# Late: the network kept it


async def test_a_request_that_arrives_after_its_re_send_is_appended_once(
    impatient: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = impatient
    touch = keys.shard(keys.shard_of(FEED)).touch
    fault = proxy.stall("request", of=OF_APPEND)
    outcome = await carry_out(desk_of(client, keys), FEED, publishing())
    assert fault.fired == 1 and outcome.created
    assert not await redis.exists(touch)
    proxy.go_on()
    # The late one was recognised as known.
    await eventually(lambda: exists(redis, touch))
    await assert_acknowledged_once(redis, keys, [outcome])


async def test_a_request_that_arrives_after_the_client_gave_up_and_came_again_makes_no_second_entry(
    impatient: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = impatient
    fault = proxy.stall("request", of=OF_APPEND, times=2)
    with pytest.raises(OutcomeUnknown):
        await carry_out(desk_of(client, keys), FEED, publishing("e1"))
    assert fault.fired == 2
    outcome = await carry_out(desk_of(redis, keys), FEED, publishing("e1"))
    assert outcome.created
    answered = proxy.reply_bytes
    proxy.go_on()
    # Neither is known under its command id, both come too late for their guard.
    await eventually(lambda: proxy.reply_bytes >= answered + 2 * len("*2\r\n$5\r\nstale\r\n$2\r\ne1\r\n"))
    await assert_acknowledged_once(redis, keys, [outcome])


async def exists(redis: Redis, key: str) -> bool:
    return bool(await redis.exists(key))


# Commits


async def test_a_commit_whose_reply_is_lost_takes_effect_once(
    proxied: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = proxied
    for number in range(5):
        await Log(redis, keys).append(FEED, appending_entry(f"e{number}"))
    await command(redis, "SCRIPT LOAD", COMMIT.text)
    projection = Projection(client, keys, FEED)
    await projection.take_shard()
    for after_bytes, reached in ((0, "1-2"), (4, "1-4"), (9, "1-6")):
        item = await projection.prepared(events_max=2)
        fault = proxy.cut("reply", after_bytes=after_bytes, of=OF_COMMIT)
        # The second arrival finds the checkpoint moved: by the first.
        assert await projection.commit(item) == "moved"
        assert fault.fired == 1
        assert await checkpoint(redis, keys, FEED) == reached
    entries = await log_entries(redis, keys, FEED)
    assert await generation_of(redis, keys, FEED, 1) == folded(FEED, entries)
    assert [position for position, _, _ in await frames_of(redis, keys, FEED)] == [f"1-{n}" for n in range(1, 7)]


async def test_a_commit_that_arrives_late_changes_nothing(
    impatient: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = impatient
    for number in range(5):
        await Log(redis, keys).append(FEED, appending_entry(f"e{number}"))
    late = Projection(client, keys, FEED)
    await late.take_shard()
    item = await late.prepared(events_max=2)
    fault = proxy.stall("request", of=OF_COMMIT, times=2)
    with pytest.raises(UNREACHABLE):
        await late.commit(item)
    assert fault.fired == 2
    await Projection(redis, keys, FEED).to_head()
    before = await dump(redis, keys)
    answered = proxy.reply_bytes
    proxy.go_on()
    await eventually(lambda: proxy.reply_bytes >= answered + 2 * len("$5\r\nmoved\r\n"))
    assert await dump(redis, keys) == before


async def test_an_append_is_answered_though_its_reply_comes_byte_by_byte(
    proxied: tuple[Proxy, Redis], redis: Redis, keys: Keys
) -> None:
    proxy, client = proxied
    fault = proxy.stall("reply", after_bytes=10, of=OF_APPEND)
    publishing_it = asyncio.create_task(carry_out(desk_of(client, keys), FEED, publishing()))
    await fault.struck.wait()
    assert not publishing_it.done()
    proxy.go_on()
    await assert_acknowledged_once(redis, keys, [await publishing_it])

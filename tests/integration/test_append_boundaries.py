"""An append cut, dropped or stalled at the boundaries of its protocol: acknowledged means once, wherever it struck.

Owns the places: each element of the request and of the reply, every byte under --long. Kinds of loss are test_lost_replies'.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.writer.outcome import Outcome
from shared.errors import OutcomeUnknown, Unavailable
from shared.events import EntryPublished
from shared.keys import Keys
from shared.redis import Redis, command, connect
from tests.integration.builders import (
    APPEND,
    carry_out,
    desk_of,
    entry_of,
    events_of,
    eventually,
    log_positions,
    opening,
    publishing,
)
from tests.proxy import Act, Direction, Fault, Proxy

FEED = "final"
OF_APPEND = APPEND.sha.encode()
# Long for a server on the same machine; each boundary of a drop or a stall waits for it in vain once.
PATIENCE_SECONDS = 0.6
AT_ONCE = 24


class Tapped(Proxy):
    """A proxy that keeps what passes from the append on."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.tapped: dict[Direction, bytes] = {}

    def binding(self, direction: Direction, chunk: bytes, bound: Sequence[Fault]) -> list[Fault]:
        if self.tapped or OF_APPEND in chunk:
            self.tapped[direction] = self.tapped.get(direction, b"") + chunk
        return super().binding(direction, chunk, bound)


@asynccontextmanager
async def behind(url: str, kind: type[Proxy] = Proxy) -> AsyncIterator[tuple[Any, Redis]]:
    async with kind(url) as proxy:
        client = connect(proxy.url, timeout_seconds=PATIENCE_SECONDS)
        try:
            await client.ping()
            yield proxy, client
        finally:
            await client.aclose()


def elements(wire: bytes) -> Iterator[tuple[int, int, int]]:
    """The elements of a request or reply in RESP2: where each begins, where its value does, and where it ends."""
    at = 0
    while at < len(wire):
        header_end = wire.index(b"\r\n", at) + 2
        end = header_end + int(wire[at + 1 : header_end - 2]) + 2 if wire[at : at + 1] == b"$" else header_end
        assert wire[end - 2 : end] == b"\r\n", wire[at:end]
        yield at, header_end, end
        at = end


def boundaries(wire: bytes) -> list[int]:
    """In each kind of element: before it, in its header, within and after CRLF, in the middle and at the end of its value."""
    found: dict[int, None] = {}
    chosen = list(elements(wire))
    # The count, the command, its digest, the number of keys and a key; then one in four, and the end.
    for begin, value, end in [*chosen[:5], *chosen[5:-1:4], chosen[-1]]:
        for place in (begin, begin + 1, value - 1, value, (value + end) // 2, end - 2, end - 1):
            found[place] = None
    return sorted(place for place in found if place < len(wire))


async def until_acknowledged(client: Redis, keys: Keys, entry: str) -> Outcome:
    """As a client does: the same request again, under the same id, until it has an answer."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await carry_out(desk_of(client, keys), FEED, publishing(entry))
            except (OutcomeUnknown, Unavailable):
                continue


def name_of(place: int) -> str:
    """Ids of one length: each request has the bytes that were measured."""
    return f"e{place:06}"


async def an_append_on_the_wire(url: str, keys: Keys) -> dict[Direction, bytes]:
    async with behind(url, Tapped) as (proxy, client):
        await carry_out(desk_of(client, keys), FEED, publishing(name_of(999_999)))
        tapped: dict[Direction, bytes] = proxy.tapped
        return tapped


@pytest.mark.parametrize("direction", ["request", "reply"])
@pytest.mark.parametrize("act", ["cut", "drop", "stall"])
async def test_an_append_that_is_lost_at_any_boundary_is_in_the_log_once(
    server: Any, redis: Redis, keys: Keys, long: bool, act: Act, direction: Direction
) -> None:
    await carry_out(desk_of(redis, keys), FEED, opening())
    wire = (await an_append_on_the_wire(server.url, keys))[direction]
    places = list(range(len(wire))) if long else boundaries(wire)
    stood_before = await log_positions(redis, keys, FEED)
    turns = asyncio.Semaphore(AT_ONCE)

    async def at(place: int) -> Outcome:
        async with turns, behind(server.url) as (proxy, client):
            fault = getattr(proxy, act)(direction, after_bytes=place, of=OF_APPEND)
            outcome = await until_acknowledged(client, keys, name_of(place))
            assert fault.fired == 1, place
            answered = proxy.reply_bytes
            proxy.go_on()
            if act == "stall" and direction == "request":
                # Nobody waits for it any more, and the server carries it out all the same.
                await eventually(lambda: proxy.reply_bytes > answered)
            return outcome

    outcomes = await asyncio.gather(*map(at, places))
    assert len(places) > 20
    positions = await log_positions(redis, keys, FEED)
    assert positions == [f"1-{n}" for n in range(1, len(stood_before) + len(places) + 1)]
    appended = (await events_of(redis, keys, FEED))[len(stood_before) :]
    entries = [event.entry for event in appended if isinstance(event, EntryPublished)]
    assert sorted(entries) == [name_of(place) for place in places]
    answered = {entry_of(outcome).id: str(outcome.position) for outcome in outcomes}
    assert answered == dict(zip(entries, positions[len(stood_before) :], strict=True))
    assert int(await command(redis, "HGET", keys.feed(FEED).head, "live")) == len(stood_before) - 1 + len(places)


def test_boundaries_lie_around_every_part_of_an_element() -> None:
    wire = b"*2\r\n$4\r\nEVAL\r\n:7\r\n"
    assert list(elements(wire)) == [(0, 4, 4), (4, 8, 14), (14, 18, 18)]
    assert boundaries(wire) == [0, 1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 14, 15, 16, 17]

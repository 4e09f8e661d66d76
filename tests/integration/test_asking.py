"""Round trips on connections that are kept at hand: what happened to one meanwhile is no later command's trouble."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.redis import Redis, connect, exchange, packed_command
from tests.integration.conftest import RunningServer
from tests.proxy import Proxy

PING = packed_command("PING")


def echo(text: str) -> bytes:
    return packed_command("ECHO", text)


@pytest.fixture
async def proxy(server: RunningServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Redis]:
    client = connect(proxy.url)
    yield client
    await client.aclose()


async def test_one_connection_serves_many_round_trips_and_a_few_stay_for_many_at_once(
    proxy: Proxy, client: Redis
) -> None:
    for number in range(20):
        assert await exchange(client, [PING, echo(str(number))]) == [b"PONG", str(number).encode()]
    assert proxy.accepted == 1
    for _ in range(2):
        answers = await asyncio.gather(*[exchange(client, [echo(str(number))]) for number in range(30)])
        assert answers == [[str(number).encode()] for number in range(30)]
    assert proxy.accepted == 30


async def test_one_that_ended_while_it_was_at_hand_costs_no_second_try(proxy: Proxy, client: Redis) -> None:
    await exchange(client, [PING])
    await proxy.cut_all()
    proxy.cut("reply", of=b"again")
    # The cut takes the first try; a second is all there is.
    assert await exchange(client, [echo("again")]) == [b"again"]


async def test_who_is_cancelled_leaves_his_answer_to_nobody(proxy: Proxy, client: Redis) -> None:
    await exchange(client, [PING])
    stall = proxy.stall("reply", of=b"mine")
    asking = asyncio.create_task(exchange(client, [echo("mine")]))
    await stall.struck.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    proxy.go_on()
    assert asking.cancelled()
    assert await exchange(client, [echo("yours")]) == [b"yours"]


async def test_one_who_waits_for_a_connection_has_it_before_those_who_come_again(server: RunningServer) -> None:
    client = connect(server.url, connections_max=2)
    answered = asyncio.Event()

    async def ask_again() -> None:
        while not answered.is_set():
            await exchange(client, [PING])

    again = [asyncio.create_task(ask_again()) for _ in range(2)]
    await asyncio.sleep(0)
    try:
        assert await exchange(client, [echo("once")]) == [b"once"]
    finally:
        answered.set()
        await asyncio.gather(*again)
        await client.aclose()


async def test_one_at_hand_is_there_for_commands_that_redis_py_sends(server: RunningServer) -> None:
    client = connect(server.url, connections_max=1)
    await exchange(client, [PING])
    assert await client.get("nothing") is None
    await client.aclose()


async def test_closing_a_client_ends_the_connections_at_hand_too(proxy: Proxy, client: Redis) -> None:
    await asyncio.gather(*[exchange(client, [PING]) for _ in range(3)])
    await client.aclose()
    async with asyncio.timeout(5):
        while proxy._connections:
            await asyncio.sleep(0.01)

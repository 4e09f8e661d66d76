"""The guards of the script that admits a server process to a shard, one by one, called by hand.

Owns what the script alone decides. Which server is in doubt, and the order of an admission's steps, are test_epochs'.
"""

import secrets

import pytest

from shared.epochs import admission as admission_module
from shared.epochs.raising import Epochs
from shared.keys import Keys
from shared.redis import Redis, Script, command

ADMIT = Script(admission_module.__file__, "admit.lua")
ANOTHER = "another-process another-history"


@pytest.fixture
def keys() -> Keys:
    """Keys under which nobody was admitted yet."""
    return Keys("t" + secrets.token_hex(6))


@pytest.fixture
async def process(redis: Redis, keys: Keys) -> str:
    return (await Epochs(redis, keys).process()).server


async def admit(
    redis: Redis,
    keys: Keys,
    server: str,
    *,
    before: str = "",
    because: str = "",
    kept: str = "fsync",
    replicas: int = 0,
) -> bytes:
    answer: bytes = await ADMIT(redis, (keys.shard(0).incarnation,), (server, before, because, kept, replicas))
    return answer


async def incarnation(redis: Redis, keys: Keys) -> dict[str, str]:
    found = await command(redis, "HGETALL", keys.shard(0).incarnation)
    return {field.decode(): value.decode() for field, value in found.items()}


async def milliseconds(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return int(seconds * 1000 + microseconds // 1000)


async def test_a_server_is_admitted_with_what_it_keeps_and_when(redis: Redis, keys: Keys, process: str) -> None:
    began = await milliseconds(redis)
    assert await admit(redis, keys, process, kept="fsync", replicas=2) == b"done"
    admitted = await incarnation(redis, keys)
    assert began <= int(admitted["admitted_at"]) <= await milliseconds(redis)
    assert admitted == {
        "server": process,
        "kept": "fsync",
        "replicas": "2",
        "admitted_at": admitted["admitted_at"],
    }


async def test_another_server_than_the_one_decided_for_or_another_before_it_changes_nothing(
    redis: Redis, keys: Keys, process: str
) -> None:
    assert await admit(redis, keys, ANOTHER) == b"moved"
    # Somebody was there before, when the decision was made; and nobody was, but somebody is.
    assert await admit(redis, keys, process, before=ANOTHER) == b"changed"
    assert await incarnation(redis, keys) == {}
    third = {"server": "a-third another-history", "kept": "fsync", "replicas": "0", "admitted_at": "5"}
    await command(redis, "HSET", keys.shard(0).incarnation, *(text for pair in third.items() for text in pair))
    for before in ("", ANOTHER):
        assert await admit(redis, keys, process, before=before) == b"changed"
        assert await admit(redis, keys, process, before=before, because="lost") == b"changed"
    assert await incarnation(redis, keys) == third
    assert await admit(redis, keys, process, before=third["server"]) == b"done"
    assert (await incarnation(redis, keys))["server"] == process


async def test_why_epochs_are_raised_stands_before_the_admission_and_as_history_after_it(
    redis: Redis, keys: Keys, process: str
) -> None:
    assert await admit(redis, keys, process, because="a promoted replica") == b"done"
    assert await incarnation(redis, keys) == {"raising": "a promoted replica"}
    began = await milliseconds(redis)
    assert await admit(redis, keys, process, kept="memory") == b"done"
    admitted = await incarnation(redis, keys)
    assert began <= int(admitted["raised_at"]) <= await milliseconds(redis)
    assert admitted == {
        "server": process,
        "kept": "memory",
        "replicas": "0",
        "admitted_at": admitted["raised_at"],
        "raised_because": "a promoted replica",
        "raised_at": admitted["raised_at"],
    }
    # The next server, of which nothing is in doubt, leaves that history as it is.
    await command(redis, "HSET", keys.shard(0).incarnation, "server", ANOTHER, "raised_at", "5")
    assert await admit(redis, keys, process, before=ANOTHER) == b"done"
    assert await incarnation(redis, keys) == admitted | {
        "kept": "fsync",
        "raised_at": "5",
        "admitted_at": (await incarnation(redis, keys))["admitted_at"],
    }


async def test_of_an_admitted_server_the_least_durability_and_the_most_replicas_are_kept(
    redis: Redis, keys: Keys, process: str
) -> None:
    await admit(redis, keys, process, kept="fsync", replicas=9)
    admitted = await incarnation(redis, keys)
    expected: list[tuple[str, int, str, str]] = [
        ("fsync", 2, "fsync", "9"),
        ("fsync", 10, "fsync", "10"),
        ("memory", 0, "memory", "10"),
        ("fsync", 0, "memory", "10"),
    ]
    for kept, replicas, least, most in expected:
        # Whatever was decided of the server before it, and of epochs: it is admitted.
        for before, because in ((process, ""), ("", ""), (ANOTHER, "lost")):
            assert await admit(redis, keys, process, before=before, because=because, kept=kept, replicas=replicas) == (
                b"done"
            )
            assert await incarnation(redis, keys) == admitted | {"kept": least, "replicas": most}

"""The pending script's guards: it survives whatever lies in a log, and answers for each entry once.

Owns what the script alone decides. What a commit makes of it is test_commit's.
"""

import pytest

from services.projector import commit as commit_module
from services.projector.commit import BYTES_PER_COMMIT_MAX, EVENTS_PER_COMMIT_MAX
from shared.events import EntryPinned
from shared.keys import Keys
from shared.log import Log
from shared.redis import Redis, Script, command
from tests.integration.builders import (
    Projection,
    appending,
    appending_entry,
    checkpoint,
    frames_of,
    open_feed,
    published,
)

FEED = "final"
PENDING = Script(commit_module.__file__, "pending.lua", read_only=True)


@pytest.mark.parametrize(
    "envelope", ["5", "null", "true", '"facts"', "[]", '{"facts":5}', '{"facts":{"entry":5}}', "{"]
)
async def test_an_envelope_of_any_shape_is_set_aside_and_the_feed_goes_on(
    redis: Redis, keys: Keys, envelope: str
) -> None:
    log = Log(redis, keys)
    await open_feed(log, FEED)
    await command(redis, "XADD", keys.feed(FEED).log, "1-2", "envelope", envelope, "content", "", "recorded_at", "1")
    await command(redis, "HSET", keys.feed(FEED).head, "n", "2")
    await log.append(FEED, appending_entry("after"))
    await Projection(redis, keys, FEED).to_head()
    assert await checkpoint(redis, keys, FEED) == "1-3"
    assert [kind for _, kind, _ in await frames_of(redis, keys, FEED)] == ["feed", "skipped", "entry"]


async def test_an_entry_that_many_events_are_about_is_read_once(redis: Redis, keys: Keys) -> None:
    """Its document may be large, and a commit may hold a hundred flags of it."""
    log = Log(redis, keys)
    await open_feed(log, FEED)
    await log.append(FEED, appending_entry("e1", event=published("e1")))
    await Projection(redis, keys, FEED).to_head()
    await log.append(FEED, appending(*[EntryPinned("e1")] * 5))
    feed = keys.feed(FEED)
    answer = await PENDING(
        redis,
        (feed.log, feed.active, feed.quarantine),
        (feed.generation, EVENTS_PER_COMMIT_MAX, BYTES_PER_COMMIT_MAX),
    )
    touched, documents = answer[8], answer[9]
    assert touched == [b"e1"] and len(documents) == 1

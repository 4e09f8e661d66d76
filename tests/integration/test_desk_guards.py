"""What a desk remembers of a feed may be old: it never refuses on the strength of that alone.

Owns the guards around the remembered head. What desks decide is test_desk's.
"""

import pytest

from shared.errors import FeedClosed
from shared.keys import Keys
from shared.redis import Redis
from tests.integration.builders import carry_out, desk_of, opening, publishing, revising

FEED = "final"


async def test_a_feed_that_another_writer_opened_again_takes_entries_at_once(redis: Redis, keys: Keys) -> None:
    one, other = desk_of(redis, keys), desk_of(redis, keys)
    await carry_out(one, FEED, opening())
    await carry_out(one, FEED, revising(status="closed"))
    with pytest.raises(FeedClosed):
        await carry_out(one, FEED, publishing())
    await carry_out(other, FEED, revising(status="open"))
    assert (await carry_out(one, FEED, publishing())).created


async def test_a_feed_that_another_writer_closed_takes_no_entry_of_one_that_remembers_it_open(
    redis: Redis, keys: Keys
) -> None:
    one, other = desk_of(redis, keys), desk_of(redis, keys)
    await carry_out(one, FEED, opening())
    await carry_out(one, FEED, publishing())
    await carry_out(other, FEED, revising(status="closed"))
    with pytest.raises(FeedClosed):
        await carry_out(one, FEED, publishing())

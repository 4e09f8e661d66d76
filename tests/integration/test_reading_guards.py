"""The guards of the reading scripts: a feed that is not there is an answer, and a chunk of a list is bounded.

Owns what those scripts alone decide. What readers get of them is test_reads' and test_listing's.
"""

import pytest

from services.gateway import listing as listing_module
from services.gateway.cursor import Filters
from services.gateway.reads import Reads
from shared.keys import Keys
from shared.position import ORIGIN
from shared.redis import Redis, Script, command

FEEDS = Script(listing_module.__file__, "feeds.lua", read_only=True)


async def test_a_feed_that_nobody_opened_has_no_page_no_difference_and_no_document(redis: Redis, keys: Keys) -> None:
    reads = Reads(redis, keys)
    assert await reads.page("nobodys", Filters(), limit=5) is None
    assert await reads.difference("nobodys", after=ORIGIN) is None
    assert await reads.document("nobodys") is None
    assert await reads.document("nobodys", "e1") is None


@pytest.mark.parametrize("equals", [True, False])
async def test_a_chunk_of_the_list_is_of_the_size_asked_for(redis: Redis, keys: Keys, equals: bool) -> None:
    """However many feeds a shard has: the rest is read when somebody asks for it."""
    feeds = keys.shard(0).feeds
    for number in range(40):
        await command(redis, "ZADD", feeds, 7 if equals else number, f"feed-{number:02}")
    first = await FEEDS(redis, (feeds,), (feeds.removesuffix("feeds") + "f:", "+inf", "", 5))
    assert len(first) == 5
    last, activity = first[-1][0].decode(), first[-1][1].decode()
    # Those of equal activity that were listed before are passed over, which takes a second look at most.
    following = await FEEDS(redis, (feeds,), (feeds.removesuffix("feeds") + "f:", activity, last, 5))
    assert 5 <= len(following) < 10
    assert following[0][0].decode() < last

"""The list of feeds on real servers: merged from all shards, walked in any size, filtered, and private feeds unlisted."""

import base64
import random
from typing import Any, cast

import msgspec
import pytest

from services.gateway import listing as module
from services.gateway.listing import FeedFilters, Listing, read_listing_cursor
from shared.keys import SHARDS, Keys
from shared.redis import Redis
from tests.integration.gateway_kit import SIGNED, Json, Newsroom, Running


@pytest.fixture
def listing(redis: Redis, keys: Keys) -> Listing:
    return Listing(redis, keys)


async def listed(listing: Listing, *, limit: int, filters: FeedFilters | None = None) -> list[list[str]]:
    """The ids of a whole walk, page by page."""
    filters = filters or FeedFilters()
    pages: list[list[str]] = []
    cursor: str | None = None
    while not pages or cursor is not None:
        after = read_listing_cursor(cursor, filters) if cursor else None
        page = await listing.page(filters, limit=limit, after=after, private=False)
        body: Json = msgspec.json.decode(page.body)
        assert body["next"] == page.next
        pages.append([feed["id"] for feed in body["feeds"]])
        cursor = page.next
        assert len(pages) < 100, "the walk goes round and round"
    return pages


async def active_at(newsroom: Newsroom, feed: str, milliseconds: int) -> None:
    await newsroom.redis.zadd(newsroom.keys.shard(newsroom.keys.shard_of(feed)).feeds, {feed: milliseconds})


async def feeds_of_activity(newsroom: Newsroom, activity: dict[str, int]) -> list[str]:
    """Feeds with a chosen activity; gives them in the order of the list: latest first, equals by id, the last id first."""
    for feed, milliseconds in activity.items():
        await newsroom.story(feed)
        await active_at(newsroom, feed, milliseconds)
    return sorted(activity, key=lambda feed: (activity[feed], feed), reverse=True)


async def test_an_empty_installation_lists_nothing(listing: Listing) -> None:
    assert await listed(listing, limit=20) == [[]]


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_a_walk_gives_every_feed_once_whatever_its_shard_and_its_equals(
    newsroom: Newsroom, listing: Listing, limit: int
) -> None:
    """Many feeds of one instant, in one shard and across shards, and more of them than a page holds."""
    chance = random.Random(limit)
    activity = {f"feed-{i}": 1_700_000_000_000 + chance.choice([0, 0, 0, 1, 2]) for i in range(24)}
    assert len({Keys.shard_of(feed) for feed in activity}) > SHARDS // 2
    order = await feeds_of_activity(newsroom, activity)
    pages = await listed(listing, limit=limit)
    assert [feed for page in pages for feed in page] == order
    assert all(len(page) == limit for page in pages[:-1])


async def test_a_page_that_holds_exactly_the_rest_has_no_next(newsroom: Newsroom, listing: Listing) -> None:
    order = await feeds_of_activity(newsroom, {f"f{i}": 1_000 + i for i in range(6)})
    assert await listed(listing, limit=3) == [order[:3], order[3:]]


async def test_one_busy_shard_does_not_hide_what_lies_behind_it_in_others(newsroom: Newsroom, listing: Listing) -> None:
    """Beyond the end of a full chunk its shard may have feeds that belong before those of the others."""
    names = [f"n{i}" for i in range(400)]
    busy = [name for name in names if Keys.shard_of(name) == 0][:12]
    quiet = [name for name in names if Keys.shard_of(name) == 1][:3]
    activity = {name: 5_000 - i for i, name in enumerate(busy)} | {name: 4_995 - i for i, name in enumerate(quiet)}
    order = await feeds_of_activity(newsroom, activity)
    for limit in (1, 2, 5):
        assert [feed for page in await listed(listing, limit=limit) for feed in page] == order


async def test_what_a_filter_passes_over_in_one_shard_does_not_let_others_overtake(
    newsroom: Newsroom, listing: Listing
) -> None:
    """The first chunk of the busy shard holds nothing that matches, and what does lies behind its end."""
    names = [f"n{i}" for i in range(400)]
    busy = [name for name in names if Keys.shard_of(name) == 0][:12]
    quiet = [name for name in names if Keys.shard_of(name) == 1][:3]
    for i, name in enumerate(busy):
        await newsroom.story(name, topics=["wanted"] if i >= 8 else [])
        await active_at(newsroom, name, 5_000 - i)
    for i, name in enumerate(quiet):
        await newsroom.story(name, topics=["wanted"])
        await active_at(newsroom, name, 4_000 - i)
    for limit in (1, 2, 3):
        pages = await listed(listing, limit=limit, filters=FeedFilters(topic="wanted"))
        assert [feed for page in pages for feed in page] == [*busy[8:], *quiet]


async def test_a_feed_that_grows_moves_to_the_front_and_leaves_no_double(newsroom: Newsroom, listing: Listing) -> None:
    for feed in ("a", "b", "c"):
        await newsroom.story(feed)
        await active_at(newsroom, feed, 1_000)
    await newsroom.say("b", "e1")
    assert await listed(listing, limit=20) == [["b", "c", "a"]]


async def test_filters_are_applied_and_belong_to_the_cursor(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story("a", topics=["sport"], language="en")
    await newsroom.story("b", topics=["sport", "weather"], language="de-CH")
    await newsroom.story("c", topics=["weather"], language="de-CH")
    await newsroom.revise("c", status="closed")
    await newsroom.commit_all("c")

    async def ids(query: str) -> set[str]:
        answer = await gateway.get(f"/v1/feeds?{query}")
        assert answer.status == 200
        return {feed["id"] for feed in answer.json["feeds"]}

    assert await ids("topic=sport") == {"a", "b"}
    assert await ids("topic=weather&status=closed") == {"c"}
    assert await ids("language=DE-ch") == {"b", "c"}
    assert await ids("topic=sport&language=en&status=open") == {"a"}
    assert await ids("topic=nothing") == set()
    first = await gateway.get("/v1/feeds?topic=sport&limit=1")
    cursor = first.json["next"]
    assert f'cursor={cursor}>; rel="next"' in first.headers["Link"]
    assert len((await gateway.get(f"/v1/feeds?topic=sport&limit=1&cursor={cursor}")).json["feeds"]) == 1
    for query in (f"topic=weather&cursor={cursor}", f"cursor={cursor}", "cursor=nonsense", "status=ajar", "limit=0"):
        refused = await gateway.get(f"/v1/feeds?{query}")
        assert refused.status == 422, query


async def test_one_request_looks_at_a_bounded_number_of_feeds(
    newsroom: Newsroom, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that matches little goes on with the next cursor, and the walk still finds everything."""
    monkeypatch.setattr(module, "LOOKED_AT_MAX", 4)
    for i in range(10):
        await newsroom.story(f"f{i}", topics=["rare"] if i in (0, 9) else [])
        await active_at(newsroom, f"f{i}", 1_000 + i)
    pages = await listed(listing, limit=5, filters=FeedFilters(topic="rare"))
    assert [feed for page in pages for feed in page] == ["f9", "f0"]
    assert pages[0] == ["f9"] and len(pages) == 3


async def test_private_feeds_are_listed_for_their_token_alone(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story("open-story")
    await newsroom.story("secret-story", visibility="private", title="Nobody knows")
    anonymous = await gateway.get("/v1/feeds")
    assert [feed["id"] for feed in anonymous.json["feeds"]] == ["open-story"]
    assert b"secret" not in anonymous.body and b"Nobody" not in anonymous.body
    assert anonymous.headers["Cache-Control"].startswith("public")
    signed = await gateway.get("/v1/feeds", headers=SIGNED)
    assert {feed["id"] for feed in signed.json["feeds"]} == {"open-story", "secret-story"}
    assert signed.headers["Cache-Control"] == "private, no-store"


@pytest.mark.parametrize("looked_at_max", [1, 2, 1_000])
async def test_neither_a_cursor_nor_the_lack_of_one_tells_of_private_feeds(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch, looked_at_max: int
) -> None:
    monkeypatch.setattr(module, "LOOKED_AT_MAX", looked_at_max)
    for i in range(8):
        await newsroom.story(f"f{i}", visibility="public" if i in (2, 5, 6) else "private")
        await active_at(newsroom, f"f{i}", 1_000 + i)
    seen: list[str] = []
    answer: Json = {"next": ""}
    while answer["next"] is not None:
        answer = (await gateway.get(f"/v1/feeds?limit=1{answer['next'] and '&cursor=' + answer['next']}")).json
        seen += [feed["id"] for feed in answer["feeds"]]
        assert len(seen) < 20
        named = base64.urlsafe_b64decode((answer["next"] or "") + "==").decode()
        assert not any(f'"f{i}"' in named for i in (0, 1, 3, 4, 7)), "a cursor names a private feed"
    assert seen == ["f6", "f5", "f2"]
    if looked_at_max == 1_000:
        last = await gateway.get("/v1/feeds?limit=3")
        assert (len(last.json["feeds"]), last.json["next"]) == (3, None), "`next` tells that something follows"


async def test_a_feed_without_read_models_is_not_listed(newsroom: Newsroom, listing: Listing) -> None:
    await newsroom.story("there")
    await newsroom.open("not-yet")
    await cast("Any", active_at(newsroom, "not-yet", 9_999_999_999_999))
    assert await listed(listing, limit=20) == [["there"]]

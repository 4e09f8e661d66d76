"""Reading, by the public contract: feeds, pages, order, filters, cursors, pins, unread, min_position and changes.

Headers and caches are in test_contract_caching, streams in test_contract_streams.
"""

import asyncio
import random
import time
from typing import Any

import pytest
from yarl import URL

from tests.acceptance.harness import (
    CHANGES_FIELDS,
    ENTRY_FIELDS,
    FEED_FIELDS,
    PAGE_FIELDS,
    TOMBSTONE_FIELDS,
    Json,
    Newsroom,
    by_position,
    ids,
    later,
    number,
    order_key,
)


def entries_path(feed: str, entry: str | None = None) -> str:
    return f"/v1/feeds/{feed}/entries" + (f"/{entry}" if entry else "")


def minute(n: int) -> str:
    """The n-th minute of a day of coverage."""
    return f"2022-01-10T{8 + n // 60:02}:{n % 60:02}:00.000Z"


async def publish_minutes(newsroom: Newsroom, feed: str, minutes: list[int], **fields: Any) -> list[Json]:
    """One batch of entries `e0`, `e1` …, each at its minute."""
    commands = [
        {"type": "publish", "id": f"e{n}", "headline": f"h{n}", "published_at": minute(at), **fields}
        for n, at in enumerate(minutes)
    ]
    results: list[Json] = (await newsroom.batch(feed, *commands))["results"]
    return results


# Feeds ------------------------------------------------------------------------------------------------------------


async def test_feeds_are_listed_most_recently_active_first(newsroom: Newsroom, feed_id: str) -> None:
    names = [f"{feed_id[:60]}-{n}" for n in range(4)]
    for name in names:
        await newsroom.open_feed(name, topics=[feed_id])
    await newsroom.publish(names[1], "Active again")
    await newsroom.publish(names[0], "And here")
    expected = [names[0], names[1], names[3], names[2]]

    async def listed() -> list[Json]:
        document = (await newsroom.get("/v1/feeds", {"topic": feed_id})).ok(200).json
        assert document.keys() >= {"feeds", "next"}
        feeds: list[Json] = document["feeds"]
        return feeds

    deadline = time.monotonic() + 30
    while ids(feeds := await listed()) != expected:
        assert time.monotonic() < deadline, (ids(feeds), expected)
        await asyncio.sleep(0.05)
    for document in feeds:
        assert document.keys() >= FEED_FIELDS
        assert document == await newsroom.feed(document["id"])


async def test_feeds_are_filtered_by_topic_status_and_language(newsroom: Newsroom, feed_id: str) -> None:
    french, german, closed = (f"{feed_id[:58]}-{name}" for name in ("fr", "de", "end"))
    await newsroom.open_feed(french, topics=[feed_id, "other"], language="fr")
    await newsroom.open_feed(german, topics=[feed_id], language="de")
    await newsroom.open_feed(closed, topics=[feed_id], language="de")
    await newsroom.revise_feed(closed, status="closed")

    async def listed(**query: str) -> set[str]:
        return set(ids((await newsroom.get("/v1/feeds", {"topic": feed_id, **query})).ok(200).json["feeds"]))

    deadline = time.monotonic() + 30
    while await listed(status="closed") != {closed}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert await listed() == {french, german, closed}
    assert await listed(status="open") == {french, german}
    assert await listed(language="de") == {german, closed}
    assert await listed(language="de", status="open") == {german}
    assert await listed(status="paused") == set()


async def test_a_walk_over_feeds_gives_each_once(newsroom: Newsroom, feed_id: str) -> None:
    names = {f"{feed_id[:60]}-{n:02}" for n in range(25)}
    for name in sorted(names):
        await newsroom.open_feed(name, topics=[feed_id])

    async def walk() -> list[str]:
        found: list[str] = []
        query = {"topic": feed_id}
        while True:
            document = (await newsroom.get("/v1/feeds", query)).ok(200).json
            found.extend(ids(document["feeds"]))
            if document["next"] is None:
                return found
            query["cursor"] = document["next"]

    deadline = time.monotonic() + 30
    while len(found := await walk()) < len(names):
        assert time.monotonic() < deadline
    assert len(found) == len(names) and set(found) == names


@pytest.mark.parametrize("query", ["status=ended", "cursor=nonsense"])
async def test_an_invalid_query_of_feeds_is_422(newsroom: Newsroom, query: str) -> None:
    (await newsroom.get(f"/v1/feeds?{query}")).problem(422, path=f"/{query.partition('=')[0]}")


async def test_a_feed_document_counts_live_entries_and_moves_with_every_event(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [1, 2, 3])
    assert (await newsroom.feed(feed))["entry_count"] == 3
    tombstone = await newsroom.retract(feed, "e1")
    document = await newsroom.feed(feed)
    assert (document["entry_count"], document["position"]) == (2, tombstone["position"])


# Pages ------------------------------------------------------------------------------------------------------------


async def test_a_page_answers_every_field(newsroom: Newsroom, feed: str) -> None:
    published = await publish_minutes(newsroom, feed, [1, 2, 3])
    page = await newsroom.page(feed)
    assert page.keys() >= PAGE_FIELDS
    assert all(entry.keys() >= ENTRY_FIELDS for entry in page["entries"])
    assert page["entries"] == published[::-1]
    expected = {
        "feed": feed,
        "order": "newest",
        "position": "1-4",
        "total": 3,
        "pinned": [],
        "next": None,
        "unread": None,
    }
    assert {name: page[name] for name in expected} == expected


async def test_a_page_of_an_empty_feed_is_empty(newsroom: Newsroom, feed: str) -> None:
    page = await newsroom.page(feed)
    assert (page["entries"], page["total"], page["next"], page["position"]) == ([], 0, None, "1-1")


async def test_a_page_has_20_entries_unless_asked_and_links_the_next(newsroom: Newsroom, feed: str) -> None:
    published = await publish_minutes(newsroom, feed, list(range(25)))
    answer = (await newsroom.get(entries_path(feed), newsroom.known(feed))).ok(200)
    page = answer.json
    assert (len(page["entries"]), page["total"]) == (20, 25)
    target, _, parameters = answer.headers["Link"].partition(">")
    assert 'rel="next"' in parameters or "rel=next" in parameters
    url = URL(newsroom.base_url + entries_path(feed)).join(URL(target.removeprefix("<"), encoded=True))
    assert url.query["cursor"] == page["next"]
    second = (await newsroom.get(str(url.path_qs))).ok(200)
    assert ids(page["entries"] + second.json["entries"]) == ids(published[::-1])
    assert second.json["next"] is None and "Link" not in second.headers
    assert second.json["total"] == 25
    assert len((await newsroom.page(feed, limit=100))["entries"]) == 25


async def test_a_full_last_page_has_no_next(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, list(range(4)))
    first = await newsroom.page(feed, limit=2)
    second = await newsroom.page(feed, limit=2, cursor=first["next"])
    assert len(second["entries"]) == 2
    if second["next"] is not None:
        pytest.fail("next leads to an empty page")


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "/limit"),
        ("limit=101", "/limit"),
        ("limit=-1", "/limit"),
        ("limit=many", "/limit"),
        ("order=sideways", "/order"),
        ("cursor=nonsense", "/cursor"),
        ("cursor=", "/cursor"),
        ("since=yesterday", "/since"),
        ("since=2022-01-10T18:38:00", "/since"),
        ("until=2022-13-01T00:00:00Z", "/until"),
        ("key_events=maybe", "/key_events"),
        ("min_position=7", "/min_position"),
        ("min_position=a-b", "/min_position"),
        ("unread_since=soon", "/unread_since"),
        ("unread_since=1--1", "/unread_since"),
    ],
)
async def test_an_invalid_query_of_a_page_is_422(newsroom: Newsroom, feed: str, query: str, path: str) -> None:
    (await newsroom.get(f"{entries_path(feed)}?{query}", newsroom.known(feed))).problem(422, path=path)


async def test_what_is_not_there_is_404(newsroom: Newsroom, feed: str, feed_id: str) -> None:
    (await newsroom.get(entries_path(feed, "none"))).problem(404)
    missing = f"{feed_id[:55]}-missing"
    for path in ("", "/entries", "/entries/none", "/changes", "/stream"):
        (await newsroom.get(f"/v1/feeds/{missing}{path}")).problem(404)


async def test_a_retracted_entry_is_410_with_its_tombstone_as_plain_json(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "Secret", id="one")
    tombstone = await newsroom.retract(feed, "one", "Wrong")
    answer = await newsroom.get(entries_path(feed, "one"), newsroom.known(feed))
    assert answer.status == 410
    assert answer.headers["Content-Type"].split(";")[0] == "application/json"
    assert answer.json == tombstone
    assert answer.json.keys() >= TOMBSTONE_FIELDS
    page = await newsroom.page(feed)
    assert (page["entries"], page["total"]) == ([], 0)


# Order ------------------------------------------------------------------------------------------------------------


async def test_both_orders_are_exact_mirrors_over_back_dated_and_equal_times(newsroom: Newsroom, feed: str) -> None:
    minutes = [random.randrange(6) for _ in range(40)]
    published = await publish_minutes(newsroom, feed, minutes)
    chronological = sorted(published, key=order_key)
    for limit in (1, 7, 40, 100):
        assert await newsroom.walk(feed, order="oldest", limit=limit) == chronological
        assert await newsroom.walk(feed, order="newest", limit=limit) == chronological[::-1]


async def test_entries_of_equal_time_keep_the_order_of_publication(newsroom: Newsroom, feed: str) -> None:
    # Ids that sort against the order of publication, and more than ten, so that text order of positions would differ.
    names = [f"{chr(ord('z') - n)}" for n in range(15)]
    for name in names:
        await newsroom.publish(feed, name, id=name, published_at="2022-01-10T18:38:00Z")
    assert ids((await newsroom.page(feed, order="oldest"))["entries"]) == names
    assert ids((await newsroom.page(feed, order="newest"))["entries"]) == names[::-1]


async def test_order_is_exact_to_the_millisecond_and_over_all_years(newsroom: Newsroom, feed: str) -> None:
    times = [
        "2022-01-10T18:38:00.002Z",
        "0001-01-01T00:00:00Z",
        "2022-01-10T18:38:00.010Z",
        "0999-06-01T00:00:00Z",
        "2022-01-10T19:38:00.001+01:00",
        "1970-01-01T00:00:00Z",
        "1969-12-31T23:59:59.999Z",
    ]
    for n, published_at in enumerate(times):
        await newsroom.publish(feed, f"h{n}", id=f"e{n}", published_at=published_at)
    assert ids(await newsroom.walk(feed, order="oldest", limit=2)) == ["e1", "e3", "e6", "e5", "e4", "e0", "e2"]


async def test_a_correction_never_moves_an_entry_and_retiming_does(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [1, 2, 2, 3])
    await newsroom.correct(feed, "e1", 1, headline="Corrected")
    await newsroom.pin(feed, "e1")
    await newsroom.mark(feed, "e0")
    assert ids((await newsroom.page(feed))["entries"]) == ["e3", "e2", "e1", "e0"]
    await newsroom.correct(feed, "e0", 1, published_at=minute(4))
    assert ids((await newsroom.page(feed))["entries"]) == ["e0", "e3", "e2", "e1"]
    # Retimed among its equals it takes the place of its publication.
    await newsroom.correct(feed, "e0", 2, published_at=minute(2))
    assert ids((await newsroom.page(feed))["entries"]) == ["e3", "e2", "e1", "e0"]
    assert ids((await newsroom.page(feed, order="oldest"))["entries"]) == ["e0", "e1", "e2", "e3"]


# Filters ----------------------------------------------------------------------------------------------------------


async def test_since_is_inclusive_and_until_exclusive(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [1, 2, 3, 3, 4, 5])

    async def found(**query: str) -> list[str]:
        page = await newsroom.page(feed, order="oldest", **query)
        assert page["total"] == len(page["entries"])
        return ids(page["entries"])

    assert await found(since=minute(3)) == ["e2", "e3", "e4", "e5"]
    assert await found(until=minute(3)) == ["e0", "e1"]
    assert await found(since=minute(2), until=minute(4)) == ["e1", "e2", "e3"]
    assert await found(since=minute(3), until=minute(3)) == []
    assert await found(since="2022-01-10T09:04:00+01:00") == ["e4", "e5"]
    assert await found(since="0001-01-01T00:00:00Z", until="9999-12-31T23:59:59.999Z") == [f"e{n}" for n in range(6)]


async def test_tags_and_key_events_filter_and_total_honours_them(newsroom: Newsroom, feed: str) -> None:
    await newsroom.batch(
        feed,
        *(
            {
                "type": "publish",
                "id": f"e{n}",
                "headline": "h",
                "published_at": minute(n),
                "tags": [tag for tag in ("Genève & co", "even") if n % 2 == 0 or tag != "even"],
                "key_event": n % 3 == 0,
            }
            for n in range(12)
        ),
    )
    page = await newsroom.page(feed, tag="even", limit=4)
    assert (ids(page["entries"]), page["total"]) == (["e10", "e8", "e6", "e4"], 6)
    assert ids(await newsroom.walk(feed, tag="even", limit=4, order="oldest")) == [f"e{n}" for n in range(0, 12, 2)]
    assert len(await newsroom.walk(feed, tag="Genève & co")) == 12
    linked = await newsroom.get(f"/v1/feeds/{feed}/entries?tag=even&limit=4&order=oldest", newsroom.known(feed))
    following = (await newsroom.get(linked.ok(200).headers["Link"].partition(">")[0].removeprefix("<"))).ok(200).json
    assert (ids(following["entries"]), following["total"]) == (["e8", "e10"], 6)
    page = await newsroom.page(feed, key_events="true", limit=3)
    assert (ids(page["entries"]), page["total"]) == (["e9", "e6", "e3"], 4)
    both = await newsroom.page(feed, key_events="true", tag="even", since=minute(1))
    assert (ids(both["entries"]), both["total"]) == (["e6"], 1)
    page = await newsroom.page(feed, tag="no such tag")
    assert (page["entries"], page["total"], page["next"]) == ([], 0, None)


async def test_filters_follow_what_happens_to_entries(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [1, 2, 3], tags=["a"])
    await newsroom.correct(feed, "e0", 1, tags=["b"])
    await newsroom.mark(feed, "e1")
    await newsroom.retract(feed, "e2")
    assert ids((await newsroom.page(feed, tag="a"))["entries"]) == ["e1"]
    assert ids((await newsroom.page(feed, tag="b"))["entries"]) == ["e0"]
    assert ids((await newsroom.page(feed, key_events="true"))["entries"]) == ["e1"]
    await newsroom.correct(feed, "e1", 1, published_at=minute(0), tags=["b"])
    assert ids((await newsroom.page(feed, tag="b"))["entries"]) == ["e0", "e1"]
    assert (await newsroom.page(feed, tag="a"))["total"] == 0
    assert ids((await newsroom.page(feed, until=minute(1)))["entries"]) == ["e1"]


# Pins -------------------------------------------------------------------------------------------------------------


async def test_pins_are_listed_latest_first_and_stay_in_place(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, list(range(6)))
    for name in ("e1", "e4", "e0"):
        await newsroom.pin(feed, name)
    await newsroom.correct(feed, "e1", 1, headline="A correction does not pin again")
    page = await newsroom.page(feed, limit=3)
    assert ids(page["pinned"]) == ["e0", "e4", "e1"]
    assert ids(page["entries"]) == ["e5", "e4", "e3"]
    assert page["pinned"][2]["headline"] == "A correction does not pin again"
    assert page["pinned"][1] == page["entries"][1]
    assert page["total"] == 6
    assert (await newsroom.page(feed, limit=3, cursor=page["next"]))["pinned"] == []
    assert (await newsroom.page(feed, order="oldest"))["pinned"] == []
    await newsroom.unpin(feed, "e0")
    await newsroom.pin(feed, "e0")
    await newsroom.unpin(feed, "e4")
    await newsroom.retract(feed, "e1")
    assert ids((await newsroom.page(feed))["pinned"]) == ["e0"]


# Unread -----------------------------------------------------------------------------------------------------------


async def test_unread_counts_live_entries_first_published_after_a_position(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [5, 6, 7])
    seen = newsroom.positions[feed]
    assert (await newsroom.page(feed, unread_since=seen))["unread"] == 0
    await newsroom.publish(feed, "new", id="new")
    await newsroom.publish(feed, "back-dated", id="late", published_at=minute(0))
    await newsroom.correct(feed, "e0", 1, headline="A correction is nothing new")
    await newsroom.pin(feed, "e1")
    assert (await newsroom.page(feed, unread_since=seen))["unread"] == 2
    assert (await newsroom.page(feed, unread_since=seen, order="oldest", limit=1))["unread"] == 2
    await newsroom.retract(feed, "new")
    await newsroom.retract(feed, "e2")
    assert (await newsroom.page(feed, unread_since=seen))["unread"] == 1
    assert (await newsroom.page(feed, unread_since="1-1"))["unread"] == 3


@pytest.mark.parametrize("stale", ["1-9", "2-1", "1-999999999999"])
async def test_a_position_that_is_not_of_this_log_is_stale(newsroom: Newsroom, feed: str, stale: str) -> None:
    await newsroom.publish(feed, "h")
    known = newsroom.known(feed)
    (await newsroom.get(entries_path(feed), {**known, "unread_since": stale})).problem(410, "stale-position")
    (await newsroom.get(f"/v1/feeds/{feed}/changes", {**known, "after": stale})).problem(410, "stale-position")


# Cursors under change ---------------------------------------------------------------------------------------------


async def test_a_cursor_with_another_order_or_filter_is_422(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, list(range(6)), tags=["a"], key_event=True)
    plain = (await newsroom.page(feed, limit=2))["next"]
    tagged = (await newsroom.page(feed, limit=2, tag="a"))["next"]
    path, known = entries_path(feed), newsroom.known(feed)
    for cursor, query in (
        (plain, {"order": "oldest"}),
        (plain, {"tag": "a"}),
        (plain, {"key_events": "true"}),
        (plain, {"since": minute(1)}),
        (plain, {"until": minute(9)}),
        (tagged, {}),
        (tagged, {"tag": "b"}),
    ):
        (await newsroom.get(path, {**known, "cursor": cursor, **query})).problem(422, path="/cursor")
    assert ids((await newsroom.page(feed, limit=3, cursor=plain))["entries"]) == ["e3", "e2", "e1"]
    assert ids((await newsroom.page(feed, limit=3, cursor=plain, order="newest"))["entries"]) == ["e3", "e2", "e1"]
    assert ids((await newsroom.page(feed, limit=1, cursor=tagged, tag="a"))["entries"]) == ["e3"]


async def test_a_damaged_cursor_is_422_and_never_an_error_of_the_server(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, list(range(4)))
    cursor = (await newsroom.page(feed, limit=2))["next"]
    for damaged in (cursor[:-3], cursor[1:], cursor[::-1], cursor + "AAAA", "é", "x" * 3000, "\0", "e30", "e30="):
        answer = await newsroom.get(entries_path(feed), {"cursor": damaged, **newsroom.known(feed)})
        assert answer.status in (200, 422), str(answer)
        if answer.status == 422:
            answer.problem(422, path="/cursor")


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("limit", [1, 3, 4])
async def test_a_walk_survives_whatever_is_written_meanwhile(
    newsroom: Newsroom, feed: str, order: str, limit: int
) -> None:
    rng = random.Random(f"{order}{limit}")
    minutes = [n // 3 for n in range(24)]
    await publish_minutes(newsroom, feed, minutes)
    throughout = {f"e{n}" for n in range(24)}
    walked: list[str] = []
    cursor: str | None = None
    step = 0
    for step in range(100):
        page = await newsroom.page(feed, order=order, limit=limit, **({"cursor": cursor} if cursor else {}))
        walked.extend(ids(page["entries"]))
        if (cursor := page["next"]) is None:
            break
        if step >= 12:
            continue
        # The entry that the cursor stands on goes away, its equals and neighbours come, change and go.
        boundary = page["entries"][-1]
        await newsroom.publish(feed, "same minute", id=f"same{step}", published_at=boundary["published_at"])
        await newsroom.publish(feed, "anywhere", id=f"any{step}", published_at=minute(rng.randrange(8)))
        if rng.random() < 0.6:
            await newsroom.retract(feed, boundary["id"])
            throughout.discard(boundary["id"])
        unseen = sorted(throughout - set(walked))
        if unseen:
            chosen = rng.choice(unseen)
            revision = (await newsroom.entry(feed, chosen))["revision"]
            await newsroom.correct(feed, chosen, revision, headline=f"corrected {step}")
            if rng.random() < 0.3:
                await newsroom.retract(feed, chosen)
                throughout.discard(chosen)
    assert step >= 5 and cursor is None, "the walk does not end"
    assert len(walked) == len(set(walked)), "an entry was repeated"
    assert throughout <= set(walked), "an entry was skipped"


async def test_a_cursor_outlives_the_emptying_of_its_feed(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, list(range(6)))
    cursor = (await newsroom.page(feed, limit=3))["next"]
    await newsroom.batch(feed, *({"type": "retract", "id": f"e{n}"} for n in range(6)))
    page = await newsroom.page(feed, limit=3, cursor=cursor)
    assert (page["entries"], page["next"], page["total"]) == ([], None, 0)
    await newsroom.publish(feed, "Older than the cursor", id="old", published_at=minute(0))
    await newsroom.publish(feed, "Newer than the cursor", id="new", published_at=minute(9))
    assert ids((await newsroom.page(feed, limit=3, cursor=cursor))["entries"]) == ["old"]


# min_position -----------------------------------------------------------------------------------------------------


async def test_reads_with_the_position_of_a_write_show_it_at_once(newsroom: Newsroom, feed: str) -> None:
    for n in range(25):
        entry = await newsroom.publish(feed, f"h{n}", id=f"e{n}")
        known = {"min_position": entry["position"]}
        page, single, document, changes = await asyncio.gather(
            newsroom.get(entries_path(feed), {**known, "limit": 1}),
            newsroom.get(entries_path(feed, f"e{n}"), known),
            newsroom.get(f"/v1/feeds/{feed}", known),
            newsroom.get(f"/v1/feeds/{feed}/changes", {**known, "after": later(entry["position"], -1)}),
        )
        assert page.ok(200).json["entries"] == [entry]
        assert single.ok(200).json == entry
        assert document.ok(200).json["entry_count"] == n + 1
        assert changes.ok(200).json["documents"] == [entry]


async def test_min_position_waits_for_a_feed_that_is_not_known_yet(newsroom: Newsroom, feed_id: str) -> None:
    reads = [
        asyncio.ensure_future(newsroom.get(f"/v1/feeds/{feed_id}{path}", {"min_position": "1-1"}))
        for path in ("", "/entries", "/changes")
    ]
    await asyncio.sleep(0.3)
    assert not any(read.done() for read in reads), "a read of what is not known yet did not wait"
    opened = await newsroom.open_feed(feed_id)
    document, page, changes = [answer.ok(200).json for answer in await asyncio.gather(*reads)]
    assert document == changes["feed_document"] == opened
    assert (page["entries"], page["position"]) == ([], "1-1")


async def test_min_position_gives_up_after_two_seconds(newsroom: Newsroom, feed_id: str) -> None:
    started = time.monotonic()
    paths = ("", "/entries", "/entries/none", "/changes")
    answers = await asyncio.gather(
        *(newsroom.get(f"/v1/feeds/{feed_id}{path}", {"min_position": "1-5"}) for path in paths)
    )
    assert time.monotonic() - started > 1.5
    for answer in answers:
        answer.problem(503)


@pytest.mark.parametrize("stale", ["1-500", "2-1"])
async def test_min_position_that_is_not_of_this_log_is_stale(newsroom: Newsroom, feed: str, stale: str) -> None:
    await newsroom.feed(feed)
    for path in ("", "/entries", "/changes"):
        answer = await newsroom.get(f"/v1/feeds/{feed}{path}", {"min_position": stale})
        answer.problem(410, "stale-position")


# Changes ----------------------------------------------------------------------------------------------------------


async def test_changes_fold_each_entry_to_its_latest_state(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [5, 4, 3, 2, 1])
    middle = newsroom.positions[feed]
    await newsroom.correct(feed, "e1", 1, headline="Corrected")
    await newsroom.retract(feed, "e3")
    await newsroom.pin(feed, "e0")
    await newsroom.correct(feed, "e1", 2, headline="Corrected twice")
    everything = await newsroom.changes(feed)
    assert everything.keys() >= CHANGES_FIELDS
    assert (everything["feed"], everything["more"]) == (feed, False)
    assert everything["position"] == newsroom.positions[feed]
    assert everything["documents"] == by_position(everything["documents"])
    assert ids(everything["documents"]) == ["e2", "e4", "e3", "e0", "e1"]
    assert everything["documents"][2]["status"] == "retracted"
    assert everything["documents"][4]["headline"] == "Corrected twice"
    assert everything["feed_document"]["id"] == feed
    since = await newsroom.changes(feed, after=middle)
    assert since["documents"] == everything["documents"][2:]


async def test_changes_tell_of_the_feed_itself_only_when_it_changed(newsroom: Newsroom, feed: str) -> None:
    opened = newsroom.positions[feed]
    await newsroom.publish(feed, "h")
    assert (await newsroom.changes(feed, after=opened))["feed_document"] is None
    published = newsroom.positions[feed]
    revised = await newsroom.revise_feed(feed, title="A new title")
    changes = await newsroom.changes(feed, after=published)
    assert changes["documents"] == []
    assert changes["feed_document"] == revised
    assert changes["position"] == revised["position"]


async def test_changes_are_walked_by_position(newsroom: Newsroom, feed: str) -> None:
    await publish_minutes(newsroom, feed, [n % 4 for n in range(23)])
    for n in (3, 9, 17):
        await newsroom.retract(feed, f"e{n}")
    whole = await newsroom.changes(feed, limit=100)
    for limit in (1, 5, 23):
        documents: list[Json] = []
        changes = await newsroom.changes(feed, limit=limit)
        while changes["more"]:
            assert len(changes["documents"]) == limit
            assert changes["position"] == changes["documents"][-1]["position"]
            documents += changes["documents"]
            changes = await newsroom.changes(feed, limit=limit, after=changes["position"])
        documents += changes["documents"]
        assert documents == whole["documents"]
        assert changes["position"] == newsroom.positions[feed]
    nothing = await newsroom.changes(feed, after=newsroom.positions[feed])
    assert (nothing["documents"], nothing["more"], nothing["feed_document"]) == ([], False, None)
    assert nothing["position"] == newsroom.positions[feed]


async def test_changes_from_any_position_lead_to_the_same_state(newsroom: Newsroom, feed: str) -> None:
    """A client that stopped anywhere and folds what it is told holds what the page shows."""
    rng = random.Random(7)
    states: dict[str, dict[str, Json]] = {}
    final: dict[str, Json] = {}
    alive: list[str] = []
    for n in range(30):
        act = rng.choice(["publish", "publish", "correct", "retract", "pin", "mark", "feed"])
        if act == "publish" or not alive:
            await newsroom.publish(feed, f"h{n}", id=f"e{n}", published_at=minute(rng.randrange(5)))
            alive.append(f"e{n}")
        elif act == "correct":
            chosen = rng.choice(alive)
            await newsroom.correct(feed, chosen, (await newsroom.entry(feed, chosen))["revision"], headline=f"c{n}")
        elif act == "retract":
            await newsroom.retract(feed, alive.pop(rng.randrange(len(alive))))
        elif act == "feed":
            await newsroom.revise_feed(feed, summary=f"s{n}")
        else:
            await (newsroom.pin if act == "pin" else newsroom.mark)(feed, rng.choice(alive))
        changes = await newsroom.changes(feed, limit=100)
        final = states[changes["position"]] = {document["id"]: document for document in changes["documents"]}
    for position, held in states.items():
        difference = await newsroom.changes(feed, after=position, limit=100)
        assert all(number(document["position"]) > number(position) for document in difference["documents"])
        assert held | {document["id"]: document for document in difference["documents"]} == final
    live = sorted((d for d in final.values() if d["status"] == "published"), key=order_key)
    assert await newsroom.walk(feed, order="oldest") == live


@pytest.mark.parametrize(
    ("query", "path"), [("after=x", "/after"), ("after=1", "/after"), ("limit=0", "/limit"), ("limit=x", "/limit")]
)
async def test_an_invalid_query_of_changes_is_422(newsroom: Newsroom, feed: str, query: str, path: str) -> None:
    (await newsroom.get(f"/v1/feeds/{feed}/changes?{query}", newsroom.known(feed))).problem(422, path=path)


# Private feeds ----------------------------------------------------------------------------------------------------


async def test_a_private_feed_is_404_and_unlisted_without_the_token(newsroom: Newsroom, feed_id: str) -> None:
    await newsroom.open_feed(feed_id, visibility="private", topics=[feed_id])
    entry = await newsroom.publish(feed_id, "Internal", id="one")
    known = newsroom.known(feed_id)
    for path in ("", "/entries", "/entries/one", "/changes"):
        answer = (await newsroom.get(f"/v1/feeds/{feed_id}{path}", known, token=newsroom.token)).ok(200)
        assert answer.headers["Cache-Control"] == "private, no-store"
    missing = await newsroom.get("/v1/feeds/there-is-no-such-feed-at-all")
    for path in ("", "/entries", "/entries/one", "/changes", "/stream"):
        refusal = (await newsroom.get(f"/v1/feeds/{feed_id}{path}")).problem(404)
        assert refusal["type"] == missing.problem(404)["type"]
        assert "Internal" not in str(refusal)
    assert (await newsroom.get(f"/v1/feeds/{feed_id}/entries", known, token=newsroom.token)).json["entries"] == [entry]
    (await newsroom.get(f"/v1/stream?feed={feed_id}")).problem(404)
    listed = (await newsroom.get("/v1/feeds", {"topic": feed_id})).ok(200).json
    assert listed["feeds"] == []


async def test_a_private_feed_with_a_wrong_token_shows_nothing(newsroom: Newsroom, feed_id: str) -> None:
    await newsroom.open_feed(feed_id, visibility="private")
    answer = await newsroom.get(f"/v1/feeds/{feed_id}", newsroom.known(feed_id), token="wrong" * 8)
    assert answer.status in (401, 404), str(answer)


async def test_a_feed_that_turns_private_disappears(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    paths = [f"/v1/feeds/{feed}{path}" for path in ("", "/entries", "/entries/one", "/changes")]
    for path in paths:
        (await newsroom.get(path, newsroom.known(feed))).ok(200)
    await newsroom.revise_feed(feed, visibility="private")
    (await newsroom.get(paths[0], newsroom.known(feed), token=newsroom.token)).ok(200)
    for path in paths:
        (await newsroom.get(path)).problem(404)
    await newsroom.revise_feed(feed, visibility="public")
    for path in paths:
        (await newsroom.get(path, newsroom.known(feed))).ok(200)

"""What caches and browsers rely on, by the public contract: ETag, 304, Vary, Cache-Control, HEAD and CORS."""

import asyncio
import gzip
import json

import aiohttp
import pytest

from tests.acceptance.harness import Answer, Newsroom

PUBLIC = "public, max-age=0, s-maxage=1"
PRIVATE = "private, no-store"
ORIGIN = {"Origin": "https://newspaper.example"}


def documents_of(feed: str) -> list[str]:
    return [f"/v1/feeds/{feed}{path}" for path in ("", "/entries", "/entries/one", "/changes")]


def listed(header: str) -> set[str]:
    return {name.strip().lower() for name in header.split(",")}


@pytest.fixture(params=["", "/entries", "/entries?order=oldest&limit=1", "/entries/one"])
def resource(request: pytest.FixtureRequest) -> str:
    path: str = request.param
    return path


async def fresh(newsroom: Newsroom, path: str, feed: str) -> Answer:
    """The answer without `min_position` in its address, once the read model holds what was written."""
    await newsroom.feed(feed)
    return (await newsroom.get(path)).ok(200)


async def test_a_tag_gives_304_until_the_feed_moves(newsroom: Newsroom, feed: str, resource: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    path = f"/v1/feeds/{feed}{resource}"
    first = await fresh(newsroom, path, feed)
    matched = await newsroom.get(path, headers={"If-None-Match": first.etag})
    assert (matched.status, matched.body) == (304, b"")
    assert matched.etag == first.etag
    assert matched.headers["Cache-Control"] == first.headers["Cache-Control"]
    assert matched.headers["Vary"] == first.headers["Vary"]
    await newsroom.correct(feed, "one", 1, headline="h2")
    again = await newsroom.get(path, newsroom.known(feed), headers={"If-None-Match": first.etag})
    assert again.ok(200).etag != first.etag
    assert again.json != first.json


async def test_if_none_match_compares_weakly_in_lists_and_by_star(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    for path in (f"/v1/feeds/{feed}/entries", f"/v1/feeds/{feed}/entries/one", f"/v1/feeds/{feed}"):
        etag = (await fresh(newsroom, path, feed)).etag
        strong = etag.removeprefix("W/")
        for value in (strong, f"W/{strong}", f'"other", {etag}', "*"):
            assert (await newsroom.get(path, headers={"If-None-Match": value})).status == 304, (path, value)
        for value in ('"other"', 'W/"other", "more"'):
            assert (await newsroom.get(path, headers={"If-None-Match": value})).status == 200, (path, value)


async def test_tags_of_pages_and_feeds_are_weak_and_hold_the_position(newsroom: Newsroom, feed: str) -> None:
    entry = await newsroom.publish(feed, "h", id="one")
    for path in (f"/v1/feeds/{feed}", f"/v1/feeds/{feed}/entries"):
        etag = (await fresh(newsroom, path, feed)).etag
        assert etag.startswith('W/"') and entry["position"] in etag
    assert (await fresh(newsroom, f"/v1/feeds/{feed}/entries/one", feed)).etag == f'"1.{entry["position"]}"'


async def test_public_documents_may_be_shared_for_a_second(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    for path in [*documents_of(feed), "/v1/feeds"]:
        answer = await fresh(newsroom, path, feed)
        assert answer.headers["Cache-Control"] == PUBLIC, path
        assert "accept-encoding" in listed(answer.headers["Vary"]), path


async def test_what_is_for_one_reader_is_not_stored(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    for path in documents_of(feed):
        await fresh(newsroom, path, feed)
        answer = (await newsroom.get(path, token=newsroom.token)).ok(200)
        assert answer.headers["Cache-Control"] == PRIVATE, path
    answer = (await newsroom.get(f"/v1/feeds/{feed}/entries", {"unread_since": "1-1"})).ok(200)
    assert answer.headers["Cache-Control"] == PRIVATE


async def test_a_tombstone_is_cached_as_a_public_document_and_never_as_its_entry(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "Secret", id="one")
    path = f"/v1/feeds/{feed}/entries/one"
    etag = (await fresh(newsroom, path, feed)).etag
    await newsroom.retract(feed, "one")
    answer = await newsroom.get(path, newsroom.known(feed), headers={"If-None-Match": etag})
    assert answer.status == 410
    assert b"Secret" not in answer.body
    assert b"Secret" not in (await newsroom.get(f"/v1/feeds/{feed}/entries", newsroom.known(feed))).body
    assert b"Secret" not in (await newsroom.get(f"/v1/feeds/{feed}/changes", newsroom.known(feed))).body


async def test_answers_to_writes_are_not_stored_by_shared_caches(newsroom: Newsroom, feed: str) -> None:
    answer = (await newsroom.write("POST", f"/v1/feeds/{feed}/entries", {"headline": "h"})).ok(201)
    assert "public" not in answer.headers.get("Cache-Control", "")


async def test_head_answers_as_get_without_a_body(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    await newsroom.feed(feed)
    for path in [*documents_of(feed), "/v1/feeds", "/healthz", "/readyz", f"/v1/feeds/{feed}/entries/none"]:
        get, head = await newsroom.get(path), await newsroom.request("HEAD", path)
        assert (head.status, head.body) == (get.status, b""), path
        for name in ("Content-Type", "Cache-Control", "Vary"):
            assert head.headers.get(name) == get.headers.get(name), (path, name)
        if path.startswith(f"/v1/feeds/{feed}"):
            assert head.headers.get("ETag") == get.headers.get("ETag"), path
    etag = (await newsroom.get(f"/v1/feeds/{feed}")).etag
    assert (await newsroom.request("HEAD", f"/v1/feeds/{feed}", headers={"If-None-Match": etag})).status == 304


async def test_head_of_a_stream_ends_at_once(newsroom: Newsroom, feed: str) -> None:
    await newsroom.feed(feed)
    for path in (f"/v1/feeds/{feed}/stream", f"/v1/stream?feed={feed}"):
        head = await newsroom.request("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Type"].split(";")[0] == "text/event-stream"


async def test_compression_changes_the_bytes_and_nothing_else(newsroom: Newsroom, feed: str) -> None:
    for n in range(20):
        await newsroom.publish(feed, f"A headline of some length, number {n}", id=f"e{n}")
    await newsroom.feed(feed)
    url = f"{newsroom.base_url}/v1/feeds/{feed}/entries"
    bodies: dict[str, object] = {}
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for coding in ("identity", "gzip", "br;q=1.0, gzip;q=0.1", "gzip;q=0, identity"):
            async with session.get(url, headers={"Accept-Encoding": coding}) as response:
                raw = await response.read()
                assert response.status == 200
                assert "accept-encoding" in listed(response.headers["Vary"])
                used = response.headers.get("Content-Encoding", "identity")
                if coding in ("identity", "gzip;q=0, identity"):
                    assert used == "identity"
                plain = gzip.decompress(raw) if used == "gzip" else raw
                bodies[coding] = json.loads(plain)
    assert all(body == bodies["identity"] for body in bodies.values())


# CORS -------------------------------------------------------------------------------------------------------------


async def test_any_origin_reads_public_documents_errors_included(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    await newsroom.feed(feed)
    errors = [f"/v1/feeds/{feed}/entries/none", f"/v1/feeds/{feed}/entries?limit=0", "/v1/feeds/none-such"]
    etag = (await newsroom.get(f"/v1/feeds/{feed}")).etag
    answers = [await newsroom.get(path, headers=ORIGIN) for path in [*documents_of(feed), "/v1/feeds", *errors]]
    answers.append(await newsroom.get(f"/v1/feeds/{feed}", headers={**ORIGIN, "If-None-Match": etag}))
    assert [answer.status for answer in answers] == [200] * 5 + [404, 422, 404, 304]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == "*", str(answer)
        exposed = listed(answer.headers["Access-Control-Expose-Headers"])
        assert exposed >= {"etag", "link", "dateline-position", "retry-after"}, str(answer)
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_any_origin_opens_streams(newsroom: Newsroom, feed: str) -> None:
    other = f"{feed[:58]}-other"
    await newsroom.open_feed(other)
    await asyncio.gather(newsroom.feed(feed), newsroom.feed(other))
    for feeds in ((feed,), (feed, other)):
        async with newsroom.stream(*feeds) as stream:
            assert stream.response.headers["Access-Control-Allow-Origin"] == "*"


async def test_a_preflight_allows_reading_and_not_writing(newsroom: Newsroom, feed: str) -> None:
    for path in (f"/v1/feeds/{feed}/stream", f"/v1/feeds/{feed}/entries"):
        asked = {**ORIGIN, "Access-Control-Request-Method": "GET"}
        asked["Access-Control-Request-Headers"] = "last-event-id, if-none-match"
        preflight = (await newsroom.request("OPTIONS", path, headers=asked)).ok(200, 204)
        assert preflight.headers["Access-Control-Allow-Origin"] == "*"
        assert listed(preflight.headers["Access-Control-Allow-Headers"]) >= {"last-event-id", "if-none-match"}
        methods = listed(preflight.headers.get("Access-Control-Allow-Methods", ""))
        assert not methods & {"post", "put", "patch", "delete", "*"}
        assert "authorization" not in listed(preflight.headers["Access-Control-Allow-Headers"])


async def test_writes_have_no_cors(newsroom: Newsroom, feed: str) -> None:
    answers = [
        await newsroom.write("POST", f"/v1/feeds/{feed}/entries", {"headline": "h"}, headers=ORIGIN),
        await newsroom.write("POST", f"/v1/feeds/{feed}/entries", {}, headers=ORIGIN),
        await newsroom.request("POST", f"/v1/feeds/{feed}/entries", json_body={}, headers=ORIGIN),
        await newsroom.write("PATCH", f"/v1/feeds/{feed}", {"summary": "s"}, headers=ORIGIN),
        await newsroom.write("DELETE", f"/v1/feeds/{feed}/entries/none", headers=ORIGIN),
    ]
    assert [answer.status for answer in answers] == [201, 422, 401, 200, 404]
    for answer in answers:
        assert "Access-Control-Allow-Origin" not in answer.headers, str(answer)
    for path, method in ((f"/v1/feeds/{feed}/batch", "POST"), (f"/v1/feeds/{feed}/entries/one/pin", "PUT")):
        asked = {**ORIGIN, "Access-Control-Request-Method": method}
        preflight = await newsroom.request("OPTIONS", path, headers=asked)
        assert method.lower() not in listed(preflight.headers.get("Access-Control-Allow-Methods", ""))


async def test_readers_of_one_moment_get_one_answer(newsroom: Newsroom, feed: str) -> None:
    """Many readers ask while a desk writes: a tag never stands for two different bodies."""
    seen: dict[str, bytes] = {}

    async def read() -> None:
        for _ in range(15):
            answer = (await newsroom.get(f"/v1/feeds/{feed}/entries")).ok(200)
            assert seen.setdefault(answer.etag, answer.body) == answer.body
            assert answer.json["position"] in answer.etag
            assert len(answer.json["entries"]) == min(20, answer.json["total"])

    async def write() -> None:
        for n in range(20):
            await newsroom.publish(feed, f"h{n}", id=f"e{n}")

    await newsroom.feed(feed)
    await asyncio.gather(write(), *(read() for _ in range(6)))

"""Refusals, by the public contract: RFC 9457 answers, status by status, and that a refused request changes nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.acceptance.harness import Newsroom

HEADLINE = {"headline": "h"}


def entries_path(feed: str, entry: str | None = None) -> str:
    return f"/v1/feeds/{feed}/entries" + (f"/{entry}" if entry else "")


def allowed(header: str) -> set[str]:
    return {method.strip() for method in header.split(",")}


# 400: what cannot be parsed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"headline": "h"',
        b'{"headline": "h"}}',
        b'{"headline": h}',
        b"{'headline': 'h'}",
        b'{"headline": "caf\xe9"}',
        b'\xff\xfe{"headline": "h"}',
        b'{"headline": "\n"}',
        b'{"headline": "\\x"}',
        b'{"headline": NaN}',
        b'{"headline": "h", "body": ' + b"[" * 20000,
    ],
    ids=lambda data: repr(data[:24]),
)
async def test_what_cannot_be_parsed_is_400(newsroom: Newsroom, feed: str, data: bytes) -> None:
    (await newsroom.request("POST", entries_path(feed), data=data, token=newsroom.token)).problem(400)
    assert (await newsroom.feed(feed))["position"] == "1-1"


# 422: what parses but is not valid --------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"null", b"[]", b'"text"', b"7", b"true"])
async def test_a_body_that_is_no_object_is_422(newsroom: Newsroom, feed: str, data: bytes) -> None:
    (await newsroom.request("POST", entries_path(feed), data=data, token=newsroom.token)).problem(422)


@pytest.mark.parametrize(
    "data",
    [
        rb'{"headline": "\ud800"}',
        b'{"headline": ' + b"9" * 5000 + b"}",
        b'{"headline": "h", "body": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"headline": "h", "published_at": "' + b"9" * 5000 + b'"}',
        b'{"headline": "h", "published_at": "2022-01-10T18:38:00+99:99"}',
        b'{"headline": "h", "published_at": "2022-01-10T18:38:00.' + b"1" * 400 + b'Z-"}',
        b'{"headline": "h", "tags": [[]]}',
        b'{"headline": "h", "": 1}',
        b'{"headline": "h", "__proto__": {}}',
        b'{"headline": {"$ne": 1}}',
        b'{"body": [{"type": "embed", "url": "https://[::1"}]}',
        b'{"body": [{"type": "embed", "url": "https://"}]}',
        b'{"body": [{"type": "embed", "url": " https://example.org/ x"}]}',
        b'{"body": [{"type": "embed", "url": "java\\nscript:alert(1)"}]}',
    ],
    ids=lambda data: repr(data[:40]),
)
async def test_hostile_bodies_get_a_clear_refusal(newsroom: Newsroom, feed: str, data: bytes) -> None:
    answer = await newsroom.request("POST", entries_path(feed), data=data, token=newsroom.token)
    assert answer.status in (400, 422), str(answer)
    answer.problem(answer.status)
    assert (await newsroom.feed(feed))["position"] == "1-1"


async def test_paths_in_errors_name_the_place_and_say_what_is_wrong(newsroom: Newsroom, feed: str) -> None:
    body = [{"type": "text", "html": "x"}, {"type": "text", "html": "y"}, {"type": "list", "items": ["a"]}]
    fields = {"body": [*body, {"type": "image", "url": "javascript:x", "alt": "a"}]}
    problem = (await newsroom.write("POST", entries_path(feed), fields)).problem(422, path="/body/3/url")
    assert all(isinstance(error["message"], str) and error["message"] for error in problem["errors"])
    assert "title" in problem and isinstance(problem["detail"], str)


# 401 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer", "Bearer ", "Basic b3BzOm9wcw==", "x" * 4000])
async def test_writes_without_the_right_token_are_401(newsroom: Newsroom, feed: str, authorization: str | None) -> None:
    await newsroom.publish(feed, "h", id="one")
    headers = {"Authorization": authorization} if authorization is not None else {}
    entry = entries_path(feed, "one")
    writes: list[tuple[str, str, Any]] = [
        ("PUT", f"/v1/feeds/{feed}", {"title": "t"}),
        ("PATCH", f"/v1/feeds/{feed}", {"title": "t"}),
        ("POST", entries_path(feed), HEADLINE),
        ("PATCH", entry, HEADLINE),
        ("DELETE", entry, None),
        ("PUT", f"{entry}/pin", None),
        ("DELETE", f"{entry}/pin", None),
        ("PUT", f"{entry}/key-event", None),
        ("DELETE", f"{entry}/key-event", None),
        ("POST", f"/v1/feeds/{feed}/batch", {"commands": [{"type": "publish", "headline": "h"}]}),
    ]
    for method, path, body in writes:
        answer = await newsroom.request(method, path, json_body=body, headers=headers)
        if authorization is not None and answer.status == 400:
            answer.problem(400)
        else:
            answer.problem(401)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert (await newsroom.feed(feed))["position"] == "1-2"


async def test_a_refusal_without_a_token_does_not_tell_whether_a_feed_exists(newsroom: Newsroom, feed: str) -> None:
    known = (await newsroom.request("POST", entries_path(feed), json_body=HEADLINE)).problem(401)
    unknown = (await newsroom.request("POST", entries_path(feed + "-x"), json_body=HEADLINE)).problem(401)
    assert known["type"] == unknown["type"]


# 404, 405, OPTIONS ------------------------------------------------------------------------------------------------

ROUTES = [
    ("/v1/feeds", {"GET", "HEAD", "OPTIONS"}),
    ("/v1/feeds/{feed}", {"GET", "HEAD", "PUT", "PATCH", "OPTIONS"}),
    ("/v1/feeds/{feed}/entries", {"GET", "HEAD", "POST", "OPTIONS"}),
    ("/v1/feeds/{feed}/entries/one", {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}),
    ("/v1/feeds/{feed}/entries/one/pin", {"PUT", "DELETE", "OPTIONS"}),
    ("/v1/feeds/{feed}/entries/one/key-event", {"PUT", "DELETE", "OPTIONS"}),
    ("/v1/feeds/{feed}/batch", {"POST", "OPTIONS"}),
    ("/v1/feeds/{feed}/changes", {"GET", "HEAD", "OPTIONS"}),
    ("/v1/feeds/{feed}/stream", {"GET", "HEAD", "OPTIONS"}),
    ("/v1/stream", {"GET", "HEAD", "OPTIONS"}),
    ("/healthz", {"GET", "HEAD", "OPTIONS"}),
    ("/readyz", {"GET", "HEAD", "OPTIONS"}),
]


@pytest.mark.parametrize(("route", "methods"), ROUTES, ids=[route for route, _ in ROUTES])
async def test_methods_are_allowed_by_name(newsroom: Newsroom, feed: str, route: str, methods: set[str]) -> None:
    await newsroom.publish(feed, "h", id="one")
    path = route.format(feed=feed)
    options = (await newsroom.request("OPTIONS", path)).ok(200, 204)
    assert allowed(options.headers["Allow"]) == methods
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"):
        if method in methods:
            continue
        answer = await newsroom.request(method, path, token=newsroom.token)
        assert answer.status == 405, str(answer)
        assert allowed(answer.headers["Allow"]) == methods
        if method != "HEAD":
            answer.problem(405)


@pytest.mark.parametrize(
    "path", ["/v1", "/v2/feeds", "/v1/feed", "/v1/feeds/a/entries/b/c", "/v1/feeds/a/nothing", "/v1/feeds/"]
)
async def test_paths_that_are_nothing_are_404(newsroom: Newsroom, path: str) -> None:
    (await newsroom.get(path)).problem(404)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/feeds/%00",
        "/v1/feeds/%0d%0aSet-Cookie:x",
        "/v1/feeds/..%2f..%2fetc",
        "/v1/feeds/%ff",
        "/v1/feeds/" + "a" * 4000,
        "/v1/feeds/a/entries/%00",
        "/v1/feeds/a/entries/" + "%F0%9F%98%80" * 20,
        "/v1/feeds/a/entries?cursor=%ff",
        "/v1/feeds/a/entries?limit=1&limit=2",
        "/v1/stream?feed=%00",
        "/v1/feeds?topic=%00%ff",
    ],
)
async def test_hostile_paths_are_no_error_of_the_server(newsroom: Newsroom, path: str) -> None:
    answer = await newsroom.get(newsroom.base_url + path)
    assert answer.status < 500, str(answer)
    assert "Set-Cookie" not in answer.headers


# 409, 410, 412, 413, 415, 428 -------------------------------------------------------------------------------------


async def test_a_request_over_256_kib_is_413(newsroom: Newsroom, feed: str) -> None:
    def entry(size: int) -> bytes:
        frame = len(json.dumps({"body": [{"type": "text", "html": ""}]}))
        return json.dumps({"body": [{"type": "text", "html": "x" * (size - frame)}]}).encode()

    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 50_000):
            yield data[start : start + 50_000]

    limit, token = 256 * 1024, newsroom.token
    assert len(entry(limit)) == limit
    (await newsroom.request("POST", entries_path(feed), data=entry(limit + 1), token=token)).problem(413)
    (await newsroom.request("POST", entries_path(feed), data=chunks(entry(limit + 1)), token=token)).problem(413)
    assert (await newsroom.feed(feed))["position"] == "1-1"
    (await newsroom.request("POST", entries_path(feed), data=entry(limit), token=token)).ok(201)
    (await newsroom.request("POST", entries_path(feed), data=chunks(entry(limit - 1)), token=token)).ok(201)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml"])
async def test_another_media_type_is_415(newsroom: Newsroom, feed: str, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    answer = await newsroom.write("POST", entries_path(feed), HEADLINE, headers=headers)
    answer.problem(415)
    assert (await newsroom.feed(feed))["position"] == "1-1"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_the_media_type_may_have_parameters(newsroom: Newsroom, feed: str, content_type: str) -> None:
    (await newsroom.write("POST", entries_path(feed), HEADLINE, headers={"Content-Type": content_type})).ok(201)


async def test_every_refusal_has_a_request_id_of_its_own(newsroom: Newsroom, feed_id: str) -> None:
    answers = await asyncio.gather(*(newsroom.get(f"/v1/feeds/{feed_id}") for _ in range(5)))
    assert len({answer.problem(404)["request_id"] for answer in answers}) == 5


async def test_different_refusals_of_one_status_have_types_of_their_own(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    taken = (await newsroom.write("POST", entries_path(feed), {"id": "one", "headline": "x"})).problem(409)
    await newsroom.revise_feed(feed, status="closed")
    closed = (await newsroom.write("POST", entries_path(feed), HEADLINE)).problem(409)
    assert taken["type"] != closed["type"]


async def test_a_refused_request_changes_nothing(newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "h", id="one")
    await newsroom.publish(feed, "h", id="gone")
    await newsroom.retract(feed, "gone")
    before = (await newsroom.feed(feed), await newsroom.changes(feed), await newsroom.page(feed))
    if_match = {"If-Match": '"7"'}
    refusals = [
        await newsroom.write("PUT", f"/v1/feeds/{feed}", {}),
        await newsroom.write("PUT", f"/v1/feeds/{feed}", {"title": "t"}, headers={"If-None-Match": "*"}),
        await newsroom.write("PATCH", f"/v1/feeds/{feed}", {"summary": "s", "status": "over"}),
        await newsroom.write("POST", entries_path(feed), {"headline": "h", "colour": 1}),
        await newsroom.write("POST", entries_path(feed), {"headline": "other", "id": "one"}),
        await newsroom.write("POST", entries_path(feed), {"headline": "h", "id": "gone"}),
        await newsroom.write("PATCH", entries_path(feed, "one"), HEADLINE),
        await newsroom.write("PATCH", entries_path(feed, "one"), {"headline": "x"}, headers=if_match),
        await newsroom.write("DELETE", entries_path(feed, "one"), headers=if_match),
        await newsroom.write("PUT", entries_path(feed, "gone") + "/pin"),
        await newsroom.write("POST", f"/v1/feeds/{feed}/batch", {"commands": [{"type": "pin", "id": "one"}, {}]}),
    ]
    assert [answer.status for answer in refusals] == [422, 412, 422, 422, 409, 410, 428, 412, 412, 410, 422]
    for answer in refusals:
        answer.problem(answer.status)
        assert "Dateline-Position" not in answer.headers or answer.status in (409, 412)
    after = (await newsroom.feed(feed), await newsroom.changes(feed), await newsroom.page(feed))
    assert after == before


# Health -----------------------------------------------------------------------------------------------------------


async def test_health_and_readiness_answer(newsroom: Newsroom) -> None:
    (await newsroom.get("/healthz")).ok(200)
    ready = (await newsroom.get("/readyz")).ok(200)
    assert isinstance(ready.json, dict)

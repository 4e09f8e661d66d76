"""The edge of HTTP on real servers: what is refused and how, what is cached and by whom, and what is said when Redis is away."""

import asyncio
import gzip
import json
import resource
import sys
import zlib
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from services.gateway import kept, tail
from services.gateway.reads import Reads
from shared import http as module
from shared import problems
from shared.keys import Keys
from shared.redis import connect
from tests.integration.conftest import RunningServer
from tests.integration.gateway_kit import (
    SIGNED,
    TOKEN,
    Answer,
    Json,
    Newsroom,
    Running,
    eventually,
    on_one_server,
    raw_exchange,
    running_gateway,
)
from tests.proxy import Proxy

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = on_one_server

FEED = "story"
ENTRIES = f"/v1/feeds/{FEED}/entries"


@pytest.fixture
async def gateway(server: RunningServer, keys: Keys) -> AsyncIterator[Running]:
    """Writer and gateway behind one edge, as `up` has them."""
    async with running_gateway(server.url, keys, with_writer=True) as running:
        yield running
        await running.at_rest()


def assert_problem(answer: Answer, status: int, code: str | None = None) -> Json:
    """RFC 9457, with an id of its own that header and body agree on, and never to be stored."""
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    body: Json = answer.json
    assert {"type", "title", "status", "detail", "request_id", "errors"} <= set(body)
    assert body["status"] == status
    assert body["type"].startswith("urn:dateline:problem:")
    assert code is None or body["type"] == f"urn:dateline:problem:{code}"
    assert body["request_id"] == answer.headers["X-Request-Id"]
    if status == 503:
        assert answer.headers["Retry-After"] == "1"
    return body


def parsed(raw: bytes) -> Answer:
    """One whole response, as it came over the wire."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(first.split()[1]), headers, body)


async def raw_answer(gateway: Running, request: str | bytes) -> Answer:
    """Send bytes, whatever they are, and take one whole answer."""
    data = request.encode("utf-8", "surrogateescape") if isinstance(request, str) else request
    return parsed(await raw_exchange(gateway.port, data))


# Bodies


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null x",
        b"{'a': 1}",
        b'{"headline": "\xff"}',
        b'{"headline": "\xed\xa0\x80"}',
        b'{"headline": "\\ud800"}',
        b'{"headline": "\\x00"}',
        b'{"headline": "a\nb"}',
        b"[" * 100_000,
        b'{"body":' * 30_000,
        b'{"a":1}' * 2,
        b"\xef\xbb\xbf{}",
        b"\x00",
        b"NaN",
    ],
    ids=repr,
)
async def test_a_body_that_cannot_be_parsed_is_400_and_changes_nothing(
    newsroom: Newsroom, gateway: Running, data: bytes
) -> None:
    position = await newsroom.story(FEED)
    assert_problem(await gateway.send("POST", ENTRIES, data=data), 400, "malformed")
    assert await newsroom.head(FEED) == position


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "x"])
async def test_another_media_type_is_415(newsroom: Newsroom, gateway: Running, content_type: str) -> None:
    await newsroom.story(FEED)
    answer = await gateway.send("POST", ENTRIES, data=b'{"headline":"h"}', headers={"Content-Type": content_type})
    assert_problem(answer, 415, "unsupported-media-type")


async def test_a_body_over_the_limit_is_refused_by_its_length_before_it_comes(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED)
    head = (
        f"POST {ENTRIES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {module.BODY_BYTES_MAX + 1}\r\n\r\n"
    )
    assert_problem(await raw_answer(gateway, head), 413, "body-too-large")


async def test_a_body_over_the_limit_is_refused_while_it_comes_without_a_length(
    newsroom: Newsroom, gateway: Running
) -> None:
    position = await newsroom.story(FEED)
    head = (
        f"POST {ENTRIES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    # Never ended: the refusal comes before the end of the body, which is never read.
    answer = await raw_answer(gateway, head.encode() + chunk * 5)
    assert_problem(answer, 413, "body-too-large")
    assert answer.headers["Connection"] == "close"
    assert await newsroom.head(FEED) == position


async def test_the_refusal_of_a_large_body_arrives_even_while_the_client_still_sends(
    newsroom: Newsroom, gateway: Running
) -> None:
    """A connection that is closed over unread bytes is reset, and the reset eats the answer."""
    await newsroom.story(FEED)
    for _ in range(3):
        answer = await gateway.send("POST", ENTRIES, data=b" " * 3_000_000)
        assert_problem(answer, 413, "body-too-large")


async def test_exactly_the_limit_is_taken(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED)
    body = b'{"headline":"h"}'
    answer = await gateway.send("POST", ENTRIES, data=body + b" " * (module.BODY_BYTES_MAX - len(body)))
    assert answer.status == 201
    answer = await gateway.send("POST", ENTRIES, data=body + b" " * (module.BODY_BYTES_MAX - len(body) + 1))
    assert_problem(answer, 413, "body-too-large")


async def test_a_batch_may_be_larger_than_other_requests(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED)
    body = json.dumps({"commands": [{"type": "publish", "headline": "h"}]}).encode()
    path = f"/v1/feeds/{FEED}/batch"
    assert (await gateway.send("POST", path, data=body + b" " * module.BODY_BYTES_MAX)).status == 200
    assert_problem(await gateway.send("POST", path, data=body + b" " * module.BATCH_BODY_BYTES_MAX), 413)


async def test_a_body_that_does_not_come_in_time_is_408(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS_MAX", 0.2)
    await newsroom.story(FEED)
    head = (
        f"POST {ENTRIES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    answer = await raw_answer(gateway, head + '{"headline":')
    assert_problem(answer, 408, "body-too-slow")
    assert answer.headers["Connection"] == "close"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_body_is_read(newsroom: Newsroom, gateway: Running, encoding: str) -> None:
    await newsroom.story(FEED)
    body = b'{"headline":"squeezed"}'
    data = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    answer = await gateway.send("POST", ENTRIES, data=data, headers={"Content-Encoding": encoding})
    assert answer.status == 201 and answer.json["headline"] == "squeezed"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_small_body_that_unpacks_to_megabytes_is_413_and_takes_no_memory(
    newsroom: Newsroom, gateway: Running, encoding: str
) -> None:
    await newsroom.story(FEED)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31) if encoding == "gzip" else zstd.ZstdCompressor()
    blanks = b" " * 10_000_000
    bomb = b"".join(packer.compress(blanks) for _ in range(8)) + packer.flush()
    assert len(bomb) < module.BODY_BYTES_MAX
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = await gateway.send("POST", ENTRIES, data=bomb, headers={"Content-Encoding": encoding})
    assert_problem(answer, 413, "body-too-large")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024, "in KiB"


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"this is not gzip at all", {"Content-Encoding": "gzip"}),
        (gzip.compress(b'{"headline":"h"}' * 100)[:-12], {"Content-Encoding": "gzip"}),
        (b"nor is it deflated", {"Content-Encoding": "deflate"}),
        (b"{}", {"Content-Encoding": "br"}),
        (b"{}", {"Content-Encoding": "zstd"}),
        (zstd.compress(b'{"headline":"h"}' * 100)[:-3], {"Content-Encoding": "zstd"}),
    ],
    ids=["garbage", "cut short", "no deflate", "brotli", "no zstd", "zstd cut short"],
)
async def test_a_body_that_does_not_unpack_is_the_clients_mistake(
    newsroom: Newsroom,
    gateway: Running,
    caplog: pytest.LogCaptureFixture,
    data: bytes,
    headers: dict[str, str],
) -> None:
    position = await newsroom.story(FEED)
    answer = await gateway.send("POST", ENTRIES, data=data, headers=headers)
    assert answer.status in (400, 415), answer
    assert await newsroom.head(FEED) == position
    # An encoding that aiohttp does not know is refused by aiohttp itself, before any code of ours.
    if headers["Content-Encoding"] in ("gzip", "deflate", "zstd"):
        assert_problem(answer, 400, "malformed")
        await asyncio.sleep(0.05)
        assert not caplog.records


async def test_chunks_that_are_none_are_the_clients_mistake(newsroom: Newsroom, gateway: Running) -> None:
    position = await newsroom.story(FEED)
    head = (
        f"POST {ENTRIES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with capture_logs() as logs:
        answer = await raw_answer(gateway, head + '5\r\n{"hea\r\nzz\r\n')
    assert answer.status == 400
    assert not [entry for entry in logs if entry["log_level"] in ("error", "critical")]
    assert await newsroom.head(FEED) == position


async def test_a_client_that_leaves_in_the_middle_of_its_body_changes_nothing_and_is_no_error(
    newsroom: Newsroom, gateway: Running
) -> None:
    position = await newsroom.story(FEED)
    head = (
        f"POST {ENTRIES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nContent-Length: 16\r\n\r\n"
    )
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head.encode() + b'{"headline":"h"')
        await eventually(gateway.tasks)
        writer.transport.abort()
        await eventually(lambda: not gateway.tasks())
    assert not [entry for entry in logs if entry["log_level"] in ("error", "critical")]
    assert await newsroom.head(FEED) == position


# Paths, methods, headers


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v1",
        "/v1/feeds/",
        f"/v1/feeds/{FEED}/",
        f"/v1/feeds/{FEED}/nothing",
        f"//v1/feeds/{FEED}",
        f"/v1//feeds/{FEED}",
        f"/v1/feeds/{FEED}/entries/",
        "/assets/live.py",
        "/assets/..%2f..%2fapp.py",
    ],
)
async def test_a_path_that_is_nothing_is_404(newsroom: Newsroom, gateway: Running, path: str) -> None:
    await newsroom.story(FEED)
    answer = await raw_answer(gateway, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert_problem(answer, 404)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/feeds/%00",
        "/v1/feeds/%FF",
        "/v1/feeds/%ED%A0%80",
        "/v1/feeds/" + "x" * 5000,
        "/v1/feeds/Story",
        "/v1/feeds/story%0d%0aX-Evil:%201",
        "/v1/feeds/story%2Fentries",
        "/v1/feeds/../feeds/none",
        "/v1/feeds/%F0%9F%93%B0/entries",
        "/v1/feeds/none/entries/%00%FF",
        f"/v1/feeds/{FEED}/entries/%00%FF",
        f"/v1/feeds/{FEED}/entries/%ED%A0%80",
        "/live/%00%FF",
        "/v1/feeds/none/stream",
        "/v1/stream?feed=%00",
        "/v1/stream?feed=%FF%ED%A0%80",
    ],
)
async def test_hostile_names_are_not_found_and_no_error_of_ours(
    newsroom: Newsroom, gateway: Running, path: str
) -> None:
    await newsroom.story(FEED)
    raw = await raw_exchange(gateway.port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert_problem(parsed(raw), 404)
    assert b"X-Evil" not in raw.partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize(
    "query", ["tag=%FF", "tag=%ED%A0%80", "tag=%00", "since=%00", "cursor=%FF", "unread_since=%ED"]
)
async def test_hostile_queries_are_no_error_of_ours(newsroom: Newsroom, gateway: Running, query: str) -> None:
    await newsroom.story(FEED)
    request = f"GET {ENTRIES}?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await raw_answer(gateway, request)
    assert answer.status in (200, 422), answer
    if answer.status == 422:
        assert assert_problem(answer, 422)["errors"][0]["path"] == "/" + query.partition("=")[0]


@pytest.mark.parametrize(
    "authorization", ["Bearer \udcff\udcfe", "Bearer", "Bearer ", "bearer x", "Basic eDp5", "\udcff"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_token_that_is_none_is_401_whatever_its_bytes(
    newsroom: Newsroom, gateway: Running, authorization: str, method: str
) -> None:
    await newsroom.story(FEED)
    answer = await raw_answer(
        gateway,
        f"{method} {ENTRIES} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {authorization}\r\n\r\n",
    )
    assert_problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", f"/v1/feeds/{FEED}", {"GET", "HEAD", "OPTIONS", "PATCH", "PUT"}),
        ("DELETE", ENTRIES, {"GET", "HEAD", "OPTIONS", "POST"}),
        ("PUT", f"{ENTRIES}/e1", {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH"}),
        ("GET", f"{ENTRIES}/e1/pin", {"DELETE", "OPTIONS", "PUT"}),
        ("POST", f"/v1/feeds/{FEED}/stream", {"GET", "HEAD", "OPTIONS"}),
        ("TRACE", "/v1/feeds", {"GET", "HEAD", "OPTIONS"}),
        ("PROPFIND", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_a_method_that_is_not_allowed_is_405_and_says_which_are(
    newsroom: Newsroom, gateway: Running, method: str, path: str, allow: set[str]
) -> None:
    await newsroom.story(FEED, 1)
    answer = await raw_answer(gateway, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert_problem(answer, 405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(", ")) == allow
    options = await gateway.get(path, method="OPTIONS")
    assert options.status == 204 and options.body == b""
    assert set(options.headers["Allow"].split(", ")) == allow


PREFLIGHT = {"Origin": "https://paper.example", "Access-Control-Request-Headers": "last-event-id"}


async def test_a_preflight_is_answered_for_reads_and_not_for_writes(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    for path in ("/v1/feeds", f"/v1/feeds/{FEED}", ENTRIES, f"/v1/feeds/{FEED}/stream", "/v1/stream"):
        read = await gateway.get(path, method="OPTIONS", headers={**PREFLIGHT, "Access-Control-Request-Method": "GET"})
        assert read.status == 204
        assert read.headers["Access-Control-Allow-Origin"] == "*"
        assert set(read.headers["Access-Control-Allow-Headers"].split(", ")) == {"Last-Event-ID", "If-None-Match"}
    for method, path in (("POST", ENTRIES), ("PUT", f"/v1/feeds/{FEED}"), ("PUT", f"{ENTRIES}/e1/pin")):
        write = await gateway.get(
            path, method="OPTIONS", headers={**PREFLIGHT, "Access-Control-Request-Method": method}
        )
        assert not [name for name in write.headers if name.lower().startswith("access-control")]


async def test_any_origin_may_read_answers_and_errors_and_nobody_writes(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    for path in (ENTRIES, "/v1/feeds/none", "/nothing", f"{ENTRIES}?limit=0", f"{ENTRIES}?min_position=9-9"):
        answer = await gateway.get(path, headers={"Origin": "https://paper.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*", path
        assert {"ETag", "Link", "Dateline-Position", "Retry-After"} <= set(
            answer.headers["Access-Control-Expose-Headers"].split(", ")
        )
        assert "Access-Control-Allow-Credentials" not in answer.headers
    for signed in (
        await gateway.get(ENTRIES, headers={**SIGNED, "Origin": "https://paper.example"}),
        await gateway.send("POST", ENTRIES, data=b'{"headline":"h"}', headers={"Origin": "https://paper.example"}),
        await gateway.send("POST", ENTRIES, data=b"{", headers={"Origin": "https://paper.example"}),
    ):
        assert not [name for name in signed.headers if name.lower().startswith("access-control")]


async def test_any_origin_may_open_a_stream_but_none_with_a_token(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    for path in (f"/v1/feeds/{FEED}/stream", f"/v1/stream?feed={FEED}"):
        async with await gateway.stream(path) as anonymous, await gateway.stream(path, headers=SIGNED) as signed:
            assert b"access-control-allow-origin: *" in anonymous.head.lower()
            assert b"access-control" not in signed.head.lower()


async def test_head_says_what_get_says_without_the_body(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 3)
    await newsroom.retract(FEED, "e1")
    await newsroom.commit_all(FEED)
    paths = ["/v1/feeds", f"/v1/feeds/{FEED}", f"{ENTRIES}?limit=1", f"{ENTRIES}/e2", f"{ENTRIES}/e1", "/nothing"]
    for path in [*paths, f"/v1/feeds/{FEED}/changes", "/healthz", "/readyz", f"/live/{FEED}", f"{ENTRIES}?limit=0"]:
        get, head = await gateway.get(path), await gateway.get(path, method="HEAD")
        changing = {"date", "x-request-id"}
        assert head.status == get.status
        assert head.body == b""
        said = [
            {name: value for name, value in answer.headers.items() if name.lower() not in changing}
            for answer in (get, head)
        ]
        if path != "/readyz":
            assert said[0] == said[1], path


async def test_every_answer_has_a_request_id_of_its_own_and_none_is_taken_from_outside(
    newsroom: Newsroom, gateway: Running
) -> None:
    await newsroom.story(FEED, 1)
    seen = set()
    for path in (ENTRIES, ENTRIES, "/nothing", "/healthz"):
        answer = await gateway.get(path, headers={"X-Request-Id": "mine"})
        seen.add(answer.headers["X-Request-Id"])
    assert len(seen) == 4 and "mine" not in seen


async def test_a_write_is_answered_on_the_wire_as_in_an_older_protocol(newsroom: Newsroom, gateway: Running) -> None:
    """Its head is put together beforehand, but for HTTP/1.1 alone."""
    await newsroom.story(FEED)
    body = '{"id":"e","headline":"h"}'
    assert (await gateway.send("POST", ENTRIES, data=body.encode())).status == 201
    answers = []
    for version, connection in (("1.1", "Connection: close\r\n"), ("1.0", "")):
        answer = await raw_answer(
            gateway,
            f"POST {ENTRIES} HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{connection}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}",
        )
        headers = {name.lower(): value for name, value in answer.headers.items()}
        assert headers.pop("connection", None) == ("close" if connection else None)
        assert len(headers.pop("x-request-id")) == 36 and headers.pop("date").endswith(" GMT")
        answers.append((answer.status, headers, answer.body))
    assert answers[0] == answers[1]
    assert answers[0][0] == 200 and answers[0][1].keys() >= {"etag", "cache-control", "dateline-durability", "server"}


# Validators


async def test_a_tag_that_still_holds_gives_304_with_the_same_validators(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 2)
    path = tag = ""
    for path in (f"/v1/feeds/{FEED}", ENTRIES, f"{ENTRIES}/e1", f"/v1/feeds/{FEED}/changes"):
        full = await gateway.get(path)
        tag = full.headers["ETag"]
        strong = tag.removeprefix("W/")
        for header in (tag, strong, f"W/{strong}", f'"other", {tag}', f'W/"a" ,\t{tag} , "b"', "*", f" {tag} "):
            answer = await gateway.get(path, headers={"If-None-Match": header})
            assert (answer.status, answer.body) == (304, b""), (path, header)
            for name in ("ETag", "Cache-Control", "Vary", "Dateline-Position"):
                assert answer.headers[name] == full.headers[name]
        assert (await gateway.get(path, headers={"If-None-Match": '"other", W/"another"'})).status == 200
        assert_problem(await gateway.get(path, headers={"If-None-Match": "unquoted"}), 400, "malformed")
    await newsroom.correct(FEED, "e1", revision=1, headline="Corrected")
    await newsroom.commit_all(FEED)
    assert (await gateway.get(path, headers={"If-None-Match": tag})).status == 200


async def test_two_lines_of_tags_are_one_list(newsroom: Newsroom, gateway: Running) -> None:
    """RFC 9110, section 5.3."""
    await newsroom.story(FEED, 1)
    tag = (await gateway.get(ENTRIES)).headers["ETag"]
    answer = await raw_answer(
        gateway,
        f'GET {ENTRIES} HTTP/1.1\r\nHost: x\r\nIf-None-Match: "other"\r\nIf-None-Match: {tag}\r\nConnection: close\r\n\r\n',
    )
    assert answer.status == 304


async def test_nothing_is_304_to_those_who_may_not_see_it(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1, visibility="private")
    tag = (await gateway.get(ENTRIES, headers=SIGNED)).headers["ETag"]
    for header in (tag, "*"):
        assert_problem(await gateway.get(ENTRIES, headers={"If-None-Match": header}), 404, "feed-not-found")


# Our own mistakes


async def test_a_bug_is_500_and_tells_nothing_of_itself(
    newsroom: Newsroom, gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object, **kwargs: object) -> None:
        raise KeyError("the secret inside")

    await newsroom.story(FEED)
    monkeypatch.setattr(Reads, "page", broken)
    with capture_logs() as logs:
        answer = await gateway.get(ENTRIES)
    body = assert_problem(answer, 500, "internal")
    assert b"secret" not in answer.body
    assert body["request_id"] in {entry.get("request_id") for entry in logs if entry["log_level"] == "error"}


async def test_bad_input_is_counted_and_not_logged_as_an_error(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED)
    with capture_logs() as logs:
        await gateway.get("/v1/feeds/none")
        await gateway.get(f"{ENTRIES}?limit=0")
        await gateway.send("POST", ENTRIES, data=b"{")
    assert logs == []
    for code in ("feed-not-found", "invalid", "malformed"):
        assert gateway.metrics.registry.get_sample_value("dateline_problems_total", {"code": code}) == 1


@pytest.mark.usefixtures("server")
def test_every_problem_has_a_status_that_the_contract_names() -> None:
    statuses = {status for status, _ in problems.STATUS.values()}
    assert statuses <= {400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 415, 422, 428, 429, 500, 503}
    assert all(title and not title.endswith(".") for _, title in problems.STATUS.values())


# Redis away


async def test_while_redis_is_away_everything_says_so_and_then_recovers_by_itself(
    newsroom: Newsroom, server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(tail, "SWEEP_SECONDS", 0.1)
    await newsroom.story(FEED, 1)
    async with Proxy(server.url) as proxy, running_gateway(proxy.url, keys, with_writer=True) as gateway:
        live = await gateway.stream(f"/v1/feeds/{FEED}/stream")
        await live.until("live")
        proxy.down = True
        await proxy.cut_all()
        for path in (f"/v1/feeds/{FEED}", ENTRIES, f"{ENTRIES}/e1", f"/v1/feeds/{FEED}/changes", "/v1/feeds"):
            assert_problem(await gateway.get(path), 503, "unavailable")
        assert_problem(await gateway.get(f"/live/{FEED}"), 503)
        write = await gateway.send("POST", ENTRIES, data=b'{"id":"e2","headline":"h"}')
        assert_problem(write, 503)
        assert write.json["type"].endswith((":unavailable", ":outcome-unknown"))
        for path in (f"/v1/feeds/{FEED}/stream", f"/v1/stream?feed={FEED}"):
            async with await gateway.stream(path) as refused:
                events = await refused.rest()
                assert [event.kind for event in events] == ["retry", "bye"]
                assert events[1].data["reason"] == "unavailable"
        ready = await gateway.get("/readyz")
        assert ready.status == 503 and ready.headers["Retry-After"]
        assert (await gateway.get("/healthz")).status == 200
        proxy.down = False
        assert (await gateway.get(ENTRIES)).status == 200
        assert (await gateway.send("POST", ENTRIES, data=b'{"id":"e2","headline":"h"}')).status == 201
        await newsroom.commit_all(FEED)
        assert (await live.next()).data["id"] == "e2", "a live reader was kept and misses nothing"
        async with await gateway.stream(f"/v1/feeds/{FEED}/stream") as again:
            await again.until("live")
        await eventually(lambda: gateway.gateway._tail._heard > 0)
        live.close()
        await gateway.at_rest()


async def test_a_redis_that_answers_nothing_is_unavailable_within_its_timeouts(
    newsroom: Newsroom, server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections stay open and nothing comes: the worst way to be away."""
    original = connect
    monkeypatch.setattr("services.gateway.service.connect", lambda url: original(url, timeout_seconds=0.2))
    await newsroom.story(FEED, 1)
    async with Proxy(server.url) as proxy, running_gateway(proxy.url, keys) as gateway:
        assert (await gateway.get(ENTRIES)).status == 200
        proxy.stop()
        async with asyncio.timeout(kept.TRUSTED_SECONDS + 5):
            while (answer := await gateway.get(ENTRIES)).status == 200:
                await asyncio.sleep(0.05)  # what is kept is given for as long as it is trusted
        assert_problem(answer, 503, "unavailable")
        async with await gateway.stream(f"/v1/feeds/{FEED}/stream") as refused:
            assert [event.kind for event in await refused.rest()] == ["retry", "bye"]
        proxy.go_on()
        await eventually_ok(gateway)
        await gateway.at_rest()


async def eventually_ok(gateway: Running) -> None:
    async with asyncio.timeout(30):
        while (await gateway.get(ENTRIES)).status != 200:
            await asyncio.sleep(0.05)

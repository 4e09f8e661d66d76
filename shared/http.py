"""HTTP: what writer and gateway share at their edge: the outermost layer, bodies, conditional requests, health.

Owns the application that routes are put into. Routes stand with their service, the form of errors in `problems`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec
import structlog
import uuid_utils
from aiohttp import hdrs, web

from shared.errors import (
    BodyTooLarge,
    BodyTooSlow,
    Corrupted,
    DatelineError,
    Malformed,
    Unavailable,
    UnsupportedMediaType,
)
from shared.listening import EDGE, FATAL, Handler, UnderWay
from shared.metrics import Metrics
from shared.problems import RETRY_AFTER_SECONDS, STATUS, Internal, MethodNotAllowed, NoSuchPath, problem
from shared.scraping import scrape

log = structlog.get_logger()

BODY_BYTES_MAX = 256 * 1024
BATCH_BODY_BYTES_MAX = 1024 * 1024
BODY_SECONDS_MAX = 30.0
HEALTH_CHECK_SECONDS = 2.0

_READS = {hdrs.METH_GET, hdrs.METH_HEAD}
_CORS_REQUEST_HEADERS = "Last-Event-ID, If-None-Match"
_CORS: Mapping[str, str] = {
    hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
    hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: "ETag, Link, Dateline-Position, Retry-After",
}
# What the edge adds to every answer to a public read, beside its request's id.
PUBLIC_READ: Mapping[str, str] = {hdrs.SERVER: "Dateline", **_CORS}

AtHand = Callable[[web.Request], web.StreamResponse | None]
Check = Callable[[], Awaitable[dict[str, Any]]]

REQUEST_ID = web.RequestKey("request_id", str)


def application(
    routes: Iterable[web.RouteDef], *, metrics: Metrics, checks: Mapping[str, Check], at_hand: AtHand | None = None
) -> web.Application:
    """An application of `routes` with problems, health and metrics around them.

    `at_hand` is asked first, and answers public reads that it can answer at once, PUBLIC_READ included; None sends the request
    to its route.
    Each check gives facts for the body of `/readyz`, or raises Unavailable when this process cannot serve.
    """
    app = web.Application(client_max_size=BATCH_BODY_BYTES_MAX)
    app[EDGE] = _edge(metrics, at_hand)
    app.add_routes(routes)
    app.add_routes(
        [
            web.get("/healthz", _healthy),
            web.get("/readyz", _ready(checks)),
            web.get("/metrics", scrape(metrics)),
        ]
    )
    return app


def json_response(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Ready JSON bytes as an answer; they are never decoded or encoded again."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json", charset="utf-8")


async def read_json(request: web.Request, *, bytes_max: int = BODY_BYTES_MAX, required: bool = True) -> bytes:
    """The body's bytes, checked to be JSON by its label; the limit holds while reading, before all of it is here.

    An optional body that is absent or empty is b"". Raises UnsupportedMediaType, BodyTooLarge, BodyTooSlow or Malformed.
    """
    return await read_body(request, "application/json", bytes_max=bytes_max, required=required)


async def read_body(request: web.Request, content_type: str, *, bytes_max: int, required: bool = True) -> bytes:
    """As `read_json`, for a body of another type."""
    if request.can_read_body and request.content_type != content_type:
        raise UnsupportedMediaType(f"send {content_type}, not {request.content_type}")
    if (request.content_length or 0) > bytes_max:
        raise BodyTooLarge(f"the body may have {bytes_max} bytes at most", bytes_max=bytes_max)
    content = request.content
    # All of it came with the head, as most do: nothing to wait for.
    here = content.is_eof() and content.exception() is None
    body = content.read_nowait() if here else await _arriving(request, bytes_max=bytes_max)
    if len(body) > bytes_max:
        raise BodyTooLarge(f"the body may have {bytes_max} bytes at most", bytes_max=bytes_max)
    if required and not body:
        raise Malformed("a JSON body is required" if content_type == "application/json" else "a body is required")
    return body


async def _arriving(request: web.Request, *, bytes_max: int) -> bytes:
    """The body as it comes; no more of one that is too large is awaited than shows that."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > bytes_max:
                    break
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {BODY_SECONDS_MAX:.0f} s") from None
    except web.RequestPayloadError:
        # Or aiohttp would read on, meet the same error and log it as its own.
        request.content.feed_eof()
        raise Malformed("the body is not encoded as its headers say") from None
    return bytes(body)


def etags(header: str) -> list[str]:
    """The opaque tags of an If-Match or If-None-Match, weak ones too; Malformed when it is no list of entity tags.

    RFC 9110, section 8.8.3: a tag stands in quotes, `W/` before it marks it weak.
    """
    if not _ETAGS.fullmatch(header):
        raise Malformed('the precondition must be `*` or entity tags in quotes, such as "3.1-57"')
    return [tag for _, tag in _ETAG.findall(header)]


_ETAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_ETAGS = re.compile(rf"\s*(\*|{_ETAG.pattern}(\s*,\s*{_ETAG.pattern})*)\s*")


def not_modified(request: web.Request, etag: str) -> bool:
    """Whether If-None-Match already has `etag`, by weak comparison (RFC 9110, section 13.1.2)."""
    lines = request.headers.getall(hdrs.IF_NONE_MATCH, None)
    if lines is None:
        return False
    if lines == [etag]:
        return True
    header = ", ".join(lines)
    return header.strip() == "*" or etag.removeprefix("W/").strip('"') in etags(header)


def _edge(metrics: Metrics, at_hand: AtHand | None) -> Callable[[Handler, UnderWay], Handler]:
    """The outermost layer: a request id for every request, a problem document for every error, CORS for public reads.

    It is around the application and no middleware in it, which would come after the search for a route and cost as much.
    """

    def around(handler: Handler, under_way: UnderWay) -> Handler:
        async def edge(request: web.Request) -> web.StreamResponse:
            request_id = str(uuid_utils.uuid7())
            response: web.StreamResponse | None
            complete = False
            under_way.begin()
            try:
                try:
                    response = at_hand(request) if at_hand is not None else None
                    complete = response is not None
                    if response is None:
                        request[REQUEST_ID] = request_id
                        response = await handler(request)
                except DatelineError as error:
                    response = _answer(error, request, request_id, metrics)
                except web.HTTPMethodNotAllowed as error:
                    response = _allowed(error, request, request_id, metrics)
                except web.HTTPException as error:
                    if error.status < 400:
                        raise
                    response = _answer(_translated(error), request, request_id, metrics)
                except (ConnectionError, asyncio.CancelledError):
                    raise
                except Exception:
                    log.exception("request_failed", request_id=request_id, method=request.method, path=request.path)
                    internal = Internal("the log has the facts under this request id")
                    response = _answer(internal, request, request_id, metrics)
                if not response.prepared:
                    response.headers["X-Request-Id"] = request_id
                    if not complete:
                        response.headers[hdrs.SERVER] = "Dateline"
                        cors(request, response)
                    if under_way.draining:
                        # Tells the client to send nothing more on a connection that is about to close.
                        response.force_close()
                return response
            finally:
                under_way.end()

        return edge

    return around


def cors(request: web.Request, response: web.StreamResponse) -> None:
    """Public reads, errors included, may be used from any origin; what carries a token may not."""
    if request.method in _READS and hdrs.AUTHORIZATION not in request.headers:
        response.headers.update(_CORS)


def _answer(error: DatelineError, request: web.Request, request_id: str, metrics: Metrics) -> web.Response:
    metrics.problems.labels(error.code).inc()
    if isinstance(error, Corrupted):
        log.critical("corrupted", request_id=request_id, detail=error.detail)
        fatal = request.app.get(FATAL)
        if fatal is not None and not fatal.done():
            fatal.set_exception(error)
        error = Internal("Dateline's own data does not hold together; the log has the facts")
    elif isinstance(error, Unavailable):
        log.warning("unavailable", request_id=request_id, code=error.code, detail=error.detail)
    elif error.code not in STATUS:
        log.error("unexpected_error", request_id=request_id, code=error.code, detail=error.detail)
        error = Internal("the log has the facts under this request id")
    response = problem(error, request_id=request_id)
    if not request.content.is_eof() or request.content.exception() is not None:
        # What is left of a refused body is not read: the connection cannot be used again.
        response.force_close()
    return response


def _allowed(error: web.HTTPMethodNotAllowed, request: web.Request, request_id: str, metrics: Metrics) -> web.Response:
    allow = ", ".join(sorted({*error.allowed_methods, hdrs.METH_OPTIONS}))
    if request.method != hdrs.METH_OPTIONS:
        refused = _answer(MethodNotAllowed(f"allowed here: {allow}"), request, request_id, metrics)
        refused.headers[hdrs.ALLOW] = allow
        return refused
    response = web.Response(status=204, headers={hdrs.ALLOW: allow})
    wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD, hdrs.METH_GET)
    if wanted in _READS & error.allowed_methods:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "GET, HEAD"
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = _CORS_REQUEST_HEADERS
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "86400"
    return response


def _translated(error: web.HTTPException) -> DatelineError:
    if error.status == 404:
        return NoSuchPath("no such path")
    if error.status == 413:
        return BodyTooLarge("the body is too large")
    return Malformed(error.reason)


async def _healthy(request: web.Request) -> web.Response:
    return json_response(b'{"status":"alive"}', headers={hdrs.CACHE_CONTROL: "no-store"})


def _ready(checks: Mapping[str, Check]) -> Handler:
    async def ready(request: web.Request) -> web.Response:
        facts: dict[str, Any] = {}
        status = 200
        for name, check in checks.items():
            try:
                async with asyncio.timeout(HEALTH_CHECK_SECONDS):
                    facts[name] = {"ready": True, **await check()}
            except (Unavailable, TimeoutError) as error:
                facts[name] = {"ready": False, "detail": str(error) or f"no answer within {HEALTH_CHECK_SECONDS:.0f} s"}
                status = 503
        body = {"status": "ready" if status == 200 else "not ready", **facts}
        headers: dict[str, str] = {hdrs.CACHE_CONTROL: "no-store"}
        if status == 503:
            headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_SECONDS)
        return json_response(msgspec.json.encode(body), status=status, headers=headers)

    return ready

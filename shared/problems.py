"""Problems: every error as a client sees it (RFC 9457), and the one table from codes to status codes.

Owns the documents. What went wrong is said by `errors`; where it is caught is `http`'s.
"""

from collections.abc import Mapping

import msgspec
from aiohttp import hdrs, web

from shared.errors import DatelineError

RETRY_AFTER_SECONDS = 1

PROBLEM_TYPE = "urn:dateline:problem:"

# Code -> status and title: the whole mapping, every problem that Dateline sends.
STATUS: Mapping[str, tuple[int, str]] = {
    "malformed": (400, "The request cannot be parsed"),
    "unauthorized": (401, "A valid token is required"),
    "not-found": (404, "There is nothing here"),
    "feed-not-found": (404, "There is no such feed"),
    "entry-not-found": (404, "There is no such entry"),
    "method-not-allowed": (405, "The method is not allowed here"),
    "body-too-slow": (408, "The body did not arrive in time"),
    "entry-exists": (409, "Another entry has this id"),
    "history-differs": (409, "The feed has another history"),
    "feed-closed": (409, "The feed is closed"),
    "too-many-pins": (409, "No more entries can be pinned"),
    "event-quarantined": (409, "The entry rests on an event in quarantine"),
    "entry-retracted": (410, "The entry is retracted"),
    "stale-position": (410, "The position is not one of this history"),
    "feed-exists": (412, "The feed exists already"),
    "revision-conflict": (412, "The entry has another revision"),
    "body-too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body must be JSON"),
    "invalid": (422, "The request is not valid"),
    "idempotency-key-reused": (422, "The idempotency key belongs to another request"),
    "precondition-required": (428, "If-Match is required"),
    "internal": (500, "Something is wrong with Dateline"),
    "unavailable": (503, "Temporarily unavailable"),
    "outcome-unknown": (503, "The outcome is unknown"),
    "position-not-yet-readable": (503, "The position is not readable yet"),
}


def problem(error: DatelineError, *, request_id: str) -> web.Response:
    """RFC 9457 document of an error, with its facts as further members."""
    status, title = STATUS[error.code]
    facts = {name: value for name, value in error.facts.items() if name != "errors"}
    body = {
        "type": PROBLEM_TYPE + error.code,
        "title": title,
        "status": status,
        "detail": error.detail,
        "request_id": request_id,
        "errors": [{"path": path, "message": message} for path, message in error.facts.get("errors", [])],
        **facts,
    }
    response = web.Response(status=status, body=msgspec.json.encode(body), content_type="application/problem+json")
    response.headers[hdrs.CACHE_CONTROL] = "no-store"
    if status == 503:
        response.headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_SECONDS)
    if status == 401:
        response.headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="dateline"'
    return response


class Internal(DatelineError):
    code = "internal"


class NoSuchPath(DatelineError):
    code = "not-found"


class MethodNotAllowed(DatelineError):
    code = "method-not-allowed"

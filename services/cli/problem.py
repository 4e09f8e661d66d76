"""Problems: what a server answers instead of what was asked, as RFC 9457 carries it, and why there is no answer at all.

Owns reading them. How they are shown, and which are worth another try, is left to the callers.
"""

import os
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from services.cli.reader import Document
from shared.errors import FieldError

# Statuses which say that the same request may be sent again.
PASSING_STATUSES = frozenset({429, 503})

_TYPE = "urn:dateline:problem:"


class Problem(Exception):
    """A refusal or failure that the server answered with, as RFC 9457 carries it."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        current: Document | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.current = current
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds


def problem_of(response: aiohttp.ClientResponse, content: bytes) -> Problem:
    """The problem that an answer carries; one made up from its status when something else than Dateline answered."""
    retry_after = response.headers.get("Retry-After", "")
    retry_after_seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
    try:
        body = msgspec.json.decode(content, type=dict[str, Any])
    except ValueError:
        body = {}
    if "type" not in body:
        # Not Dateline's answer but that of something before it, such as a proxy's page.
        return Problem(
            response.status,
            f"http-{response.status}",
            response.reason or "no reason given",
            retry_after_seconds=retry_after_seconds,
        )
    return Problem(
        response.status,
        str(body["type"]).removeprefix(_TYPE),
        str(body.get("detail") or body.get("title") or response.reason),
        errors=_field_errors(body.get("errors")),
        current=body.get("current"),
        request_id=body.get("request_id"),
        retry_after_seconds=retry_after_seconds,
    )


def _field_errors(errors: Any) -> list[FieldError]:
    found = [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    return [FieldError(str(error.get("path", "")), str(error.get("message", ""))) for error in found]


def reason_of(error: BaseException) -> str:
    """Why there was no answer, in few words."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
        return os.strerror(error.os_error.errno).lower()
    return str(error) or type(error).__name__

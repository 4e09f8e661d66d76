"""The writer's HTTP: the contract's Writing table, route by route.

Owns headers, bodies and answers. What a request means is `commands`', whether it may happen `decide`'s, the rest `desk`'s.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import uuid_utils
from aiohttp import HttpVersion11, hdrs, web

from services.writer.commands import Command, MarkKeyEvent, PinEntry, Request, UnmarkKeyEvent, UnpinEntry
from services.writer.desk import Desk
from services.writer.imports import Imports
from services.writer.outcome import Outcome
from services.writer.promises import Promise, Promises
from services.writer.requests import Parser, request_fingerprint
from shared.documents import SCHEMA, Document, Feed, is_entry_id, is_feed_id, render
from shared.errors import (
    EntryNotFound,
    FeedNotFound,
    FieldError,
    Invalid,
    Malformed,
)
from shared.http import BATCH_BODY_BYTES_MAX, REQUEST_ID, etags, json_response, read_body, read_json
from shared.ready_answer import ReadyAnswer, http_date, ready_head
from shared.tokens import Tokens
from shared.write_side import NO_FINGERPRINT

IDEMPOTENCY_KEY_CHARACTERS_MAX = 255

_REVISION = re.compile(r"([1-9][0-9]{0,9})(\.[1-9][0-9]*-[1-9][0-9]*)?")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(desk: Desk, imports: Imports, *, tokens: Tokens, promises: Promises) -> list[web.RouteDef]:
    """The writing calls."""
    edge = _Edge(desk, imports, tokens, promises)
    feed = "/v1/feeds/{feed}"
    entry = feed + "/entries/{entry}"
    return [
        # Most writes are publications, and routes are tried in this order.
        web.post(feed + "/entries", edge.publish),
        web.put(feed, edge.open_feed),
        web.patch(feed, edge.revise_feed),
        web.patch(entry, edge.correct),
        web.delete(entry, edge.retract),
        web.put(entry + "/pin", edge.flag(PinEntry)),
        web.delete(entry + "/pin", edge.flag(UnpinEntry)),
        web.put(entry + "/key-event", edge.flag(MarkKeyEvent)),
        web.delete(entry + "/key-event", edge.flag(UnmarkKeyEvent)),
        web.post(feed + "/batch", edge.batch),
        web.post(feed + "/events", edge.import_events),
    ]


class _Edge:
    def __init__(self, desk: Desk, imports: Imports, tokens: Tokens, promises: Promises) -> None:
        self._desk = desk
        self._imports = imports
        self._tokens = tokens
        self._promises = promises
        self._parser = Parser(
            now_milliseconds=lambda: time.time_ns() // 1_000_000, new_entry_id=lambda: str(uuid_utils.uuid7())
        )

    async def open_feed(self, request: web.Request) -> web.StreamResponse:
        by = self._tokens.require(request)
        _new_feed(request)
        only_open = request.headers.get(hdrs.IF_NONE_MATCH)
        if only_open is not None and only_open.strip() != "*":
            raise Malformed("If-None-Match may only be * here")
        body = await read_json(request)
        command = self._parser.open_feed(body, only_open=only_open is not None)
        return await self._carry_out(request, [command], by=by, body=body)

    async def revise_feed(self, request: web.Request) -> web.StreamResponse:
        by = self._tokens.require(request)
        body = await read_json(request)
        return await self._carry_out(request, [self._parser.revise_feed(body)], by=by, body=body)

    async def publish(self, request: web.Request) -> web.StreamResponse:
        by = self._tokens.require(request)
        body = await read_json(request)
        return await self._carry_out(request, [self._parser.publish(body)], by=by, body=body)

    async def correct(self, request: web.Request) -> web.StreamResponse:
        by = self._tokens.require(request)
        body = await read_json(request)
        command = self._parser.correct(body, entry=_entry(request), revisions=_revisions(request))
        return await self._carry_out(request, [command], by=by, body=body)

    async def retract(self, request: web.Request) -> web.StreamResponse:
        by = self._tokens.require(request)
        body = await read_json(request, required=False)
        command = self._parser.retract(body, entry=_entry(request), revisions=_revisions(request))
        return await self._carry_out(request, [command], by=by, body=body)

    def flag(self, command: type[PinEntry | UnpinEntry | MarkKeyEvent | UnmarkKeyEvent]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            by = self._tokens.require(request)
            body = await read_json(request, required=False)
            if body.strip() not in (b"", b"{}"):
                raise Invalid([FieldError("", "no body is expected here")])
            commands = [command(_entry(request), _revisions(request))]
            return await self._carry_out(request, commands, by=by, body=b"")

        return handle

    async def batch(self, request: web.Request) -> web.StreamResponse:
        by = self._tokens.require(request)
        body = await read_json(request, bytes_max=BATCH_BODY_BYTES_MAX)
        return await self._carry_out(request, self._parser.batch(body), by=by, body=body, batch=True)

    async def import_events(self, request: web.Request) -> web.StreamResponse:
        """Events that another installation recorded, verbatim; the feed is there once the closing line came."""
        self._tokens.require(request)
        feed = _new_feed(request)
        promise = await self._promise(request)
        body = await read_body(request, "application/x-ndjson", bytes_max=BATCH_BODY_BYTES_MAX)
        imported = await self._imports.take(feed, body)
        await self._desk.confirm(feed, promise.confirmation)
        answer = {
            "position": str(imported.position),
            "events": imported.position.n,
            "complete": imported.complete,
        }
        headers = {
            "Dateline-Position": str(imported.position),
            "Dateline-Durability": promise.reached,
            hdrs.CACHE_CONTROL: "no-store",
        }
        return json_response(msgspec.json.encode(answer), headers=headers)

    async def _carry_out(
        self, request: web.Request, commands: Sequence[Command], *, by: str, body: bytes, batch: bool = False
    ) -> web.StreamResponse:
        feed = request.match_info["feed"]
        if not is_feed_id(feed):
            raise FeedNotFound(feed)
        promise = await self._promise(request)
        key = _idempotency_key(request)
        outcome = await self._desk.carry_out(
            Request(
                feed=feed,
                commands=commands,
                batch=batch,
                by=by,
                causation=request[REQUEST_ID],
                key=key,
                # Without a key no other request can come under this one's command id.
                fingerprint=NO_FINGERPRINT if key is None else request_fingerprint(request.method, request.path, body),
                confirmation=promise.confirmation,
            )
        )
        headers = {"Dateline-Position": str(outcome.position), "Dateline-Durability": promise.reached}
        if outcome.replayed:
            headers["Idempotent-Replay"] = "true"
        if batch:
            return _answer(request, _batch_body(outcome), status=200, headers=headers)
        document = outcome.documents[0]
        headers[hdrs.ETAG] = etag_of(document)
        if outcome.created:
            headers[hdrs.LOCATION] = _location(document)
        return _answer(request, render(document), status=201 if outcome.created else 200, headers=headers)

    async def _promise(self, request: web.Request) -> Promise:
        return await self._promises.of(request.headers.get("Dateline-Durability"))


def _new_feed(request: web.Request) -> str:
    """The feed's id in the path, where the call may make the feed."""
    feed = request.match_info["feed"]
    if not is_feed_id(feed):
        raise Invalid([FieldError("/feed", "must be 1 to 64 of a-z 0-9 -, and begin with a letter or digit")])
    return feed


def _answer(request: web.Request, body: bytes, *, status: int, headers: dict[str, str]) -> web.StreamResponse:
    """Ready JSON bytes; what all answers of this status have in common is ready too."""
    if request.version != HttpVersion11:
        return json_response(body, status=status, headers={**_COMMON, **headers})
    response = ReadyAnswer(_HEADS[status], body)
    headers[hdrs.CONTENT_LENGTH] = str(len(body))
    headers[hdrs.DATE] = http_date(int(time.time()))
    response.headers.update(headers)
    return response


_COMMON: Mapping[str, str] = {hdrs.CACHE_CONTROL: "no-store"}
_HEADS = {
    status: ready_head(status, {hdrs.CONTENT_TYPE: "application/json; charset=utf-8", **_COMMON})
    for status in (200, 201)
}


def etag_of(document: Document | Feed) -> str:
    """An entry's names its revision and position; a feed's, like a page's, the position and the schema."""
    if isinstance(document, Feed):
        return f'W/"{document.position}.{SCHEMA}"'
    return f'"{document.revision}.{document.position}"'


def _location(document: Document | Feed) -> str:
    if isinstance(document, Feed):
        return f"/v1/feeds/{document.id}"
    return f"/v1/feeds/{document.feed}/entries/{document.id}"


def _batch_body(outcome: Outcome) -> bytes:
    position = str(outcome.position)
    results: list[Any] = [msgspec.Raw(render(document)) for document in outcome.documents]
    return msgspec.json.encode({"position": position, "results": results})


def _entry(request: web.Request) -> str:
    entry = request.match_info["entry"]
    if not is_entry_id(entry):
        raise EntryNotFound(request.match_info["feed"], entry)
    return entry


def _revisions(request: web.Request) -> frozenset[int] | None:
    """The revisions that If-Match allows, None without the header; only the revision in a tag counts."""
    header = request.headers.get(hdrs.IF_MATCH)
    if header is None:
        return None
    if header.strip() == "*":
        raise Invalid([FieldError("/If-Match", "names no revision; send the ETag or the revision in quotes")])
    found = [_REVISION.fullmatch(tag) for tag in etags(header)]
    if None in found:
        raise Malformed('If-Match is an entry\'s ETag as received, or its revision in quotes, such as "3"')
    return frozenset(int(match[1]) for match in found if match)


def _idempotency_key(request: web.Request) -> str | None:
    header = request.headers.get("Idempotency-Key")
    if header is None:
        return None
    key = header.strip()
    if key.startswith('"') and key.endswith('"'):
        key = key[1:-1]
    if '"' in key or not 1 <= len(key) <= IDEMPOTENCY_KEY_CHARACTERS_MAX or not key.isprintable():
        raise Malformed(f"Idempotency-Key has 1 to {IDEMPOTENCY_KEY_CHARACTERS_MAX} printable characters but quotes")
    return key

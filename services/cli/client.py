"""Dateline over HTTP as a client speaks it: one method for each call of the contract.

Owns requests, their timeouts and their safe repetition. Refusals are `problem`'s, following streams `follow`'s business.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import aiohttp
import msgspec
import stamina

from services.cli.problem import PASSING_STATUSES, Problem, problem_of
from services.cli.reader import Document, Order

CONNECT_SECONDS = 5
ANSWER_SECONDS = 30
RETRY_AFTER_SECONDS_MAX = 10.0


class Written(NamedTuple):
    """What a write answered: the document, where it stands, and whether this very request had been done before."""

    document: Document
    etag: str | None
    position: str
    created: bool
    replayed: bool


class DatelineClient:
    """One server, one token. Every write carries an Idempotency-Key, so that sending it again is safe.

    Connection errors and answers that say "again" are repeated, `attempts` times at most. Raises Problem for what the
    server refuses, aiohttp.ClientError or TimeoutError when it cannot be reached.
    """

    def __init__(self, base_url: str, token: str | None = None, *, attempts: int = 5) -> None:
        self.base_url = base_url.rstrip("/")
        self._attempts = attempts
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._opened: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._opened = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._opened is not None:
            await self._opened.close()

    # Writing

    async def open_feed(
        self, feed: str, fields: Document, *, only_new: bool = False, key: str | None = None
    ) -> Written:
        headers = {"If-None-Match": "*"} if only_new else {}
        return await self._write("PUT", _feed_path(feed), fields, key=key, headers=headers)

    async def revise_feed(self, feed: str, fields: Document, *, key: str | None = None) -> Written:
        return await self._write("PATCH", _feed_path(feed), fields, key=key)

    async def publish(self, feed: str, entry: Document, *, key: str | None = None) -> Written:
        return await self._write("POST", f"{_feed_path(feed)}/entries", entry, key=key)

    async def correct(
        self, feed: str, entry: str, changes: Document, *, revision: int, key: str | None = None
    ) -> Written:
        headers = {"If-Match": f'"{revision}"'}
        return await self._write("PATCH", _entry_path(feed, entry), changes, key=key, headers=headers)

    async def retract(self, feed: str, entry: str, *, reason: str | None = None, key: str | None = None) -> Written:
        body = None if reason is None else {"reason": reason}
        return await self._write("DELETE", _entry_path(feed, entry), body, key=key)

    async def pin(self, feed: str, entry: str, *, on: bool = True, key: str | None = None) -> Written:
        return await self._write("PUT" if on else "DELETE", f"{_entry_path(feed, entry)}/pin", None, key=key)

    async def key_event(self, feed: str, entry: str, *, on: bool = True, key: str | None = None) -> Written:
        return await self._write("PUT" if on else "DELETE", f"{_entry_path(feed, entry)}/key-event", None, key=key)

    async def batch(self, feed: str, commands: Sequence[Document], *, key: str | None = None) -> Written:
        return await self._write("POST", f"{_feed_path(feed)}/batch", {"commands": list(commands)}, key=key)

    async def ticket(self, feed: str) -> Document:
        return (await self._exchange("POST", f"{_feed_path(feed)}/tickets")).document

    async def import_events(self, feed: str, lines: bytes) -> Document:
        """Hand over lines of an export, in order; safe to repeat."""
        return (await self._exchange("POST", f"{_feed_path(feed)}/events", body=lines)).document

    # Reading

    async def feeds(self, *, cursor: str | None = None, **filters: str) -> Document:
        return await self._read("/v1/feeds", {"cursor": cursor, **filters})

    async def feed(self, feed: str, *, min_position: str | None = None) -> Document:
        return await self._read(_feed_path(feed), {"min_position": min_position})

    async def entry(self, feed: str, entry: str, *, min_position: str | None = None) -> Document:
        """The entry; its tombstone when it was retracted (a 410 that is not a problem)."""
        return await self._read(_entry_path(feed, entry), {"min_position": min_position})

    async def page(
        self,
        feed: str,
        *,
        order: Order = "newest",
        limit: int | None = None,
        cursor: str | None = None,
        min_position: str | None = None,
    ) -> Document:
        query = {"order": order, "limit": limit, "cursor": cursor, "min_position": min_position}
        return await self._read(f"{_feed_path(feed)}/entries", query)

    async def pages(
        self, feed: str, *, order: Order = "newest", limit: int | None = None, min_position: str | None = None
    ) -> AsyncIterator[Document]:
        """All pages, from the first to the last."""
        cursor: str | None = None
        while True:
            page = await self.page(feed, order=order, limit=limit, cursor=cursor, min_position=min_position)
            yield page
            cursor = page["next"]
            if cursor is None:
                return

    async def changes(self, feed: str, *, after: str | None = None, limit: int | None = None) -> Document:
        return await self._read(f"{_feed_path(feed)}/changes", {"after": after, "limit": limit})

    async def all_changes(self, feed: str, *, after: str | None = None) -> list[Document]:
        """Every entry changed since `after`, once, in its latest state, tombstones too, in order of position."""
        documents: list[Document] = []
        while True:
            difference = await self.changes(feed, after=after)
            documents.extend(difference["documents"])
            after = difference["position"]
            if not difference["more"]:
                return documents

    async def quarantine(self, feed: str, *, min_position: str | None = None) -> Document:
        return await self._read(f"{_feed_path(feed)}/quarantine", {"min_position": min_position})

    @asynccontextmanager
    async def events(self, feed: str, *, after: str | None = None) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        """The position up to which the log's events after `after` come, and their lines, each within ANSWER_SECONDS."""
        async with self._session.get(
            f"{self.base_url}{_feed_path(feed)}/events",
            params=_query({"after": after}),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS),
        ) as response:
            if response.status != 200:
                raise problem_of(response, await response.read())
            yield response.headers.get("Dateline-Position", ""), _lines(response.content)

    @asynccontextmanager
    async def stream(
        self,
        feeds: Sequence[str],
        *,
        last_event_id: str | None = None,
        query: Mapping[str, str | int | None] | None = None,
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """Connect to the stream of one feed or several and give its bytes. The caller bounds its waits for them."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        several = [("feed", feed) for feed in feeds] if len(feeds) > 1 else []
        path = "/v1/stream" if several else f"{_feed_path(feeds[0])}/stream"
        # A stream has no end to wait for, but its answer begins soon or not at all.
        async with asyncio.timeout(ANSWER_SECONDS):
            response = await self._session.get(
                f"{self.base_url}{path}",
                params=[*several, *_query(query or {}).items()],
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS),
            )
        try:
            if response.status != 200:
                raise problem_of(response, await response.read())
            yield response.content
        finally:
            response.close()

    # Exchanges

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            raise RuntimeError("a DatelineClient is used inside `async with`")
        return self._opened

    async def _write(
        self,
        method: str,
        path: str,
        body: Document | None,
        *,
        key: str | None,
        headers: Mapping[str, str] | None = None,
    ) -> Written:
        # Made once, outside every repetition: a write whose answer was lost is recognised when it comes again.
        key = key or uuid.uuid4().hex
        return await self._exchange(method, path, body=body, headers={"Idempotency-Key": key, **(headers or {})})

    async def _read(self, path: str, query: Mapping[str, str | int | None]) -> Document:
        return (await self._exchange("GET", path, query=_query(query))).document

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        body: Document | bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Written:
        async for attempt in stamina.retry_context(
            on=_wait_before_again, attempts=self._attempts, timeout=ANSWER_SECONDS
        ):
            with attempt:
                return await self._exchange_once(method, path, body=body, query=query, headers=headers)
        raise AssertionError("stamina gives the last attempt's exception")

    async def _exchange_once(
        self,
        method: str,
        path: str,
        *,
        body: Document | bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Written:
        sent = dict(headers or {})
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else msgspec.json.encode(body)
            sent["Content-Type"] = "application/x-ndjson" if isinstance(body, bytes) else "application/json"
        async with self._session.request(
            method, f"{self.base_url}{path}", data=data, params=query, headers=sent
        ) as response:
            content = await response.read()
            is_json = response.content_type == "application/json"
            if response.status not in {200, 201} and not (response.status == 410 and is_json):
                raise problem_of(response, content)
            try:
                document = msgspec.json.decode(content, type=dict[str, Any])
            except ValueError:
                raise Problem(response.status, "not-dateline", "what answered here is not Dateline") from None
            return Written(
                document=document,
                etag=response.headers.get("ETag"),
                position=response.headers.get("Dateline-Position", ""),
                created=response.status == 201,
                replayed=response.headers.get("Idempotent-Replay") == "true",
            )


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines, however long, their ends included; a last one that is cut is left out."""
    rest = bytearray()
    async for data in content.iter_any():
        rest += data
        *whole, last = bytes(rest).split(b"\n")
        for line in whole:
            yield line + b"\n"
        rest = bytearray(last)


def _feed_path(feed: str) -> str:
    return f"/v1/feeds/{quote(feed, safe='')}"


def _entry_path(feed: str, entry: str) -> str:
    return f"{_feed_path(feed)}/entries/{quote(entry, safe='')}"


def _query(query: Mapping[str, str | int | None]) -> dict[str, str]:
    return {name: str(value) for name, value in query.items() if value is not None}


def _wait_before_again(error: Exception) -> bool | float:
    if isinstance(error, Problem):
        if error.status not in PASSING_STATUSES:
            return False
        return True if error.retry_after_seconds is None else min(error.retry_after_seconds, RETRY_AFTER_SECONDS_MAX)
    return isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | TimeoutError)

"""Builders: commands, requests, appends and feeds for tests of the write side and the projector, and how to look at what
they leave in Redis.

Owns the shapes of test data and one oracle: the fold of a whole log from scratch. What must hold is each test's business.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec

from services.projector import commit as commit_module
from services.projector import lease as lease_module
from services.projector.commit import Commit, Commits, Pending, prepare
from services.writer.commands import (
    Command,
    CorrectEntry,
    OpenFeed,
    PinEntry,
    PublishEntry,
    Request,
    RetractEntry,
    ReviseFeed,
    UnpinEntry,
)
from services.writer.desk import Desk
from services.writer.outcome import Outcome
from shared import log as log_module
from shared.append import Append, Appended, Guards, NewRecord
from shared.archive.removal import Removal, Rewritten
from shared.documents import Document, Entry, Feed, FeedStatus, TextBlock, render
from shared.durability import Confirmation
from shared.epochs.admission import Admission
from shared.epochs.witness import Witness
from shared.errors import CannotFold
from shared.events import (
    Encoded,
    EntryChanges,
    EntryContent,
    EntryPublished,
    Event,
    FeedChanges,
    FeedFields,
    FeedOpened,
    decode,
    encode,
)
from shared.fingerprints import fingerprint
from shared.fold import Documents, fold
from shared.keys import Keys
from shared.log import Log
from shared.metrics import Metrics
from shared.ndjson import StreamEntry
from shared.position import ORIGIN, Position
from shared.read_models import READ_MODELS, members
from shared.redis import Redis, Script, command

APPEND = Script(log_module.__file__, "append.lua")
LOOK = Script(log_module.__file__, "load.lua", read_only=True)
COMMIT = Script(commit_module.__file__, "commit.lua")
LEASE = Script(lease_module.__file__, "lease.lua")

FIELDS = FeedFields("Final", None, "en", "UTC", [], None, None, "public")


# Commands and requests


def opening(*, only_open: bool = False, **fields: Any) -> OpenFeed:
    return OpenFeed(msgspec.structs.replace(FIELDS, **fields), only_open)


def revising(*, status: FeedStatus | None = None, **changes: Any) -> ReviseFeed:
    return ReviseFeed(FeedChanges(**changes), status)


def content(headline: str | None = "Kick-off", *, text: str | None = None, tags: Sequence[str] = ()) -> EntryContent:
    return EntryContent(headline, [TextBlock(html=text)] if text else [], [], list(tags))


def publishing(
    entry: str | None = None,
    *,
    headline: str = "Kick-off",
    text: str | None = None,
    tags: Sequence[str] = (),
    published_at: str | None = None,
    key_event: bool = False,
) -> PublishEntry:
    """Without `entry` the desk chose no id, and every call makes one, as the writer does for each request."""
    written = content(headline, text=text, tags=tags)
    return PublishEntry(
        entry=entry or "made-" + secrets.token_hex(8),
        chosen=entry is not None,
        published_at=published_at,
        key_event=key_event,
        content=written,
        fingerprint=fingerprint(published_at, key_event, written),
    )


def correcting(entry: str, revision: int | None, *, published_at: str | None = None, **changes: Any) -> CorrectEntry:
    revisions = None if revision is None else frozenset({revision})
    return CorrectEntry(entry, revisions, published_at, EntryChanges(**changes))


def retracting(entry: str, reason: str | None = None) -> RetractEntry:
    return RetractEntry(entry, reason)


def pinning(entry: str) -> PinEntry:
    return PinEntry(entry)


def unpinning(entry: str) -> UnpinEntry:
    return UnpinEntry(entry)


def request(
    feed: str,
    *commands: Command,
    key: str | None = None,
    by: str = "sports",
    batch: bool = False,
    confirmation: Confirmation | None = None,
) -> Request:
    """A request whose fingerprint tells what the client sent, and not the id that the writer gave."""
    sent = [
        msgspec.structs.replace(c, entry="") if isinstance(c, PublishEntry) and not c.chosen else c for c in commands
    ]
    wording = [(type(c).__name__, msgspec.to_builtins(c)) for c in sent]
    return Request(feed, commands, batch, by, "request-1", key, fingerprint(feed, wording), confirmation)


def desk_of(redis: Redis, keys: Keys, *, log: Log | None = None) -> Desk:
    return Desk(log or Log(redis, keys), Admission(redis, keys), Witness(redis, keys), Metrics())


async def carry_out(desk: Desk, feed: str, *commands: Command, **more: Any) -> Outcome:
    return await desk.carry_out(request(feed, *commands, **more))


async def remove_archived(redis: Redis, keys: Keys, feed: str, positions: Collection[Position]) -> list[Rewritten]:
    """Content out of every place where the feed's archive is or was."""
    removal = Removal(redis, keys)
    return [one for url in await removal.places(feed) for one in await removal.remove_content(feed, url, positions)]


# Appends


def encoded(event: Event, *, command: str = "c") -> Encoded:
    return encode(event, command=command, by="sports", causation=None)


def damaged(event: Event) -> Encoded:
    """An event whose content is not the one that its digest is of."""
    whole = encoded(event)
    return Encoded(whole.envelope, whole.content + b" ")


def appending(
    *events: Event | Encoded,
    command: str | None = None,
    fingerprint: str = "f",
    guards: Guards | None = None,
    live_change: int = 0,
    new_status: str | None = None,
    sets_version: bool = False,
    sets_pins: bool = False,
    records: Mapping[str, NewRecord] | None = None,
) -> Append:
    """An append that guards nothing unless told, under a command id of its own unless given one."""
    return Append(
        command=command or "c" + secrets.token_hex(8),
        fingerprint=fingerprint,
        events=[event if isinstance(event, Encoded) else encoded(event) for event in events],
        guards=guards or Guards(),
        live_change=live_change,
        new_status=new_status,
        sets_version=sets_version,
        sets_pins=sets_pins,
        records=records or {},
    )


def published(entry: str, *, headline: str = "Kick-off", **more: Any) -> EntryPublished:
    facts: dict[str, Any] = {"published_at": None, "key_event": False, "content": content(headline), **more}
    return EntryPublished(entry=entry, **facts)


def appending_entry(entry: str, *, event: Event | Encoded | None = None, **more: Any) -> Append:
    """A publication with its guard and its record, as the desk makes it."""
    return appending(
        event or published(entry),
        guards=Guards(entries={entry: None}),
        live_change=1,
        records={entry: NewRecord("published", 1, 1, "f")},
        **more,
    )


async def open_feed(log: Log, feed: str, *, event: Event | Encoded | None = None) -> Position:
    appended = await log.append(
        feed,
        appending(event or FeedOpened(FIELDS), guards=Guards(opens=True), new_status="open", sets_version=True),
    )
    assert isinstance(appended, Appended)
    return appended.last


def feed_in_shard(shard: int) -> str:
    number = 0
    while Keys.shard_of(f"feed-{number}") != shard:
        number += 1
    return f"feed-{number}"


# Projecting by hand


class Projection:
    """Projects one feed commit by commit, under a fence that stands in the shard's lease."""

    def __init__(self, redis: Redis, keys: Keys, feed: str, *, fence: int = 1) -> None:
        self.redis = redis
        self.keys = keys
        self.feed = feed
        self.fence = fence
        self.commits = Commits(redis, keys)

    async def take_shard(self) -> None:
        lease = self.keys.shard(self.keys.shard_of(self.feed)).lease
        await cast("Any", self.redis.hset(lease, "fence", str(self.fence)))

    async def prepared(self, *, events_max: int | None = None) -> tuple[Pending, Commit, int]:
        """The next commit, of at most `events_max` events, ready to be committed."""
        [pending] = await self.commits.pending([self.feed])
        if events_max is not None:
            pending = msgspec.structs.replace(pending, entries=pending.entries[:events_max])
        generation = pending.generation or await self.commits.new_generation(self.feed)
        return pending, prepare(pending), generation

    async def commit(self, item: tuple[Pending, Commit, int]) -> str:
        [answer] = await self.commits.commit([item], fence=self.fence)
        return answer

    async def step(self, *, events_max: int | None = None) -> Commit:
        item = await self.prepared(events_max=events_max)
        assert await self.commit(item) == "committed"
        return item[1]

    async def to_head(self) -> None:
        await self.take_shard()
        while (await self.commits.pending([self.feed]))[0].entries:
            await self.step()


async def project(redis: Redis, keys: Keys, feed: str) -> None:
    await Projection(redis, keys, feed).to_head()


# Looking


async def eventually(holds: Callable[[], Awaitable[bool]] | Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Wait until `holds`; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            held = holds()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.005)


async def dump(redis: Redis, keys: Keys) -> dict[str, Any]:
    """Everything under the prefix: each key's value and the instant of its expiry, in a form that compares."""
    found = sorted([key.decode() async for key in redis.scan_iter(match=f"{keys.prefix}:*", count=5000)])
    kinds = redis.pipeline(transaction=False)
    for key in found:
        kinds.execute_command("TYPE", key)
    values = redis.pipeline(transaction=False)
    read = [(key, kind.decode()) for key, kind in zip(found, await kinds.execute(), strict=True)]
    for key, kind in read:
        values.execute_command(*_reading(kind, key))
        values.execute_command("PEXPIRETIME", key)
    answers = await values.execute()
    return {
        key: (kind, sorted(value) if kind == "set" else value, expires)
        for (key, kind), value, expires in zip(read, answers[::2], answers[1::2], strict=True)
    }


def _reading(kind: str, key: str) -> tuple[Any, ...]:
    return {
        "string": ("GET", key),
        "hash": ("HGETALL", key),
        "set": ("SMEMBERS", key),
        "zset": ("ZRANGE", key, 0, -1, "WITHSCORES"),
        # With the last id that it gave, and all entries.
        "stream": ("XINFO", "STREAM", key, "FULL", "COUNT", 0),
    }[kind]


async def log_entries(redis: Redis, keys: Keys, feed: str) -> list[StreamEntry]:
    return [log_module.stream_entry(item) for item in await command(redis, "XRANGE", keys.feed(feed).log, "-", "+")]


async def log_positions(redis: Redis, keys: Keys, feed: str) -> list[str]:
    return [entry.id.decode() for entry in await log_entries(redis, keys, feed)]


async def events_of(redis: Redis, keys: Keys, feed: str) -> list[Event]:
    return [decode(entry.id, entry.fields).event for entry in await log_entries(redis, keys, feed)]


async def checkpoint(redis: Redis, keys: Keys, feed: str) -> str | None:
    """The checkpoint of the active generation, None before the first commit."""
    active = await command(redis, "GET", keys.feed(feed).active)
    if active is None:
        return None
    raw = await command(redis, "HGET", keys.feed(feed).of_generation(int(active)).meta, "checkpoint")
    return cast("str", raw.decode())


async def is_dirty(redis: Redis, keys: Keys, feed: str) -> bool:
    return bool(await command(redis, "SISMEMBER", keys.shard(keys.shard_of(feed)).dirty, feed))


async def frames_of(redis: Redis, keys: Keys, feed: str) -> list[tuple[str, str, bytes]]:
    """The feed's frames in order: position, kind, data."""
    raw = await command(redis, "XRANGE", keys.shard(keys.shard_of(feed)).frames, "-", "+")
    fields = [log_module.stream_entry(item).fields for item in raw]
    return [(f[b"p"].decode(), f[b"k"].decode(), f[b"d"]) for f in fields if f[b"f"] == feed.encode()]


Generation = Mapping[str, Any]


async def generation_of(redis: Redis, keys: Keys, feed: str, generation: int) -> Generation:
    """One generation as it stands: checkpoint, feed document, entry documents, every index and their names, as bytes."""
    its = keys.feed(feed).of_generation(generation)
    indexes = [key async for key in redis.scan_iter(match=f"{its.indexes}*", count=1000)]
    return {
        "checkpoint": (await command(redis, "HGET", its.meta, "checkpoint")).decode(),
        "feed_position": await command(redis, "HGET", its.meta, "feed_position"),
        "feed": await command(redis, "GET", its.feed),
        "documents": await command(redis, "HGETALL", its.documents),
        "indexes": {
            key.decode().removeprefix(its.indexes): await command(redis, "ZRANGE", key, 0, -1) for key in indexes
        },
        "names": await command(redis, "SMEMBERS", its.names),
    }


class Fold:
    """The oracle: a log folded from its first event, one by one, without batches, checkpoints or a store."""

    def __init__(self, feed: str) -> None:
        self.feed_id = feed
        self.state = Documents(None, {})
        self.position = ORIGIN
        self.feed_position: bytes | None = None

    def step(self, entry: StreamEntry) -> tuple[str, str, bytes]:
        """Fold one log entry, and give the frame that readers must get of it."""
        self.position = Position.parse(entry.id.decode())
        try:
            change = fold(self.state, decode(entry.id, entry.fields), feed_id=self.feed_id)
        except CannotFold:
            if self.state.feed is not None:
                self.state.feed = msgspec.structs.replace(self.state.feed, position=str(self.position))
            return str(self.position), "skipped", b""
        self.state.apply(change)
        if change.raised is not None:
            return str(self.position), "epoch", change.raised.encode()
        if change.after is None:
            self.feed_position = entry.id
            return str(self.position), "feed", _payload(change.feed)
        kind = "entry" if isinstance(change.after, Entry) else "retraction"
        return str(self.position), kind, _payload(change.after)

    def generation(self) -> Generation:
        indexes = _indexes(self.state.entries.values())
        return {
            "checkpoint": str(self.position),
            "feed_position": self.feed_position,
            "feed": render(self.state.feed) if self.state.feed else None,
            "documents": {entry.encode(): render(document) for entry, document in self.state.entries.items()},
            "indexes": indexes,
            "names": {index.encode() for index in indexes},
        }


def folded(feed: str, entries: Iterable[StreamEntry]) -> Generation:
    """What a generation of the whole log must hold."""
    whole = Fold(feed)
    for entry in entries:
        whole.step(entry)
    return whole.generation()


def _payload(document: Document | Feed) -> bytes:
    data = render(document)
    return data if len(data) <= 16 * 1024 else b""


def _indexes(documents: Iterable[Document]) -> dict[str, list[bytes]]:
    indexes: dict[str, list[bytes]] = {}
    for document in documents:
        for index, member in members(document, READ_MODELS.values()):
            indexes.setdefault(index, []).append(member.encode())
    return {index: sorted(found) for index, found in indexes.items()}


def entry_of(outcome: Outcome, number: int = 0) -> Entry:
    document = outcome.documents[number]
    assert isinstance(document, Entry)
    return document

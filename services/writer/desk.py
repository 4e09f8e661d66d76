"""The desk: one request from commands to an answer: look, decide, append, and again when another desk was first.

Owns that loop and idempotency. The rules are `decide`'s, the guards and the log's form `shared.log`'s, HTTP is `app`'s.
"""

import asyncio
import base64
import hashlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import msgspec
import structlog
import uuid_utils

from services.writer.commands import Command, OpenFeed, PinEntry, PublishEntry, ReviseFeed
from services.writer.decide import Plan, State, evolve, plan
from shared.documents import Document, Entry, Feed
from shared.durability import Confirmation
from shared.epochs.admission import Admission
from shared.epochs.witness import Witness
from shared.errors import (
    BodyTooLarge,
    CannotFold,
    EventQuarantined,
    FeedNotFound,
    IdempotencyKeyReused,
    OutcomeUnknown,
    Unavailable,
)
from shared.events import (
    Encoded,
    EntryPinned,
    EntryPublished,
    EntryRedacted,
    EntryRetracted,
    EntryUnpinned,
    Event,
    FeedOpened,
    FeedRevised,
    FeedStatusChanged,
    about,
    decode,
    encode,
)
from shared.fold import touched
from shared.instants import instant_of
from shared.log import (
    BYTES_PER_APPEND_MAX,
    EVENTS_PER_APPEND_MAX,
    Append,
    Appended,
    Conflict,
    Guards,
    Head,
    Known,
    Log,
    Looked,
    NewRecord,
    RecordStatus,
    Stale,
    Unadmitted,
)
from shared.metrics import Metrics
from shared.position import Position
from shared.redis import UNREACHABLE, redis_errors

log = structlog.get_logger()

# Desks that correct one entry at the same moment decide again; more rounds than this mean that something else is wrong.
ATTEMPTS_MAX = 50
BACKOFF_SECONDS_MAX = 0.02
BACKOFF_ROUNDS_MAX = 10
# An admission waits for witnesses; a server that may have lost history should not turn every desk away.
ADMISSION_SECONDS_MAX = 5.0
# How many feeds' heads are remembered, to publish into them without a look.
HEADS_MAX = 4_096
# What waits at the door does not wait for connections, and a crowd is told so instead of running into timeouts.
AT_ONCE_MAX = 64
WAIT_SECONDS_MAX = 10.0
# How many requests may read the log behind lagging read models at once, and in what pieces.
CATCH_UPS_AT_ONCE_MAX = 2
CATCH_UP_EVENTS = 100


class Request(NamedTuple):
    """A request's commands and where they come from; `key` is the client's Idempotency-Key.

    `confirmation` is what must confirm that the write is as durable as promised.
    """

    feed: str
    commands: Sequence[Command]
    batch: bool
    by: str
    causation: str
    key: str | None
    fingerprint: str
    confirmation: Confirmation | None = None


class Outcome(NamedTuple):
    """What a write answers: one document a command, and the position from which on reads show them all."""

    position: Position
    documents: list[Document | Feed]
    created: bool
    replayed: bool


class Desk:
    """Carries out requests against the logs of one installation; `witness` remembers what was acknowledged."""

    def __init__(self, log: Log, admission: Admission, witness: Witness, metrics: Metrics) -> None:
        self._log = log
        self._admission = admission
        self._witness = witness
        self._metrics = metrics
        self._door = asyncio.Semaphore(AT_ONCE_MAX)
        self._catch_ups = asyncio.Semaphore(CATCH_UPS_AT_ONCE_MAX)
        self._heads: dict[str, Head] = {}

    async def carry_out(self, request: Request) -> Outcome:
        """All commands of a request or none, once, however often it is sent under one key."""
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await self._door.acquire()
        except TimeoutError:
            raise Unavailable("too many writes at once; nothing was appended") from None
        try:
            return await self._carry_out(request)
        finally:
            self._door.release()

    async def _carry_out(self, request: Request) -> Outcome:
        command = _command_id(request)
        for attempt in range(ATTEMPTS_MAX):
            looked = self._remembered(request) if attempt == 0 else None
            async with redis_errors("nothing was appended"):
                if looked is None:
                    looked = await self._look(request, request.commands, command if request.key else None)
                if looked.known is not None:
                    await self.confirm(request.feed, request.confirmation)
                    return await self._replay(request, looked.known)
                state = await self._state(request.feed, looked, request.commands)
            head = looked.head.position if looked.head else Position(1, 0)
            decided = plan(
                _copy(state),
                request.commands,
                head=head,
                recorded_at=looked.head.recorded_at if looked.head else 0,
                batch=request.batch,
            )
            if not decided.events and (request.key is None or looked.head is None):
                await self.confirm(request.feed, request.confirmation)
                return _outcome(state, request, decided, position=head, recorded_at=None)
            append = _append(state, looked, request, decided, command)
            match await self._append(request, append):
                case Appended(last, recorded_at):
                    self._metrics.appended.inc(len(append.events))
                    self._witness.saw(request.feed, last)
                    return _outcome(state, request, decided, position=last, recorded_at=recorded_at)
                case Known() as known:
                    async with redis_errors("the request stands in the log"):
                        return await self._replay(request, known)
                case Conflict():
                    raise IdempotencyKeyReused("the idempotency key came with another request before")
                case Unadmitted(server):
                    log.warning("server_not_admitted", feed=request.feed, server=server)
                    await self._admitted()
                case Stale(what):
                    log.debug("decided_again", feed=request.feed, stale=what)
                    await asyncio.sleep(random.uniform(0, BACKOFF_SECONDS_MAX * min(attempt + 1, BACKOFF_ROUNDS_MAX)))
        raise Unavailable("too many desks change the same things at the same moment; nothing was appended")

    def forget(self) -> None:
        """Drop what was remembered of another server process."""
        self._heads.clear()

    async def _admitted(self) -> None:
        """Wait until the server process that answers now takes appends."""
        self.forget()
        try:
            async with asyncio.timeout(ADMISSION_SECONDS_MAX), redis_errors("nothing was appended"):
                await self._admission.admit()
        except TimeoutError:
            raise Unavailable(
                "the log's server is another process than before, and it is not sure yet that it has all history; "
                "nothing was appended"
            ) from None

    def _remembered(self, request: Request) -> Looked | None:
        """What a look would show for publications of new entries, which rest on the feed's head alone.

        The append's guards decide whether it still holds; where it does not, the next attempt looks.
        """
        head = self._heads.get(request.feed)
        if head is None or head.status == "closed":
            return None
        if not all(isinstance(c, PublishEntry) and not c.chosen for c in request.commands):
            return None
        records: dict[str, None] = {c.entry: None for c in request.commands if isinstance(c, PublishEntry)}
        return Looked(
            known=None,
            head=head,
            records=records,
            checkpoint=head.position,
            feed=None,
            documents={},
            pinned=frozenset(),
        )

    def _remember(self, feed: str, head: Head | None) -> None:
        self._heads.pop(feed, None)
        if head is not None:
            self._heads[feed] = head
            if len(self._heads) > HEADS_MAX:
                del self._heads[next(iter(self._heads))]

    async def _append(self, request: Request, append: Append) -> Appended | Known | Stale | Conflict | Unadmitted:
        async with _outcome_unknown(request.feed, append.command):
            return await self._log.append(request.feed, append, confirmation=request.confirmation)

    async def confirm(self, feed: str, confirmation: Confirmation | None) -> None:
        """What stood before a request is acknowledged by it as well: OutcomeUnknown unless it is as durable as promised."""
        if confirmation is not None:
            async with _outcome_unknown(feed, None):
                await self._log.confirm(feed, confirmation)

    async def _look(self, request: Request, commands: Sequence[Command], command: str | None) -> Looked:
        entries = list(dict.fromkeys(entry for c in commands if (entry := getattr(c, "entry", None)) is not None))
        pins = any(isinstance(c, PinEntry) for c in commands)
        looked = await self._log.look(request.feed, entries=entries, pins=pins, command=command)
        self._remember(request.feed, looked.head)
        return looked

    async def _state(self, feed: str, looked: Looked, commands: Sequence[Command]) -> State:
        """The state of the look: the read models, brought up by what the log holds after their checkpoint.

        The read models lag behind the log, decisions must not.
        """
        head, checkpoint = looked.head, looked.checkpoint
        state = State(
            feed_id=feed,
            status=None if head is None else head.status,
            feed=looked.feed,
            entries={entry: document for entry, document in looked.documents.items() if document is not None},
            fingerprints={entry: record.fingerprint for entry, record in looked.records.items() if record is not None},
            pinned=set(looked.pinned),
        )
        if head is None:
            return state
        of_feed = any(isinstance(c, OpenFeed | ReviseFeed) for c in commands)
        pins = any(isinstance(c, PinEntry) for c in commands)
        lagging = any(record is not None and record.position.n > checkpoint.n for record in looked.records.values())
        if lagging or (of_feed and head.version > checkpoint.n) or (pins and head.pins > checkpoint.n):
            async with self._catch_ups:
                lag = self._log.read(feed, after=checkpoint, to=head.position, chunk_events=CATCH_UP_EVENTS)
                async for entry in lag:
                    _catch_up(state, looked, entry.id, entry.fields)
        _refuse_what_is_quarantined(state, looked, of_feed=of_feed)
        if state.feed is not None:
            state.feed = msgspec.structs.replace(
                state.feed,
                position=str(head.position),
                entry_count=head.live,
                updated_at=instant_of(head.recorded_at),
            )
        return state

    async def _replay(self, request: Request, known: Known) -> Outcome:
        """The answer to a request that was carried out before: its documents as they stand now."""
        if known.fingerprint != request.fingerprint:
            raise IdempotencyKeyReused("the idempotency key came with another request before")
        commands = await self._as_published(request, known)
        looked = await self._look(request, commands, None)
        if looked.head is None:
            raise FeedNotFound(request.feed)
        state = await self._state(request.feed, looked, commands)
        documents = [_document_of(state, command) for command in commands]
        position = max([known.last, *(Position.parse(document.position) for document in documents)])
        return Outcome(position, documents, created=False, replayed=True)

    async def _as_published(self, request: Request, known: Known) -> list[Command]:
        """The commands with the entry ids that they got when they were carried out."""
        unnamed = [c for c in request.commands if isinstance(c, PublishEntry) and not c.chosen]
        if not unnamed:
            return list(request.commands)
        chosen = {c.entry for c in request.commands if isinstance(c, PublishEntry) and c.chosen}
        first = Position(known.last.epoch, known.last.n - known.events)
        ids = []
        async for entry in self._log.read(request.feed, after=first, to=known.last):
            what = about(entry.fields)
            if what.type == EntryPublished.__name__ and what.entry not in chosen:
                ids.append(what.entry)
        named = dict(zip((c.entry for c in unnamed), ids, strict=True))
        return [
            msgspec.structs.replace(c, entry=named[c.entry]) if isinstance(c, PublishEntry) and not c.chosen else c
            for c in request.commands
        ]


@asynccontextmanager
async def _outcome_unknown(feed: str, command: str | None) -> AsyncIterator[None]:
    """A server that does not answer a write may have carried it out."""
    try:
        yield
    except UNREACHABLE as error:
        log.warning("append_outcome_unknown", feed=feed, command=command, error=repr(error))
        raise OutcomeUnknown(
            "the log's server did not answer; send the same request again under the same key or entry id"
        ) from error


def _command_id(request: Request) -> str:
    """Of the token's name and its key, so that keys of two tokens never meet; random without a key."""
    if request.key is None:
        return str(uuid_utils.uuid7())
    digest = hashlib.sha256(f"{request.by}\0{request.key}".encode()).digest()
    return "k" + base64.urlsafe_b64encode(digest[:18]).decode()


def _catch_up(state: State, looked: Looked, entry_id: bytes, fields: Mapping[bytes, bytes]) -> None:
    """Fold one lagging event into the state if it is about what the decision needs; the content of others is not read."""
    try:
        what = about(fields)
        wanted = what.entry is None or what.entry in looked.records
        if not wanted and what.type not in _OF_PINS:
            return
        recorded = decode(entry_id, fields)
        if wanted:
            evolve(state, recorded.event, position=recorded.position, recorded_at=recorded.recorded_at)
        elif isinstance(recorded.event, EntryPinned):
            state.pinned.add(recorded.event.entry)
        elif isinstance(recorded.event, EntryUnpinned | EntryRetracted | EntryRedacted):
            state.pinned.discard(recorded.event.entry)
    except CannotFold as error:
        # The projector will set it aside; whoever depends on it is refused below.
        log.warning("lagging_event_cannot_be_folded", feed=state.feed_id, detail=error.detail)


_OF_PINS = {EntryPinned.__name__, EntryUnpinned.__name__, EntryRetracted.__name__, EntryRedacted.__name__}


def _refuse_what_is_quarantined(state: State, looked: Looked, *, of_feed: bool) -> None:
    for entry, record in looked.records.items():
        document = state.entries.get(entry)
        if record is not None and (document is None or document.position != str(record.position)):
            raise EventQuarantined(
                f"the event of {entry!r} at {record.position} could not be folded and is in quarantine",
                entry=entry,
                position=str(record.position),
            )
    if of_feed and state.feed is None:
        raise EventQuarantined(f"the event that opened {state.feed_id!r} is in quarantine", feed=state.feed_id)


def _append(state: State, looked: Looked, request: Request, decided: Plan, command: str) -> Append:
    """What to hand to the append script: the events, what must not have changed since, and the records after them."""
    events = decided.events
    encoded = [encode(e, command=command, by=request.by, causation=request.causation) for e in events]
    _bound(encoded)
    after = _copy(state)
    fingerprints = {c.entry: c.fingerprint for c in request.commands if isinstance(c, PublishEntry)}
    fingerprints |= state.fingerprints
    records: dict[str, NewRecord] = {}
    for number, event in enumerate(events, start=1):
        evolve(after, event, position=Position(1, number), recorded_at=0)
        entry = touched(event)
        if entry is not None:
            document = after.entries[entry]
            status: RecordStatus = "published" if isinstance(document, Entry) else "retracted"
            records[entry] = NewRecord(status, document.revision, number, fingerprints[entry])
    of_feed = any(isinstance(e, FeedOpened | FeedRevised | FeedStatusChanged) for e in events)
    publishes = any(isinstance(e, EntryPublished) for e in events)
    pins = any(isinstance(e, EntryPinned) for e in events)
    live = sum(isinstance(e, EntryPublished) - isinstance(e, EntryRetracted) for e in events)
    return Append(
        command=command,
        fingerprint=request.fingerprint,
        events=encoded,
        guards=Guards(
            opens=looked.head is None,
            # A closed feed takes no new entries, and two desks must not revise the feed from the same state.
            version=looked.head.version if looked.head and (publishes or of_feed) else None,
            pins=looked.head.pins if looked.head and pins else None,
            entries={entry: record.position if record else None for entry, record in looked.records.items()},
        ),
        live_change=live,
        new_status=after.status if of_feed else None,
        sets_version=of_feed,
        # A retraction may take a pin with it.
        sets_pins=any(isinstance(e, EntryPinned | EntryUnpinned | EntryRetracted) for e in events),
        records=records,
    )


def _bound(encoded: Sequence[Encoded]) -> None:
    size = sum(len(event.envelope) + len(event.content) for event in encoded)
    # Sanitising may make text longer than it was sent: `&` becomes `&amp;`.
    if len(encoded) > EVENTS_PER_APPEND_MAX or size > BYTES_PER_APPEND_MAX:
        raise BodyTooLarge(
            f"sanitised, the request makes {len(encoded)} events of {size} bytes; "
            f"{EVENTS_PER_APPEND_MAX} events of {BYTES_PER_APPEND_MAX} bytes are allowed",
            bytes_max=BYTES_PER_APPEND_MAX,
        )


def _outcome(state: State, request: Request, decided: Plan, *, position: Position, recorded_at: int | None) -> Outcome:
    """Fold the events with the positions that they got; each command answers with its document after it."""
    documents: list[Document | Feed] = []
    events = iter(enumerate(decided.events, start=position.n - len(decided.events) + 1))
    done = 0
    for command, end in zip(request.commands, decided.ends, strict=True):
        for n, event in _take(events, end - done):
            evolve(state, event, position=Position(position.epoch, n), recorded_at=cast("int", recorded_at))
        done = end
        documents.append(_document_of(state, command))
    if not decided.events and not request.batch:
        position = Position.parse(documents[0].position)
    created = bool(decided.events) and isinstance(decided.events[0], EntryPublished | FeedOpened)
    return Outcome(position, documents, created=created, replayed=False)


def _take(events: Any, count: int) -> list[tuple[int, Event]]:
    return [next(events) for _ in range(count)]


def _document_of(state: State, command: Command) -> Document | Feed:
    if isinstance(command, OpenFeed | ReviseFeed):
        if state.feed is None:
            raise FeedNotFound(state.feed_id)
        return state.feed
    return state.entries[command.entry]


def _copy(state: State) -> State:
    return State(
        feed_id=state.feed_id,
        status=state.status,
        feed=state.feed,
        entries=dict(state.entries),
        fingerprints=dict(state.fingerprints),
        pinned=set(state.pinned),
    )

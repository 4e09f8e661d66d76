"""The desk: one request from commands to an answer: look, decide, append, and again when another desk was first.

Owns that loop and idempotency. The rules are `decide`'s, the guards and the log's form `shared.log`'s, HTTP is `app`'s.
"""

import asyncio
import base64
import hashlib
import random
from collections.abc import Sequence
from time import perf_counter

import msgspec
import structlog
import uuid_utils

from services.writer.appends import append_of
from services.writer.commands import Command, PinEntry, PublishEntry, Request
from services.writer.decide import plan
from services.writer.outcome import Outcome, document_of, outcome_of
from services.writer.state import States
from shared.append import Answer, Append, Appended, Conflict, Known, Stale, Unadmitted
from shared.durability import Confirmation
from shared.epochs.admission import Admission
from shared.epochs.witness import Witness
from shared.errors import (
    FeedNotFound,
    IdempotencyKeyReused,
    OutcomeUnknown,
    Unavailable,
)
from shared.events import (
    EntryPublished,
    about,
)
from shared.log import Head, Log, Looked
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


class Desk:
    """Carries out requests against the logs of one installation; `witness` remembers what was acknowledged."""

    def __init__(self, log: Log, admission: Admission, witness: Witness, metrics: Metrics) -> None:
        self._log = log
        self._admission = admission
        self._witness = witness
        self._metrics = metrics
        self._door = asyncio.Semaphore(AT_ONCE_MAX)
        self._states = States(log)
        self._heads: dict[str, Head] = {}

    async def carry_out(self, request: Request) -> Outcome:
        """All commands of a request or none, once, however often it is sent under one key."""
        await self._enter()
        try:
            return await self._carry_out(request)
        finally:
            self._door.release()

    async def _enter(self) -> None:
        if not self._door.locked():
            await self._door.acquire()  # at once, and without a timer
            return
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await self._door.acquire()
        except TimeoutError:
            raise Unavailable("too many writes at once; nothing was appended") from None

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
                state = await self._states.of(request.feed, looked, request.commands)
            head = looked.head.position if looked.head else Position(1, 0)
            decided = plan(
                state.copied(),
                request.commands,
                head=head,
                recorded_at=looked.head.recorded_at if looked.head else 0,
                batch=request.batch,
            )
            if not decided.events and (request.key is None or looked.head is None):
                await self.confirm(request.feed, request.confirmation)
                return outcome_of(state, request, decided, position=head, recorded_at=None)
            append = append_of(looked, request, decided, command)
            match await self._append(request, append):
                case Appended(last, recorded_at):
                    self._metrics.appended.inc(len(append.events))
                    self._witness.saw(request.feed, last)
                    return outcome_of(state, request, decided, position=last, recorded_at=recorded_at)
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
        records: dict[str, None] = {}
        for command in request.commands:
            if not isinstance(command, PublishEntry) or command.chosen:
                return None
            records[command.entry] = None
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

    async def _append(self, request: Request, append: Append) -> Answer:
        begun = perf_counter()
        try:
            return await self._log.append(request.feed, append, confirmation=request.confirmation)
        except UNREACHABLE as error:
            raise _outcome_unknown(request.feed, append.command, error) from error
        finally:
            self._metrics.append_seconds.observe(perf_counter() - begun)

    async def confirm(self, feed: str, confirmation: Confirmation | None) -> None:
        """What stood before a request is acknowledged by it as well: OutcomeUnknown unless it is as durable as promised."""
        if confirmation is not None:
            try:
                await self._log.confirm(feed, confirmation)
            except UNREACHABLE as error:
                raise _outcome_unknown(feed, None, error) from error

    async def _look(self, request: Request, commands: Sequence[Command], command: str | None) -> Looked:
        entries = list(dict.fromkeys(entry for c in commands if (entry := getattr(c, "entry", None)) is not None))
        pins = any(isinstance(c, PinEntry) for c in commands)
        looked = await self._log.look(request.feed, entries=entries, pins=pins, command=command)
        self._remember(request.feed, looked.head)
        return looked

    async def _replay(self, request: Request, known: Known) -> Outcome:
        """The answer to a request that was carried out before: its documents as they stand now."""
        if known.fingerprint != request.fingerprint:
            raise IdempotencyKeyReused("the idempotency key came with another request before")
        commands = await self._as_published(request, known)
        looked = await self._look(request, commands, None)
        if looked.head is None:
            raise FeedNotFound(request.feed)
        state = await self._states.of(request.feed, looked, commands)
        documents = [document_of(state, command) for command in commands]
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


def _outcome_unknown(feed: str, command: str | None, error: BaseException) -> OutcomeUnknown:
    """A server that does not answer a write may have carried it out."""
    log.warning("append_outcome_unknown", feed=feed, command=command, error=repr(error))
    return OutcomeUnknown("the log's server did not answer; send the same request again under the same key or entry id")


def _command_id(request: Request) -> str:
    """Of the token's name and its key, so that keys of two tokens never meet; random without a key."""
    if request.key is None:
        return str(uuid_utils.uuid7())
    digest = hashlib.sha256(f"{request.by}\0{request.key}".encode()).digest()
    return "k" + base64.urlsafe_b64encode(digest[:18]).decode()

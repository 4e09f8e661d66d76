"""The state that a decision rests on: what a look showed of the read models, brought up by what the log holds after them.

Owns catching up, and refusing what rests on an event in quarantine. What is decided with it is `decide`'s.
"""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from services.writer.commands import FEED_COMMANDS, Command, PinEntry
from services.writer.decide import State, evolve
from shared.errors import CannotFold, EventQuarantined
from shared.events import EntryPinned, EntryRedacted, EntryRetracted, EntryUnpinned, about, decode
from shared.instants import instant_of
from shared.log import Log, Looked

log = structlog.get_logger()

# How many requests may read the log behind lagging read models at once, and in what pieces.
CATCH_UPS_AT_ONCE_MAX = 2
CATCH_UP_EVENTS = 100


class States:
    """The states of the feeds of one installation, each of the moment of a look."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._catch_ups = asyncio.Semaphore(CATCH_UPS_AT_ONCE_MAX)

    async def of(self, feed: str, looked: Looked, commands: Sequence[Command]) -> State:
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
        kinds = {type(c) for c in commands}
        of_feed, pins = not FEED_COMMANDS.isdisjoint(kinds), PinEntry in kinds
        behind = head.position.n > checkpoint.n and (
            any(record is not None and record.position.n > checkpoint.n for record in looked.records.values())
            or (of_feed and head.version > checkpoint.n)
            or (pins and head.pins > checkpoint.n)
        )
        if behind:
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
        if record is None:
            continue
        document = state.entries.get(entry)
        if document is None or document.position != str(record.position):
            raise EventQuarantined(
                f"the event of {entry!r} at {record.position} could not be folded and is in quarantine",
                entry=entry,
                position=str(record.position),
            )
    if of_feed and state.feed is None:
        raise EventQuarantined(f"the event that opened {state.feed_id!r} is in quarantine", feed=state.feed_id)

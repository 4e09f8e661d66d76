"""Following feeds over SSE: an endless row of frames across reconnections, with what a reader makes of them.

Owns when to connect again and from where. The wire format is `sse`'s and folding `reader`'s; both are given on here.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from services.cli.client import DatelineClient
from services.cli.problem import PASSING_STATUSES, Problem, reason_of
from services.cli.reader import Document, Order, ReaderState
from services.cli.sse import EventStreamParser, SentEvent
from shared.position import Position

__all__ = ["EventStreamParser", "Frame", "Interruption", "Pauses", "Reader", "ReaderState", "follow", "frame_of"]

# The server pings every 15 s; three missing ones mean that nobody is there any more.
SILENCE_SECONDS = 45.0
RETRY_SECONDS_DEFAULT = 3.0
BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Frame:
    """One event of a stream. `feed` is the feed that it is about, None for what is about the connection.

    `position` is that feed's position in the event's own id, None without one; `last_event_id` resumes after it.
    `connection` counts the connections from 1, `resumed` says whether this one went on from an id.
    """

    event: str
    data: Document
    id: str | None
    feed: str | None
    position: Position | None
    last_event_id: str
    connection: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class Interruption:
    """Why a connection ended and how long the next one waits."""

    reason: str
    pause_seconds: float


class Reader:
    """The states of all feeds of one stream, folded frame by frame."""

    def __init__(self, feeds: Sequence[str], *, order: Order = "newest") -> None:
        self.states = {feed: ReaderState(feed, order=order) for feed in feeds}
        self.connections = 0

    def apply(self, frame: Frame) -> ReaderState | None:
        """Take one frame; gives the state that it changed."""
        if frame.connection != self.connections:
            self.connections = frame.connection
            for each in self.states.values():
                each.connected(resumed=frame.resumed)
        state = self.states.get(frame.feed) if frame.feed is not None else None
        if state is not None:
            state.apply(frame.event, frame.data, position=frame.position)
        return state


class Pauses:
    """How long to wait before connecting again: as the server asked, longer while it is out of reach, always jittered.

    `limit_seconds` bounds every wait, whatever was asked: for a reader that must be back soon.
    """

    def __init__(self, *, limit_seconds: float | None = None, fraction: Callable[[], float] = random.random) -> None:
        self._limit_seconds = limit_seconds
        self._fraction = fraction
        self._asked_seconds = RETRY_SECONDS_DEFAULT
        self._asked_once_seconds: float | None = None
        self._failures = 0

    def asked(self, milliseconds: int) -> None:
        """`retry:` holds from now on."""
        self._asked_seconds = milliseconds / 1000

    def asked_once(self, milliseconds: int) -> None:
        """`bye.reconnect_ms` holds for the next time."""
        self._asked_once_seconds = milliseconds / 1000

    def next_seconds(self, *, served: bool) -> float:
        """The wait after a connection; `served` when it brought frames."""
        seconds = self._asked_seconds if self._asked_once_seconds is None else self._asked_once_seconds
        self._asked_once_seconds = None
        if served:
            self._failures = 0
        else:
            longer = max(seconds, BACKOFF_SECONDS_MIN) * 2 ** min(self._failures, 10)
            seconds = max(seconds, min(longer, BACKOFF_SECONDS_MAX))
            self._failures += 1
        # Never sooner than asked; spread, so that readers cut together do not come back together.
        seconds *= 1 + 0.25 * self._fraction()
        return seconds if self._limit_seconds is None else min(seconds, self._limit_seconds)


async def follow(
    client: DatelineClient,
    feeds: Sequence[str],
    *,
    last_event_id: str | None = None,
    snapshot: int | None = None,
    order: Order | None = None,
    on_interruption: Callable[[Interruption], None] | None = None,
    pauses: Pauses | None = None,
    silence_seconds: float = SILENCE_SECONDS,
) -> AsyncGenerator[Frame]:
    """Yield every frame of the feeds, for ever, connecting again from the last id whenever a connection ends.

    Raises Problem when the server refuses for good (a feed that is not there, a token that is not accepted).
    """
    pauses = pauses or Pauses()
    # Sent on every connection: an id wins over it, and a reset gives the same snapshot again.
    query = {"snapshot": snapshot, "order": order}
    resume_from = last_event_id or ""
    connection = 0
    while True:
        connection += 1
        resumed = bool(resume_from)
        served = False
        reason = "the connection ended"
        try:
            async with client.stream(feeds, last_event_id=resume_from, query=query) as content:
                parser = EventStreamParser(resume_from)
                async with aclosing(_events(content, parser, pauses, silence_seconds=silence_seconds)) as events:
                    async for event in events:
                        frame = frame_of(event, connection=connection, resumed=resumed)
                        # Only now: a frame that cannot be read is asked for again.
                        resume_from = event.last_event_id
                        if frame.event == "bye":
                            reason = f"the server said goodbye: {frame.data.get('reason')}"
                            pauses.asked_once(int(frame.data.get("reconnect_ms") or 0))
                        else:
                            served = True
                        yield frame
        except Problem as problem:
            if problem.status < 500 and problem.status not in PASSING_STATUSES:
                raise
            reason = str(problem)
        except TimeoutError:
            reason = "the server is silent"
        except (aiohttp.ClientError, OSError) as error:
            reason = f"{'the connection broke' if served else 'no connection'}: {reason_of(error)}"
        except ValueError as error:
            # A frame that cannot be read may have been damaged on the way; the next connection brings it again.
            served, reason = False, f"an unreadable frame: {error}"
        pause_seconds = pauses.next_seconds(served=served)
        if on_interruption is not None:
            on_interruption(Interruption(reason, pause_seconds))
        await asyncio.sleep(pause_seconds)


def frame_of(event: SentEvent, *, connection: int = 1, resumed: bool = False) -> Frame:
    """Read an event's JSON and id; ValueError (msgspec's among them) when they are not what the contract says."""
    data = msgspec.json.decode(event.data, type=dict[str, Any])
    # A feed's document is named by its id; every other document and notice names its feed.
    feed = data.get("id") if event.event == "feed" else data.get("feed")
    position = None
    if event.id and feed is not None:
        pairs = dict(pair.rsplit(":", 1) for pair in event.id.split(",")) if ":" in event.id else {feed: event.id}
        position = Position.parse(pairs[feed]) if feed in pairs else None
    return Frame(
        event=event.event,
        data=data,
        id=event.id,
        feed=feed,
        position=position,
        last_event_id=event.last_event_id,
        connection=connection,
        resumed=resumed,
    )


async def _events(
    content: aiohttp.StreamReader, parser: EventStreamParser, pauses: Pauses, *, silence_seconds: float
) -> AsyncGenerator[SentEvent]:
    """One connection's events, to its end or to `bye`; TimeoutError after too long a silence."""
    while True:
        async with asyncio.timeout(silence_seconds):
            data = await content.readany()
        if not data:
            return
        events = parser.feed(data)
        if parser.retry_ms is not None:
            pauses.asked(parser.retry_ms)
        for event in events:
            yield event
            if event.event == "bye":
                return

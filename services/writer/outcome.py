"""The outcome of a write: a plan's events folded at the positions that they got, and each command's document after it. Pure.

Owns what a write answers; its form over HTTP is `app`'s.
"""

from collections.abc import Iterator
from typing import NamedTuple, cast

from services.writer.commands import Command, OpenFeed, Request, ReviseFeed
from services.writer.decide import Plan, State, evolve
from shared.documents import Document, Feed
from shared.errors import FeedNotFound
from shared.events import EntryPublished, Event, FeedOpened
from shared.position import Position


class Outcome(NamedTuple):
    """What a write answers: one document a command, and the position from which on reads show them all."""

    position: Position
    documents: list[Document | Feed]
    created: bool
    replayed: bool


def outcome_of(
    state: State, request: Request, decided: Plan, *, position: Position, recorded_at: int | None
) -> Outcome:
    """Fold the events with the positions that they got; each command answers with its document after it."""
    documents: list[Document | Feed] = []
    events = iter(enumerate(decided.events, start=position.n - len(decided.events) + 1))
    done = 0
    for command, end in zip(request.commands, decided.ends, strict=True):
        for n, event in _take(events, end - done):
            evolve(state, event, position=Position(position.epoch, n), recorded_at=cast("int", recorded_at))
        done = end
        documents.append(document_of(state, command))
    if not decided.events and not request.batch:
        position = Position.parse(documents[0].position)
    created = bool(decided.events) and isinstance(decided.events[0], EntryPublished | FeedOpened)
    return Outcome(position, documents, created=created, replayed=False)


def _take(events: Iterator[tuple[int, Event]], count: int) -> list[tuple[int, Event]]:
    return [next(events) for _ in range(count)]


def document_of(state: State, command: Command) -> Document | Feed:
    if isinstance(command, OpenFeed | ReviseFeed):
        if state.feed is None:
            raise FeedNotFound(state.feed_id)
        return state.feed
    return state.entries[command.entry]

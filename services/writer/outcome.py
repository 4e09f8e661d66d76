"""The outcome of a write: a plan's events folded at the positions that they got, and each command's document after it. Pure.

Owns what a write answers; its form over HTTP is `app`'s.
"""

from typing import cast

from msgspec import Struct

from services.writer.commands import FEED_COMMANDS, Command, EntryCommand, Request
from services.writer.decide import Plan, State, evolve
from shared.documents import Document, Feed
from shared.errors import FeedNotFound
from shared.events import EntryPublished, FeedOpened
from shared.position import Position


class Outcome(Struct, frozen=True):
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
    before, done = position.n - len(decided.events), 0
    for command, end in zip(request.commands, decided.ends, strict=True):
        for number, event in enumerate(decided.events[done:end], start=done + 1):
            at = Position(position.epoch, before + number)
            evolve(state, event, position=at, recorded_at=cast("int", recorded_at))
        done = end
        documents.append(document_of(state, command))
    if not decided.events and not request.batch:
        position = Position.parse(documents[0].position)
    created = bool(decided.events) and type(decided.events[0]) in _CREATE
    return Outcome(position, documents, created=created, replayed=False)


_CREATE: frozenset[type] = frozenset({EntryPublished, FeedOpened})


def document_of(state: State, command: Command) -> Document | Feed:
    if type(command) in FEED_COMMANDS:
        if state.feed is None:
            raise FeedNotFound(state.feed_id)
        return state.feed
    return state.entries[cast("EntryCommand", command).entry]

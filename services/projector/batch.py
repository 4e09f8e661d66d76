"""A batch of log entries, folded: which documents and index members it changes. Pure.

Owns what every fold into a generation has in common. The live commit adds frames to it, a build adds nothing; what an event
does to a document is `shared.fold`'s.
"""

from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

import msgspec

from shared.documents import Document, Feed
from shared.errors import CannotFold
from shared.events import Recorded, decode
from shared.fold import Change, Documents, fold
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.read_models import IndexChanges, ReadModel, index_changes


class Read(NamedTuple):
    """One log entry as the fold takes it: an event, or why there is none; neither where the quarantine skips it."""

    position: Position
    recorded: Recorded | None
    unfolded: CannotFold | None


class Step(NamedTuple):
    """One log entry, folded or skipped."""

    position: Position
    change: Change | None
    unfolded: CannotFold | None


def read(entry: StreamEntry, *, quarantined: Container[bytes]) -> Read:
    """Raises NewerLog for an event of a newer release, Corrupted for what is no event at all."""
    position = entry.position
    if entry.id in quarantined:
        return Read(position, None, None)
    try:
        return Read(position, decode(entry.id, entry.fields, position=position), None)
    except CannotFold as error:
        return Read(position, None, error)


class Batch:
    """A batch under way. `documents` are those of the entries that its events are about, as the generation holds them."""

    def __init__(self, feed_id: str, *, feed: Feed | None, documents: Mapping[str, Document]) -> None:
        self._feed_id = feed_id
        self._before = documents
        self._state = Documents(feed, dict(documents))
        self.feed_position: Position | None = None
        self.folded = 0

    @property
    def feed(self) -> Feed | None:
        return self._state.feed

    def fold(self, read: Read) -> Step:
        """An event that does not fit moves the feed's position, and nothing else."""
        state, position, unfolded = self._state, read.position, read.unfolded
        if read.recorded is not None:
            try:
                change = fold(state, read.recorded, feed_id=self._feed_id)
            except CannotFold as error:
                unfolded = error
            else:
                state.apply(change)
                self.folded += 1
                if change.of_feed:
                    self.feed_position = position
                return Step(position, change, None)
        if state.feed is not None:
            state.feed = msgspec.structs.replace(state.feed, position=str(position))
        return Step(position, None, unfolded)

    def changed(self) -> Mapping[str, Document]:
        """The documents that are others than before, in their last state."""
        before = self._before
        return {entry: document for entry, document in self._state.entries.items() if document is not before.get(entry)}

    def index_changes(self, models: Iterable[ReadModel]) -> IndexChanges:
        models = tuple(models)
        whole = IndexChanges([], [])
        for entry, document in self.changed().items():
            changes = index_changes(self._before.get(entry), document, models)
            whole.added.extend(changes.added)
            whole.removed.extend(changes.removed)
        return whole

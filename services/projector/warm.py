"""Warm feeds: those committed last, whose logs are followed beside the doorbells, so that new entries are folded without asking.

Owns what the last commit left of each and what came of its log since. Whether that is still so, the commit's script decides: it
changes nothing where another commit, a flip or an entry of that id came between, and the feed is then read as any other.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from services.projector.commit import Commit, Pending
from shared.documents import Feed
from shared.errors import CannotFold
from shared.events import EntryPublished, about
from shared.keys import Keys
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.read_models import ReadModel

# Each is one more stream in every read of the doorbells, which has no bound in bytes but these.
FEEDS_MAX = 16
# Where more comes at once than a few desks write, a feed is read in commits' full size instead.
EVENTS_MAX = 32

_PUBLISHED = EntryPublished.__name__


class _Known(Struct):
    """`read` is the last position that was read of the log, `entries` what came after the checkpoint."""

    generation: int
    models: tuple[ReadModel, ...]
    feed: Feed
    checkpoint: Position
    read: Position
    entries: list[StreamEntry]


class Warm:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        # The one that was committed longest ago stands first.
        self._known: dict[str, _Known] = {}

    def logs(self) -> Mapping[str, tuple[str, str]]:
        """The logs to follow: each one's feed, and after which position."""
        return {self._keys.feed(feed).log: (feed, str(known.read)) for feed, known in self._known.items()}

    def came(self, feed: str, entries: Sequence[StreamEntry]) -> None:
        """What was read of a log that is followed; one to which much comes is followed no more until all is committed."""
        known = self._known.get(feed)
        if known is None:
            return
        known.read = entries[-1].position
        known.entries += [entry for entry in entries if entry.position > known.checkpoint]
        if len(known.entries) >= EVENTS_MAX:
            del self._known[feed]

    def has_read(self, feed: str, position: bytes | None) -> bool:
        """Whether a feed's log was read to a position: then its ring tells nothing new."""
        known = self._known.get(feed)
        return known is not None and position is not None and Position.parse(position.decode()) <= known.read

    def take(self, feed: str) -> Pending | None:
        """What came, to be committed now; None where the feed must be read: for anything but entries that are new."""
        known = self._known.get(feed)
        if known is None or not known.entries:
            return None
        entries, known.entries = known.entries, []
        if not _all_new(entries, after=known.checkpoint):
            return None
        return Pending(
            feed_id=feed,
            generation=known.generation,
            checkpoint=known.checkpoint,
            models=known.models,
            feed=known.feed,
            entries=entries,
            quarantined=frozenset(),
            more=False,
            documents={},
            unread=True,
        )

    def committed(self, pending: Pending, commit: Commit, generation: int) -> None:
        before = self._known.pop(pending.feed_id, None)
        if commit.feed is None or commit.more:
            return
        checkpoint = commit.checkpoint
        came = [entry for entry in before.entries if entry.position > checkpoint] if before else []
        # What was read and is not here is a gap when more comes, and sends the feed to be read.
        read = max(before.read, checkpoint) if before else checkpoint
        self._known[pending.feed_id] = _Known(generation, pending.models, commit.feed, checkpoint, read, came)
        if len(self._known) > FEEDS_MAX:
            del self._known[next(iter(self._known))]

    def moved(self, feed: str) -> None:
        """Another commit or a flip came between: what came is read again with it."""
        if feed in self._known:
            self._known[feed].entries = []

    def forget_shard(self, number: int) -> None:
        for feed in [feed for feed in self._known if self._keys.shard_of(feed) == number]:
            del self._known[feed]


def _all_new(entries: Iterable[StreamEntry], *, after: Position) -> bool:
    """Whether they follow a position without a gap and publish entries, about which nothing can be known yet."""
    n = after.n
    try:
        for entry in entries:
            n += 1
            if entry.position != Position(after.epoch, n) or about(entry.fields).type != _PUBLISHED:
                return False
    except CannotFold:
        return False
    return True

"""Commits: what a batch of events makes of a feed's generation, and the one script that puts it there.

Owns `prepare`, which is pure, and the reads and the write around it. Which feeds and when is `worker`'s; what an event does
to a document is `shared.fold`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from services.projector.batch import Batch, Step, read
from services.projector.release import Release
from shared.documents import Document, Entry, Feed, parse_document, parse_feed, render
from shared.errors import Corrupted, NewerLog
from shared.events import Recorded
from shared.fold import FOLD_VERSION
from shared.instants import milliseconds_of
from shared.keys import Keys
from shared.log import in_order
from shared.ndjson import StreamEntry
from shared.position import ORIGIN, Position
from shared.quarantine import quarantine_record
from shared.read_models import READ_MODELS, ReadModel
from shared.redis import Call, Redis, Script, command, run_scripts

EVENTS_PER_COMMIT_MAX = 100
BYTES_PER_COMMIT_MAX = 1024 * 1024

_pending = Script(__file__, "pending.lua", read_only=True)
_commit = Script(__file__, "commit.lua")

FrameKind = Literal["entry", "retraction", "feed", "epoch", "skipped"]


class Pending(Struct, frozen=True):
    """A feed's active generation, None before its first commit, and the log's next events after its checkpoint.

    `documents` are those of the entries that the events are about, as the generation holds them. `outdated`: an older release
    folded the generation; this one folds it no further and reads nothing of it. `unread`: neither documents nor quarantine
    were asked for, and the commit takes effect only where there are none.
    """

    feed_id: str
    generation: int | None
    checkpoint: Position
    models: tuple[ReadModel, ...]
    feed: Feed | None
    entries: Sequence[StreamEntry]
    quarantined: frozenset[bytes]
    more: bool
    documents: Mapping[str, Document]
    outdated: bool = False
    unread: bool = False


class Frame(NamedTuple):
    """What readers are sent of one position: the document's JSON, the reason of a raised epoch; a skipped one has no data.

    `recorded_at` is the event's, in milliseconds since 1970, for whoever measures how long readers waited.
    """

    position: Position
    kind: FrameKind
    data: bytes
    recorded_at: int | None = None


class Commit(Struct, frozen=True):
    """Absolute values of everything that a batch changes, and the frames of its positions in order."""

    checkpoint: Position
    documents: Mapping[str, bytes]
    added: Sequence[tuple[str, str]]
    removed: Sequence[tuple[str, str]]
    quarantine: Mapping[Position, bytes]
    frames: Sequence[Frame]
    feed: Feed | None
    feed_position: Position | None
    folded: int
    more: bool


def prepare(pending: Pending) -> Commit:
    """Fold the pending events. Pure; raises NewerLog for what this release must leave to a newer one."""
    batch = Batch(pending.feed_id, feed=pending.feed, documents=pending.documents)
    quarantine: dict[Position, bytes] = {}
    frames: list[Frame] = []
    bytes_left = BYTES_PER_COMMIT_MAX
    for entry in pending.entries:
        # Small events, a flag say, may each render a large document.
        if bytes_left <= 0:
            break
        found = read(entry, quarantined=pending.quarantined)
        step = batch.fold(found)
        if step.unfolded is not None:
            quarantine[step.position] = quarantine_record(entry, step.unfolded)
        frames.append(_frame(step, found.recorded))
        bytes_left -= len(frames[-1].data)
    changes = batch.index_changes(pending.models)
    return Commit(
        checkpoint=frames[-1].position,
        documents={entry: render(document) for entry, document in batch.changed().items()},
        added=changes.added,
        removed=changes.removed,
        quarantine=quarantine,
        frames=frames,
        feed=batch.feed,
        feed_position=batch.feed_position,
        folded=batch.folded,
        more=pending.more or len(frames) < len(pending.entries),
    )


def _frame(step: Step, recorded: Recorded | None) -> Frame:
    change = step.change
    if change is None or recorded is None:
        return Frame(step.position, "skipped", b"")
    at = recorded.recorded_at
    if change.raised is not None:
        return Frame(change.position, "epoch", change.raised.encode(), at)
    if change.after is None:
        return Frame(change.position, "feed", render(change.feed), at)
    kind: FrameKind = "entry" if isinstance(change.after, Entry) else "retraction"
    return Frame(change.position, kind, render(change.after), at)


class Commits:
    """Reads what is pending and commits it, for several feeds of one shard in one round trip each."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def pending(self, feeds: Sequence[str]) -> list[Pending]:
        calls: list[Call] = []
        for feed in feeds:
            keys = self._keys.feed(feed)
            args = (keys.generation, EVENTS_PER_COMMIT_MAX, BYTES_PER_COMMIT_MAX)
            calls.append((_pending, (keys.log, keys.active, keys.quarantine), args))
        answers = await run_scripts(self._redis, calls)
        return [_parse_pending(feed, answer) for feed, answer in zip(feeds, answers, strict=True)]

    async def new_generation(self, feed: str) -> int:
        return int(await command(self._redis, "INCR", self._keys.feed(feed).generations))

    async def commit(self, items: Sequence[tuple[Pending, Commit, int]], *, fence: int) -> list[str]:
        """Commit each, in one round trip: "committed", "fenced" (another projector owns the shard) or "moved".

        The number is the generation's, a new one for a feed that has none.
        """
        calls = [self._call(pending, commit, generation, fence) for pending, commit, generation in items]
        answers = await run_scripts(self._redis, calls)
        return [answer.decode() for answer in answers]

    def _call(self, pending: Pending, commit: Commit, generation: int, fence: int) -> Call:
        feed = self._keys.feed(pending.feed_id)
        shard = self._keys.shard(self._keys.shard_of(pending.feed_id))
        keys = feed.of_generation(generation)
        args: list[bytes | str | int] = [fence, pending.feed_id, generation]
        args += ["1" if pending.generation is None else "", str(pending.checkpoint), str(commit.checkpoint)]
        args += [",".join(model.name for model in pending.models), FOLD_VERSION, keys.indexes]
        args.append(milliseconds_of(commit.feed.updated_at) if commit.feed else "")
        args.append(render(commit.feed) if commit.feed else "")
        args.append(str(commit.feed_position or ""))
        args.append(len(commit.documents) if pending.unread else 0)
        args += commit.documents if pending.unread else ()
        args.append(len(commit.frames) if pending.unread else 0)
        args += [str(frame.position) for frame in commit.frames] if pending.unread else ()
        args.append(len(commit.documents))
        for entry, document in commit.documents.items():
            args += [entry, document]
        for pairs in (commit.added, commit.removed):
            args.append(len(pairs))
            for pair in pairs:
                args += pair
        args.append(len(commit.quarantine))
        for position, record in commit.quarantine.items():
            args += [str(position), record]
        args.append(len(commit.frames))
        for frame in commit.frames:
            args += [
                str(frame.position),
                frame.kind,
                frame.data,
                "" if frame.recorded_at is None else frame.recorded_at,
            ]
        on = (
            shard.lease,
            feed.active,
            keys.meta,
            keys.documents,
            keys.feed,
            shard.dirty,
            shard.frames,
            feed.quarantine,
            shard.feeds,
            feed.head,
            keys.names,
        )
        return _commit, on, args


def _parse_pending(feed_id: str, answer: Any) -> Pending:
    generation, checkpoint, names, fold_version, feed, raw, quarantined, more, touched, documents = answer
    if (generation is None) != (checkpoint is None):
        raise Corrupted(f"the active generation of {feed_id!r} has no checkpoint", feed=feed_id)
    position = Position.parse(checkpoint.decode()) if checkpoint else ORIGIN
    outdated = fold_version is not None and int(fold_version) < FOLD_VERSION
    if outdated:
        raw, feed, touched, documents = [], None, [], []
    return Pending(
        feed_id=feed_id,
        generation=int(generation) if generation else None,
        checkpoint=position,
        models=() if outdated else _models(feed_id, names, fold_version),
        feed=parse_feed(feed) if feed else None,
        entries=in_order(feed_id, raw, after=position),
        quarantined=frozenset(quarantined),
        more=bool(more),
        documents={
            entry.decode(): parse_document(found)
            for entry, found in zip(touched, documents, strict=True)
            if found is not None
        },
        outdated=outdated,
    )


def _models(feed_id: str, names: bytes | None, fold_version: bytes | None) -> tuple[ReadModel, ...]:
    """Exactly the read models that the generation names; what this release does not know is a newer release's."""
    if names is None or fold_version is None:
        return tuple(READ_MODELS.values())
    wanted = Release.parse(fold_version, names)
    if not Release.this().knows(wanted):
        raise NewerLog(f"the generation of {feed_id!r} is of a newer release: {wanted}", feed=feed_id)
    return tuple(READ_MODELS[name] for name in wanted.models)

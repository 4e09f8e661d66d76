"""Rebuilding: a feed's log, folded slice by slice into a generation that nobody reads yet.

Owns a build's slices, each of which takes effect exactly once or not at all, and where it goes on. When and how fast is
`builder`'s, the end of it `flip`'s, the record `builds`'.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from time import thread_time

from msgspec import Struct

from services.projector.batch import Batch, read
from services.projector.builds import Build, parse_build
from services.projector.release import Release
from shared.documents import Document, Feed, parse_document, parse_feed, render
from shared.errors import CannotFold
from shared.fold import touched
from shared.keys import Keys
from shared.log import Log
from shared.position import ORIGIN, Position
from shared.read_models import READ_MODELS, ReadModel
from shared.redis import Arg, Redis, Script, packed

# A slice of so much work hardly delays the commits of live feeds that wait for this process. The processor's time counts: on
# a busy machine slices by the clock would become ever smaller, and their round trips make it busier.
SLICE_SECONDS = 0.01
EVENTS_PER_SLICE_MAX = 500
FIRST_SLICE_EVENTS = 50
BYTES_PER_SLICE_MAX = 1024 * 1024
CACHED_BYTES_MAX = 8 * 1024 * 1024

FEEDS_PER_LOOK_MAX = 500

_outdated = Script(__file__, "outdated.lua", read_only=True)
_survey = Script(__file__, "survey.lua", read_only=True)
_before = Script(__file__, "before.lua", read_only=True)
_begin = Script(__file__, "begin.lua")
_build = Script(__file__, "build.lua")
_fail = Script(__file__, "fail.lua")


class Survey(Struct, frozen=True):
    """How far a feed's build is, and how far it has to go: to the checkpoint of the active generation.

    `made_by` is the release that began the generation, None before that.
    """

    build: Build | None
    active: int | None
    target: Position
    made_by: Release | None
    checkpoint: Position
    feed: bytes | None
    quarantined: frozenset[bytes]
    retired: Sequence[int]


class Site:
    """A generation being built, as its builder holds it between two slices: with the documents that were changed last."""

    def __init__(self, build: Build, generation: int, survey: Survey) -> None:
        self.build = build
        self.generation = generation
        self.models: tuple[ReadModel, ...] = tuple(READ_MODELS.values())
        self.checkpoint = survey.checkpoint
        self.feed: Feed | None = parse_feed(survey.feed) if survey.feed is not None else None
        self.known = Cache()
        self.slice_events = FIRST_SLICE_EVENTS
        self.skips: frozenset[bytes] = frozenset()
        self.aim(survey)

    def aim(self, survey: Survey) -> None:
        """Go on to where the live generation is now, skipping what it skipped."""
        repaired = {str(position).encode() for position in self.build.without}
        self.target = survey.target
        self.skips = survey.quarantined - repaired

    @property
    def events_left(self) -> int:
        return self.target.n - self.checkpoint.n


class Cache:
    """Documents that a build changed last, up to so many bytes."""

    def __init__(self) -> None:
        self._documents: OrderedDict[str, tuple[Document, int]] = OrderedDict()
        self._bytes = 0

    def get(self, entry: str) -> Document | None:
        found = self._documents.get(entry)
        return None if found is None else found[0]

    def keep(self, entry: str, document: Document, size: int) -> None:
        _, size_before = self._documents.pop(entry, (None, 0))
        self._documents[entry] = (document, size)
        self._bytes += size - size_before
        while self._bytes > CACHED_BYTES_MAX:
            _, (_, size_first) = self._documents.popitem(last=False)
            self._bytes -= size_first


class Rebuilds:
    """The steps of builds. One that was not made answers why: "fenced", "dropped" (another build stands there) or "moved"."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._log = Log(redis, keys)

    async def survey(self, feed: str) -> Survey:
        keys = self._keys.feed(feed)
        names = (keys.build, keys.active, keys.quarantine, keys.retired)
        build, active, target, meta, document, quarantined, retired = await _survey(
            self._redis, names, (keys.generation,)
        )
        checkpoint, fold, models = meta or (None, None, None)
        return Survey(
            build=parse_build(feed, dict(zip(build[::2], build[1::2], strict=True))),
            active=int(active) if active else None,
            target=Position.parse(target.decode()) if target else ORIGIN,
            made_by=Release.parse(fold, models) if fold and models else None,
            checkpoint=Position.parse(checkpoint.decode()) if checkpoint else ORIGIN,
            feed=document,
            quarantined=frozenset(quarantined),
            retired=[int(generation) for generation in retired],
        )

    async def outdated(self, shard: int, *, start: int) -> tuple[int, list[str]]:
        """Looks at some feeds of a shard from rank `start` on: how many, and those that an older release folded."""
        feeds_key = self._keys.shard(shard).feeds
        args = (self._keys.prefix_of_feeds(shard), start, FEEDS_PER_LOOK_MAX, Release.this().fold)
        looked_at, feeds = await _outdated(self._redis, (feeds_key,), args)
        return looked_at, [feed.decode() for feed in feeds]

    async def begin(self, build: Build, *, fence: int) -> str:
        feed = self._keys.feed(build.feed)
        names = (self._lease(build.feed), feed.build, feed.generations)
        release = Release.this()
        args = (fence, build.token, release.fold, ",".join(release.models), feed.generation)
        return _text(await _begin(self._redis, names, args))

    async def fail(self, build: Build, why: str, *, fence: int) -> str:
        feed = self._keys.feed(build.feed)
        names = (self._lease(build.feed), feed.build, feed.retired)
        return _text(await _fail(self._redis, names, (fence, build.token, why)))

    async def slice(self, site: Site, *, fence: int, events_max: int) -> str:
        """Fold the next events into the generation: "built", or why not.

        Raises CannotFold for an event that does not fit and is not in quarantine, NewerLog for one of a newer release.
        """
        entries = await self._log.read_chunk(
            site.build.feed, after=site.checkpoint, to=site.target, events_max=min(events_max, site.slice_events)
        )
        if not entries:
            return "moved"
        started = thread_time()
        reads = [read(entry, quarantined=site.skips) for entry in entries]
        about = [touched(one.recorded.event) if one.recorded else None for one in reads]
        worked_seconds = thread_time() - started
        documents, unread = await self._documents(site, about)
        started = thread_time()
        batch = Batch(site.build.feed, feed=site.feed, documents=documents)
        bytes_left = BYTES_PER_SLICE_MAX
        position = site.checkpoint
        for one, entry, name in zip(reads, entries, about, strict=True):
            if bytes_left <= 0 or name in unread:
                break
            bytes_left -= len(entry.fields[b"content"])
            if (unfolded := batch.fold(one).unfolded) is not None:
                raise CannotFold(f"the event at {one.position} cannot be folded: {unfolded.detail}", **unfolded.facts)
            position = one.position
        changed = batch.changed()
        rendered = {entry: render(document) for entry, document in changed.items()}
        names, args = self._changes(site, batch, rendered, position, fence)
        worked_seconds += thread_time() - started
        answer = _text(await _build(self._redis, names, args))
        if answer == "built":
            site.checkpoint, site.feed = position, batch.feed
            for name, document in changed.items():
                site.known.keep(name, document, len(rendered[name]))
            site.slice_events = _next_slice(len(reads), worked_seconds)
        return answer

    async def _documents(
        self, site: Site, about: Iterable[str | None]
    ) -> tuple[Mapping[str, Document], Collection[str | None]]:
        """The documents that the events are about, and the entries of which it is not known whether they have one."""
        known: dict[str, Document] = {}
        missing: list[str] = []
        # In the order of the events, so that what is left out is about the last ones.
        for entry in dict.fromkeys(about):
            if entry is None:
                continue
            document = site.known.get(entry)
            if document is None:
                missing.append(entry)
            else:
                known[entry] = document
        if not missing:
            return known, ()
        keys = self._keys.feed(site.build.feed).of_generation(site.generation)
        found = await _before(self._redis, (keys.documents,), (BYTES_PER_SLICE_MAX, *missing))
        known.update({entry: parse_document(raw) for entry, raw in zip(missing, found, strict=False) if raw})
        return known, frozenset(missing[len(found) :])

    def _changes(
        self, site: Site, batch: Batch, rendered: Mapping[str, bytes], position: Position, fence: int
    ) -> tuple[tuple[str, ...], list[Arg]]:
        feed = self._keys.feed(site.build.feed)
        keys = feed.of_generation(site.generation)
        names = (self._lease(site.build.feed), feed.build, keys.meta, keys.documents, keys.feed, keys.names)
        args: list[Arg] = [fence, site.build.token]
        args += [str(site.checkpoint) if site.checkpoint != ORIGIN else "", str(position), keys.indexes]
        args += [render(batch.feed) if batch.feed is not None else "", str(batch.feed_position or "")]
        args += [position.n - site.checkpoint.n]
        # One argument for all of it: to encode each by itself costs as much as the fold.
        changes = batch.index_changes(site.models)
        documents = [text for name, document in rendered.items() for text in (name, document.decode())]
        args.append(packed((documents, _by_index(changes.added), _by_index(changes.removed))))
        return names, args

    def _lease(self, feed: str) -> str:
        return self._keys.shard(self._keys.shard_of(feed)).lease


def _by_index(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for index, member in pairs:
        found.setdefault(index, []).append(member)
    return list(found.items())


def _next_slice(events: int, worked_seconds: float) -> int:
    """How many events make a slice of SLICE_SECONDS, growing at most twofold: the next ones may be larger."""
    fitting = int(events * SLICE_SECONDS / max(worked_seconds, 1e-6))
    return max(1, min(fitting, 2 * events, EVENTS_PER_SLICE_MAX))


def _text(answer: bytes) -> str:
    return answer.decode()

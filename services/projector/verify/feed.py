"""Verify one feed: its log, its live generation, its write side and its archive, one after the other on one fold.

Owns the order, what happens when another generation becomes active meanwhile, and the report. The comparing is each room's
own. Nothing is written: it may run against a replica.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from services.projector.verify.archived import ArchiveCheck
from services.projector.verify.differences import Difference, Differences
from services.projector.verify.found_keys import FoundKeys
from services.projector.verify.generation import Behind, GenerationCheck
from services.projector.verify.refold import LogEnds, Refold
from services.projector.verify.scratch import Scratch
from services.projector.verify.stored import Flipped, Moment, Stored
from services.projector.verify.write_side import WriteSideCheck
from shared.errors import Corrupted, FeedNotFound, NewerLog, Unavailable
from shared.fold import FOLD_VERSION
from shared.keys import Keys
from shared.log import Log
from shared.position import Position
from shared.read_models import READ_MODELS
from shared.redis import Redis, command

# A generation that is switched while it is compared is compared anew, so often at most.
STARTS_MAX = 10
# How long a projector may take to come to a redaction that stands in the log already.
SETTLE_SECONDS_MAX = 5.0
LOOK_SECONDS = 0.1
POSITIONS_PER_LOOK = 500


STAGES = ("fold", "generation", "write side")


class Stage(NamedTuple):
    """How far the work on a feed is, in one of its STAGES; `done` and `total` are n of the log."""

    name: str
    done: int
    total: int


class Report(Struct, frozen=True):
    """What was compared and what differs. `refused` says why nothing could be, `unjudged` names entries that could not."""

    feed: str
    ok: bool
    events: int
    entries: int
    skipped: int
    generation: int | None
    checkpoint: str | None
    head: str | None
    refused: str | None
    unjudged: Sequence[str]
    differences_count: int
    differences: Sequence[Difference]


class _Anew(Exception):
    """What the fold rests on has changed: it begins again."""


class _OtherRelease(Exception):
    """The generation is of another release."""


async def verify_feed(
    redis: Redis, keys: Keys, feed: str, found_keys: FoundKeys, *, progress: Callable[[Stage], None]
) -> Report:
    """Compare everything that stands of a feed with a fresh fold of its log. Raises FeedNotFound."""
    for last in [False] * (STARTS_MAX - 1) + [True]:
        with Scratch() as scratch:
            run = _Run(redis, keys, feed, found_keys, scratch, progress)
            try:
                await run.everything()
            except (_Anew, Flipped, Behind):
                if not last:
                    await found_keys.walk(feed)
                    continue
                run.differences.add("generation", feed, stored="changes all the time", folded=None)
            return run.report()
    raise AssertionError("the last start reports")


class _Run:
    """One fold of a feed, and what is compared with it."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        feed: str,
        found_keys: FoundKeys,
        scratch: Scratch,
        progress: Callable[[Stage], None],
    ) -> None:
        self.differences = Differences()
        self._redis = redis
        self._feed = feed
        self._found_keys = found_keys
        self._scratch = scratch
        self._stored = Stored(redis, keys, feed)
        self._log = Log(redis, keys)
        self._progress = progress
        self._refold = Refold(redis, keys, feed, scratch=scratch, progress=self._folded)
        self._write_side = WriteSideCheck(self._stored, self._refold, self._at(STAGES[2]))
        self._archive = ArchiveCheck(redis, keys, self._refold)
        self._generation: GenerationCheck | None = None
        self._moment: Moment | None = None
        self._total = 0
        self._refused: str | None = None

    def report(self) -> Report:
        found = Differences()
        checks = [self._refold.soundness.differences, self.differences]
        checks += [self._generation.differences] if self._generation else []
        for differences in (*checks, self._write_side.differences, self._archive.differences):
            found.extend(differences)
        unjudged = sorted(self._generation.unjudged) if self._generation else []
        moment = self._moment
        return Report(
            feed=self._feed,
            ok=not found.count and not unjudged and self._refused is None,
            events=self._refold.position.n,
            entries=self._refold.entries,
            skipped=sum(1 for _ in self._scratch.skipped()),
            generation=int(moment.generation) if moment and moment.generation and moment.generation.isdigit() else None,
            checkpoint=str(moment.checkpoint) if moment and moment.checkpoint else None,
            head=moment.head_position if moment else None,
            refused=self._refused,
            unjudged=unjudged,
            differences_count=found.count,
            differences=found.shown,
        )

    async def everything(self) -> None:
        """Raises _Anew, Flipped or Behind when what it rests on changed under it."""
        try:
            if await self._compare_generation():
                await self._compare_write_side()
                await self._compare_removed()
                await self._archive.run()
                await self._compare_late()
        except (NewerLog, Unavailable) as error:
            self._refused = error.detail
        except _OtherRelease as error:
            self._refused = str(error)
        except LogEnds as error:
            self.differences.add("log", self._feed, stored=str(error), folded=None)
        except Corrupted as error:
            self.differences.add("log", self._feed, stored=error.detail, folded=None)

    async def _look(self) -> Moment | None:
        """A moment; None when keys hold what they never should, which is noted."""
        moment = await self._stored.moment()
        if isinstance(moment, list):
            for key, stored, belongs in moment:
                self.differences.add("key", key, stored=f"a {stored}", folded=f"a {belongs}")
            return None
        self._moment = moment
        self._total = max(self._total, *(p.n for p in (moment.last, moment.checkpoint) if p), 0)
        return moment

    async def _compare_generation(self) -> bool:
        """Compare the generation that is active, the next one when that is switched; False when nothing can go on."""
        for _ in range(STARTS_MAX):
            moment = await self._look()
            if moment is None:
                return False
            if moment.generation is None:
                if moment.last is None and moment.head_position is None:
                    raise FeedNotFound(self._feed)
                return True
            try:
                await self._compare_active(moment, moment.generation)
            except Flipped:
                # The fold stays good, unless an event came out of the quarantine.
                if await self._left_the_quarantine():
                    raise _Anew from None
                await self._found_keys.walk(self._feed)
                continue
            except LogEnds as error:
                self.differences.add("checkpoint", "generation", stored=str(moment.checkpoint), folded=str(error))
            return True
        raise _Anew

    async def _compare_active(self, moment: Moment, generation: bytes) -> None:
        self._generation = None
        if not _is_number(generation) or int(generation) > _number(moment.highest_generation):
            highest = f"a number up to {_number(moment.highest_generation)}, the last one given"
            self.differences.add("active", "generation", stored=generation, folded=highest)
        if moment.checkpoint is None or moment.read_models is None or moment.fold_version is None:
            for name, value in (
                ("checkpoint", moment.checkpoint),
                ("read_models", moment.read_models),
                ("fold", moment.fold_version),
            ):
                if value is None:
                    self.differences.add("generation", name, stored=None, folded=f"in generation {generation.decode()}")
            return
        self._check_release(moment.fold_version, moment.read_models, generation)
        if await self._wrong_indexes(generation):
            return
        self._refold.models = tuple(READ_MODELS[name] for name in moment.read_models.decode().split(","))
        if moment.checkpoint.n < self._refold.position.n:
            raise Behind
        await self._refold.to(moment.checkpoint, committed=True)
        check = GenerationCheck(self._stored, self._refold, generation, self._at(STAGES[1]))
        self._generation = check
        await check.run(self._found_keys.of(self._feed, generation))
        moment_now = await self._look()
        if moment_now is not None:
            if moment_now.generation != generation:
                raise Flipped
            await check.compare_feed(moment_now)

    def _check_release(self, fold_version: bytes, read_models: bytes, generation: bytes) -> None:
        if fold_version != str(FOLD_VERSION).encode():
            raise _OtherRelease(
                f"generation {generation.decode()} is folded by version {fold_version.decode()}, "
                f"this release folds by version {FOLD_VERSION}: rebuild the feed, or verify with the release that built it"
            )
        names = read_models.decode(errors="backslashreplace").split(",")
        unknown = [name for name in names if name not in READ_MODELS]
        if unknown:
            raise _OtherRelease(
                f"generation {generation.decode()} keeps read models that this release does not know: {', '.join(unknown)}"
            )

    async def _wrong_indexes(self, generation: bytes) -> bool:
        """Whether the key of an index holds something else; it is noted."""
        prefix = f"{self._stored.keys.generation}{generation.decode()}:i:"
        wrong = False
        for names in _slices(self._found_keys.of(self._feed, generation)):
            pipeline = self._redis.pipeline(transaction=False)
            for name in names:
                pipeline.type(prefix + name)
            for name, kind in zip(names, await pipeline.execute(), strict=True):
                if kind not in (b"zset", b"none"):
                    wrong = True
                    self.differences.add("index", name, stored=f"a {kind.decode()}", folded="a sorted set")
        return wrong

    async def _left_the_quarantine(self) -> bool:
        for positions in _slices(self._scratch.skipped()):
            found = await command(self._redis, "HMGET", self._stored.keys.quarantine, *positions)
            if None in found:
                return True
        return False

    async def _compare_write_side(self) -> None:
        checkpoint = self._refold.position if self._generation else None
        await self._write_side.records()
        moment = await self._look()
        if moment is not None:
            await self._write_side.head(moment)
        await self._write_side.quarantine(checkpoint)

    async def _compare_removed(self) -> None:
        """Content is gone where a redaction names it, and nowhere else."""
        for named in self._scratch.named():
            position = Position.parse(named.position)
            after = Position(position.epoch, position.n - 1)
            for entry in await self._log.read_chunk(self._feed, after=after, to=position, events_max=1):
                if entry.position == position and entry.fields.get(b"content"):
                    self.differences.add(
                        "content", position, stored="the content", folded=f"removed by the redaction at {named.at}"
                    )
        for taken in self._scratch.taken():
            self.differences.add("content", taken.position, stored=None, folded=f"content of SHA-256 {taken.digest}")

    async def _compare_late(self) -> None:
        """Entries whose redaction the projector had not come to, now that the log is folded beyond it."""
        check = self._generation
        if check is None or not check.unjudged:
            return
        rows = list(self._scratch.rows_of(check.unjudged).values())
        try:
            async with asyncio.timeout(SETTLE_SECONDS_MAX):
                while True:
                    try:
                        check.unjudged.clear()
                        await check.judge(rows, count=False)
                    except Behind:
                        await asyncio.sleep(LOOK_SECONDS)
                    else:
                        return
        except TimeoutError:
            check.unjudged.update(row.entry for row in rows)

    def _folded(self, n: int) -> None:
        self._progress(Stage(STAGES[0], n, max(n, self._total)))

    def _at(self, name: str) -> Callable[[int], None]:
        return lambda n: self._progress(Stage(name, n, max(n, self._total)))


def _slices(names: Iterator[str]) -> Iterator[list[str]]:
    while found := list(islice(names, POSITIONS_PER_LOOK)):
        yield found


def _is_number(text: bytes | None) -> bool:
    return text is not None and text.isdigit()


def _number(text: bytes | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0

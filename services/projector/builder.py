"""The builder: carries out the builds of the shards that this projector owns, beside the live fold and never before it.

Owns when and how fast; `rebuild` owns what a slice does, `flip` the end. One slice at a time for the whole process, so that a
live commit waits for one slice at most. All state is in Redis: whoever takes a shard over goes on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from services.projector.builds import Build, Builds
from services.projector.flip import flip
from services.projector.lease import Leases
from services.projector.rebuild import EVENTS_PER_SLICE_MAX, FEEDS_PER_LOOK_MAX, Rebuilds, Site, Survey
from services.projector.release import Release
from services.projector.retired import remove_piece, rest
from services.projector.shard import Shard
from shared.errors import CannotFold, Corrupted, NewerLog, Unavailable
from shared.keys import Keys
from shared.redis import UNREACHABLE, Redis

log = structlog.get_logger()

# So many builds share the builder's time and memory; others wait for their turn.
SITES_MAX = 4
# So near to the live checkpoint the rest is folded between two live commits.
EVENTS_BEFORE_FLIP_MAX = 100
BACKOFF_SECONDS = 0.5
# How long a build that another has to carry out, or that cannot begin yet, is left alone.
ASIDE_SECONDS = 2.0


class Builder:
    """Carries out builds until cancelled. `hand_over` leaves a shard to a projector of a release that knows more."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        leases: Leases,
        shards: Mapping[int, Shard],
        hand_over: Callable[[Shard, NewerLog], Awaitable[None]],
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._leases = leases
        self._shards = shards
        self._hand_over = hand_over
        self._builds = Builds(redis, keys)
        self._rebuilds = Rebuilds(redis, keys)
        self._sites: dict[str, Site] = {}
        # When to look at each feed next.
        self._due: dict[str, float] = {}
        # Shards taken over and not yet looked through, and where to go on.
        self._unseen: dict[int, int] = {}
        self._bell = asyncio.Event()

    def look_through(self, shard: int) -> None:
        """Find what an older release built in a shard that was just taken over."""
        self._unseen[shard] = 0
        self._bell.set()

    def wake(self, feed: str) -> None:
        self._due.setdefault(feed, 0.0)
        self._bell.set()

    async def ask_for_release(self, feed: str) -> None:
        """The feed's generation is of an older release: nothing of it is folded on until it is built anew."""
        latest = await self._builds.latest(feed)
        if latest is not None and latest.state == "failed" and latest.release == Release.this():
            return  # it would fail again; the operators were told
        build = await self._builds.ask(feed, reason="release", by="projector")
        log.info("release_rebuilds", feed=feed, state=build.state)
        self.wake(feed)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            due = self._next(started)
            if self._unseen:
                await self._look()
            elif due is None:
                await self._sleep(started)
                continue
            else:
                self._due[due] = started
                await self._take_turn(due)
            # Live feeds first: as long as the slice took, if any of them waits.
            busy = any(shard.waiting for shard in self._shards.values())
            await asyncio.sleep(loop.time() - started if busy else 0)

    def _next(self, now: float) -> str | None:
        """The feed whose turn it is: the one that waits longest, among those under way when these are many."""
        among = self._sites if len(self._sites) >= SITES_MAX else self._due
        due = [feed for feed in among if self._due[feed] <= now]
        return min(due, key=lambda feed: self._due[feed], default=None)

    async def _sleep(self, now: float) -> None:
        self._bell.clear()
        next_due = min(self._due.values(), default=None)
        try:
            async with asyncio.timeout(None if next_due is None else max(next_due - now, 0.001)):
                await self._bell.wait()
        except TimeoutError:
            pass

    async def _look(self) -> None:
        shard, start = next(iter(self._unseen.items()))
        if shard not in self._shards:
            del self._unseen[shard]
            return
        try:
            looked_at, outdated = await self._rebuilds.outdated(shard, start=start)
            for feed in outdated:
                await self.ask_for_release(feed)
        except (Unavailable, *UNREACHABLE) as error:
            log.warning("shard_not_looked_through", shard=shard, error=repr(error))
            await asyncio.sleep(BACKOFF_SECONDS)
            return
        if looked_at < FEEDS_PER_LOOK_MAX:
            del self._unseen[shard]
        else:
            self._unseen[shard] = start + looked_at

    async def _take_turn(self, feed: str) -> None:
        loop = asyncio.get_running_loop()
        shard = self._shards.get(self._keys.shard_of(feed))
        fence = self._leases.held.get(shard.number) if shard is not None else None
        if shard is None or fence is None:
            self._forget(feed)
            return
        try:
            await self._advance(feed, shard, fence)
        except (Unavailable, *UNREACHABLE) as error:
            log.warning("build_interrupted", feed=feed, error=repr(error))
            self._sites.pop(feed, None)
            self._due[feed] = loop.time() + BACKOFF_SECONDS
        except NewerLog as error:
            await self._leave(feed, shard, error)
        except (CannotFold, Corrupted) as error:
            # The live fold, which does not need what the build stumbled over, goes on.
            await self._give_up(feed, error.detail, fence=fence)

    async def _advance(self, feed: str, shard: Shard, fence: int) -> None:
        """One step of the feed's build: begin it, a slice, the flip, or a piece of what is to be removed."""
        site = self._sites.get(feed)
        if site is None:
            survey = await self._rebuilds.survey(feed)
            site = await self._open(feed, survey, fence)
            if site is None:
                return
            self._sites[feed] = site
        elif site.events_left <= 0:
            site.aim(await self._rebuilds.survey(feed))
        if site.events_left > EVENTS_BEFORE_FLIP_MAX:
            await self._slice(site, fence)
        else:
            async with shard.committing:
                await self._finish(site, shard, fence)

    async def _open(self, feed: str, survey: Survey, fence: int) -> Site | None:
        build = survey.build
        if build is None or not build.under_way:
            await self._clear_away(feed, survey)
            return None
        this = Release.this()
        if not this.knows(build.release) or (survey.made_by is not None and not this.knows(survey.made_by)):
            raise NewerLog(f"the build of {feed!r} needs a newer release: {build.release}", feed=feed)
        if survey.active is None:
            # Not projected yet: there is nothing to put a new generation in the place of.
            self._shards[self._keys.shard_of(feed)].wake(feed)
            self._due[feed] = asyncio.get_running_loop().time() + ASIDE_SECONDS
            return None
        if build.state == "asked":
            self._judge(feed, await self._rebuilds.begin(build, fence=fence))
            return None
        if build.generation is None or survey.made_by is None:
            raise Corrupted(f"the build of {feed!r} has begun and has no generation", feed=feed)
        if survey.made_by != this:
            await self._builds.ask_anew(feed, reason="release", by="projector")
            return None
        log.info("build_goes_on", feed=feed, generation=build.generation, checkpoint=str(survey.checkpoint))
        return Site(build, build.generation, survey)

    async def _slice(self, site: Site, fence: int) -> bool:
        throttle = site.build.throttle
        events_max = EVENTS_PER_SLICE_MAX if throttle is None else max(1, int(throttle / 4))
        before = site.checkpoint
        built = self._judge(site.build.feed, await self._rebuilds.slice(site, fence=fence, events_max=events_max))
        if built and throttle is not None:
            self._due[site.build.feed] += (site.checkpoint.n - before.n) / throttle
        return built

    async def _finish(self, site: Site, shard: Shard, fence: int) -> None:
        """The last slices and the flip; the caller holds up the shard's commits, so that the live checkpoint stands still."""
        feed = site.build.feed
        survey = await self._rebuilds.survey(feed)
        site.aim(survey)
        if site.events_left > EVENTS_BEFORE_FLIP_MAX:
            return
        while site.events_left > 0:
            if not await self._slice(site, fence):
                return
        answer = await flip(self._redis, self._keys, site, survey, fence=fence)
        log.info("flip", feed=feed, answer=answer, generation=site.generation, checkpoint=str(site.checkpoint))
        self._judge(feed, answer)
        self._sites.pop(feed, None)
        # What stood still meanwhile, or was appended by a repair.
        shard.wake(feed)

    def _judge(self, feed: str, answer: str) -> bool:
        """Whether an act took effect. After a refusal nothing that is held here is trusted any more."""
        if answer in ("begun", "built", "flipped"):
            return True
        log.info("build_refused", feed=feed, why=answer)
        self._sites.pop(feed, None)
        if answer == "unadmitted":
            self._due[feed] = asyncio.get_running_loop().time() + ASIDE_SECONDS
        if answer == "fenced":
            self._leases.held.pop(self._keys.shard_of(feed), None)
        return False

    async def _clear_away(self, feed: str, survey: Survey) -> None:
        for generation in survey.retired:
            if generation != survey.active and await remove_piece(self._redis, self._keys, feed, generation):
                return
        if await rest(self._redis, self._keys, feed):
            self._forget(feed)

    async def _give_up(self, feed: str, why: str, *, fence: int) -> None:
        site = self._sites.pop(feed, None)
        build = site.build if site is not None else await self._builds.latest(feed)
        log.error("build_failed", feed=feed, detail=why)
        if build is not None:
            await self._rebuilds.fail(build, why, fence=fence)

    async def _leave(self, feed: str, shard: Shard, error: NewerLog) -> None:
        """The live fold goes on; the shard goes to a projector that can carry the build out, as soon as there is one."""
        self._sites.pop(feed, None)
        build: Build | None = await self._builds.latest(feed)
        others = await self._leases.releases()
        if build is not None and any(release.knows(build.release) for release in others):
            await self._hand_over(shard, error)
            return
        self._due[feed] = asyncio.get_running_loop().time() + ASIDE_SECONDS

    def _forget(self, feed: str) -> None:
        self._sites.pop(feed, None)
        self._due.pop(feed, None)

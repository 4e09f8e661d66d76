"""Histories to rebuild, and a shard's owner who carries builds out step by step, for tests of `rebuild`, `flip` and `retired`."""

import random
from collections.abc import Iterable
from typing import Any

from services.projector import flip as flip_module
from services.projector import rebuild as rebuild_module
from services.projector import retired as retired_module
from services.projector.builds import Build, Builds, Reason
from services.projector.flip import flip
from services.projector.rebuild import EVENTS_PER_SLICE_MAX, Rebuilds, Site, Survey
from services.projector.retired import remove_piece, rest
from shared.append import EVENTS_PER_APPEND_MAX, Appended
from shared.events import (
    Encoded,
    EntryChanges,
    EntryCorrected,
    EntryPinned,
    EntryRetracted,
    EntryUnpinned,
    Event,
    FeedChanges,
    FeedRevised,
    KeyEventMarked,
    KeyEventUnmarked,
    RetractionReason,
)
from shared.keys import Keys
from shared.log import Log
from shared.position import Position
from shared.redis import Redis, Script, command
from tests.integration.builders import (
    Projection,
    appending,
    content,
    damaged,
    open_feed,
    published,
)

BEGIN = Script(rebuild_module.__file__, "begin.lua")
BUILD = Script(rebuild_module.__file__, "build.lua")
FAIL = Script(rebuild_module.__file__, "fail.lua")
FLIP = Script(flip_module.__file__, "flip.lua")
RETIRE = Script(retired_module.__file__, "retire.lua")
REST = Script(retired_module.__file__, "rest.lua")

TAGS = ("goal", "var", "team")


def history(seed: int, *, events: int, entries: int = 8) -> list[Event | Encoded]:
    """Any events about a few entries: many fit, some do not, some are damaged."""
    chance = random.Random(seed)
    revisions: dict[str, int] = {}
    made: list[Event | Encoded] = []
    for number in range(events):
        entry = f"e{chance.randrange(entries)}"
        revision = revisions.get(entry, 0)
        tags = chance.sample(TAGS, chance.randrange(3))
        time = chance.choice([None, "2022-01-10T18:38:00.000Z", "2022-01-10T18:39:00.000Z"])
        kind = chance.randrange(9 if revision else 1)
        event: Event
        if kind == 0:
            event = published(
                entry, headline=f"No. {number}", published_at=time, content=content(f"{number}", tags=tags)
            )
            revisions.setdefault(entry, 1)
        elif kind in (1, 2):
            event = EntryCorrected(entry, revision + 1, time, EntryChanges(headline=f"No. {number}", tags=tags))
            revisions[entry] = revision + 1
        elif kind == 3 and chance.random() < 0.3:
            event = EntryRetracted(entry, RetractionReason(None))
        elif kind == 4:
            event = FeedRevised(FeedChanges(title=f"No. {number}"))
        else:
            flag: type[EntryPinned] | type[EntryUnpinned] | type[KeyEventMarked] | type[KeyEventUnmarked]
            flag = chance.choice((EntryPinned, EntryUnpinned, KeyEventMarked, KeyEventUnmarked))
            event = flag(entry)
        made.append(event)
        if chance.random() < 0.03:
            made.append(damaged(published(f"d{number}")))
    return made


async def append(log: Log, feed: str, events: Iterable[Event | Encoded]) -> None:
    waiting = list(events)
    while waiting:
        batch, waiting = waiting[:EVENTS_PER_APPEND_MAX], waiting[EVENTS_PER_APPEND_MAX:]
        assert isinstance(await log.append(feed, appending(*batch)), Appended)


class Owner(Projection):
    """The owner of the feed's shard: commits live batches, and takes each step of a build by hand."""

    def __init__(self, redis: Redis, keys: Keys, feed: str, *, fence: int = 1) -> None:
        super().__init__(redis, keys, feed, fence=fence)
        self.builds = Builds(redis, keys)
        self.rebuilds = Rebuilds(redis, keys)

    async def ask(self, *, reason: Reason = "rebuild", without: Iterable[Position] = (), **more: Any) -> Build:
        return await self.builds.ask(self.feed, reason=reason, by="ops:anna", without=without, **more)

    async def survey(self) -> Survey:
        return await self.rebuilds.survey(self.feed)

    async def latest(self) -> Build:
        latest = await self.builds.latest(self.feed)
        assert latest is not None
        return latest

    async def begin(self) -> str:
        return await self.rebuilds.begin(await self.latest(), fence=self.fence)

    async def site(self) -> Site:
        survey = await self.survey()
        assert survey.build is not None and survey.build.generation is not None
        return Site(survey.build, survey.build.generation, survey)

    async def slice(self, site: Site, *, events_max: int = EVENTS_PER_SLICE_MAX) -> str:
        return await self.rebuilds.slice(site, fence=self.fence, events_max=events_max)

    async def built(self, *, events_max: int = EVENTS_PER_SLICE_MAX) -> Site:
        """The build that was asked for, begun and folded to the live checkpoint."""
        if (await self.latest()).state == "asked":
            assert await self.begin() == "begun"
        site = await self.site()
        while site.events_left > 0:
            assert await self.slice(site, events_max=events_max) == "built"
        return site

    async def flip(self, site: Site) -> str:
        return await flip(self.redis, self.keys, site, await self.survey(), fence=self.fence)

    async def clear_away(self) -> None:
        for generation in (await self.survey()).retired:
            while await remove_piece(self.redis, self.keys, self.feed, generation):
                pass
        await rest(self.redis, self.keys, self.feed)

    async def active(self) -> int:
        return int(await command(self.redis, "GET", self.keys.feed(self.feed).active))

    async def generations(self) -> set[int]:
        """The generations that any key is left of."""
        prefix = self.keys.feed(self.feed).generation
        found = [key.decode() async for key in self.redis.scan_iter(match=f"{prefix}*", count=5000)]
        heads = {key.removeprefix(prefix).partition(":")[0] for key in found}
        return {int(head) for head in heads if head.isdigit()}

    async def keys_of(self, generation: int) -> dict[str, Any]:
        """Every key of a generation, whatever it is, as bytes."""
        prefix = f"{self.keys.feed(self.feed).generation}{generation}:"
        found: dict[str, Any] = {}
        async for key in self.redis.scan_iter(match=f"{prefix}*", count=5000):
            kind = (await command(self.redis, "TYPE", key)).decode()
            reading = {"string": "GET", "hash": "HGETALL", "set": "SMEMBERS"}.get(kind)
            name = key.decode().removeprefix(prefix)
            if reading is None:
                found[name] = await command(self.redis, "ZRANGE", key, 0, -1, "WITHSCORES")
            else:
                value = await command(self.redis, reading, key)
                found[name] = sorted(value) if kind == "set" else value
        return found


async def an_owner(redis: Redis, keys: Keys, feed: str, events: Iterable[Event | Encoded] = ()) -> Owner:
    """The owner of a feed of these events, all of them committed."""
    log = Log(redis, keys)
    await open_feed(log, feed)
    await append(log, feed, events)
    owner = Owner(redis, keys, feed)
    await owner.to_head()
    return owner

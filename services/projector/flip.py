"""The flip: readers get the generation that was built beside the live one, at the very checkpoint of the live one.

Owns that one act. Caches, cursors and ETags stay good, because positions come from the log; a repair, which changes what
readers hold at a position, raises the epoch in the same act.
"""

from services.projector.rebuild import Site, Survey
from shared.events import EpochRaised, encode
from shared.keys import Keys
from shared.redis import Arg, Redis, Script

_flip = Script(__file__, "flip.lua")


async def flip(redis: Redis, keys: Keys, site: Site, survey: Survey, *, fence: int) -> str:
    """ "flipped", or why not: "fenced", "dropped" (another build was asked for), "moved" (the live generation did).

    A repair of a log whose server may have lost some of it is "unadmitted" until that is settled, like any append.
    """
    build = site.build
    feed = keys.feed(build.feed)
    shard = keys.shard(keys.shard_of(build.feed))
    active = feed.of_generation(survey.active or 0)
    envelope = b""
    if build.without:
        raised = EpochRaised(reason="repaired", because=build.because)
        envelope = encode(raised, command=build.token, by=build.by, causation=None).envelope
    names = (
        shard.lease,
        feed.active,
        active.meta,
        feed.of_generation(site.generation).meta,
        feed.build,
        feed.retired,
        shard.frames,
        feed.quarantine,
        feed.log,
        feed.head,
        shard.dirty,
        shard.doorbell,
        shard.incarnation,
    )
    args: list[Arg] = [
        fence,
        build.feed,
        build.token,
        survey.active or 0,
        site.generation,
        str(site.checkpoint),
        envelope,
        build.because,
    ]
    args += [str(position) for position in sorted(build.without)]
    answer: bytes = await _flip(redis, names, args)
    return answer.decode()

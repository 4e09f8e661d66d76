"""Retired generations: what a flip, a failed or a superseded build leaves, removed in bounded pieces.

Owns the removal. Who asks for it: the builder after a flip, and a redaction, which cannot wait.
"""

from services.projector.builds import Builds
from shared.keys import Keys
from shared.redis import Redis, Script, command

INDEXES_PER_PIECE_MAX = 100

_retire = Script(__file__, "retire.lua")
_rest = Script(__file__, "rest.lua")


async def remove_piece(redis: Redis, keys: Keys, feed: str, generation: int) -> bool:
    """Remove some of a retired generation; whether there is more of it. The active one is never touched."""
    its = keys.feed(feed)
    parts = its.of_generation(generation)
    names = (its.retired, its.active, parts.names, parts.documents, parts.feed, parts.meta)
    return bool(await _retire(redis, names, (generation, parts.indexes, INDEXES_PER_PIECE_MAX)))


async def rest(redis: Redis, keys: Keys, feed: str) -> bool:
    """Take the feed off its shard's list of builds, unless there is something left to build or to remove."""
    its = keys.feed(feed)
    return bool(await _rest(redis, (its.build, its.retired, keys.shard(keys.shard_of(feed)).builds), (feed,)))


async def only_active_generation(redis: Redis, keys: Keys, feed: str, *, by: str) -> int:
    """Make the feed free of every generation but the active one, at once; gives how many were removed.

    For a redaction, after the content has left the log: what a build under way has made is dropped, and the build begins
    again, from the log as it is now.
    """
    await Builds(redis, keys).ask_anew(feed, reason="redaction", by=by)
    retired = sorted(int(generation) for generation in await command(redis, "SMEMBERS", keys.feed(feed).retired))
    for generation in retired:
        while await remove_piece(redis, keys, feed, generation):
            pass
    return len(retired)

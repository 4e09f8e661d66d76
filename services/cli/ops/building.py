"""Watching builds until all are over: what `ops rebuild` and `ops quarantine retry` do after they have asked.

Owns the watching. The builds go on without it: it may end, and another may begin, at any time.
"""

import asyncio
from collections.abc import Mapping, Sequence

from services.cli.ops.server import Server
from services.cli.progress import Progress
from services.projector.builds import Build, parse_build
from shared.errors import Corrupted

LOOK_SECONDS = 0.1
FEEDS_PER_LOOK_MAX = 200
# A build that nobody begins for so long is worth a word.
WAITING_SECONDS = 10.0


async def watch(server: Server, feeds: Sequence[str]) -> Mapping[str, Build]:
    """Show the builds of these feeds until each is flipped or has failed; gives them as they ended."""
    loop = asyncio.get_running_loop()
    over: dict[str, Build] = {}
    heads: dict[str, int] = {}
    done: dict[str, int] = dict.fromkeys(feeds, 0)
    started = loop.time()
    with Progress("rebuilding") as progress:
        while True:
            waiting = 0
            left = [feed for feed in feeds if feed not in over]
            for start in range(0, len(left), FEEDS_PER_LOOK_MAX):
                for build, head in await _look(server, left[start : start + FEEDS_PER_LOOK_MAX]):
                    heads[build.feed] = max(heads.get(build.feed, 0), head)
                    done[build.feed] = heads[build.feed] if not build.under_way else build.checkpoint.n
                    waiting += build.state == "asked"
                    if not build.under_way:
                        over[build.feed] = build
            note = _note(over, feeds, waiting, loop.time() - started)
            progress.show("feeds", done=sum(done.values()), total=sum(heads.values()), note=note)
            if len(over) == len(feeds):
                return {feed: over[feed] for feed in feeds}
            await asyncio.sleep(LOOK_SECONDS)


def _note(over: Mapping[str, Build], feeds: Sequence[str], waiting: int, seconds: float) -> str:
    if len(feeds) == 1 and not waiting:
        return feeds[0]
    text = f"{len(over)} of {len(feeds)} feeds"
    if waiting and seconds > WAITING_SECONDS:
        text += f", {waiting} not begun: no projector of this release owns the shard yet, or it has others to build"
    return text


async def _look(server: Server, feeds: Sequence[str]) -> list[tuple[Build, int]]:
    pipeline = server.redis.pipeline(transaction=False)
    for feed in feeds:
        keys = server.keys.feed(feed)
        pipeline.hgetall(keys.build)
        pipeline.hget(keys.head, "n")
    answers = await pipeline.execute()
    found = []
    for feed, raw, n in zip(feeds, answers[::2], answers[1::2], strict=True):
        build = parse_build(feed, raw)
        if build is None:
            raise Corrupted(f"the build of {feed!r} has vanished", feed=feed)
        found.append((build, int(n or 0)))
    return found

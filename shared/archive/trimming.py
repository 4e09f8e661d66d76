"""Trimming: archived events out of a feed's stream, once the archive was read back and compared with them.

Owns the comparison and the script that trims. How the log is read afterwards, archive and stream as one, is `log`'s.
"""

from typing import Any, NamedTuple

from shared.archive.archiving import Progress, head_of
from shared.archive.segments import Segment
from shared.errors import Corrupted, FeedNotFound, Unavailable
from shared.keys import Keys
from shared.log import Log, in_order, stream_entry
from shared.ndjson import StreamEntry
from shared.position import Position
from shared.redis import Redis, Script, command

_trim = Script(__file__, "trim.lua")


class Trimmed(NamedTuple):
    """`events` went from the stream; `kept` says why it was not more, None when nothing more is archived."""

    trimmed_to: Position
    events: int
    kept: str | None


class Trimming:
    """Trims streams of one installation."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._archives = Log(redis, keys).archives

    async def trim(self, feed: str, *, progress: Progress = lambda n: None) -> Trimmed:
        """Take from the stream what the archive holds, segment by segment, each read back and compared event by event.

        Never above the lowest checkpoint of a generation, never the last event. Raises Corrupted when archive and stream
        differ; what was trimmed before stays trimmed, and verified.
        """
        state = await self._archives.state(feed)
        if state is None:
            raise FeedNotFound(feed)
        archive = self._archives.at(state.url, feed)
        found = await archive.manifest()
        if found is None:
            raise Corrupted(f"the archive of {feed!r} at {archive.url} has no manifest", feed=feed)
        manifest = found.manifest
        trimmed_to, gone = state.trimmed_to, 0
        first = await command(self._redis, "XRANGE", self._keys.feed(feed).log, "-", "+", "COUNT", 1)
        after = stream_entry(first[0]).position.n - 1 if first else 0
        limit, why = await self._limit(feed)
        for number, segment in enumerate(manifest.segments):
            if segment.end.n <= after:
                continue
            archived = await archive.entries(segment, chain_before=manifest.chain_before(number))
            if archived is None:
                raise Unavailable(f"the archive of {feed!r} was rewritten meanwhile; try again", feed=feed)
            here = [entry for entry in archived if after < entry.position.n <= limit]
            if not here:
                return Trimmed(trimmed_to, gone, why)
            await self._compare(feed, segment, here)
            to = here[-1].position
            answer = await self._trim_to(feed, archive.url, to)
            if answer[0] == b"kept":
                return Trimmed(trimmed_to, gone, answer[1].decode())
            gone += answer[1]
            trimmed_to, after = to, to.n
            progress(to.n)
        return Trimmed(trimmed_to, gone, why if limit < manifest.end.n else None)

    async def _compare(self, feed: str, segment: Segment, archived: list[StreamEntry]) -> None:
        first, last = archived[0], archived[-1]
        raw = await command(
            self._redis, "XRANGE", self._keys.feed(feed).log, first.id, last.id, "COUNT", len(archived) + 1
        )
        standing = in_order(feed, raw, after=Position(1, first.position.n - 1))
        if standing != archived:
            differing = next(
                (a.id.decode() for a, b in zip(archived, standing, strict=False) if a != b), last.id.decode()
            )
            raise Corrupted(
                f"the archive's object {segment.object} differs from the log of {feed!r} at {differing}",
                object=segment.object,
                position=differing,
            )

    async def _trim_to(self, feed: str, url: str, to: Position) -> Any:
        keys = self._keys.feed(feed)
        return await _trim(
            self._redis, (keys.log, keys.head, keys.active, keys.build, keys.archive), (keys.generation, str(to), url)
        )

    async def _limit(self, feed: str) -> tuple[int, str]:
        """The last n that may go, and what keeps the next one."""
        keys = self._keys.feed(feed)
        active = await command(self._redis, "GET", keys.active)
        checkpoints = {"the live generation is not so far": 0}
        if active is not None:
            meta = keys.of_generation(int(active)).meta
            checkpoints["the live generation is not so far"] = _position_n(
                await command(self._redis, "HGET", meta, "checkpoint")
            )
        state, built_to = await command(self._redis, "HMGET", keys.build, "state", "checkpoint")
        if state in (b"asked", b"building"):
            checkpoints["a generation that is being built is not so far"] = _position_n(built_to)
        checkpoints["the last event stays"] = (await head_of(self._redis, self._keys, feed)).n - 1
        why = min(checkpoints, key=lambda name: checkpoints[name])
        return checkpoints[why], why


def _position_n(raw: bytes | None) -> int:
    return Position.parse(raw.decode()).n if raw else 0

"""A look at feeds for `ops status`: reads only, each feed of one moment, many feeds in one round trip.

Owns the reading of feeds, and of which there are. What it means is `report`'s.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

from services.cli.ops.feed_status import ArchiveStatus, BuildStatus, EpochStatus, FeedStatus, LogSize, Quarantine
from services.projector.builds import parse_build
from shared.errors import FeedNotFound
from shared.instants import instant_of, optional_instant
from shared.keys import SHARDS, Keys
from shared.position import ORIGIN, Position
from shared.redis import Redis, Script, command, run_pipeline

FEEDS_PER_ROUND = 50

_look = Script(__file__, "look.lua", read_only=True)


async def feeds_of(redis: Redis, keys: Keys, named: Sequence[str]) -> AsyncIterator[FeedStatus]:
    """Every feed, shard by shard, or those named; FeedNotFound for one that is not there."""
    if named:
        for feed, found in zip(named, await _look_at(redis, keys, named), strict=True):
            if found is None:
                raise FeedNotFound(feed)
            yield found
        return
    for shard in range(SHARDS):
        names = await _names(redis, keys, shard)
        for start in range(0, len(names), FEEDS_PER_ROUND):
            for found in await _look_at(redis, keys, names[start : start + FEEDS_PER_ROUND]):
                if found is not None:
                    yield found


async def known_feeds(redis: Redis, keys: Keys) -> list[str]:
    """The id of every feed, shard by shard."""
    return [feed for shard in range(SHARDS) for feed in await _names(redis, keys, shard)]


async def _names(redis: Redis, keys: Keys, shard: int) -> list[str]:
    """A feed that no projector has seen yet is dirty, and not among the shard's feeds."""
    names = keys.shard(shard)
    feeds = await command(redis, "ZRANGE", names.feeds, 0, -1)
    return sorted({name.decode() for name in [*feeds, *await command(redis, "SMEMBERS", names.dirty)]})


async def _look_at(redis: Redis, keys: Keys, feeds: Sequence[str]) -> list[FeedStatus | None]:
    pipeline = redis.pipeline(transaction=False)
    for feed in feeds:
        names = keys.feed(feed)
        looked_at = (names.head, names.log, names.active, names.quarantine, names.build, names.archive)
        _look.queue(pipeline, looked_at, (names.generation,))
    answers = await run_pipeline(redis, pipeline, (_look,))
    return [_feed(feed, _Looked(*answer)) for feed, answer in zip(feeds, answers, strict=True)]


class _Looked(NamedTuple):
    """What the script gives."""

    now: bytes
    head: Sequence[bytes]
    events: int
    memory_bytes: int
    first: bytes | None
    generation: bytes | None
    meta: Sequence[bytes]
    waiting: bytes | None
    quarantined: int
    discarded: int
    build: Sequence[bytes]
    archive: Sequence[bytes]


def _feed(feed: str, found: _Looked) -> FeedStatus | None:
    head, meta = _fields(found.head), _fields(found.meta)
    if "n" not in head:
        return None
    position = Position(int(head["epoch"]), int(head["n"]))
    checkpoint = Position.parse(meta["checkpoint"]) if "checkpoint" in meta else None
    # An append's stamp may be ahead of a server's clock that was set back.
    waiting_milliseconds = max(0, int(found.now) - int(found.waiting)) if found.waiting else 0
    return FeedStatus(
        feed=feed,
        shard=Keys.shard_of(feed),
        status=head["status"],
        entries=int(head["live"]),
        head=str(position),
        recorded_at=instant_of(int(head["recorded_at"])),
        checkpoint=str(checkpoint) if checkpoint else None,
        lag_events=position.n - (checkpoint or ORIGIN).n,
        lag_seconds=waiting_milliseconds / 1000,
        generation=int(found.generation) if found.generation else None,
        fold_version=int(meta["fold"]) if "fold" in meta else None,
        epoch=EpochStatus(
            number=position.epoch,
            raised_at=optional_instant(head.get("raised_at")),
            reason=head.get("raised_reason"),
            because=head.get("raised_because"),
        ),
        quarantine=Quarantine(open=found.quarantined - found.discarded, discarded=found.discarded),
        log=LogSize(
            events=found.events, memory_bytes=found.memory_bytes, first=found.first.decode() if found.first else None
        ),
        archive=_archive(_fields(found.archive)),
        build=_build(feed, found.build, position),
    )


def _archive(found: Mapping[str, str]) -> ArchiveStatus:
    return ArchiveStatus(
        url=found.get("url"),
        archived_to=found.get("archived_to"),
        trimmed_to=found.get("trimmed_to"),
        bytes=int(found["bytes"]) if "bytes" in found else None,
    )


def _build(feed: str, raw: Sequence[bytes], head: Position) -> BuildStatus | None:
    build = parse_build(feed, dict(zip(raw[::2], raw[1::2], strict=True)))
    if build is None:
        return None
    return BuildStatus(
        state=build.state,
        reason=build.reason,
        by=build.by,
        because=build.because or None,
        generation=build.generation,
        checkpoint=str(build.checkpoint) if build.checkpoint != ORIGIN else None,
        events=build.events,
        progress=build.checkpoint.n / head.n if build.under_way else None,
        requested_at=instant_of(build.requested_at),
        started_at=optional_instant(build.started_at),
        updated_at=optional_instant(build.updated_at),
        detail=build.detail or None,
    )


def _fields(flat: Sequence[bytes]) -> Mapping[str, str]:
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}

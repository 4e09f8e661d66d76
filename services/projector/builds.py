"""Builds: the record of a feed's latest rebuild, who asked for it and how far it is.

Owns asking and looking. A request only asks: the projector that owns the shard carries it out (`rebuild`, `builder`), and the
record is where it goes on after a crash.
"""

import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

import msgspec
from msgspec import Struct

from services.projector.release import Release
from shared.errors import Corrupted
from shared.instants import instant_of
from shared.keys import Keys
from shared.position import ORIGIN, Position
from shared.redis import Redis, Script

_ask = Script(__file__, "ask.lua")

Reason = Literal["rebuild", "release", "repair", "redaction"]
State = Literal["asked", "building", "flipped", "failed"]


class Build(Struct, frozen=True):
    """One build. Instants in milliseconds since 1970; `without` are positions that it takes out of quarantine."""

    feed: str
    token: str
    state: State
    reason: Reason
    by: str
    release: Release
    requested_at: int
    because: str = ""
    without: frozenset[Position] = frozenset()
    throttle: float | None = None
    generation: int | None = None
    checkpoint: Position = ORIGIN
    events: int = 0
    detail: str = ""
    started_at: int | None = None
    updated_at: int | None = None

    @property
    def under_way(self) -> bool:
        return self.state in ("asked", "building")

    def does(self, other: "Build") -> bool:
        """Whether this one, done, has done what `other` asks."""
        return self.release.knows(other.release) and self.without >= other.without

    def as_json(self) -> Mapping[str, Any]:
        """For operators: `ops rebuild --json` and `ops status --json`."""
        return {
            "feed": self.feed,
            "state": self.state,
            "reason": self.reason,
            "by": self.by,
            "because": self.because or None,
            "repairs": [str(position) for position in sorted(self.without)],
            "throttle_events_per_second": self.throttle,
            "generation": self.generation,
            "checkpoint": str(self.checkpoint) if self.checkpoint != ORIGIN else None,
            "events": self.events,
            "detail": self.detail or None,
            "requested_at": instant_of(self.requested_at),
            "started_at": instant_of(self.started_at) if self.started_at is not None else None,
            "updated_at": instant_of(self.updated_at) if self.updated_at is not None else None,
        }


class Builds:
    """The builds of one installation's feeds."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def latest(self, feed: str) -> Build | None:
        return parse_build(feed, await cast("Any", self._redis.hgetall(self._keys.feed(feed).build)))

    async def ask(
        self,
        feed: str,
        *,
        reason: Reason,
        by: str,
        because: str = "",
        without: Iterable[Position] = (),
        throttle: float | None = None,
    ) -> Build:
        """Ask for a build by this release, or join the one under way; gives the build that stands.

        One that does not do what is asked (it repairs other positions, or an older release asked for it) is asked anew, to do
        both.
        """
        asked = Build(
            feed=feed,
            token=secrets.token_hex(8),
            state="asked",
            reason=reason,
            by=by,
            release=Release.this(),
            requested_at=_now(),
            because=because,
            without=frozenset(without),
            throttle=throttle,
        )
        while True:
            before = await self.latest(feed)
            new = asked
            if before is not None and before.under_way:
                if before.does(asked):
                    return before
                new = _both(before, asked)
            if await self._put(new, before):
                return new

    async def ask_anew(self, feed: str, *, reason: Reason, by: str) -> Build | None:
        """Drop what the build under way has made, and have it begin again; None when none is under way."""
        while True:
            before = await self.latest(feed)
            if before is None or not before.under_way:
                return None
            new = msgspec.structs.replace(
                before,
                token=secrets.token_hex(8),
                state="asked",
                reason="repair" if before.without else reason,
                by=by,
                # Under the release that asks, so that it can be begun by whoever made it necessary.
                release=_newer(before.release, Release.this()),
                requested_at=_now(),
            )
            if await self._put(new, before):
                return new

    async def _put(self, build: Build, before: Build | None) -> bool:
        feed = self._keys.feed(build.feed)
        shard = self._keys.shard(self._keys.shard_of(build.feed))
        fields: dict[str, str] = {
            "token": build.token,
            "reason": build.reason,
            "by": build.by,
            "because": build.because,
            "without": " ".join(str(position) for position in sorted(build.without)),
            "throttle": "" if build.throttle is None else str(build.throttle),
            "fold": str(build.release.fold),
            "read_models": ",".join(build.release.models),
            "requested_at": str(build.requested_at),
        }
        args = [build.feed, before.token if before is not None else ""]
        for field, value in fields.items():
            args += [field, value]
        if await _ask(self._redis, (feed.build, shard.builds, feed.retired, shard.doorbell), args):
            return True
        # Ours, when the reply to the first arrival was lost.
        latest = await self.latest(build.feed)
        return latest is not None and latest.token == build.token


def parse_build(feed: str, raw: Mapping[bytes, bytes]) -> Build | None:
    """The build's record as the hash holds it, None for an empty one."""
    if not raw:
        return None
    found = {name.decode(): value.decode() for name, value in raw.items()}
    try:
        reason, state = found["reason"], found["state"]
        if reason not in get_args(Reason) or state not in get_args(State):
            raise ValueError(f"no such reason or state: {reason!r}, {state!r}")
        return Build(
            feed=feed,
            token=found["token"],
            state=cast("State", state),
            reason=cast("Reason", reason),
            by=found["by"],
            release=Release.parse(found["fold"].encode(), found["read_models"].encode()),
            requested_at=int(found["requested_at"]),
            because=found["because"],
            without=frozenset(Position.parse(position) for position in found["without"].split()),
            throttle=float(found["throttle"]) if found["throttle"] else None,
            generation=_whole(found.get("generation")),
            checkpoint=Position.parse(found["checkpoint"]) if found.get("checkpoint") else ORIGIN,
            events=_whole(found.get("events")) or 0,
            detail=found.get("detail", ""),
            started_at=_whole(found.get("started_at")),
            updated_at=_whole(found.get("updated_at")),
        )
    except (KeyError, ValueError) as error:
        raise Corrupted(f"the build of {feed!r} cannot be read: {error!r}", feed=feed) from error


def _both(before: Build, asked: Build) -> Build:
    repairs = before.without | asked.without
    return msgspec.structs.replace(
        asked,
        reason="repair" if repairs else asked.reason,
        because=asked.because or before.because,
        without=repairs,
        release=_newer(before.release, asked.release),
    )


def _newer(one: Release, other: Release) -> Release:
    return one if one.knows(other) else other


def _whole(text: str | None) -> int | None:
    return int(text) if text else None


def _now() -> int:
    return time.time_ns() // 1_000_000

"""Append: one command's events on their way into a feed's log, what they are guarded by, and what the server answers.

Owns the append script, the form of its call and the meaning of its answers. How calls go to the server is `lanes`', what to
append is decided elsewhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from shared.errors import Corrupted
from shared.events import Encoded
from shared.keys import FeedKeys, ShardKeys
from shared.position import Position
from shared.redis import Arg, Script

EVENTS_PER_APPEND_MAX = 200
BYTES_PER_APPEND_MAX = 2 * 1024 * 1024

SCRIPT = Script(__file__, "append.lua")

RecordStatus = Literal["published", "retracted"]


class Guards(Struct, frozen=True):
    """What must still be as it was when the command was decided; None is not guarded."""

    opens: bool = False
    version: int | None = None
    pins: int | None = None
    entries: Mapping[str, Position | None] = {}


class NewRecord(Struct, frozen=True):
    """An entry's record after the append; its position is that of the command's `event`-th event, from 1."""

    status: RecordStatus
    revision: int
    event: int
    fingerprint: str


class Append(Struct, frozen=True):
    """One command's events, and what the head and the records become when they are appended."""

    command: str
    fingerprint: str
    events: Sequence[Encoded]
    guards: Guards
    live_change: int
    new_status: str | None
    sets_version: bool
    sets_pins: bool
    records: Mapping[str, NewRecord]


class Appended(NamedTuple):
    """The events stand in the log, the last one at `last`."""

    last: Position
    recorded_at: int


class Known(NamedTuple):
    """A command that stands in the log already: how many events it made, and the last one's position."""

    fingerprint: str
    attempt: str
    events: int
    last: Position

    @classmethod
    def parse(cls, value: bytes) -> "Known":
        fingerprint, attempt, events, last = value.decode().split(" ")
        return cls(fingerprint, attempt, int(events), Position.parse(last))


class Stale(NamedTuple):
    """A guard did not hold: `what` changed since the decision."""

    what: str


class Conflict(NamedTuple):
    """The command id stands in the log under another fingerprint."""


class Unadmitted(NamedTuple):
    """The server process is not the one that was admitted: `admission` must first decide what it may have lost."""

    server: str


Answer = Appended | Known | Stale | Conflict | Unadmitted


def keys_of(feed: FeedKeys, shard: ShardKeys) -> tuple[str, ...]:
    """The script's KEYS."""
    on_shard = (shard.dirty, shard.doorbell, shard.touch, shard.incarnation, shard.witnessed)
    return (feed.log, feed.head, feed.entries, *on_shard)


def args_of(feed: str, append: Append, *, commands: str, attempt: str) -> list[Arg]:
    """The script's ARGV; `commands` is the prefix of the feed's command buckets, `attempt` names this very call."""
    guards = append.guards
    args: list[Arg] = [feed, commands, append.command, append.fingerprint, attempt]
    args += ["1" if guards.opens else "", _optional(guards.version), _optional(guards.pins)]
    args += [append.live_change, append.new_status or ""]
    args += ["1" if append.sets_version else "", "1" if append.sets_pins else "", len(guards.entries)]
    for entry, position in guards.entries.items():
        args += [entry, str(position or "")]
    args.append(len(append.events))
    for event in append.events:
        args += [event.envelope, event.content]
    args.append(len(append.records))
    for entry, record in append.records.items():
        args += [entry, f"{record.status} {record.revision}", record.event, record.fingerprint]
    return args


def answer_of(raw: Any) -> Answer:
    """What the script answered."""
    match raw:
        case [b"appended", epoch, n, recorded_at]:
            return Appended(Position(int(epoch), int(n)), int(recorded_at))
        case [b"known", value]:
            return Known.parse(value)
        case [b"stale", what]:
            return Stale(what.decode())
        case [b"conflict"]:
            return Conflict()
        case [b"unadmitted", server]:
            return Unadmitted(server.decode())
    raise Corrupted(f"the append script answered {raw!r}")


def _optional(value: int | None) -> str:
    return "" if value is None else str(value)

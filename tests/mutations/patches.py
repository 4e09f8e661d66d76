"""The guards of the write and the commit path that stand in Python beside the scripts, each with a text that takes it away.

Owns an explicit list: a guard is a line that keeps history whole, and no tool knows which those are.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tests.mutations.mutant import Mutant, line_of


class Patch(NamedTuple):
    """`old` stands in the file exactly once, `new` stands there instead."""

    path: str
    what: str
    old: str
    new: str
    tests: Sequence[str]


class PatchOutdated(Exception):
    """A patch does not apply any more: the guard moved, and the list must follow it."""


def mutant_of(patch: Patch, text: str) -> Mutant:
    if text.count(patch.old) != 1:
        raise PatchOutdated(f"{patch.path}: {patch.what}: {text.count(patch.old)} places read {patch.old!r}")
    start = text.index(patch.old)
    return Mutant(patch.path, line_of(text, start), patch.what, start, start + len(patch.old), patch.new)


DESK = ("test_desk", "test_desk_guards", "test_lost_replies")
COMMIT = ("test_commit", "test_projector")
LANES = ("test_lanes",)

PATCHES: tuple[Patch, ...] = (
    Patch(
        "shared/log.py",
        "a log with a gap is read on",
        'if int(entry.id.partition(b"-")[2]) != n:',
        "if False:",
        ("test_load", "test_commit"),
    ),
    Patch(
        "shared/log.py",
        "a re-sent append is always another's",
        "and answer.attempt == attempt",
        "and False",
        ("test_lost_replies",),
    ),
    Patch(
        "shared/log.py",
        "an append under a known key is always one's own",
        "and answer.attempt == attempt",
        "",
        DESK,
    ),
    Patch("shared/log.py", "a head that lacks a field is read on", "if None in raw:", "if False:", ("test_load",)),
    Patch(
        "shared/lanes.py",
        "what nobody waits for any more is sent",
        "if not sent.answer.done():\n            together",
        "if True:\n            together",
        LANES,
    ),
    Patch(
        "shared/lanes.py",
        "a script that the server forgot is not brought",
        "if isinstance(given, NoScriptError):",
        "if False:",
        LANES,
    ),
    Patch(
        "shared/lanes.py",
        "those behind a lost pipeline go on waiting",
        "_fail(waiting, _not_sent())",
        "pass",
        LANES,
    ),
    Patch(
        "shared/lanes.py",
        "a refusal of one is an answer",
        "elif isinstance(given, Exception):",
        "elif False:",
        LANES,
    ),
    Patch(
        "shared/lanes.py",
        "who asked for less waits for more",
        "lane = self._lanes.get(way)",
        "lane = next(iter(self._lanes.values()), None)",
        LANES,
    ),
    Patch(
        "shared/lanes.py",
        "a confirmation holds up every shard",
        "else (shard, confirmation)",
        "else (0, confirmation)",
        LANES,
    ),
    Patch(
        "services/writer/appends.py",
        "entries are not guarded",
        "record in looked.records.items()},\n        ),",
        "record in ()},\n        ),",
        DESK,
    ),
    Patch(
        "services/writer/appends.py",
        "the feed's version is not guarded",
        "looked.head.version if looked.head and (publishes or of_feed) else None",
        "None",
        DESK,
    ),
    Patch(
        "services/writer/appends.py",
        "publications do not guard the feed's version",
        "if looked.head and (publishes or of_feed) else",
        "if looked.head and of_feed else",
        DESK,
    ),
    Patch(
        "services/writer/appends.py",
        "revisions do not guard the feed's version",
        "if looked.head and (publishes or of_feed) else",
        "if looked.head and publishes else",
        DESK,
    ),
    Patch(
        "services/writer/appends.py",
        "pins are not guarded",
        "looked.head.pins if looked.head and EntryPinned in kinds else None",
        "None",
        DESK,
    ),
    Patch(
        "services/writer/appends.py",
        "an opening does not ask that the feed is not there",
        "opens=looked.head is None",
        "opens=False",
        DESK,
    ),
    Patch(
        "services/writer/appends.py",
        "a retraction does not count as a change of pins",
        "frozenset({EntryPinned, EntryUnpinned, EntryRetracted})",
        "frozenset({EntryPinned, EntryUnpinned})",
        DESK,
    ),
    Patch(
        "services/writer/desk.py",
        "a key under which another request came is replayed",
        "if known.fingerprint != request.fingerprint:",
        "if False:",
        DESK,
    ),
    Patch(
        "services/writer/desk.py",
        "a closed feed's head is remembered like another's",
        'if head is None or head.status == "closed":',
        "if head is None:",
        DESK,
    ),
    Patch(
        "services/writer/desk.py",
        "a remembered head serves every command",
        "if not isinstance(command, PublishEntry) or command.chosen:\n                return None",
        "if not isinstance(command, PublishEntry):\n                continue",
        DESK,
    ),
    Patch(
        "services/writer/state.py",
        "a lagging entry is not brought up",
        "any(record is not None and record.position.n > checkpoint.n for record in looked.records.values())",
        "False",
        DESK,
    ),
    Patch(
        "services/writer/state.py",
        "a lagging feed is not brought up",
        "or (of_feed and head.version > checkpoint.n)",
        "",
        DESK,
    ),
    Patch(
        "services/writer/state.py",
        "lagging pins are not brought up",
        "or (pins and head.pins > checkpoint.n)",
        "",
        DESK,
    ),
    Patch(
        "services/writer/state.py",
        "what is in quarantine is decided upon",
        "if document is None or document.position != str(record.position):",
        "if False:",
        DESK,
    ),
    Patch(
        "services/writer/state.py",
        "a feed whose opening is in quarantine is decided upon",
        "if of_feed and state.feed is None:",
        "if False:",
        DESK,
    ),
    Patch(
        "services/writer/appends.py",
        "an append of any number of events",
        "len(encoded) > EVENTS_PER_APPEND_MAX or ",
        "",
        DESK,
    ),
    Patch(
        "services/writer/appends.py",
        "an append of any size",
        "len(encoded) > EVENTS_PER_APPEND_MAX or size > BYTES_PER_APPEND_MAX",
        "len(encoded) > EVENTS_PER_APPEND_MAX",
        DESK,
    ),
    Patch(
        "services/writer/desk.py", "the keys of two tokens meet", "{request.by}\\0{request.key}", "{request.key}", DESK
    ),
    Patch(
        "services/projector/batch.py",
        "an event that is in quarantine is folded",
        "if entry.id in quarantined:",
        "if False:",
        COMMIT,
    ),
    Patch("services/projector/commit.py", "a commit of any size", "if bytes_left <= 0:", "if False:", COMMIT),
    Patch(
        "services/projector/commit.py",
        "a generation of an older fold is folded on",
        "outdated = fold_version is not None and int(fold_version) < FOLD_VERSION",
        "outdated = False",
        COMMIT,
    ),
    Patch(
        "services/projector/release.py",
        "a generation of a newer fold is folded on",
        "self.fold >= other.fold and ",
        "",
        COMMIT,
    ),
    Patch(
        "services/projector/release.py",
        "read models of a newer release are left out",
        " and set(self.models) >= set(other.models)",
        "",
        COMMIT,
    ),
    Patch(
        "services/projector/commit.py",
        "a generation without a checkpoint is folded from the start",
        "if (generation is None) != (checkpoint is None):",
        "if False:",
        COMMIT,
    ),
    Patch(
        "services/projector/worker.py",
        "a fenced projector goes on",
        'if "fenced" in answers:',
        "if False:",
        COMMIT[::-1],
    ),
    Patch(
        "services/projector/worker.py",
        "a lost shard is folded",
        "if fence is None:",
        "if False:",
        ("test_projector_faults",),
    ),
    Patch(
        "services/projector/worker.py",
        "an event in quarantine rings no alarm when the answer was lost",
        'if answer != "fenced":',
        'if answer == "committed":',
        COMMIT[::-1],
    ),
    Patch(
        "services/projector/worker.py",
        "a feed that moved is not looked at again",
        'if done.more or answer == "moved"',
        "if done.more",
        COMMIT[::-1],
    ),
    Patch(
        "services/projector/lease.py",
        "more than the fair share is kept",
        "await self._release(sorted(self.held)[share:])",
        "pass",
        ("test_lease", "test_projector"),
    ),
    Patch(
        "services/projector/lease.py",
        "a shard that went to another is kept",
        "self.held.pop(shard, None)\n        return sum",
        "pass\n        return sum",
        ("test_lease", "test_projector"),
    ),
    Patch(
        "services/projector/lease.py",
        "shards that are refused are taken",
        "and shard not in set(refused)",
        "",
        ("test_lease", "test_projector"),
    ),
    Patch(
        "shared/redis/asking.py",
        "a script that the server forgot is not sent again in a pipeline",
        "if not isinstance(_meaning(error), NoScriptError):",
        "if True:",
        ("test_commit", "test_lease"),
    ),
    Patch(
        "shared/redis/asking.py",
        "what passes by itself ends the process",
        "if code in _PASSING:",
        "if False:",
        ("test_projector", "test_server_checks"),
    ),
    Patch(
        "shared/redis/asking.py",
        "corruption passes as a server's refusal",
        'if code in ("CORRUPTED", "WRONGTYPE"):',
        "if False:",
        ("test_append", "test_reads"),
    ),
    Patch(
        "shared/redis/connecting.py",
        "a connection that the server closed is taken as it is",
        "if connection.is_connected and await connection.can_read():",
        "if False:",
        ("test_asking",),
    ),
    Patch(
        "shared/redis/connecting.py",
        "who comes again overtakes those who wait for a connection",
        "if not self._waiting and len(",
        "if len(",
        ("test_asking",),
    ),
    Patch(
        "services/projector/warm.py",
        "whatever comes of a log is folded without the documents",
        "if not _all_new(entries, after=known.checkpoint):",
        "if False:",
        ("test_projector",),
    ),
)

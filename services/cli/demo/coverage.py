"""The coverage: an invented story as a script of steps, who does what and when, read from `coverage.json`.

Owns the script's shape, what makes it sound, and what must stand in a feed when it is done. Performing it is the desks'.
"""

from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files

import msgspec
from msgspec import UNSET, Struct, UnsetType

from shared.documents import Author, Block, FeedStatus, Image


class FeedFields(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The editable fields of a feed, as PUT takes them."""

    title: str
    summary: str
    language: str
    timezone: str
    topics: list[str]
    image: Image | None = None
    url: str | None = None


class FeedChanges(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    title: str | UnsetType = UNSET
    summary: str | UnsetType = UNSET
    status: FeedStatus | UnsetType = UNSET


class Written(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an entry is published with; `minutes_before` dates it back, counted from the start of the coverage."""

    headline: str | None = None
    body: list[Block] = []
    authors: list[Author] = []
    tags: list[str] = []
    key_event: bool = False
    minutes_before: int | None = None


class Changed(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a correction changes; `minutes_before` retimes."""

    headline: str | UnsetType = UNSET
    body: list[Block] | UnsetType = UNSET
    authors: list[Author] | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    minutes_before: int | UnsetType = UNSET


class Act(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do"):
    """One thing that a desk does, `after_seconds` into the coverage at speed 1."""

    after_seconds: float
    desk: str


class ReviseFeed(Act, frozen=True, kw_only=True, tag="revise_feed"):
    fields: FeedChanges


class EntryAct(Act, frozen=True, kw_only=True):
    """`ref` is the entry's name in the script; its id is the server's to choose."""

    ref: str


class Publish(EntryAct, frozen=True, kw_only=True, tag="publish"):
    entry: Written


class Correct(EntryAct, frozen=True, kw_only=True, tag="correct"):
    """`seen_revision` is what the desk has before its eyes when another may be faster; None means the latest."""

    changes: Changed
    note: str | None = None
    seen_revision: int | None = None


class Retract(EntryAct, frozen=True, kw_only=True, tag="retract"):
    reason: str


class Pin(EntryAct, frozen=True, kw_only=True, tag="pin"):
    pass


class Unpin(EntryAct, frozen=True, kw_only=True, tag="unpin"):
    pass


class MarkKeyEvent(EntryAct, frozen=True, kw_only=True, tag="mark_key_event"):
    pass


class UnmarkKeyEvent(EntryAct, frozen=True, kw_only=True, tag="unmark_key_event"):
    pass


Step = Publish | Correct | Retract | Pin | Unpin | MarkKeyEvent | UnmarkKeyEvent | ReviseFeed


class FeedCoverage(Struct, frozen=True, forbid_unknown_fields=True):
    """One feed: its document, its desks with their names, and the steps in order of time."""

    id: str
    document: FeedFields
    desks: dict[str, str]
    steps: list[Step]

    @property
    def seconds(self) -> float:
        return max(step.after_seconds for step in self.steps)


class Coverage(Struct, frozen=True, forbid_unknown_fields=True):
    story: str
    feeds: list[FeedCoverage]


class Outcome(Struct, frozen=True):
    """What must stand in a feed once every step is done, by the entries' names in the script."""

    live: frozenset[str]
    retracted: frozenset[str]
    corrected: frozenset[str]
    pinned: frozenset[str]
    key_events: frozenset[str]
    revisions: dict[str, int]
    positions: int


def load() -> Coverage:
    """The coverage that comes with Dateline."""
    data = files("services.cli.demo").joinpath("coverage.json").read_bytes()
    return msgspec.json.decode(data, type=Coverage)


def faults(feed: FeedCoverage) -> list[str]:
    """What is wrong with a feed's script: nobody may refer to what is not there (yet, or any more)."""
    found: list[str] = []
    published_at: dict[str, float] = {}
    retracted_at: dict[str, float] = {}
    last_seconds = 0.0
    for step in feed.steps:
        where = f"{feed.id} at {step.after_seconds} s, {step.desk}"
        if step.after_seconds < last_seconds:
            found.append(f"{where}: not in order of time")
        last_seconds = step.after_seconds
        if step.desk not in feed.desks:
            found.append(f"{where}: there is no such desk")
        match step:
            case ReviseFeed():
                continue
            case Publish(ref=ref) if ref in published_at:
                found.append(f"{where}: {ref} is published twice")
            case Publish(ref=ref, entry=entry):
                published_at[ref] = step.after_seconds
                if not entry.headline and not entry.body:
                    found.append(f"{where}: {ref} has neither headline nor body")
            case _ if published_at.get(step.ref, step.after_seconds) >= step.after_seconds:
                found.append(f"{where}: {step.ref} is not published yet")
            case _ if step.ref in retracted_at:
                found.append(f"{where}: {step.ref} is retracted already")
            case Retract(ref=ref):
                retracted_at[ref] = step.after_seconds
            case Correct(ref=ref, changes=changes) if changes == Changed():
                found.append(f"{where}: the correction of {ref} changes nothing")
            case _:
                continue
    return found


def outcome(feed: FeedCoverage) -> Outcome:
    """Play the steps through. Each appends one event, and the opening of the feed another."""
    live: set[str] = set()
    retracted: set[str] = set()
    revisions: dict[str, int] = {}
    pinned: set[str] = set()
    key_events: set[str] = set()
    for step in feed.steps:
        match step:
            case Publish(ref=ref, entry=entry):
                live.add(ref)
                revisions[ref] = 1
                if entry.key_event:
                    key_events.add(ref)
            case Correct(ref=ref):
                revisions[ref] += 1
            case Retract(ref=ref):
                retracted.add(ref)
            case Pin(ref=ref):
                pinned.add(ref)
            case Unpin(ref=ref):
                pinned.discard(ref)
            case MarkKeyEvent(ref=ref):
                key_events.add(ref)
            case UnmarkKeyEvent(ref=ref):
                key_events.discard(ref)
            case ReviseFeed():
                continue
    return Outcome(
        live=frozenset(live - retracted),
        retracted=frozenset(retracted),
        corrected=frozenset(ref for ref in live - retracted if revisions[ref] > 1),
        pinned=frozenset(pinned - retracted),
        key_events=frozenset(key_events - retracted),
        revisions=revisions,
        positions=1 + len(feed.steps),
    )


def prerequisites(steps: Sequence[Step]) -> list[list[int]]:
    """For each step the earlier ones that it must find done: those on the same entry, for the feed's own all of them.

    Steps of the same instant are left to race: that is how two desks come to correct one entry at once.
    """
    on_entry: defaultdict[str, list[int]] = defaultdict(list)
    needed: list[list[int]] = []
    for index, step in enumerate(steps):
        candidates = list(range(index)) if isinstance(step, ReviseFeed) else on_entry[step.ref]
        needed.append([earlier for earlier in candidates if steps[earlier].after_seconds < step.after_seconds])
        if not isinstance(step, ReviseFeed):
            on_entry[step.ref].append(index)
    return needed

"""Events as lines for a person: when, what, about which entry, and by whom.

Owns what a line says. Nothing from an event reaches the terminal as it came; which events and when is `replay`'s business.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import datetime, tzinfo
from typing import Any

import msgspec

from services.cli.terminal import body_lines, plain, title_of, zone_of
from shared.errors import CannotFold, NewerLog
from shared.events import (
    EntryCorrected,
    EntryPublished,
    EntryRedacted,
    EntryRetracted,
    EpochRaised,
    FeedOpened,
    FeedRevised,
    FeedStatusChanged,
    Recorded,
    decode,
)
from shared.fold import touched
from shared.instants import instant_of
from shared.ndjson import StreamEntry
from shared.position import Position

# Of an entry that is only flagged later, the title is shown; of one long gone by, its id is enough.
TITLES_MAX = 10_000
TYPE_CHARACTERS = 18
WORDS_MAX = 100


class EventLines:
    """`feed` is the feed's document as it stands, for its time zone; None while there is none."""

    def __init__(self, feed: Mapping[str, Any] | None, *, quarantined: Iterable[Position]) -> None:
        self._zone: tzinfo = zone_of(feed)
        self._knows_zone = feed is not None
        self._quarantined = frozenset(quarantined)
        self._titles: OrderedDict[str, str] = OrderedDict()
        self._day = ""

    def lines(self, entry: StreamEntry) -> list[str]:
        """The event's line, and before it the day's when another day has begun."""
        try:
            recorded = decode(entry.id, entry.fields)
        except (CannotFold, NewerLog) as error:
            words = ["cannot be read:", plain(error.detail)]
        else:
            words = self._words(recorded)
        if entry.position in self._quarantined:
            words.insert(0, "[in quarantine]")
        at = datetime.fromisoformat(instant_of(int(entry.fields[b"recorded_at"]))).astimezone(self._zone)
        day = f"{at:%A, %Y-%m-%d}"
        before = [] if day == self._day else [f"— {day} ({at.tzname()}) —"]
        self._day = day
        return [*before, f"{at:%H:%M:%S}  {entry.position!s:>8}  {' '.join(words)}"]

    def _words(self, recorded: Recorded) -> list[str]:
        event = recorded.event
        if isinstance(event, FeedOpened) and not self._knows_zone:
            self._zone = zone_of({"timezone": event.content.timezone})
        entry = touched(event)
        what = "(its content was removed)" if recorded.removed else self._what(event, entry)
        words = [f"{recorded.envelope.type:{TYPE_CHARACTERS}}", plain(entry) if entry else "", what]
        return [word for word in (*words, f"· {plain(recorded.envelope.by)}") if word]

    def _what(self, event: Any, entry: str | None) -> str:
        match event:
            case FeedOpened():
                return plain(event.content.title)
            case FeedRevised():
                return _set(event.content)
            case FeedStatusChanged():
                return event.status
            case EntryPublished():
                return self._published(event)
            case EntryCorrected():
                return self._corrected(event)
            case EntryRetracted():
                return plain(event.content.reason) if event.content.reason else ""
            case EntryRedacted():
                self._titles.pop(event.entry, None)
                return f"{plain(event.reason)}, {len(event.removed)} contents removed"
            case EpochRaised():
                return f"{event.reason}: {plain(event.because)}"
            case _:
                return self._titles.get(entry or "", "")

    def _published(self, event: EntryPublished) -> str:
        title = title_of(msgspec.to_builtins(event.content))
        self._remember(event.entry, title)
        marks = ["[key event]"] if event.key_event else []
        if event.published_at is not None:
            marks.append(f"[dated {self._clock(event.published_at)}]")
        return " ".join([*marks, title])

    def _corrected(self, event: EntryCorrected) -> str:
        if event.content.headline:
            self._remember(event.entry, plain(event.content.headline))
        moved = [] if event.published_at is None else [f"moved to {self._clock(event.published_at)}"]
        return "; ".join(filter(None, [*moved, _set(event.content)]))

    def _clock(self, instant: str) -> str:
        return f"{datetime.fromisoformat(instant).astimezone(self._zone):%Y-%m-%d %H:%M}"

    def _remember(self, entry: str, title: str) -> None:
        self._titles[entry] = title
        if len(self._titles) > TITLES_MAX:
            self._titles.popitem(last=False)


def _set(changes: msgspec.Struct) -> str:
    """The fields that a change sets, each with its value where that is a text."""
    parts = []
    for name, value in msgspec.to_builtins(changes).items():
        label = name.replace("_", " ")
        if name == "body":
            value = " ".join(body_lines(value))
        text = value if isinstance(value, str) else "none" if value is None else ""
        parts.append(f"{label}: {_short(plain(text))}" if text else label)
    return "; ".join(parts)


def _short(text: str) -> str:
    return f"{text[:WORDS_MAX]}…" if len(text) > WORDS_MAX else text

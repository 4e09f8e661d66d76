"""`ops replay`: what a line says of each kind of event, harmless to the terminal, and when each event is due."""

from collections.abc import Sequence

import msgspec
import pytest
from click.testing import CliRunner

from services.cli.ops.event_lines import EventLines
from services.cli.ops.pace import Pace, spoken
from services.cli.ops.replay import replay
from shared.documents import Author, TextBlock
from shared.events import (
    Encoded,
    EntryChanges,
    EntryContent,
    EntryCorrected,
    EntryPinned,
    EntryPublished,
    EntryRedacted,
    EntryRetracted,
    EpochRaised,
    Event,
    FeedChanges,
    FeedFields,
    FeedOpened,
    FeedRevised,
    FeedStatusChanged,
    Removed,
    RetractionReason,
    encode,
)
from shared.instants import milliseconds_of
from shared.ndjson import StreamEntry
from shared.position import Position

START = milliseconds_of("2022-01-10T18:38:00.000Z")
EVIL = "\x1b[2Jred\u202efed\r\nforged"


def entry_of(n: int, event: Event | Encoded, *, seconds: int = 0, by: str = "sports") -> StreamEntry:
    whole = event if isinstance(event, Encoded) else encode(event, command="c", by=by, causation=None)
    stamp = str(START + seconds * 1000).encode()
    fields = {b"envelope": whole.envelope, b"content": whole.content, b"recorded_at": stamp}
    return StreamEntry(f"1-{n}".encode(), fields)


def opened(*, timezone: str = "Europe/Paris") -> FeedOpened:
    return FeedOpened(FeedFields("Final", None, "en", timezone, [], None, None, "public"))


def published(headline: str | None, *, text: str = "t", **more: object) -> EntryPublished:
    facts = {"published_at": None, "key_event": False, **more}
    return EntryPublished("e1", content=EntryContent(headline, [TextBlock(html=text)], [], []), **facts)  # type: ignore[arg-type]


def lines_of(*events: Event | Encoded, quarantined: Sequence[Position] = ()) -> list[str]:
    lines = EventLines({"timezone": "Europe/Paris"}, quarantined=quarantined)
    return [line for n, event in enumerate(events, start=1) for line in lines.lines(entry_of(n, event))]


def test_each_event_says_what_it_did() -> None:
    changes = EntryChanges(
        headline="Corrected", body=[TextBlock(html="<b>new</b>")], tags=["a"], correction_note="a name"
    )
    revised = FeedChanges(title="Final, live", summary=None, topics=["x"])
    said = lines_of(
        opened(),
        FeedRevised(revised),
        FeedStatusChanged("paused"),
        published("Kick-off", key_event=True, published_at="2022-01-10T17:30:00.000Z"),
        EntryPinned("e1"),
        EntryCorrected("e1", 2, "2022-01-10T17:31:00.000Z", changes),
        EntryPinned("e1"),
        EntryRetracted("e1", RetractionReason("not ours")),
        EpochRaised("epoch", "a replica was promoted"),
        EntryRedacted("e1", "court", [Removed("1-4", "d")]),
        EntryPinned("e1"),
    )
    assert said == [
        "— Monday, 2022-01-10 (CET) —",
        "19:38:00       1-1  FeedOpened         Final · sports",
        "19:38:00       1-2  FeedRevised        title: Final, live; summary: none; topics · sports",
        "19:38:00       1-3  FeedStatusChanged  paused · sports",
        "19:38:00       1-4  EntryPublished     e1 [key event] [dated 2022-01-10 18:30] Kick-off · sports",
        "19:38:00       1-5  EntryPinned        e1 Kick-off · sports",
        "19:38:00       1-6  EntryCorrected     e1 moved to 2022-01-10 18:31; headline: Corrected; body: new; tags; "
        "correction note: a name · sports",
        "19:38:00       1-7  EntryPinned        e1 Corrected · sports",
        "19:38:00       1-8  EntryRetracted     e1 not ours · sports",
        "19:38:00       1-9  EpochRaised        epoch: a replica was promoted · sports",
        "19:38:00      1-10  EntryRedacted      e1 court, 1 contents removed · sports",
        "19:38:00      1-11  EntryPinned        e1 · sports",
    ]


def test_what_cannot_be_shown_as_it_was_is_shown_as_what_it_is() -> None:
    gone = encode(published("Kick-off"), command="c", by="sports", causation=None)
    newer = msgspec.json.encode(
        {"type": "EntrySung", "version": 1, "command": "c", "by": "b", "causation": None, "digest": None, "facts": {}}
    )
    _, removed, broken, newer_line, quarantined = lines_of(
        Encoded(gone.envelope, b""),
        Encoded(b"\x1b{", b""),
        Encoded(newer, b""),
        published("Kick-off"),
        quarantined=[Position(1, 4)],
    )
    assert removed.endswith("EntryPublished     e1 (its content was removed) · sports")
    assert "cannot be read: the envelope cannot be read" in broken
    assert "EntrySung version 1 at 1-3 is newer than this release" in newer_line
    assert "[in quarantine] EntryPublished" in quarantined


@pytest.mark.parametrize(
    "event",
    [
        published(EVIL),
        published(None, text=EVIL),
        EntryCorrected("e1", 2, None, EntryChanges(body=[TextBlock(html=EVIL)], authors=[Author(EVIL)], tags=[EVIL])),
        EntryCorrected("e1", 2, None, EntryChanges(headline=EVIL, correction_note=EVIL)),
        EntryRetracted("e1", RetractionReason(EVIL)),
        EntryRetracted(EVIL, RetractionReason(None)),
        EntryRedacted("e1", EVIL, []),
        EpochRaised("epoch", EVIL),
        FeedRevised(FeedChanges(title=EVIL, topics=[EVIL])),
        FeedOpened(FeedFields(EVIL, None, "en", EVIL, [], None, None, "public")),
    ],
    ids=lambda event: type(event).__name__,
)
def test_nothing_of_an_event_steers_the_terminal(event: Event) -> None:
    said = EventLines(None, quarantined=()).lines(entry_of(1, event, by=EVIL))
    assert len(said) == 2
    assert all(character.isprintable() for line in said for character in line)


def test_a_day_is_said_once_and_in_the_feeds_own_zone() -> None:
    lines = EventLines(None, quarantined=())
    said = []
    for n, hour in enumerate((0, 4, 5, 6, 40), start=1):
        said += lines.lines(entry_of(n, opened() if n == 1 else FeedStatusChanged("open"), seconds=hour * 3600))
    assert [line for line in said if line.startswith("—")] == [
        "— Monday, 2022-01-10 (CET) —",
        "— Tuesday, 2022-01-11 (CET) —",
        "— Wednesday, 2022-01-12 (CET) —",
    ]
    assert said[1].startswith("19:38:00")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.announced: list[str] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def pace(self, speed: float) -> Pace:
        return Pace(speed=speed, now=lambda: self.now, sleep=self.sleep, announce=self.announced.append)


async def test_events_are_as_far_apart_as_they_were_recorded() -> None:
    clock = Clock()
    pace = clock.pace(1)
    for seconds in (0, 2, 2, 5):
        await pace.wait(START + seconds * 1000)
    assert clock.slept == pytest.approx([2, 3])
    assert clock.announced == []


async def test_what_printing_takes_is_no_drift() -> None:
    clock = Clock()
    pace = clock.pace(1)
    await pace.wait(START)
    clock.now += 1.5
    await pace.wait(START + 2_000)
    clock.now += 60
    await pace.wait(START + 3_000)
    assert clock.slept == pytest.approx([0.5])


async def test_a_long_silence_is_announced_with_what_it_comes_to_at_this_speed() -> None:
    clock = Clock()
    pace = clock.pace(60)
    for seconds in (0, 60, 60 + 3_720):
        await pace.wait(START + seconds * 1000)
    assert clock.slept == pytest.approx([1, 62])
    assert clock.announced == ["1 h 2 min of silence; the next event in 1 min 2 s"]
    slow = clock.pace(1)
    await slow.wait(START)
    await slow.wait(START + 12_000)
    assert clock.announced[1:] == ["12 s of silence"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (7_200, "2 h"), (90_000, "1 d 1 h")]
)
def test_spans_are_spoken_in_their_two_largest_units(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


@pytest.mark.parametrize(
    "words",
    [
        ["story", "--from", "yesterday"],
        ["story", "--to", "1"],
        ["story", "--speed", "0"],
        ["story", "--fast", "--speed", "2"],
        ["story", "--from", "1-9", "--to", "1-8"],
        ["story", "--from", "2022-01-10T18:38:00Z", "--to", "2022-01-10T18:37:00Z"],
        [],
    ],
)
def test_what_makes_no_sense_is_a_usage_error(words: list[str]) -> None:
    assert CliRunner().invoke(replay, words).exit_code == 2

"""The desk on real servers: decisions that do not wait for projectors, desks that meet, idempotency keys, and quarantine.

Owns `Desk.carry_out`. The rules of single commands are unit tests', the append script is test_append's, lost replies are
test_lost_replies'.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from services.writer import desk as desk_module
from services.writer.commands import Command, MarkKeyEvent, UnmarkKeyEvent
from services.writer.desk import ATTEMPTS_MAX, Desk
from services.writer.outcome import Outcome
from shared.append import (
    BYTES_PER_APPEND_MAX,
    EVENTS_PER_APPEND_MAX,
    Append,
    Appended,
    Conflict,
    Known,
    Stale,
    Unadmitted,
)
from shared.documents import Entry, Feed, Tombstone, render
from shared.errors import (
    BodyTooLarge,
    EntryExists,
    EntryNotFound,
    EntryRetracted,
    EventQuarantined,
    FeedClosed,
    FeedExists,
    FeedNotFound,
    IdempotencyKeyReused,
    PreconditionRequired,
    RevisionConflict,
    TooManyPins,
    Unavailable,
)
from shared.events import Encoded, EntryCorrected, EntryPinned, EntryPublished, EntryUnpinned
from shared.events import EntryRetracted as Retraction
from shared.keys import Keys
from shared.log import Log, Looked
from shared.position import Position
from shared.redis import Redis
from tests.integration.builders import (
    Fold,
    Projection,
    carry_out,
    correcting,
    desk_of,
    dump,
    entry_of,
    events_of,
    log_entries,
    log_positions,
    opening,
    pinning,
    project,
    publishing,
    retracting,
    revising,
    unpinning,
)
from tests.integration.gateway_kit import on_one_server

pytestmark = on_one_server

FEED = "final"
PINS_MAX = 10


@pytest.fixture
def desk(redis: Redis, keys: Keys) -> Desk:
    return desk_of(redis, keys)


class Newsroom:
    """A desk whose every answer is checked against the fold of the log, and a projector that keeps up as far as told."""

    def __init__(self, redis: Redis, keys: Keys, progress: str) -> None:
        self.redis = redis
        self.keys = keys
        self.desk = desk_of(redis, keys)
        self.projection = Projection(redis, keys, FEED)
        self.progress = progress

    async def does(self, *commands: Command, batch: bool = False, key: str | None = None) -> Outcome:
        await self.project()
        outcome = await carry_out(self.desk, FEED, *commands, batch=batch, key=key)
        whole = Fold(FEED)
        for entry in await log_entries(self.redis, self.keys, FEED):
            whole.step(entry)
        for document in {document.id: document for document in outcome.documents}.values():
            folded = whole.state.feed if isinstance(document, Feed) else whole.state.entries[document.id]
            assert folded is not None and render(document) == render(folded)
        return outcome

    async def refuses(self, error: type[Exception], *commands: Command, batch: bool = False) -> Any:
        """Refused, and without a trace."""
        await self.project()
        before = await dump(self.redis, self.keys)
        with pytest.raises(error) as raised:
            await carry_out(self.desk, FEED, *commands, batch=batch)
        assert await dump(self.redis, self.keys) == before
        return raised.value

    async def project(self) -> None:
        if self.progress == "never":
            return
        await self.projection.take_shard()
        if self.progress == "always":
            await self.projection.to_head()
        elif half := len((await self.projection.commits.pending([FEED]))[0].entries) // 2:
            # Checkpoints come to stand between the events of one decision, and never at the head.
            await self.projection.step(events_max=half)


@pytest.fixture(params=["never", "half way", "always"])
async def newsroom(request: pytest.FixtureRequest, redis: Redis, keys: Keys) -> Newsroom:
    """A feed is open; the projector never runs, is half way, or is at the head before each command."""
    newsroom = Newsroom(redis, keys, request.param)
    await newsroom.does(opening())
    return newsroom


class Meanwhile(Log):
    """A log at which somebody else acts between the first look of a desk and its append."""

    def __init__(self, redis: Redis, keys: Keys, act: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(redis, keys)
        self._act: Callable[[], Awaitable[Any]] | None = act

    async def look(self, feed: str, *, entries: Sequence[str], pins: bool, command: str | None) -> Looked:
        looked = await super().look(feed, entries=entries, pins=pins, command=command)
        if (act := self._act) is not None:
            self._act = None
            await act()
        return looked


class Meeting:
    """Two desks decide on the same state: `late` has looked when `first` carries out its command, and appends after it."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys

    async def first_then_late(self, first: Command, late: Command, **of_late: Any) -> tuple[Outcome, Any]:
        """The outcome of the first, and of the late one, which may be the error that refuses it."""
        outcomes: list[Outcome] = []
        key_of_first = of_late.pop("key_of_first", None)
        by_of_first = of_late.pop("by_of_first", "sports")

        async def act() -> None:
            desk = desk_of(self.redis, self.keys)
            outcomes.append(await carry_out(desk, FEED, first, key=key_of_first, by=by_of_first))

        desk = desk_of(self.redis, self.keys, log=Meanwhile(self.redis, self.keys, act))
        try:
            answer: Any = await carry_out(desk, FEED, late, **of_late)
        except Exception as error:
            answer = error
        return outcomes[0], answer


@pytest.fixture
async def meeting(redis: Redis, keys: Keys, desk: Desk) -> Meeting:
    await carry_out(desk, FEED, opening())
    await carry_out(desk, FEED, publishing("e1"))
    return Meeting(redis, keys)


# Decisions while the read models lag


async def test_an_entry_is_published_corrected_and_retracted(newsroom: Newsroom) -> None:
    published = await newsroom.does(publishing("e1"))
    assert published.created and entry_of(published).revision == 1
    corrected = await newsroom.does(correcting("e1", 1, headline="Goal"))
    assert (entry_of(corrected).revision, entry_of(corrected).headline) == (2, "Goal")
    retimed = await newsroom.does(correcting("e1", 2, published_at="2022-01-10T18:38:00.000Z"))
    assert (entry_of(retimed).revision, entry_of(retimed).headline) == (3, "Goal")
    retracted = await newsroom.does(retracting("e1", "wrong match"))
    assert isinstance(retracted.documents[0], Tombstone)
    again = await newsroom.does(retracting("e1"))
    assert (again.documents, again.position) == (retracted.documents, retracted.position)
    assert await log_positions(newsroom.redis, newsroom.keys, FEED) == [f"1-{n}" for n in range(1, 6)]


async def test_a_correction_of_another_revision_is_refused_with_the_current_document(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    corrected = await newsroom.does(correcting("e1", 1, headline="Goal"))
    for revision in (1, 3):
        conflict = await newsroom.refuses(RevisionConflict, correcting("e1", revision, headline="Own goal"))
        assert conflict.facts["current"] == corrected.documents[0]
        assert (conflict.facts["expected"], conflict.facts["actual"]) == ([revision], 2)
    await newsroom.refuses(PreconditionRequired, correcting("e1", None, headline="Own goal"))


async def test_a_correction_without_a_difference_appends_nothing(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    corrected = await newsroom.does(correcting("e1", 1, headline="Goal"))
    same = await newsroom.does(correcting("e1", 2, headline="Goal"))
    assert (same.documents, same.position, same.created) == (corrected.documents, corrected.position, False)


async def test_the_same_publication_again_gives_the_entry_as_it_stands(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    corrected = await newsroom.does(correcting("e1", 1, headline="Goal"))
    again = await newsroom.does(publishing("e1"))
    assert (again.documents, again.created) == (corrected.documents, False)
    exists = await newsroom.refuses(EntryExists, publishing("e1", headline="Goal"))
    assert exists.facts["current"] == corrected.documents[0]
    assert len(await log_positions(newsroom.redis, newsroom.keys, FEED)) == 3


async def test_a_retracted_entry_refuses_everything_but_another_retraction(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    gone = await newsroom.does(retracting("e1"))
    for command in (
        publishing("e1"),
        correcting("e1", 1, headline="Goal"),
        pinning("e1"),
        unpinning("e1"),
        MarkKeyEvent("e1"),
        UnmarkKeyEvent("e1"),
    ):
        refused = await newsroom.refuses(EntryRetracted, command)
        assert refused.facts["current"] == gone.documents[0]


async def test_what_does_not_exist_is_not_found(newsroom: Newsroom) -> None:
    for command in (correcting("e9", 1, headline="Goal"), retracting("e9"), pinning("e9"), unpinning("e9")):
        await newsroom.refuses(EntryNotFound, command)


async def test_a_feed_that_does_not_exist_is_not_found_and_leaves_no_key(redis: Redis, keys: Keys, desk: Desk) -> None:
    before = await dump(redis, keys)
    for command in (publishing("e1"), retracting("e1"), pinning("e1"), revising(title="Replay")):
        with pytest.raises(FeedNotFound):
            await carry_out(desk, FEED, command, key="k")
    assert await dump(redis, keys) == before


async def test_ten_entries_are_pinned_and_an_eleventh_is_refused(newsroom: Newsroom) -> None:
    for number in range(PINS_MAX + 1):
        await newsroom.does(publishing(f"e{number}"))
    for number in range(PINS_MAX):
        assert entry_of(await newsroom.does(pinning(f"e{number}"))).pinned
    refused = await newsroom.refuses(TooManyPins, pinning("e10"))
    assert refused.facts["pinned"] == sorted(f"e{number}" for number in range(PINS_MAX))
    # One that is pinned already is no eleventh.
    await newsroom.does(pinning("e3"))
    await newsroom.does(unpinning("e3"))
    assert entry_of(await newsroom.does(pinning("e10"))).pinned
    await newsroom.refuses(TooManyPins, pinning("e3"))


async def test_a_retraction_takes_its_pin_with_it(newsroom: Newsroom) -> None:
    for number in range(PINS_MAX + 1):
        await newsroom.does(publishing(f"e{number}"))
    for number in range(PINS_MAX):
        await newsroom.does(pinning(f"e{number}"))
    await newsroom.does(retracting("e0"))
    assert entry_of(await newsroom.does(pinning("e10"))).pinned
    events = [type(event) for event in await events_of(newsroom.redis, newsroom.keys, FEED)]
    assert events.count(EntryPinned) == PINS_MAX + 1


async def test_pins_that_no_projector_saw_yet_count_for_entries_that_it_did(redis: Redis, keys: Keys) -> None:
    newsroom = Newsroom(redis, keys, "always")
    await newsroom.does(opening())
    await newsroom.does(*[publishing(f"e{number}") for number in range(PINS_MAX + 2)], batch=True)
    await newsroom.does(*[pinning(f"e{number}") for number in range(PINS_MAX - 1)], batch=True)
    await newsroom.project()
    newsroom.progress = "never"
    await newsroom.does(pinning("e9"))
    await newsroom.refuses(TooManyPins, pinning("e10"))


@pytest.mark.parametrize("freeing", [unpinning("e0"), retracting("e0")])
async def test_pins_that_no_projector_saw_go_yet_are_free_for_entries_that_it_did_see(
    redis: Redis, keys: Keys, freeing: Command
) -> None:
    newsroom = Newsroom(redis, keys, "always")
    await newsroom.does(opening())
    await newsroom.does(*[publishing(f"e{number}") for number in range(PINS_MAX + 2)], batch=True)
    await newsroom.does(*[pinning(f"e{number}") for number in range(PINS_MAX)], batch=True)
    await newsroom.project()
    newsroom.progress = "never"
    await newsroom.does(freeing)
    assert entry_of(await newsroom.does(pinning("e10"))).pinned
    await newsroom.refuses(TooManyPins, pinning("e11"))


async def test_an_unpinned_entry_is_pinned_again_in_a_new_place(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    first = entry_of(await newsroom.does(pinning("e1")))
    assert entry_of(await newsroom.does(pinning("e1"))) == first
    assert not entry_of(await newsroom.does(unpinning("e1"))).pinned
    again = entry_of(await newsroom.does(pinning("e1")))
    assert again.pinned and again.pinned_position == again.position != first.pinned_position
    events = await events_of(newsroom.redis, newsroom.keys, FEED)
    assert [type(event) for event in events[2:]] == [EntryPinned, EntryUnpinned, EntryPinned]


async def test_a_key_event_is_marked_and_unmarked_once(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    for command, is_key_event in ((MarkKeyEvent("e1"), True), (UnmarkKeyEvent("e1"), False)):
        for _ in range(2):
            assert entry_of(await newsroom.does(command)).key_event is is_key_event
    assert len(await log_positions(newsroom.redis, newsroom.keys, FEED)) == 4


async def test_a_feed_is_revised_field_by_field(newsroom: Newsroom) -> None:
    await newsroom.does(revising(title="Replay"))
    await newsroom.does(revising(summary="Second leg"))
    outcome = await newsroom.does(revising(summary="Second leg"))
    [feed] = outcome.documents
    assert isinstance(feed, Feed) and (feed.title, feed.summary) == ("Replay", "Second leg")
    assert len(await log_positions(newsroom.redis, newsroom.keys, FEED)) == 3
    await newsroom.does(publishing("e1"))
    [feed] = (await newsroom.does(opening(title="Replay"))).documents
    assert isinstance(feed, Feed) and (feed.title, feed.summary, feed.entry_count) == ("Replay", None, 1)
    await newsroom.refuses(FeedExists, opening(only_open=True))


async def test_a_closed_feed_takes_no_new_entries_and_everything_else(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    await newsroom.does(revising(status="closed"))
    await newsroom.refuses(FeedClosed, publishing("e2"))
    await newsroom.does(publishing("e1"))
    await newsroom.does(correcting("e1", 1, headline="Goal"))
    await newsroom.does(pinning("e1"))
    await newsroom.does(retracting("e1"))
    await newsroom.does(revising(status="open"))
    assert (await newsroom.does(publishing("e2"))).created


async def test_a_decision_is_right_behind_a_lag_of_hundreds_of_events(redis: Redis, keys: Keys) -> None:
    newsroom = Newsroom(redis, keys, "never")
    await newsroom.does(opening())
    await newsroom.does(publishing("first"))
    for part in range(2):
        await newsroom.does(*[publishing(f"{part}-{number}") for number in range(150)], batch=True)
    corrected = await newsroom.does(correcting("first", 1, headline="Goal"))
    assert corrected.position == Position(1, 303)
    await newsroom.does(*[correcting(f"1-{number}", 1, headline="Goal") for number in range(150)], batch=True)
    await newsroom.refuses(RevisionConflict, correcting("1-149", 1, headline="Own goal"))


# Batches


async def test_a_batchs_commands_build_on_one_another_at_consecutive_positions(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e0"))
    outcome = await newsroom.does(
        publishing("e1"),
        correcting("e1", 1, headline="Goal"),
        pinning("e1"),
        retracting("e0"),
        pinning("e1"),
        unpinning("e1"),
        batch=True,
    )
    positions = [document.position for document in outcome.documents]
    # The second pin changes nothing and answers with the entry as it stands.
    assert positions == ["1-3", "1-4", "1-5", "1-6", "1-5", "1-7"]
    assert outcome.position == Position(1, 7)
    events = await events_of(newsroom.redis, newsroom.keys, FEED)
    assert [type(event) for event in events[2:]] == [
        EntryPublished,
        EntryCorrected,
        EntryPinned,
        Retraction,
        EntryUnpinned,
    ]


async def test_a_batch_is_all_or_nothing_and_names_the_command_that_refuses_it(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    refused = await newsroom.refuses(
        RevisionConflict,
        publishing("e2"),
        correcting("e1", 1, headline="Goal"),
        correcting("e1", 1, headline="Own goal"),
        publishing("e3"),
        batch=True,
    )
    assert [error.path for error in refused.facts["errors"]] == ["/commands/2/revision"]
    missing = await newsroom.refuses(EntryNotFound, publishing("e2"), pinning("e9"), batch=True)
    assert [error.path for error in missing.facts["errors"]] == ["/commands/1/id"]


async def test_a_batch_of_200_entries_and_ten_pins_is_one_append(redis: Redis, keys: Keys, desk: Desk) -> None:
    await carry_out(desk, FEED, opening())
    commands: list[Command] = [publishing(f"e{number}") for number in range(190)]
    commands += [pinning(f"e{number}") for number in range(10)]
    outcome = await carry_out(desk, FEED, *commands, batch=True)
    assert outcome.position == Position(1, 201) and len(outcome.documents) == 200
    with pytest.raises(TooManyPins):
        await carry_out(desk, FEED, pinning("e11"), publishing("e500"), batch=True)


async def test_a_batch_that_makes_more_than_one_append_may_carry_is_refused_and_changes_nothing(
    redis: Redis, keys: Keys, desk: Desk
) -> None:
    await carry_out(desk, FEED, opening())
    before = await dump(redis, keys)
    too_many = [publishing(f"e{number}") for number in range(EVENTS_PER_APPEND_MAX + 1)]
    too_large = [publishing(f"e{number}", text="x" * (BYTES_PER_APPEND_MAX // 2)) for number in range(2)]
    for commands in (too_many, too_large):
        with pytest.raises(BodyTooLarge):
            await carry_out(desk, FEED, *commands, batch=True)
    assert await dump(redis, keys) == before


async def test_a_batch_that_changes_nothing_answers_at_the_head(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    await newsroom.does(publishing("e2"))
    outcome = await newsroom.does(publishing("e1"), unpinning("e1"), batch=True)
    assert outcome.position == Position(1, 3)
    assert len(await log_positions(newsroom.redis, newsroom.keys, FEED)) == 3


# Desks that meet


async def test_of_two_desks_that_correct_one_revision_the_second_gets_the_firsts_document(meeting: Meeting) -> None:
    won, lost = await meeting.first_then_late(
        correcting("e1", 1, headline="Goal"), correcting("e1", 1, headline="Own goal")
    )
    assert entry_of(won).revision == 2
    assert isinstance(lost, RevisionConflict)
    assert (lost.facts["current"], lost.facts["actual"]) == (won.documents[0], 2)
    assert await log_positions(meeting.redis, meeting.keys, FEED) == ["1-1", "1-2", "1-3"]


async def test_of_eight_desks_that_correct_one_revision_exactly_one_wins(
    redis: Redis, keys: Keys, meeting: Meeting
) -> None:
    answers = await asyncio.gather(
        *[carry_out(desk_of(redis, keys), FEED, correcting("e1", 1, headline=f"by {i}")) for i in range(8)],
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, Outcome)]
    lost = [answer for answer in answers if isinstance(answer, RevisionConflict)]
    assert (len(won), len(lost)) == (1, 7)
    assert all(conflict.facts["current"] == won[0].documents[0] for conflict in lost)
    assert await log_positions(redis, keys, FEED) == ["1-1", "1-2", "1-3"]


async def test_eight_desks_that_flag_one_entry_all_succeed_in_some_order(
    redis: Redis, keys: Keys, meeting: Meeting
) -> None:
    commands: list[Command] = [pinning("e1"), MarkKeyEvent("e1")] * 4
    outcomes = await asyncio.gather(*[carry_out(desk_of(redis, keys), FEED, command) for command in commands])
    assert await log_positions(redis, keys, FEED) == ["1-1", "1-2", "1-3", "1-4"]
    last = max(outcomes, key=lambda outcome: outcome.position)
    assert entry_of(last).pinned and entry_of(last).key_event


async def test_two_desks_that_publish_the_same_under_one_id_make_one_entry(meeting: Meeting) -> None:
    first, late = await meeting.first_then_late(publishing("e2"), publishing("e2"))
    assert (first.created, late.created) == (True, False)
    assert first.documents == late.documents
    assert await log_positions(meeting.redis, meeting.keys, FEED) == ["1-1", "1-2", "1-3"]


async def test_two_desks_that_publish_differently_under_one_id_conflict(meeting: Meeting) -> None:
    first, late = await meeting.first_then_late(publishing("e2"), publishing("e2", headline="Goal"))
    assert isinstance(late, EntryExists) and late.facts["current"] == first.documents[0]
    assert await log_positions(meeting.redis, meeting.keys, FEED) == ["1-1", "1-2", "1-3"]


async def test_a_flag_set_while_the_entry_is_retracted_is_refused(meeting: Meeting) -> None:
    first, late = await meeting.first_then_late(retracting("e1"), pinning("e1"))
    assert isinstance(late, EntryRetracted) and late.facts["current"] == first.documents[0]


async def test_two_desks_cannot_both_set_the_tenth_pin(meeting: Meeting, desk: Desk) -> None:
    await carry_out(desk, FEED, *[publishing(f"p{i}") for i in range(11)], batch=True)
    await carry_out(desk, FEED, *[pinning(f"p{i}") for i in range(9)], batch=True)
    _, late = await meeting.first_then_late(pinning("p9"), pinning("p10"))
    assert isinstance(late, TooManyPins)
    assert late.facts["pinned"] == sorted(f"p{i}" for i in range(10))


async def test_an_entry_cannot_slip_into_a_feed_that_is_closed_meanwhile(meeting: Meeting) -> None:
    _, late = await meeting.first_then_late(revising(status="closed"), publishing("e2"))
    assert isinstance(late, FeedClosed)
    assert await log_positions(meeting.redis, meeting.keys, FEED) == ["1-1", "1-2", "1-3"]


async def test_two_desks_that_revise_different_fields_both_stand(meeting: Meeting) -> None:
    _, late = await meeting.first_then_late(revising(title="Replay"), revising(summary="Second leg"))
    [feed] = late.documents
    assert (feed.title, feed.summary) == ("Replay", "Second leg")


async def test_two_desks_that_replace_the_feeds_fields_leave_the_second_ones(meeting: Meeting) -> None:
    """Decided on the state before, the second would leave the first one's summary standing."""
    _, late = await meeting.first_then_late(opening(summary="Second leg"), opening(title="Replay"))
    [feed] = late.documents
    assert (feed.title, feed.summary) == ("Replay", None)


@pytest.mark.parametrize("only_open", [False, True])
async def test_of_two_desks_that_open_one_feed_one_opens_it(redis: Redis, keys: Keys, only_open: bool) -> None:
    meeting = Meeting(redis, keys)
    first, late = await meeting.first_then_late(opening(), opening(title="Replay", only_open=only_open))
    assert first.created
    if only_open:
        assert isinstance(late, FeedExists)
    else:
        assert not late.created and late.documents[0].title == "Replay"
    assert await log_positions(redis, keys, FEED) == ["1-1", "1-2"][: 1 if only_open else 2]


async def test_a_desk_that_never_gets_its_turn_gives_up_and_appends_nothing(
    redis: Redis, keys: Keys, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "BACKOFF_SECONDS_MAX", 0.0)

    class Busy(Log):
        turns = 0

        async def append(
            self, feed: str, append: Append, **more: Any
        ) -> Appended | Known | Stale | Conflict | Unadmitted:
            self.turns += 1
            return Stale("e1")

    busy = Busy(redis, keys)
    before = await dump(redis, keys)
    with pytest.raises(Unavailable, match="nothing was appended"):
        await carry_out(desk_of(redis, keys, log=busy), FEED, correcting("e1", 1, headline="Goal"))
    assert busy.turns == ATTEMPTS_MAX
    assert await dump(redis, keys) == before


async def test_a_crowd_at_the_door_is_told_so_and_the_door_opens_again(
    redis: Redis, keys: Keys, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "AT_ONCE_MAX", 2)
    monkeypatch.setattr(desk_module, "WAIT_SECONDS_MAX", 0.05)
    inside = asyncio.Event()
    let_go = asyncio.Event()

    class Slow(Log):
        looks = 0

        async def look(self, feed: str, *, entries: Sequence[str], pins: bool, command: str | None) -> Looked:
            self.looks += 1
            if self.looks == 2:
                inside.set()
            await let_go.wait()
            return await super().look(feed, entries=entries, pins=pins, command=command)

    desk = desk_of(redis, keys, log=Slow(redis, keys))
    slow = [asyncio.create_task(carry_out(desk, FEED, publishing(f"slow-{i}"))) for i in range(2)]
    await inside.wait()
    before = await dump(redis, keys)
    with pytest.raises(Unavailable, match="nothing was appended"):
        await asyncio.wait_for(carry_out(desk, FEED, publishing("outside")), timeout=5)
    assert await dump(redis, keys) == before
    let_go.set()
    assert [outcome.created for outcome in await asyncio.gather(*slow)] == [True, True]
    # Those that were refused, for whatever reason, do not stay in the door.
    for _ in range(3):
        with pytest.raises(EntryNotFound):
            await carry_out(desk, FEED, pinning("e9"))
    assert (await carry_out(desk, FEED, publishing("outside"))).created


# Idempotency keys


async def test_a_request_under_its_key_again_gives_the_document_as_it_stands_after_a_correction(
    newsroom: Newsroom,
) -> None:
    first = await newsroom.does(publishing(), key="k")
    entry = entry_of(first).id
    corrected = await newsroom.does(correcting(entry, 1, headline="Goal"))
    again = await newsroom.does(publishing(), key="k")
    assert (again.documents, again.replayed, again.created) == (corrected.documents, True, False)
    assert again.position == corrected.position
    assert len(await log_positions(newsroom.redis, newsroom.keys, FEED)) == 3


async def test_a_request_under_its_key_again_gives_the_tombstone_after_a_retraction(newsroom: Newsroom) -> None:
    first = await newsroom.does(publishing("e1"), key="k")
    gone = await newsroom.does(retracting("e1"))
    again = await newsroom.does(publishing("e1"), key="k")
    assert (again.documents, again.replayed) == (gone.documents, True)
    assert first.replayed is False


async def test_a_replayed_correction_is_looked_up_before_its_precondition(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    await newsroom.does(correcting("e1", 1, headline="Goal"), key="k")
    later = await newsroom.does(correcting("e1", 2, headline="Own goal"))
    again = await newsroom.does(correcting("e1", 1, headline="Goal"), key="k")
    assert (again.documents, again.replayed) == (later.documents, True)


async def test_a_replay_goes_through_though_the_feed_was_closed_since(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"), key="k")
    await newsroom.does(revising(status="closed"))
    assert (await newsroom.does(publishing("e1"), key="k")).replayed


async def test_a_replayed_batch_finds_the_ids_that_its_entries_were_given(newsroom: Newsroom) -> None:
    def batch() -> list[Command]:
        return [
            publishing(headline="first"),
            publishing("e1"),
            publishing(headline="second"),
            pinning("e1"),
            publishing(headline="third"),
        ]

    first = await newsroom.does(*batch(), batch=True, key="k")
    third = first.documents[4]
    assert isinstance(third, Entry)
    corrected = await newsroom.does(correcting(third.id, 1, headline="third, corrected"))
    again = await newsroom.does(*batch(), batch=True, key="k")
    assert [document.id for document in again.documents] == [document.id for document in first.documents]
    assert again.documents[4] == corrected.documents[0]
    assert again.replayed and again.position == corrected.position
    assert len(await log_positions(newsroom.redis, newsroom.keys, FEED)) == 7


async def test_a_replayed_revision_gives_the_feed_as_it_stands(newsroom: Newsroom) -> None:
    await newsroom.does(revising(title="Replay"), key="k")
    await newsroom.does(revising(title="Final"))
    again = await newsroom.does(revising(title="Replay"), key="k")
    [feed] = again.documents
    assert again.replayed and isinstance(feed, Feed) and feed.title == "Final"


async def test_a_key_is_remembered_for_what_changed_nothing(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    pinned = await newsroom.does(pinning("e1"))
    nothing = await newsroom.does(pinning("e1"), key="k")
    assert (nothing.documents, nothing.position) == (pinned.documents, pinned.position) and not nothing.replayed
    unpinned = await newsroom.does(unpinning("e1"))
    again = await newsroom.does(pinning("e1"), key="k")
    assert (again.documents, again.replayed) == (unpinned.documents, True)
    assert len(await log_positions(newsroom.redis, newsroom.keys, FEED)) == 4


async def test_another_request_under_a_used_key_is_refused(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"), key="k")
    for command in (publishing("e2"), publishing("e1", headline="Goal"), retracting("e1"), revising(title="Replay")):
        with pytest.raises(IdempotencyKeyReused):
            await carry_out(newsroom.desk, FEED, command, key="k")
    assert len(await log_positions(newsroom.redis, newsroom.keys, FEED)) == 2


async def test_a_refused_request_is_not_remembered(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    before = await dump(newsroom.redis, newsroom.keys)
    for error, command in ((RevisionConflict, correcting("e1", 2, headline="Goal")), (EntryNotFound, pinning("e9"))):
        with pytest.raises(error):
            await carry_out(newsroom.desk, FEED, command, key="k")
    assert await dump(newsroom.redis, newsroom.keys) == before
    # The key is free for the request put right.
    assert not (await newsroom.does(correcting("e1", 1, headline="Goal"), key="k")).replayed


async def test_the_keys_of_two_token_names_never_meet(redis: Redis, keys: Keys, desk: Desk) -> None:
    await carry_out(desk, FEED, opening())
    for by in ("sports", "politics"):
        assert (await carry_out(desk, FEED, publishing(), key="k", by=by)).created
    for by in ("sports", "politics"):
        assert (await carry_out(desk, FEED, publishing(), key="k", by=by)).replayed
    # Not even where name and key run together.
    assert (await carry_out(desk, FEED, publishing(), key="", by="sportsk")).created
    assert len(await log_positions(redis, keys, FEED)) == 4


async def test_the_keys_of_two_feeds_never_meet(redis: Redis, keys: Keys, desk: Desk) -> None:
    for feed in (FEED, "replay"):
        await carry_out(desk, feed, opening())
        assert (await carry_out(desk, feed, publishing("e1"), key="k")).created


async def test_one_request_sent_twice_at_the_same_moment_under_one_key_is_carried_out_once(meeting: Meeting) -> None:
    first, late = await meeting.first_then_late(publishing(), publishing(), key="k", key_of_first="k")
    assert (late.documents, late.replayed, first.replayed) == (first.documents, True, False)
    assert await log_positions(meeting.redis, meeting.keys, FEED) == ["1-1", "1-2", "1-3"]


async def test_two_requests_sent_at_the_same_moment_under_one_key_are_told_apart(meeting: Meeting) -> None:
    _, late = await meeting.first_then_late(publishing("e2"), publishing("e3"), key="k", key_of_first="k")
    assert isinstance(late, IdempotencyKeyReused)
    assert await log_positions(meeting.redis, meeting.keys, FEED) == ["1-1", "1-2", "1-3"]


async def test_requests_without_a_key_are_each_carried_out(redis: Redis, keys: Keys, desk: Desk) -> None:
    await carry_out(desk, FEED, opening())
    assert [(await carry_out(desk, FEED, publishing())).created for _ in range(2)] == [True, True]
    assert len(await log_positions(redis, keys, FEED)) == 3


# Quarantine


class Damaging(Log):
    """A log whose events do not match their digests: no fold can apply them."""

    async def append(self, feed: str, append: Append, **more: Any) -> Appended | Known | Stale | Conflict | Unadmitted:
        damaged = [Encoded(event.envelope, event.content + b" ") for event in append.events]
        return await super().append(feed, msgspec.structs.replace(append, events=damaged), **more)


def damaging_desk(redis: Redis, keys: Keys) -> Desk:
    return desk_of(redis, keys, log=Damaging(redis, keys))


WRITES_TO_E1: Sequence[Command] = (
    publishing("e1"),
    publishing("e1", headline="Goal"),
    correcting("e1", 1, headline="Goal"),
    correcting("e1", 2, headline="Goal"),
    retracting("e1"),
    pinning("e1"),
    unpinning("e1"),
    MarkKeyEvent("e1"),
)


async def test_an_entry_whose_publication_is_quarantined_refuses_with_the_facts(newsroom: Newsroom) -> None:
    await newsroom.project()
    await carry_out(damaging_desk(newsroom.redis, newsroom.keys), FEED, publishing("e1"))
    for command in WRITES_TO_E1:
        refused = await newsroom.refuses(EventQuarantined, command)
        assert (refused.facts["entry"], refused.facts["position"]) == ("e1", "1-2")
    refused = await newsroom.refuses(EventQuarantined, publishing("e2"), pinning("e1"), batch=True)
    assert refused.facts["entry"] == "e1"
    assert (await newsroom.does(publishing("e2"))).created


async def test_an_entry_whose_correction_is_quarantined_refuses_with_the_facts(newsroom: Newsroom) -> None:
    await newsroom.does(publishing("e1"))
    await newsroom.does(publishing("e2"))
    await newsroom.project()
    await carry_out(
        damaging_desk(newsroom.redis, newsroom.keys), FEED, correcting("e1", 1, headline="Goal", tags=["goal"])
    )
    for command in WRITES_TO_E1:
        refused = await newsroom.refuses(EventQuarantined, command)
        assert (refused.facts["entry"], refused.facts["position"]) == ("e1", "1-4")
    assert entry_of(await newsroom.does(correcting("e2", 1, headline="Goal"))).revision == 2


async def test_a_retraction_that_is_quarantined_frees_no_pin(newsroom: Newsroom) -> None:
    """Else readers would get eleven: the entry stays, and its pin with it."""
    await newsroom.does(*[publishing(f"e{number}") for number in range(PINS_MAX + 1)], batch=True)
    await newsroom.does(*[pinning(f"e{number}") for number in range(PINS_MAX)], batch=True)
    await newsroom.project()
    await carry_out(damaging_desk(newsroom.redis, newsroom.keys), FEED, retracting("e0"))
    await newsroom.refuses(TooManyPins, pinning("e10"))


async def test_a_feed_whose_opening_is_quarantined_refuses_to_be_revised(redis: Redis, keys: Keys, desk: Desk) -> None:
    await carry_out(damaging_desk(redis, keys), FEED, opening())
    for _ in range(2):
        for command in (opening(), opening(only_open=True), revising(title="Replay")):
            before = await dump(redis, keys)
            with pytest.raises(EventQuarantined) as raised:
                await carry_out(desk, FEED, command)
            assert raised.value.facts["feed"] == FEED
            assert await dump(redis, keys) == before
        await project(redis, keys, FEED)


@pytest.mark.parametrize("entry", ["e1", None])
async def test_a_replay_of_what_is_quarantined_refuses_with_the_facts(newsroom: Newsroom, entry: str | None) -> None:
    await carry_out(damaging_desk(newsroom.redis, newsroom.keys), FEED, publishing(entry), key="k")
    await newsroom.project()
    before = await dump(newsroom.redis, newsroom.keys)
    with pytest.raises(EventQuarantined) as raised:
        await carry_out(newsroom.desk, FEED, publishing(entry), key="k")
    assert raised.value.facts["position"] == "1-2"
    assert await dump(newsroom.redis, newsroom.keys) == before

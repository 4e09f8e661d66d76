"""Kept: whatever the interleaving of reads, moves and losses, nobody gets what is older than what was known when they asked."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from services.gateway import kept as module
from services.gateway.kept import TRUSTED_SECONDS, Kept
from services.gateway.reads import Moment
from shared.position import ORIGIN, Position

FEED = "story"


class Value(Struct, frozen=True):
    """What a read gave: `forgets` is how often the feed had been forgotten when it began."""

    moment: Moment
    key: str = "page"
    executed_at: float = 0.0
    forgets: int = 0
    size_bytes: int = 10


def moment(n: int, generation: int = 1) -> Moment:
    position = Position(1, n)
    return Moment(generation, position, position, 0, b"{}", "public")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Reading:
    """A read as the server sees it: it comes, it is carried out on what the feed then is, and its answer goes back."""

    def __init__(self) -> None:
        self.value: Value | None = None
        self.answered: asyncio.Future[Value | None] = asyncio.get_running_loop().create_future()


class Asked(NamedTuple):
    key: str
    at: float
    known: tuple[Position, int]
    forgets: int
    at_least: Position | None
    answer: "asyncio.Task[Value | None]"


class World:
    """A feed, its server, and one who keeps what was read of it; frames and sweeps tell what they tell, or are lost."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.kept = Kept(clock=self.clock)
        self.n, self.generation = 1, 1
        self.left_at: dict[tuple[Position, int], float] = {}
        self.frames: list[Position] = []
        self.known: tuple[Position, int] = (ORIGIN, 0)
        self.forgets = 0
        self.readings: list[Reading] = []
        self.asked: list[Asked] = []

    @property
    def truth(self) -> tuple[Position, int]:
        return Position(1, self.n), self.generation

    def ask(self, key: str, ahead: int | None) -> None:
        at_least = None if ahead is None else Position(1, self.n + ahead)

        async def read() -> Value | None:
            reading = Reading()
            forgets = self.forgets
            self.readings.append(reading)
            value = await reading.answered
            assert value is not None
            self.known = max(self.known, (value.moment.checkpoint, value.moment.generation))
            return Value(value.moment, key, value.executed_at, forgets)

        task = asyncio.ensure_future(self.kept.read(FEED, key, read, at_least=at_least))
        self.asked.append(Asked(key, self.clock.now, self.known, self.forgets, at_least, task))

    def commit(self, frame: bool) -> None:
        self.left_at[self.truth] = self.clock.now
        self.n += 1
        if frame:
            self.frames.append(Position(1, self.n))

    def deliver(self) -> None:
        if self.frames:
            position = self.frames.pop(0)
            self.kept.moved(FEED, position)
            self.known = max(self.known, (position, 0))

    def flip(self, told: bool) -> None:
        self.left_at[self.truth] = self.clock.now
        self.generation += 1
        if told:
            self.forget()

    def forget(self) -> None:
        self.kept.forget(FEED)
        self.forgets += 1

    def sweep(self) -> None:
        for feed in self.kept.used():
            self.kept.saw(feed, *self.truth, as_of=self.clock.now)
            self.known = max(self.known, self.truth)

    def execute(self, i: int) -> None:
        waiting = [reading for reading in self.readings if reading.value is None]
        if waiting:
            waiting[i % len(waiting)].value = Value(moment(self.n, self.generation), executed_at=self.clock.now)

    def answer(self, i: int) -> None:
        ready = [reading for reading in self.readings if reading.value is not None and not reading.answered.done()]
        if ready:
            reading = ready[i % len(ready)]
            reading.answered.set_result(reading.value)

    def answer_all(self) -> None:
        for _ in self.readings:
            self.execute(0)
            self.answer(0)

    async def settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)
        held = self.kept._feeds.get(FEED)
        keys = {key for _, key in self.kept._values}
        assert keys == (held.keys if held is not None else set())
        assert self.kept._bytes == sum(value.size_bytes for value in self.kept._values.values())

    async def end(self) -> None:
        while not all(asked.answer.done() for asked in self.asked):
            self.answer_all()
            await self.settle()
        for asked in self.asked:
            self.check(asked, asked.answer.result())

    def check(self, asked: Asked, value: Value | None) -> None:
        assert value is not None
        assert value.key == asked.key
        fresh = value.executed_at >= asked.at
        at = (value.moment.checkpoint, value.moment.generation)
        assert at >= asked.known, "older than what was known when it was asked for"
        assert value.forgets >= asked.forgets, "read before what was to be forgotten was forgotten"
        assert asked.at - self.left_at.get(at, asked.at) <= TRUSTED_SECONDS, "older than what may be trusted"
        assert asked.at_least is None or value.moment.checkpoint >= asked.at_least or fresh


STEPS = st.one_of(
    st.tuples(st.just(World.ask), st.sampled_from("ab"), st.sampled_from([None, None, None, -1, 0, 1])),
    st.tuples(st.just(World.commit), st.booleans()),
    st.tuples(st.just(World.deliver)),
    st.tuples(st.just(World.flip), st.booleans()),
    st.tuples(st.just(World.forget)),
    st.tuples(st.just(World.sweep)),
    st.tuples(st.just(World.execute), st.integers(0, 3)),
    st.tuples(st.just(World.answer), st.integers(0, 3)),
    st.tuples(st.just(World.answer_all)),
    st.sampled_from([0.1, 0.6, 1.1]).map(lambda seconds: (pass_time, seconds)),
)


def pass_time(world: World, seconds: float) -> None:
    world.clock.now += seconds


# A read that was forgotten under way tells its own asker of a later moment than the one begun after it is of.
FORGOTTEN_AND_LATER: list[tuple[Any, ...]] = [
    (World.ask, "a", None),
    (World.forget,),
    (World.ask, "a", None),
    (World.execute, 1),
    (World.commit, False),
    (World.answer_all,),
    (World.ask, "a", None),
]


@settings(max_examples=100, deadline=None)
@example(FORGOTTEN_AND_LATER)
@given(st.lists(STEPS, min_size=8, max_size=60))
def test_no_interleaving_gives_what_is_older_than_what_was_known(steps: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        world = World()
        for act, *args in steps:
            act(world, *args)
            await world.settle()
        await world.end()

    asyncio.run(run())


# What it is for


class Counted:
    """Reads of one feed at `n`, counted; each waits for `open` where that is given."""

    def __init__(self, n: int = 1) -> None:
        self.n = n
        self.count = 0
        self.open: asyncio.Event | None = None

    async def __call__(self) -> Value | None:
        self.count += 1
        value = Value(moment(self.n))
        if self.open is not None:
            await self.open.wait()
        return value


async def begun() -> None:
    """What was asked for is under way."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(clock: Clock) -> Kept:
    return Kept(clock=clock)


async def test_what_is_kept_is_not_read_again_while_sweeps_find_the_feed_where_it_was(kept: Kept, clock: Clock) -> None:
    read = Counted()
    for _ in range(10):
        await kept.read(FEED, "page", read)
        clock.now += 0.6
        assert kept.used() == ([FEED] if clock.now > 100.6 else [])
        kept.saw(FEED, Position(1, 1), 1, as_of=clock.now)
    assert read.count == 1


@pytest.mark.parametrize(
    "tell",
    [
        lambda kept, now: kept.moved(FEED, Position(1, 2)),
        lambda kept, now: kept.moved(FEED, Position(2, 1)),
        lambda kept, now: kept.saw(FEED, Position(1, 2), 1, as_of=now),
        lambda kept, now: kept.saw(FEED, Position(1, 1), 2, as_of=now),
        lambda kept, now: kept.forget(FEED),
        lambda kept, now: kept.forget_all(),
    ],
    ids=["a frame", "a raised epoch", "a sweep", "another generation", "a purge", "another server"],
)
async def test_whatever_tells_of_a_change_ends_what_is_kept_and_the_sharing_of_what_is_being_read(
    kept: Kept, clock: Clock, tell: Callable[[Kept, float], None]
) -> None:
    read = Counted()
    await kept.read(FEED, "page", read)
    read.open = asyncio.Event()
    early = asyncio.ensure_future(kept.read(FEED, "other", read))
    await begun()
    tell(kept, clock.now)
    late = [asyncio.ensure_future(kept.read(FEED, key, read)) for key in ("page", "other", "other")]
    await begun()
    assert read.count == 4, "the one who asks again shares with nobody who asked before"
    read.open.set()
    await asyncio.gather(early, *late)
    assert not kept.reading


async def test_what_redis_has_not_confirmed_for_a_second_is_read_again(kept: Kept, clock: Clock) -> None:
    """Counted from when the read began: how long it took says nothing of how current it is."""
    read = Counted()
    read.open = asyncio.Event()
    slow = asyncio.ensure_future(kept.read(FEED, "page", read))
    await begun()
    clock.now += 0.7
    read.open.set()
    await slow
    clock.now += 0.2
    await kept.read(FEED, "page", read)
    assert read.count == 1
    clock.now += 0.2
    await kept.read(FEED, "page", read)
    assert read.count == 2


async def test_a_read_that_hangs_is_joined_for_a_second_only(kept: Kept, clock: Clock) -> None:
    read = Counted()
    read.open = asyncio.Event()
    asking = []
    for seconds in (0.9, 0.2, 0.0):
        asking.append(asyncio.ensure_future(kept.read(FEED, "page", read)))
        await begun()
        clock.now += seconds
    assert read.count == 2
    read.open.set()
    await asyncio.gather(*asking)


async def test_an_answer_that_comes_after_a_later_one_is_not_kept(kept: Kept) -> None:
    early, late = Counted(n=1), Counted(n=2)
    early.open = asyncio.Event()
    overtaken = asyncio.ensure_future(kept.read(FEED, "page", early))
    await begun()
    await kept.read(FEED, "other", late)
    early.open.set()
    assert await overtaken == Value(moment(1))
    assert await kept.read(FEED, "page", late) == Value(moment(2))


async def test_a_position_that_what_is_kept_does_not_reach_is_read_for(kept: Kept) -> None:
    read = Counted()
    await kept.read(FEED, "page", read)
    await kept.read(FEED, "page", read, at_least=Position(1, 1))
    assert read.count == 1
    await kept.read(FEED, "page", read, at_least=Position(1, 2))
    assert read.count == 2


async def test_reads_that_begin_after_a_frame_end_each_others_sharing_no_more(kept: Kept) -> None:
    first, second = Counted(), Counted(n=2)
    await kept.read(FEED, "page", first)
    kept.moved(FEED, Position(1, 2))
    second.open = asyncio.Event()
    asking = [asyncio.ensure_future(kept.read(FEED, "other", second))]
    await begun()
    await kept.read(FEED, "page", Counted(n=2))
    asking.append(asyncio.ensure_future(kept.read(FEED, "other", second)))
    await begun()
    second.open.set()
    await asyncio.gather(*asking)
    assert second.count == 1


async def test_a_frame_of_what_is_kept_already_drops_nothing(kept: Kept) -> None:
    read = Counted(n=7)
    await kept.read(FEED, "page", read)
    kept.moved(FEED, Position(1, 6))
    kept.moved(FEED, Position(1, 7))
    await kept.read(FEED, "page", read)
    assert read.count == 1


async def test_who_asks_for_a_position_is_not_answered_by_a_read_that_may_have_begun_before_it(kept: Kept) -> None:
    read = Counted()
    read.open = asyncio.Event()
    early = asyncio.ensure_future(kept.read(FEED, "page", read))
    await begun()
    read.n = 2
    asking = [asyncio.ensure_future(kept.read(FEED, "page", read, at_least=Position(1, 2))) for _ in range(50)]
    await begun()
    read.open.set()
    assert {value.moment.checkpoint.n for value in await asyncio.gather(*asking) if value} == {2}
    assert await early == Value(moment(1))
    assert read.count == 2, "and all who ask for it share the next one"


async def test_errors_and_feeds_that_are_not_there_are_shared_and_not_kept(kept: Kept) -> None:
    calls = 0

    async def fail() -> Value | None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        raise ConnectionError("away")

    async def nothing() -> Value | None:
        return None

    together: list[Awaitable[Value | None]] = [kept.read(FEED, "page", fail) for _ in range(3)]
    answers = await asyncio.gather(*together, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionError] * 3
    assert calls == 1
    assert await kept.read(FEED, "page", nothing) is None
    assert await kept.read(FEED, "page", Counted()) is not None
    assert set(kept._feeds) == {FEED}


async def test_who_leaves_takes_the_answer_from_nobody(kept: Kept) -> None:
    read = Counted()
    read.open = asyncio.Event()
    first, second = (asyncio.ensure_future(kept.read(FEED, "page", read)) for _ in range(2))
    await begun()
    first.cancel()
    await begun()
    read.open.set()
    assert await second is not None
    assert read.count == 1


async def test_memory_is_bounded_in_bytes_and_values_and_the_longest_unused_goes_first(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VALUES_MAX", 8)
    monkeypatch.setattr(module, "BYTES_MAX", 75)
    monkeypatch.setattr(module, "VALUE_BYTES_MAX", 20)
    read = Counted()
    for i in range(100):
        await kept.read(f"feed-{i}", "page", read)
        await kept.read("hot", "page", read)
        assert len(kept._values) <= 7 and len(kept._feeds) <= 7 and kept._bytes <= 75
    assert read.count == 101

    async def large() -> Value | None:
        return Value(moment(1), size_bytes=21)

    await kept.read("large", "page", large)
    assert "large" not in kept._feeds
    monkeypatch.setattr(module, "VALUES_MAX", 2)
    await kept.read("one more", "page", read)
    assert [feed for feed, _ in kept._values] == ["hot", "one more"]


async def test_what_nobody_asks_for_is_not_looked_after_and_goes(kept: Kept, clock: Clock) -> None:
    await kept.read(FEED, "page", Counted())
    assert kept.used() == []
    assert kept._values
    clock.now += TRUSTED_SECONDS + 0.1
    assert kept.used() == []
    assert not kept._values and not kept._feeds and not kept._bytes

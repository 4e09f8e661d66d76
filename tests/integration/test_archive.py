"""Archives: a feed's events in segments, read as one with the stream, trimmed only of what was read back."""

import gzip
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from shared.archive import archiving as archiving_module
from shared.archive import segments
from shared.archive import trimming as trimming_module
from shared.archive.archives import Archive
from shared.archive.archiving import Archiving
from shared.archive.objects import Objects
from shared.archive.trimming import Trimming
from shared.epochs.admission import Admission
from shared.errors import Corrupted, Unavailable
from shared.keys import Keys
from shared.log import Log
from shared.ndjson import StreamEntry, parse_line
from shared.position import ORIGIN, Position
from shared.redis import Redis, command
from tests.integration.builders import (
    Projection,
    appending,
    appending_entry,
    damaged,
    desk_of,
    log_entries,
    log_positions,
    open_feed,
    project,
    published,
    publishing,
    remove_archived,
    request,
)
from tests.integration.gateway_kit import on_one_server
from tests.s3 import S3, environment, s3_server

pytestmark = on_one_server

FEED = "final"


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place of its own for a test's archives."""
    if request.param == "folder":
        yield str(tmp_path / "archives")
        return
    server: S3 = request.getfixturevalue("s3")
    with environment(server.environment):
        yield f"{server.url}/{secrets.token_hex(6)}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "archives"


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten events a segment, so that a few events make several."""
    monkeypatch.setattr(segments, "SEGMENT_EVENTS_MAX", 10)


async def feed_of(redis: Redis, keys: Keys, events: int, *, feed: str = FEED) -> Log:
    await Admission(redis, keys).admit()
    log = Log(redis, keys)
    await open_feed(log, feed)
    await more(log, 1, events, feed=feed)
    return log


async def more(log: Log, standing: int, events: int, *, feed: str = FEED) -> None:
    """Publish until the feed has `events` events."""
    for n in range(standing + 1, events + 1):
        await log.append(feed, appending_entry(f"e{n}"))


async def whole(log: Log, *, after: Position = ORIGIN, to: Position | None = None) -> list[StreamEntry]:
    return [entry async for entry in log.read(FEED, after=after, to=to)]


async def with_content(redis: Redis, keys: Keys, position: str, content: bytes) -> None:
    """Another content in one event of the stream, as a redaction leaves it."""
    standing = await log_entries(redis, keys, FEED)
    await command(redis, "DEL", keys.feed(FEED).log)
    for entry in standing:
        fields = {**entry.fields, b"content": content} if entry.id == position.encode() else entry.fields
        flat = [part for pair in fields.items() for part in pair]
        await command(redis, "XADD", keys.feed(FEED).log, entry.id, *flat)


async def archived_and_trimmed(redis: Redis, keys: Keys, url: str) -> list[StreamEntry]:
    """Archive and trim the feed as far as may be; gives what the log held before."""
    before = await log_entries(redis, keys, FEED)
    await project(redis, keys, FEED)
    await Archiving(redis, keys).archive(FEED, url=url)
    await Trimming(redis, keys).trim(FEED)
    return before


async def test_an_archived_and_trimmed_log_reads_as_before_from_every_position(
    redis: Redis, keys: Keys, place: str
) -> None:
    log = await feed_of(redis, keys, 34)
    before = await archived_and_trimmed(redis, keys, place)
    assert await log_positions(redis, keys, FEED) == ["1-34"]

    for after in range(35):
        position = Position(1, after) if after else ORIGIN
        assert await whole(log, after=position) == before[after:]
    for to in range(1, 35):
        assert await whole(log, to=Position(1, to)) == before[:to]
        assert await log.recorded_at(FEED, Position(1, to)) == int(before[to - 1].fields[b"recorded_at"])


async def test_a_chunk_goes_on_across_segments_and_from_the_archive_into_the_stream(
    redis: Redis, keys: Keys, folder: Path
) -> None:
    log = await feed_of(redis, keys, 24)
    before = await archived_and_trimmed(redis, keys, str(folder))
    await more(log, 24, 30)
    before += (await log_entries(redis, keys, FEED))[1:]

    for after in range(30):
        for size in (1, 9, 10, 11, 30):
            position = Position(1, after) if after else ORIGIN
            chunk = await log.read_chunk(FEED, after=position, events_max=size)
            assert chunk == before[after : after + size]
            chunk = await log.read_chunk(FEED, after=position, to=Position(1, 26), events_max=size)
            assert chunk == before[after : min(after + size, 26)]


async def test_an_epoch_bounds_what_is_read_of_the_archive_as_it_bounds_the_stream(
    redis: Redis, keys: Keys, folder: Path
) -> None:
    log = await feed_of(redis, keys, 12)
    await command(redis, "HSET", keys.feed(FEED).head, "epoch", "2")
    # The first event of another epoch, as a raised one leaves it.
    envelope, content = appending(published("e13")).events[0].envelope, b""
    await command(
        redis, "XADD", keys.feed(FEED).log, "2-13", "envelope", envelope, "content", content, "recorded_at", "9"
    )
    await command(redis, "HSET", keys.feed(FEED).head, "n", "13")
    await more(log, 13, 16)
    cases = [
        (ORIGIN, Position(1, 14)),
        (Position(2, 12), None),
        (Position(2, 4), Position(2, 5)),
        (Position(1, 11), None),
    ]
    before = [await whole(log, after=after, to=to) for after, to in cases[:2] + cases[3:]]
    await archived_and_trimmed(redis, keys, str(folder))

    assert [await whole(log, after=after, to=to) for after, to in cases[:2] + cases[3:]] == before
    # A position of no epoch that the log had is none; nobody takes that for damage.
    assert await log.event_at(FEED, Position(2, 5)) is None


async def test_a_later_run_appends_and_writes_a_short_last_segment_anew(redis: Redis, keys: Keys, place: str) -> None:
    log = await feed_of(redis, keys, 14)
    archiving = Archiving(redis, keys)
    first = await archiving.archive(FEED, url=place)
    await more(log, 14, 23)
    second = await archiving.archive(FEED, url=None)

    assert (first.segments, first.written_events, second.segments, second.written_events) == (2, 14, 3, 9)
    assert len(second.swept) == 1
    archive = Archive(Objects(place), FEED, held={})  # type: ignore[arg-type]  # read once
    found = await archive.manifest()
    assert found is not None
    assert [(s.first, s.last) for s in found.manifest.segments] == [("1-1", "1-10"), ("1-11", "1-20"), ("1-21", "1-23")]
    named = {s.object for s in found.manifest.segments} | {"final/manifest.json"}
    assert {n for n in await Objects(place).names(FEED) if not n.endswith(".lock")} == named
    # Nothing new: nothing is written.
    third = await archiving.archive(FEED, url=None)
    again = await archive.manifest()
    assert third.written_events == 0 and again is not None and again.manifest == found.manifest


async def test_segments_are_lines_that_anybody_can_read(redis: Redis, keys: Keys, folder: Path) -> None:
    await feed_of(redis, keys, 12)
    await Archiving(redis, keys).archive(FEED, url=folder.as_uri())

    lines = [
        line
        for file in sorted((folder / FEED).glob("*.ndjson.gz"))
        for line in gzip.decompress(file.read_bytes()).splitlines()
    ]
    assert [parse_line(line) for line in lines] == await log_entries(redis, keys, FEED)
    assert file_names(folder)[0].startswith("00000000000000000001-00000000000000000010.")


def file_names(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / FEED).glob("*.ndjson.gz"))


async def test_a_trim_stops_at_the_lowest_checkpoint_of_a_generation(redis: Redis, keys: Keys, folder: Path) -> None:
    log = await feed_of(redis, keys, 30)
    projection = Projection(redis, keys, FEED)
    await projection.take_shard()
    await projection.step(events_max=17)
    await Archiving(redis, keys).archive(FEED, url=str(folder))
    trimming = Trimming(redis, keys)

    trimmed = await trimming.trim(FEED)
    assert (str(trimmed.trimmed_to), trimmed.events) == ("1-17", 17)
    assert trimmed.kept == "the live generation is not so far"
    await projection.to_head()
    await command(redis, "HSET", keys.feed(FEED).build, "state", "building", "checkpoint", "1-21")
    trimmed = await trimming.trim(FEED)
    assert (str(trimmed.trimmed_to), trimmed.events) == ("1-21", 4)
    assert trimmed.kept == "a generation that is being built is not so far"
    await command(redis, "HDEL", keys.feed(FEED).build, "checkpoint")
    await command(redis, "HSET", keys.feed(FEED).build, "state", "asked")
    assert (await trimming.trim(FEED)).events == 0
    # The record of a build that is over stays, and keeps nothing.
    await command(redis, "HSET", keys.feed(FEED).build, "state", "failed", "checkpoint", "1-21")
    assert (await trimming.trim(FEED)).events == 8
    assert await log_positions(redis, keys, FEED) == ["1-30"]
    assert len(await whole(log)) == 30


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("HSET", "archive", "url", "file:///elsewhere"), "the archive is in another place"),
        (("HSET", "archive", "archived_to", "1-10"), "the archive does not reach so far"),
        (("DEL", "active"), "the live generation is not so far"),
        (("HSET", "build", "state", "asked"), "a generation that is being built is not so far"),
        (
            ("HSET", "build", "state", "building", "checkpoint", "1-10"),
            "a generation that is being built is not so far",
        ),
    ],
)
async def test_the_trim_script_checks_for_itself_what_may_have_changed_since(
    redis: Redis, keys: Keys, folder: Path, change: Sequence[str], why: str
) -> None:
    await feed_of(redis, keys, 12)
    await project(redis, keys, FEED)
    await Archiving(redis, keys).archive(FEED, url=str(folder))
    url = folder.as_uri()
    verb, key, *rest = change
    await command(redis, verb, getattr(keys.feed(FEED), key), *rest)

    assert await trim_by_script(redis, keys, "1-11", url) == [b"kept", why.encode()]
    assert len(await log_positions(redis, keys, FEED)) == 12


async def test_the_trim_script_never_takes_the_last_event(redis: Redis, keys: Keys, folder: Path) -> None:
    await feed_of(redis, keys, 12)
    await project(redis, keys, FEED)
    await Archiving(redis, keys).archive(FEED, url=str(folder))

    assert await trim_by_script(redis, keys, "1-12", folder.as_uri()) == [b"kept", b"the last event stays"]
    assert await trim_by_script(redis, keys, "1-11", folder.as_uri()) == [b"trimmed", 11]
    await command(redis, "HSET", keys.feed(FEED).head, "n", "14")
    with pytest.raises(Corrupted, match="not the last event"):
        await trim_by_script(redis, keys, "1-11", folder.as_uri())


async def trim_by_script(redis: Redis, keys: Keys, to: str, url: str) -> object:
    feed = keys.feed(FEED)
    return await trimming_module._trim(
        redis, (feed.log, feed.head, feed.active, feed.build, feed.archive), (feed.generation, to, url)
    )


async def test_writing_goes_on_after_a_trim_and_a_lost_answer_finds_what_it_made(
    redis: Redis, keys: Keys, folder: Path
) -> None:
    desk = desk_of(redis, keys)
    log = await feed_of(redis, keys, 3)
    sent = request(FEED, publishing(headline="Goal"), key="k1")
    made = await desk.carry_out(sent)
    await more(log, 4, 9)
    await archived_and_trimmed(redis, keys, str(folder))

    again = await desk_of(redis, keys).carry_out(sent)
    assert again.replayed and again.documents == made.documents
    after = await desk.carry_out(request(FEED, publishing("next")))
    assert str(after.position) == "1-10"


async def test_a_gap_that_no_archive_fills_is_corruption(redis: Redis, keys: Keys, folder: Path) -> None:
    log = await feed_of(redis, keys, 12)
    await command(redis, "XTRIM", keys.feed(FEED).log, "MINID", "=", "1-5")
    with pytest.raises(Corrupted, match="has n 5 where n must be 1, and it has no archive"):
        await whole(log)
    await command(redis, "HSET", keys.feed(FEED).archive, "url", folder.as_uri())
    with pytest.raises(Corrupted, match=r"has n 5 where n must be 1, and its archive at .* does not have that"):
        await log.read_chunk(FEED, after=ORIGIN, events_max=1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "missing"])
async def test_a_damaged_segment_is_found_and_named(redis: Redis, keys: Keys, folder: Path, damage: str) -> None:
    log = await feed_of(redis, keys, 24)
    await archived_and_trimmed(redis, keys, str(folder))
    first, second, _ = file_names(folder)
    file = folder / FEED / second
    data = bytearray(file.read_bytes())
    match damage:
        case "cut":
            file.write_bytes(data[:-1])
        case "flipped":
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        case "other":
            file.write_bytes((folder / FEED / first).read_bytes())
        case "missing":
            file.unlink()

    assert len(await whole(log, to=Position(1, 10))) == 10
    with pytest.raises(Corrupted, match=second):
        await whole(log)


@pytest.mark.parametrize("damage", ["cut", "flipped", "of another feed", "a hash that does not hold"])
async def test_a_damaged_manifest_is_found_and_named(redis: Redis, keys: Keys, folder: Path, damage: str) -> None:
    log = await feed_of(redis, keys, 24)
    await archived_and_trimmed(redis, keys, str(folder))
    file = folder / FEED / "manifest.json"
    text = file.read_text()
    sealed = json.loads(text)
    match damage:
        case "cut":
            file.write_text(text[: len(text) // 2])
        case "flipped":
            file.write_text(text.replace('"last":"1-20"', '"last":"1-21"'))
        case "of another feed":
            file.write_bytes(segments.seal(segments.Manifest(1, "other", 1, [], {})))
        case "a hash that does not hold":
            sealed["manifest"]["segments"][0]["chain"] = "0" * 64
            file.write_text(json.dumps(sealed))

    with pytest.raises(Corrupted, match=r"final/manifest\.json"):
        await whole(log)


async def test_nothing_is_trimmed_where_the_archive_differs_from_the_stream(
    redis: Redis, keys: Keys, folder: Path
) -> None:
    await feed_of(redis, keys, 24)
    await project(redis, keys, FEED)
    await Archiving(redis, keys).archive(FEED, url=str(folder))
    # The same envelopes, so the same chain, and one content that is another.
    await with_content(redis, keys, "1-12", b"{}")

    with pytest.raises(Corrupted, match=r"differs from the log of 'final' at 1-12"):
        await Trimming(redis, keys).trim(FEED)
    assert (await log_positions(redis, keys, FEED))[0] == "1-11"


async def test_an_archive_of_another_history_is_refused_and_left_alone(redis: Redis, keys: Keys, folder: Path) -> None:
    await feed_of(redis, keys, 12)
    await Archiving(redis, keys).archive(FEED, url=str(folder))
    before = (folder / FEED / "manifest.json").read_bytes()
    others = Keys(keys.prefix + "b")
    for events in (12, 3, 20):
        await feed_of(redis, others, events)
        with pytest.raises(Corrupted, match="another history"):
            await Archiving(redis, others).archive(FEED, url=str(folder))
        others = Keys(others.prefix + "b")
    assert (folder / FEED / "manifest.json").read_bytes() == before


async def test_an_archive_moves_to_another_place_with_what_the_stream_no_longer_has(
    redis: Redis, keys: Keys, folder: Path, tmp_path: Path
) -> None:
    log = await feed_of(redis, keys, 24)
    before = await archived_and_trimmed(redis, keys, str(folder))
    elsewhere = tmp_path / "elsewhere"
    moved = await Archiving(redis, keys).archive(FEED, url=str(elsewhere))

    assert moved.url == elsewhere.as_uri()
    folder.rename(tmp_path / "gone")
    assert await whole(Log(redis, keys)) == before
    # A folder that an operator moved is taken on by its chain.
    elsewhere.rename(tmp_path / "third")
    await more(log, 24, 26)
    await Archiving(redis, keys).archive(FEED, url=str(tmp_path / "third"))
    assert (await whole(Log(redis, keys)))[:24] == before
    state = await log.archives.state(FEED)
    assert state is not None and (state.moving_to, str(state.archived_to)) == (None, "1-26")


async def test_a_copy_with_a_damaged_segment_is_not_taken_on(
    redis: Redis, keys: Keys, folder: Path, tmp_path: Path
) -> None:
    await feed_of(redis, keys, 24)
    await archived_and_trimmed(redis, keys, str(folder))
    folder.rename(tmp_path / "moved")
    file = tmp_path / "moved" / FEED / file_names(tmp_path / "moved")[0]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Corrupted, match="damaged"):
        await Archiving(redis, keys).archive(FEED, url=str(tmp_path / "moved"))


async def test_two_runs_at_once_make_one_archive(
    redis: Redis, keys: Keys, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await feed_of(redis, keys, 14)
    other = Archiving(redis, keys)
    switch = Archive.switch

    async def overtaken(self: Archive, *args: object, **more_args: object) -> None:
        monkeypatch.setattr(Archive, "switch", switch)
        await more(log, 14, 23)
        await other.archive(FEED, url=place)
        await switch(self, *args, **more_args)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(Archive, "switch", overtaken)
    archived = await Archiving(redis, keys).archive(FEED, url=place)
    assert (str(archived.archived_to), archived.segments) == ("1-23", 3)
    before = await log_entries(redis, keys, FEED)
    await project(redis, keys, FEED)
    await Trimming(redis, keys).trim(FEED)
    assert await whole(log) == before
    assert len([n for n in await Objects(place).names(FEED) if n.endswith(".gz")]) == 3


class Crash(Exception):
    pass


STEPS = ("put", "replace", "delete", "noted", "trimmed")


@pytest.mark.parametrize("where", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_between_any_two_steps_leaves_a_valid_archive_and_a_whole_log(
    redis: Redis, keys: Keys, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, when: str
) -> None:
    """The n-th call of each step crashes, before or after it took effect, until a run gets through."""
    log = await feed_of(redis, keys, 13)
    await Archiving(redis, keys).archive(FEED, url=str(folder))
    await more(log, 13, 34)
    await project(redis, keys, FEED)
    before = await log_entries(redis, keys, FEED)

    class Crashing:
        def __init__(self, step: str, call: object, at: int) -> None:
            self.step, self.call, self.at, self.calls = step, call, at, 0

        async def __call__(self, *args: object, **named: object) -> object:
            self.calls += self.step == where
            crashes = self.step == where and self.calls == self.at
            if crashes and when == "before":
                raise Crash
            answer = await self.call(*args, **named)  # type: ignore[operator]  # the step itself
            if crashes:
                raise Crash
            return answer

    crashes = 0
    for crash_at in range(1, 20):
        with monkeypatch.context() as patched:
            for step in ("put", "replace", "delete"):
                crashing = Crashing(step, getattr(Objects, step), crash_at)
                patched.setattr(Objects, step, lambda self, *a, _c=crashing, **n: _c(self, *a, **n))
            patched.setattr(archiving_module, "_archived", Crashing("noted", archiving_module._archived, crash_at))
            patched.setattr(trimming_module, "_trim", Crashing("trimmed", trimming_module._trim, crash_at))
            try:
                await Archiving(redis, keys).archive(FEED, url=str(folder))
                await Trimming(redis, keys).trim(FEED)
            except Crash:
                crashes += 1
                assert await whole(Log(redis, keys)) == before
                await more(log, int(before[-1].id.decode().partition("-")[2]), before[-1].position.n + 3)
                before = await whole(log)
                await project(redis, keys, FEED)
            else:
                break
    assert crashes >= 1
    assert await whole(Log(redis, keys)) == before
    assert len(await log_positions(redis, keys, FEED)) == 1
    assert len(file_names(folder)) == -(-len(before) // 10)


async def test_removed_content_leaves_the_archive_and_the_chain_stays(redis: Redis, keys: Keys, place: str) -> None:
    log = await feed_of(redis, keys, 34)
    before = await archived_and_trimmed(redis, keys, place)
    archive = log.archives.at(Objects(place).url, FEED)
    old = await archive.manifest()
    removed = {Position(1, 3), Position(1, 25), Position(1, 26)}
    rewritten = await remove_archived(redis, keys, FEED, removed)

    assert [(r.before.first, r.after.first) for r in rewritten] == [("1-1", "1-1"), ("1-21", "1-21")]
    new = await archive.manifest()
    assert old is not None and new is not None
    assert [s.chain for s in new.manifest.segments] == [s.chain for s in old.manifest.segments]
    for one in rewritten:
        assert one.before.sha256 != one.after.sha256
        assert await Objects(place).get(one.before.object) is None
    # The log that read the old segments before does not give the content from its memory.
    for entry, was in zip(await whole(log), before, strict=True):
        content = b"" if entry.position in removed else was.fields[b"content"]
        assert entry == StreamEntry(was.id, {**was.fields, b"content": content})
    assert await remove_archived(redis, keys, FEED, removed) == []


async def test_removed_content_leaves_the_copy_in_a_place_that_the_archive_was_moved_away_from(
    redis: Redis, keys: Keys, folder: Path, tmp_path: Path
) -> None:
    log = await feed_of(redis, keys, 14)
    content = (await whole(log))[4].fields[b"content"]
    elsewhere = tmp_path / "elsewhere"
    await archived_and_trimmed(redis, keys, str(folder))
    await Archiving(redis, keys).archive(FEED, url=str(elsewhere))
    state = await log.archives.state(FEED)
    assert state is not None and state.places == [elsewhere.as_uri(), folder.as_uri()]

    rewritten = await remove_archived(redis, keys, FEED, [Position(1, 5)])
    assert [one.url for one in rewritten] == state.places
    for place in (folder, elsewhere):
        assert all(content not in gzip.decompress(file.read_bytes()) for file in (place / FEED).glob("*.gz"))

    # A copy that was taken away is none, and is not begun again; one that the archive comes back to is no former one.
    shutil.rmtree(folder)
    await remove_archived(redis, keys, FEED, [Position(1, 6)])
    assert not folder.exists()
    await Archiving(redis, keys).archive(FEED, url=str(folder))
    state = await log.archives.state(FEED)
    assert state is not None and state.places == [folder.as_uri(), elsewhere.as_uri()]


async def test_content_removed_while_a_run_archives_it_does_not_get_into_the_archive(
    redis: Redis, keys: Keys, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await feed_of(redis, keys, 14)
    put = Objects.put

    async def redacted_meanwhile(self: Objects, name: str, data: bytes) -> None:
        monkeypatch.setattr(Objects, "put", put)
        await with_content(redis, keys, "1-5", b"")
        await remove_archived(redis, keys, FEED, [Position(1, 5)])
        await put(self, name, data)

    monkeypatch.setattr(Objects, "put", redacted_meanwhile)
    await Archiving(redis, keys).archive(FEED, url=str(folder))
    for file in (folder / FEED).glob("*.gz"):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            entry = parse_line(line)
            assert (entry.fields[b"content"] == b"") == (entry.id == b"1-5")


async def test_a_removal_that_crashed_before_the_old_object_went_is_finished_by_the_next(
    redis: Redis, keys: Keys, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await feed_of(redis, keys, 14)
    await Archiving(redis, keys).archive(FEED, url=str(folder))

    async def crash(self: Objects, name: str) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "delete", crash)
        with pytest.raises(Crash):
            await remove_archived(redis, keys, FEED, [Position(1, 5)])
    assert len(file_names(folder)) == 3
    await remove_archived(redis, keys, FEED, [Position(1, 5)])
    assert len(file_names(folder)) == 2


async def test_the_quarantine_of_archived_positions_stands_in_the_manifest(
    redis: Redis, keys: Keys, folder: Path
) -> None:
    log = await feed_of(redis, keys, 3)
    await log.append(FEED, appending_entry("bad", event=damaged(published("bad"))))
    await project(redis, keys, FEED)
    archiving = Archiving(redis, keys)
    await archiving.archive(FEED, url=str(folder))
    quarantine = await log.quarantined(FEED)
    archive = log.archives.at(folder.as_uri(), FEED)
    found = await archive.manifest()
    assert found is not None and list(quarantine) == [Position(1, 4)]
    assert found.manifest.quarantine == {"1-4": quarantine[Position(1, 4)].decode()}
    # A record that an operator took away is taken away from the archive by the next run.
    await command(redis, "DEL", keys.feed(FEED).quarantine)
    await archiving.archive(FEED, url=None)
    found = await archive.manifest()
    assert found is not None and found.manifest.quarantine == {}


async def test_a_place_that_cannot_be_reached_says_so_and_is_no_corruption(redis: Redis, keys: Keys, s3: S3) -> None:
    await feed_of(redis, keys, 12)
    with environment(s3.environment):
        await archived_and_trimmed(redis, keys, f"{s3.url}/{secrets.token_hex(6)}")
    closed = {**s3.environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    with environment(closed), pytest.raises(Unavailable, match="cannot be used"):
        await whole(Log(redis, keys))

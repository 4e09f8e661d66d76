"""Archives, restores, exports and imports, as processes: readers and desks notice nothing, and a feed moves whole."""

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Installation, Newsroom, free_port, newsroom_at
from tests.acceptance.test_newsroom_verbs import Desk


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A second installation, into which feeds are brought."""
    running = Installation(tmp_path_factory.mktemp("fresh") / "data", free_port()).start()
    yield running
    running.kill()


@pytest.fixture
def feed(feed_id: str) -> str:
    return feed_id


async def a_story(newsroom: Newsroom, feed: str) -> None:
    await newsroom.open_feed(feed, title="Final")
    for number in range(12):
        await newsroom.publish(feed, f"Minute {number}", id=f"e{number}", tags=["live"])
    await newsroom.correct(feed, "e3", 1, headline="Minute three", correction_note="spelt out")
    await newsroom.pin(feed, "e5")
    await newsroom.mark(feed, "e6")
    await newsroom.retract(feed, "e7", "an error")


async def everything(newsroom: Newsroom, feed: str) -> list[bytes]:
    """All that readers get of a feed and what the log holds, as bytes."""
    log = (await newsroom.get(f"/v1/feeds/{feed}/events", token=newsroom.token)).ok(200).body
    position = json.loads(log.splitlines()[-1])["position"]
    paths = ("changes?limit=100&", "entries?order=oldest&", "entries?limit=5&", "?")
    return [log] + [
        (await newsroom.get(f"/v1/feeds/{feed}/{path}min_position={position}".replace("/?", "?"))).ok(200).body
        for path in paths
    ]


async def test_a_feed_under_writes_is_archived_and_trimmed_and_nobody_notices(
    newsroom: Newsroom, installation: Installation, feed: str
) -> None:
    await a_story(newsroom, feed)
    key = {"Idempotency-Key": "k-1"}
    body = {"headline": "Sent once"}
    made = (await newsroom.write("POST", f"/v1/feeds/{feed}/entries", body, headers=key)).ok(201)
    written = 0

    async def write_on() -> None:
        nonlocal written
        while True:
            await newsroom.publish(feed, f"On and on {written}")
            written += 1

    writing = asyncio.create_task(write_on())
    desk = Desk(installation)
    for _ in range(2):
        report = json.loads(await desk.type("ops", "archive", feed, "--trim", "--json"))["feeds"][0]
        assert report["ok"] and report["trimmed_events"] > 0
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert written > 0

    before = await everything(newsroom, feed)
    await desk.type("ops", "archive", feed, "--trim")
    assert await everything(newsroom, feed) == before
    again = (await newsroom.write("POST", f"/v1/feeds/{feed}/entries", body, headers=key)).ok(200)
    assert again.headers["Idempotent-Replay"] == "true" and again.json["id"] == made.json["id"]
    corrected = await newsroom.correct(feed, "e0", 1, headline="Minute nought")
    assert (await newsroom.entry(feed, "e0"))["headline"] == corrected["headline"] == "Minute nought"
    history = await newsroom.get(f"/v1/feeds/{feed}/entries/e3/history", token=newsroom.token)
    assert history.ok(200).body.count(b"Minute three") >= 1
    assert "ok" in await desk.type("ops", "verify", feed)


async def test_an_archived_feed_is_restored_into_an_installation_that_does_not_have_it(
    newsroom: Newsroom, installation: Installation, fresh: Installation, feed: str
) -> None:
    await a_story(newsroom, feed)
    await Desk(installation).type("ops", "archive", feed, "--trim")
    place = str(installation.data_dir / "archive")
    desk = Desk(fresh)
    assert await desk.type("ops", "restore", feed, "--from", place) == f"{feed}: restored, 17 events up to 1-17\n"
    async with newsroom_at(fresh.base_url, fresh.token) as other:
        assert await everything(other, feed) == await everything(newsroom, feed)
        await other.correct(feed, "e3", 2, headline="Minute 3")
        (
            await other.write(
                "POST", f"/v1/feeds/{feed}/entries", {"id": "e1", "headline": "Minute 1", "tags": ["live"]}
            )
        ).ok(200)
        refused = await other.write("POST", f"/v1/feeds/{feed}/entries", {"id": "e1", "headline": "Else"})
        refused.problem(409, "entry-exists")
        assert "is there already" in await desk.type("ops", "restore", feed, "--from", place)
        assert "ok" in await desk.type("ops", "verify", feed)
    wrong = await desk.type("ops", "restore", "nobody", "--from", place, code=1)
    assert "there is no archive of 'nobody'" in wrong
    await desk.type("ops", "restore", "--from", place, code=2)
    await desk.type("ops", "archive", code=2)
    await desk.type("ops", "archive", feed, "--closed", code=2)


async def test_a_feed_moves_as_one_file_and_a_file_that_is_not_whole_moves_nothing(
    newsroom: Newsroom, installation: Installation, fresh: Installation, feed: str, tmp_path: Path
) -> None:
    await a_story(newsroom, feed)
    file = tmp_path / "story.ndjson.gz"
    await Desk(installation).type("export", feed, "-o", str(file))
    desk = Desk(fresh)
    data = file.read_bytes()
    cut = tmp_path / "cut.gz"
    for damaged in (
        data[: len(data) // 2],
        data[:-1],
        gzip.compress(b"".join(gzip.decompress(data).splitlines(True)[:-1])),
    ):
        cut.write_bytes(damaged)
        assert "is no whole export" in (await desk.type("import", str(cut), code=1)).error
    async with newsroom_at(fresh.base_url, fresh.token) as other:
        (await other.get(f"/v1/feeds/{feed}", token=other.token)).problem(404)
        assert "17 events up to 1-17" in await desk.type("import", str(file))
        assert await everything(other, feed) == await everything(newsroom, feed)
        await desk.type("import", str(file))
        # What is the same history again may be brought again; another one may not.
        await other.publish(feed, "Here alone")
        await desk.type("import", str(file))
        await newsroom.publish(feed, "There alone")
        await Desk(installation).type("export", feed, "-o", str(file))
        refused = await desk.type("import", str(file), code=1)
        assert "409 history-differs" in refused.error
    assert (await Desk(installation).type("export", "nobody", "-o", "-", code=1)) == ""


async def test_importing_takes_a_token_and_the_type_of_its_lines(newsroom: Newsroom, feed: str) -> None:
    path = f"/v1/feeds/{feed}/events"
    (await newsroom.request("POST", path, data=b"x")).problem(401)
    (await newsroom.request("POST", path, data=b"x", token=newsroom.token)).problem(415)
    lines = {"Content-Type": "application/x-ndjson"}
    (await newsroom.request("POST", path, data=b"x", headers=lines, token=newsroom.token)).problem(400, "malformed")
    (await newsroom.request("POST", path, data=b"x" * (1024 * 1024 + 1), headers=lines, token=newsroom.token)).problem(
        413
    )
    (await newsroom.get(f"/v1/feeds/{feed}/quarantine")).problem(401)
    await newsroom.open_feed(feed)
    answer = await newsroom.get(f"/v1/feeds/{feed}/quarantine", token=newsroom.token)
    assert answer.ok(200).json == {"feed": feed, "records": {}}

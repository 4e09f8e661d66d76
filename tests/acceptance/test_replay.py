"""`dateline ops replay`, as a process: on a running and on a stopped `up`, in every form, and ended by Ctrl-C."""

import asyncio
import json
import signal
import time
from pathlib import Path

from tests.acceptance.harness import Installation, Newsroom, free_port, newsroom_at
from tests.acceptance.test_newsroom_verbs import Desk, from_nothing


async def lines_of(newsroom: Newsroom, feed: str) -> list[bytes]:
    answer = await newsroom.get(f"/v1/feeds/{feed}/events", token=newsroom.token)
    return answer.ok(200).body.splitlines(keepends=True)


async def test_a_replay_gives_the_events_between_two_places_both_included(
    newsroom: Newsroom, installation: Installation, feed: str
) -> None:
    desk = Desk(installation)
    for i in range(1, 5):
        await newsroom.publish(feed, f"Entry \x1b[2J {i}", id=f"e{i}")
        await asyncio.sleep(0.02)
    await newsroom.pin(feed, "e2")
    log = await lines_of(newsroom, feed)
    times = [json.loads(line)["recorded_at"] for line in log]

    async def replayed(*words: str, code: int = 0) -> str:
        return await desk.type("ops", "replay", feed, "--fast", *words, code=code)

    assert (await replayed("--json")).encode() == b"".join(log)
    assert (await replayed("--json", "--from", "1-2", "--to", "1-4")).encode() == b"".join(log[1:4])
    assert (await replayed("--json", "--from", times[2], "--to", times[4])).encode() == b"".join(log[2:5])
    shown = await replayed("--from", "1-3")
    day, *said = shown.splitlines()
    assert day.startswith("— ") and "UTC" in day
    assert [line.split()[1:4] for line in said] == [
        ["1-3", "EntryPublished", "e2"],
        ["1-4", "EntryPublished", "e3"],
        ["1-5", "EntryPublished", "e4"],
        ["1-6", "EntryPinned", "e2"],
    ]
    assert "\x1b" not in shown and "Entry ␛[2J 4 · ops" in said[2]


async def test_what_cannot_be_replayed_is_said_in_one_sentence(installation: Installation, feed: str) -> None:
    desk = Desk(installation)
    ran = await desk.type("ops", "replay", "no-such-feed", code=1)
    assert ran.error == "Error: There is no feed 'no-such-feed' for you here.\n"
    ran = await desk.type("ops", "replay", feed, "--from", "1-9", code=1)
    assert ran.error == f"Error: the log of '{feed}' holds no event at 1-9; it has come to 1-1\n"
    await desk.type("ops", "replay", feed, "--from", "1-2", "--to", "1-1", code=2)


async def test_a_replay_at_its_own_pace_takes_its_time_and_ends_cleanly_at_ctrl_c(
    newsroom: Newsroom, installation: Installation, feed: str
) -> None:
    await asyncio.sleep(0.6)
    await newsroom.publish(feed, "After a while", id="e1")
    process = await asyncio.create_subprocess_exec(
        *from_nothing("ops", "replay", feed, "--speed", "0.01"),
        env=Desk(installation).environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    async with asyncio.timeout(30):
        assert (await process.stdout.readline()).startswith("— ".encode())
        assert b"FeedOpened" in await process.stdout.readline()
        # A hundred times slower, half a second is a minute.
        assert b"of silence; the next event in" in await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, error = await process.communicate()
    assert (process.returncode, out, error) == (0, b"", b"")
    began = time.monotonic()
    shown = await Desk(installation).type("ops", "replay", feed, "--speed", "1")
    assert time.monotonic() - began > 0.5
    assert "After a while" in shown


async def test_a_replay_into_a_pipe_that_is_closed_ends_quietly(
    newsroom: Newsroom, installation: Installation, feed: str
) -> None:
    commands = [{"type": "publish", "id": f"e{i}", "headline": "h" * 400} for i in range(200)]
    for _ in range(2):
        await newsroom.batch(feed, *commands)
        commands = [{**command, "id": f"{command['id']}-2"} for command in commands]
    words = " ".join(from_nothing("ops", "replay", feed, "--fast"))
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"set -o pipefail; {words} | head -1"),
        env=Desk(installation).environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, error = await process.communicate()
    assert (process.returncode, error) == (0, b"")
    assert out.startswith("— ".encode())


async def test_the_log_of_a_stopped_installation_is_replayed_too(tmp_path: Path) -> None:
    own = Installation(tmp_path / "data", free_port()).start()
    try:
        async with newsroom_at(own.base_url, own.token) as newsroom:
            await newsroom.open_feed("story", timezone="Asia/Tokyo")
            await newsroom.publish("story", "Kick-off", id="e1")
            log = await lines_of(newsroom, "story")
        assert own.stop() == 0
        desk = Desk(own)
        assert (await desk.type("ops", "replay", "story", "--fast", "--json")).encode() == b"".join(log)
        assert "(JST)" in await desk.type("ops", "replay", "story", "--fast")
    finally:
        own.kill()

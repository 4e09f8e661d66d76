"""`dateline ops rebuild` and `ops quarantine`, as processes: readers connected throughout lose and repeat nothing.

Owns the verbs from outside, builds under writes and kills, and a release that knows more beside one that does not.
"""

import asyncio
import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.keys import Keys
from shared.quarantine import QuarantineRecord
from tests.acceptance.harness import (
    FoldedFeed,
    Installation,
    Newsroom,
    clean_environment,
    dateline,
    eventually,
    free_port,
    newsroom_at,
    number,
)
from tests.acceptance.killing import Apart, Desk, Follower, Reader, assert_each_write_once
from tests.acceptance.test_newsroom_verbs import from_nothing

OPS_SECONDS = 60.0
LONG_OPS_SECONDS = 900.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation of this module's own: its quarantine and its generations are counted."""
    running = Installation(tmp_path_factory.mktemp("rebuild") / "data", free_port()).start()
    yield running
    running.kill()


@pytest.fixture
async def newsroom(own: Installation) -> AsyncIterator[Newsroom]:
    async with newsroom_at(own.base_url, own.token) as newsroom:
        yield newsroom


async def ops(*words: str, code: int = 0, timeout_seconds: float = OPS_SECONDS) -> str:
    """Standard output of an operator's verb, which must end with `code`."""
    environment = clean_environment(COLUMNS="200")
    ended = await asyncio.to_thread(dateline, "ops", *words, environment=environment, timeout_seconds=timeout_seconds)
    assert ended.code == code, f"{words} ended with {ended}"
    return ended.output if code == 0 else ended.output + ended.error


async def shown(newsroom: Newsroom, feed: str, position: str) -> None:
    """Wait until readers get the feed at this position, on however slow a machine."""

    async def read() -> bool:
        return (await newsroom.get(f"/v1/feeds/{feed}", {"min_position": position})).status == 200

    await eventually(read, timeout_seconds=30, what=f"{feed} is read at {position}")


def of(own: Installation) -> list[str]:
    return ["--data-dir", str(own.data_dir)]


async def test_readers_pages_cursors_and_etags_survive_a_rebuild(
    own: Installation, newsroom: Newsroom, feed_id: str
) -> None:
    await newsroom.open_feed(feed_id)
    for number_ in range(30):
        await newsroom.publish(feed_id, f"No. {number_}", id=f"e{number_}", tags=["odd"] if number_ % 2 else [])
    path = f"/v1/feeds/{feed_id}/entries"
    first = (await newsroom.get(path, {"limit": 10, "min_position": "1-31"})).ok()
    held = FoldedFeed.of_page(await newsroom.page(feed_id, limit=100))
    async with newsroom.stream(feed_id, last_event_id=first.json["position"]) as stream:
        await stream.follow(held, "1-31")
        told = json.loads(await ops("rebuild", feed_id, "--json", *of(own)))
        [build] = told["feeds"]
        assert (build["feed"], build["state"], build["reason"], build["checkpoint"]) == (
            feed_id,
            "flipped",
            "rebuild",
            "1-31",
        )
        assert (build["events"], build["detail"]) == (31, None)
        assert build["by"].startswith("ops:")
        again = await newsroom.get(path, {"limit": 10}, headers={"If-None-Match": first.etag})
        assert again.status == 304
        rest = await newsroom.walk(feed_id, limit=10)
        assert [entry["id"] for entry in rest] == [f"e{number_}" for number_ in reversed(range(30))]
        second = await newsroom.page(feed_id, limit=10, cursor=first.json["next"])
        assert [entry["id"] for entry in second["entries"]] == [f"e{number_}" for number_ in reversed(range(10, 20))]
        # The next frame is the next position: nothing was repeated, nothing was said of the flip.
        await newsroom.publish(feed_id, "After", id="after")
        frame = await stream.frame()
        assert (frame.event, frame.position) == ("entry", "1-32")
        held.take(frame)
    assert held.entries() == await newsroom.walk(feed_id)
    assert held.resets == []


async def test_all_feeds_are_rebuilt_and_an_unknown_one_is_named(
    own: Installation, newsroom: Newsroom, feed_id: str
) -> None:
    await newsroom.open_feed(feed_id)
    out = await ops("rebuild", "--all", *of(own))
    assert "feeds rebuilt" in out
    assert "no-such-feed" in await ops("rebuild", feed_id, "no-such-feed", *of(own), code=1)
    assert "--all" in await ops("rebuild", *of(own), code=2)
    assert "--all" in await ops("rebuild", feed_id, "--all", *of(own), code=2)
    await ops("rebuild", feed_id, "--throttle", "0", *of(own), code=2)


async def test_ctrl_c_ends_the_watching_and_not_the_rebuild(
    own: Installation, newsroom: Newsroom, feed_id: str
) -> None:
    position = ""
    await newsroom.open_feed(feed_id)
    for start in range(0, 600, 150):
        commands = [{"type": "publish", "id": f"e{start + i}", "headline": "x"} for i in range(150)]
        position = (await newsroom.batch(feed_id, *commands))["position"]
    await shown(newsroom, feed_id, position)
    watching = await asyncio.create_subprocess_exec(
        *from_nothing("ops", "rebuild", feed_id, "--throttle", "120", *of(own)),
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )

    async def state() -> dict[str, Any]:
        return json.loads(await ops("status", feed_id, "--json", *of(own)))["feeds"][0]  # type: ignore[no-any-return]

    async with asyncio.timeout(30):
        while ((await state())["build"] or {}).get("state") != "building":
            await asyncio.sleep(0.05)
    watching.send_signal(2)
    _, errors = await watching.communicate()
    assert watching.returncode == 1
    assert b"the rebuild goes on" in errors
    before = (await state())["generation"]
    joined = json.loads(await ops("rebuild", feed_id, "--json", *of(own)))["feeds"][0]
    assert joined["throttle_events_per_second"] == 120.0
    assert (await state())["generation"] == joined["generation"] > before


async def test_a_stopped_installation_is_rebuilt_by_the_verb_itself(tmp_path: Path) -> None:
    own = Installation(tmp_path / "data", free_port()).start()
    try:
        async with newsroom_at(own.base_url, own.token) as newsroom:
            await newsroom.open_feed("final")
            await newsroom.publish("final", "Kick-off", id="e1")
        own.kill()
        [build] = json.loads(await ops("rebuild", "final", "--json", *of(own)))["feeds"]
        assert (build["state"], build["checkpoint"]) == ("flipped", "1-2")
        own.start()
        async with newsroom_at(own.base_url, own.token) as newsroom:
            assert [entry["id"] for entry in await newsroom.walk("final")] == ["e1"]
    finally:
        own.kill()


# Quarantine


@pytest.fixture
async def apart(tmp_path: Path) -> AsyncIterator[Apart]:
    one = Apart(tmp_path)
    try:
        await one.start_all()
        yield one
    finally:
        one.end()


async def test_a_retry_folds_the_event_in_its_own_place_and_readers_start_over(apart: Apart) -> None:
    """The record is written before the event comes, as by a release that could not fold it."""
    feed, keys = "final", Keys().feed("final")
    async with newsroom_at(apart.base_url, apart.token, write_url=apart.write_url) as newsroom:
        await newsroom.open_feed(feed)
        await newsroom.publish(feed, "One", id="e1")
        record = QuarantineRecord("1-3", "the headline is too blue", "EntryPublished", "e2", 1)
        client: Any = apart.client()
        client.hset(keys.quarantine, "1-3", msgspec.json.encode(record))
        held = FoldedFeed()
        async with newsroom.stream(feed, query={"snapshot": 20, "min_position": "1-2"}) as stream:
            await stream.follow(held, "1-2")
            await newsroom.publish(feed, "Two", id="e2")
            await newsroom.publish(feed, "Three", id="e3")
            await stream.follow(held, "1-4")
            assert [entry["id"] for entry in held.entries()] == ["e3", "e1"]
            listed = json.loads(await ops("quarantine", "list", "--json", *apart.ops_flags))["events"]
            assert [(event["feed"], event["position"], event["discarded"]) for event in listed] == [(feed, "1-3", None)]
            assert "too blue" in await ops("quarantine", "list", feed, *apart.ops_flags)
            shown = json.loads(await ops("quarantine", "show", feed, "1-3", "--json", *apart.ops_flags))
            assert shown["envelope"]["facts"]["entry"] == "e2"
            assert shown["content"]["headline"] == "Two"
            assert "too blue" in await ops("quarantine", "show", feed, "1-3", *apart.ops_flags)

            retried = json.loads(await ops("quarantine", "retry", feed, "1-3", "--json", *apart.ops_flags))
            assert (retried["repaired"], retried["build"]["repairs"]) == (True, ["1-3"])
            frames = await stream.until("snapshot")
            assert [frame.event for frame in frames] == ["reset", "snapshot"]
            assert frames[0].data == {"feed": feed, "reason": "repaired"}
            for frame in frames:
                held.take(frame)
            await stream.follow(held, "2-5")
            await newsroom.publish(feed, "Four", id="e4")
            await stream.follow(held, "2-6")
        assert [entry["id"] for entry in held.entries()] == ["e4", "e3", "e2", "e1"]
        assert held.entries() == await newsroom.walk(feed)
        assert json.loads(await ops("quarantine", "list", "--json", *apart.ops_flags)) == {"events": []}
        assert "1-3" in await ops("quarantine", "retry", feed, "1-3", *apart.ops_flags, code=1)
        await ops("quarantine", "retry", feed, "third", *apart.ops_flags, code=2)
        client.close()


async def test_a_retry_that_does_not_fold_changes_nothing_and_a_discarded_event_waits_for_nobody(apart: Apart) -> None:
    feed, keys = "final", Keys().feed("final")
    async with newsroom_at(apart.base_url, apart.token, write_url=apart.write_url) as newsroom:
        await newsroom.open_feed(feed)
        client: Any = apart.client()
        for position in ("1-2", "1-3"):
            record = QuarantineRecord(position, "it was too blue", None, None, 1)
            client.hset(keys.quarantine, position, msgspec.json.encode(record))
        await newsroom.publish(feed, "One", id="e1")
        # Appended by a writer to whom e1 stands in the log: a pin of an entry that no reader has.
        client.hset(keys.entries, "e1", "published 1 1-1 f")
        envelope = client.xrange(keys.log, "1-2", "1-2")[0][1][b"envelope"]
        pinned = json.loads(envelope) | {"type": "EntryPinned", "digest": None, "facts": {"entry": "e1"}}
        client.xadd(keys.log, {"envelope": json.dumps(pinned), "content": b"", "recorded_at": b"9"}, id="1-3")
        client.hset(keys.head, "n", "3")
        shard = Keys().shard(Keys.shard_of(feed))
        client.sadd(shard.dirty, feed)
        client.xadd(shard.doorbell, {"feed": feed})
        await shown(newsroom, feed, "1-3")
        before = client.get(keys.active)

        failed = json.loads(
            (await ops("quarantine", "retry", feed, "1-3", "--json", *apart.ops_flags, code=1)).splitlines()[0]
        )
        assert failed["repaired"] is False
        assert "no such entry" in failed["build"]["detail"]
        assert client.get(keys.active) == before
        assert number((await newsroom.feed(feed))["position"]) == 3

        await ops("quarantine", "discard", feed, "1-3", *apart.ops_flags, code=2)
        out = await ops("quarantine", "discard", feed, "1-3", "--reason", "a slip of a test", *apart.ops_flags)
        assert "a slip of a test" in out
        listed = json.loads(await ops("quarantine", "list", feed, "--json", *apart.ops_flags))["events"]
        assert [event["discarded"] and event["discarded"]["reason"] for event in listed] == [None, "a slip of a test"]
        client.close()


# Builds under writes, and projectors that die


async def test_rebuilds_under_writes_with_projectors_killed_lose_and_repeat_nothing(apart: Apart, long: bool) -> None:
    """200,000 events and some minutes under --long, a few thousand by default. `REBUILD_SEED` repeats a run's choices."""
    seed = int(os.environ.get("REBUILD_SEED") or secrets.randbelow(2**32))
    print(f"REBUILD_SEED={seed}")
    rng = random.Random(seed)
    feeds = ("big", "small")
    events = 200_000 if long else 4_000
    kills = 20 if long else 4
    async with AsyncExitStack() as stack:
        newsroom = await stack.enter_async_context(newsroom_at(apart.base_url, apart.token, write_url=apart.write_url))
        for feed in feeds:
            await newsroom.open_feed(feed)
        desks = [Desk(newsroom, feeds, f"d{n}", random.Random(f"{seed}-{n}")) for n in range(2)]
        await fill(desks[0], "big", events=events)
        readers = [
            Reader(newsroom, random.Random(seed + 1), {"big": Follower()}, {"snapshot": 20}),
            Reader(newsroom, random.Random(seed + 2), {feed: Follower() for feed in feeds}, {"snapshot": 50}),
        ]
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            following = [group.create_task(reader.follow()) for reader in readers]
            working = [group.create_task(desk.work(over)) for desk in desks]
            done = group.create_task(
                rebuilt(apart, rounds=4 if long else 2, timeout_seconds=LONG_OPS_SECONDS if long else OPS_SECONDS)
            )
            for _ in range(kills):
                await asyncio.sleep(rng.uniform(0.2, 0.9))
                victims = rng.sample(
                    [name for name in apart.names if name.startswith("projector")], rng.choice([1, 1, 2])
                )
                await apart.kill_at_once(victims)
                await asyncio.sleep(rng.uniform(0, 0.3))
                await apart.bring_back(victims)
            builds = await done
            over.set()
            await asyncio.gather(*working)
            await apart.ready()
            positions = {feed: await desks[0].publish_into(feed) for feed in feeds}
            await eventually(
                lambda: all(reader.reached({f: positions[f] for f in reader.feeds}) for reader in readers),
                timeout_seconds=40,
                what=f"readers are live at {positions}",
            )
            for task in following:
                task.cancel()
        for reader in readers:
            for feed, folded in reader.feeds.items():
                assert (folded.resets, folded.gap) == ([], None)
                page = await newsroom.page(feed, limit=20)
                shown = [entry["id"] for entry in page["entries"]]
                assert [entry["id"] for entry in folded.entries()][: len(shown)] == shown
        newest = await newsroom.walk("small")
        assert newest == (await newsroom.walk("small", order="oldest"))[::-1]
    assert [build["state"] for build in builds] == ["flipped"] * len(builds)
    client: Any = apart.client()
    count = assert_each_write_once(client, feeds, desks)
    await eventually(lambda: all(one_generation(client, feed) for feed in feeds), what="old generations go")
    client.close()
    print(f"{count} events, {len(builds)} builds, {sum(desk.acknowledged for desk in desks)} answers under way")


async def fill(desk: Desk, feed: str, *, events: int) -> None:
    for _ in range(events // 150):
        commands = [{"type": "publish", "id": desk._word(), "headline": desk._word()} for _ in range(150)]
        answer = await desk._send("POST", f"/v1/feeds/{feed}/batch", {"commands": commands}, key=None)
        for document, command in zip(answer.ok(200).json["results"], commands, strict=True):
            desk._published(document, command["headline"])
    # What a desk has at hand is what it edits: a few of them.
    desk.own = desk.own[-200:]


async def rebuilt(apart: Apart, *, rounds: int, timeout_seconds: float) -> list[dict[str, Any]]:
    builds: list[dict[str, Any]] = []
    for _ in range(rounds):
        started = time.monotonic()
        told = await ops("rebuild", "--all", "--json", *apart.ops_flags, timeout_seconds=timeout_seconds)
        builds += json.loads(told)["feeds"]
        print(f"rebuilt in {time.monotonic() - started:.1f} s")
    return builds


def one_generation(client: Any, feed: str) -> bool:
    prefix = Keys().feed(feed).generation
    found = {
        key.decode().removeprefix(prefix).partition(":")[0] for key in client.scan_iter(f"{prefix}[0-9]*", count=1000)
    }
    return len(found) == 1


# A release that knows more

NEWER = """
import shared.read_models as models
from shared.documents import Entry
models.READ_MODELS["loud"] = models._live("loud", models.chronological_key, lambda entry: "!" in (entry.headline or ""))
from services.cli.main import main
main()
"""


async def test_a_read_model_is_added_by_one_line_and_a_rebuild_while_an_older_projector_still_runs(
    apart: Apart,
) -> None:
    """Every shard is an older projector's when the newer one comes; the feed is written to all the time."""
    feed, keys = "final", Keys().feed("final")
    newer = [sys.executable, "-c", NEWER]
    async with newsroom_at(apart.base_url, apart.token, write_url=apart.write_url) as newsroom:
        await newsroom.open_feed(feed)
        await newsroom.publish(feed, "Goal!", id="e1")
        process = await asyncio.create_subprocess_exec(
            *newer,
            *("projector", "--redis-url", apart.server.url, "--port", str(free_port())),
            env=clean_environment(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        client: Any = apart.client()
        held = FoldedFeed()
        try:
            await eventually(lambda: client.zcard(Keys().projectors) == 3, what="the newer projector is there")
            async with newsroom.stream(feed, query={"snapshot": 20}) as stream:
                await stream.follow(held, "1-2")
                over = asyncio.Event()

                async def write() -> None:
                    while not over.is_set():
                        position = (await newsroom.publish(feed, "Again!"))["position"]
                        # Shards change hands meanwhile; none is left to nobody.
                        await shown(newsroom, feed, position)

                writing = asyncio.create_task(write())
                rebuild = [*newer, "ops", "rebuild", feed, "--json", *apart.ops_flags]
                told = await asyncio.to_thread(
                    subprocess.run, rebuild, env=clean_environment(), capture_output=True, timeout=OPS_SECONDS
                )
                assert told.returncode == 0, told
                [build] = json.loads(told.stdout)["feeds"]
                assert build["state"] == "flipped"
                over.set()
                await writing
                last = (await newsroom.feed(feed))["position"]
                await stream.follow(held, last)
            meta = keys.of_generation(int(client.get(keys.active))).meta
            assert b"loud" in client.hget(meta, "read_models")
            loud = client.zcard(keys.of_generation(int(client.get(keys.active))).indexes + "loud")
            assert loud == len(await newsroom.walk(feed))
        finally:
            process.terminate()
            await process.wait()
            client.close()

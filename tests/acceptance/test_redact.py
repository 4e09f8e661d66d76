"""`dateline ops redact`, as a process: the content is in no page, stream or file afterwards, and the receipt says so."""

import asyncio
import json
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.keys import Keys
from shared.members import Members
from shared.redis import connect
from tests.acceptance.harness import FoldedFeed, Installation, Newsroom, clean_environment, free_port, newsroom_at
from tests.acceptance.test_newsroom_verbs import Desk, from_nothing


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation of this module's own, whose server's files no other test writes."""
    running = Installation(tmp_path_factory.mktemp("redact") / "data", free_port()).start()
    yield running
    running.kill()


@pytest.fixture
async def newsroom(own: Installation) -> AsyncIterator[Newsroom]:
    async with newsroom_at(own.base_url, own.token) as newsroom:
        yield newsroom


@pytest.fixture
def feed(feed_id: str) -> str:
    return feed_id


@pytest.fixture
def secret() -> str:
    return f"Jonathan-{secrets.token_hex(6)}"


def holding(data_dir: Path, secret: str) -> list[str]:
    files = [file for file in data_dir.rglob("*") if file.is_file() and not file.is_socket()]
    return [str(file) for file in files if secret.encode() in file.read_bytes()]


async def test_a_redacted_content_is_nowhere_any_more(
    own: Installation, newsroom: Newsroom, feed: str, secret: str
) -> None:
    await newsroom.open_feed(feed)
    await newsroom.publish(feed, "The court is open", id="first")
    before = (await newsroom.publish(feed, f"{secret} is named", id="named", tags=["x"]))["position"]
    await newsroom.correct(feed, "named", 1, headline=f"{secret} is heard", correction_note=secret)
    await newsroom.publish(feed, "The court adjourns", id="last")
    assert holding(own.data_dir, secret)
    live = FoldedFeed()
    live.load(await newsroom.page(feed))
    async with newsroom.stream(feed) as stream:
        await stream.until("live")
        await redact_with_a_receipt(own, feed, secret)
        [frame] = [f for f in await stream.until("retraction") if f.event == "retraction"]
    assert frame.data["id"] == "named" and frame.data["reason"] is None and "headline" not in frame.data
    live.take(frame)
    assert live.entries() == (await newsroom.page(feed))["entries"]
    assert holding(own.data_dir, secret) == []
    async with newsroom.stream(feed, last_event_id=before) as resumed:
        [tombstone] = [f for f in await resumed.until("live") if f.event == "retraction"]
    assert tombstone.data["id"] == "named"
    changes = await newsroom.changes(feed)
    assert [d["status"] for d in changes["documents"]] == ["published", "published", "retracted"]
    assert secret not in json.dumps(changes) and changes["feed_document"]["entry_count"] == 2
    assert (await newsroom.publish(feed, "Desks go on"))["revision"] == 1


async def redact_with_a_receipt(own: Installation, feed: str, secret: str) -> None:
    desk = Desk(own)
    words = ("ops", "redact", feed, "named", "--reason", "order 2 O 117", "--data-dir", str(own.data_dir))
    refused = await desk.type(*words, answer="n\n", code=1)
    assert "Aborted" in refused.error and holding(own.data_dir, secret)
    receipt = json.loads(await desk.type(*words, "--yes", "--json"))
    assert receipt["complete"] and all(place["confirmed"] for place in receipt["places"]), receipt
    assert {"log", "read models", "frames", "append-only file", "files"} <= {p["place"] for p in receipt["places"]}
    assert any(place["place"].startswith("gateway ") for place in receipt["places"])
    assert [removed["position"] for removed in receipt["removed"]] == ["1-3", "1-4"]
    assert receipt["by"].startswith("ops:") and receipt["reason"] == "order 2 O 117"


async def test_on_a_stopped_installation_the_verb_does_it_all_itself(own: Installation, feed: str, secret: str) -> None:
    async with newsroom_at(own.base_url, own.token) as newsroom:
        await newsroom.open_feed(feed)
        await newsroom.publish(feed, f"{secret} is named", id="named")
    assert own.stop() == 0
    desk = Desk(own)
    shown = await desk.type("ops", "redact", feed, "named", "--reason", "r", "--yes", "--data-dir", str(own.data_dir))
    assert "UNCONFIRMED" not in shown and "  confirmed    read models: the tombstone stands" in shown
    assert holding(own.data_dir, secret) == []
    own.start()
    async with newsroom_at(own.base_url, own.token) as newsroom:
        assert (await newsroom.page(feed))["total"] == 0


async def test_a_gateway_that_does_not_confirm_is_listed(
    own: Installation, newsroom: Newsroom, feed: str, secret: str
) -> None:
    await newsroom.open_feed(feed)
    await newsroom.publish(feed, f"{secret} is named", id="named")
    record = json.loads((own.data_dir / "server.json").read_text())
    redis = connect(f"unix://{record['socket']}")
    gateways = Members(redis, Keys().gateways)
    try:
        await gateways.announce("silent:1:x", seconds=30)
        shown = await Desk(own).type(
            *("ops", "redact", feed, "named", "--reason", "r", "--yes", "--json", "--data-dir", str(own.data_dir)),
            code=1,
        )
        await gateways.leave("silent:1:x")
    finally:
        await redis.aclose()
    receipt = json.loads(shown)
    assert not receipt["complete"]
    assert [p["place"] for p in receipt["places"] if not p["confirmed"]] == ["gateway silent:1:x"]


async def test_an_unknown_entry_is_one_sentence_and_exit_code_one(
    own: Installation, newsroom: Newsroom, feed: str, secret: str
) -> None:
    await newsroom.open_feed(feed)
    words = ("ops", "redact", feed, "nobody", "--reason", "r", "--yes", "--data-dir", str(own.data_dir))
    ran = await Desk(own).type(*words, code=1)
    assert ran == "" and "has no entry 'nobody'" in ran.error and "Traceback" not in ran.error
    ran = await Desk(own).type("ops", "redact", feed, "nobody", code=2)
    assert "--reason" in ran.error


async def test_a_redaction_that_was_cut_short_is_finished_by_the_next(
    own: Installation, newsroom: Newsroom, feed: str, secret: str
) -> None:
    """Killed at some moment between its steps, the verb is run again and its receipt is whole."""
    await newsroom.open_feed(feed)
    await newsroom.publish(feed, f"{secret} is named", id="named")
    words = ["ops", "redact", feed, "named", "--reason", "r", "--yes", "--json", "--data-dir", str(own.data_dir)]
    for patience_seconds in (0.7, 0.8, 0.9):
        await interrupted(own, words, patience_seconds=patience_seconds)
    receipt = json.loads(await Desk(own).type(*words))
    assert receipt["complete"] and holding(own.data_dir, secret) == []


async def interrupted(own: Installation, words: list[str], *, patience_seconds: float) -> None:
    process = await asyncio.create_subprocess_exec(
        *from_nothing(*words),
        env=clean_environment(),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(patience_seconds):
            await process.wait()
    except TimeoutError:
        process.send_signal(signal.SIGKILL)
        await process.wait()

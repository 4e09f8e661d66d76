"""The newsroom verbs and `tail`, as processes against a running installation: what a desk types, reads and gets back."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.cli.client import DatelineClient
from services.cli.demo.cuts import Relay
from tests.acceptance.harness import Installation, Newsroom, clean_environment, dateline, eventually, free_port

VERB_SECONDS = 30.0
LINE_SECONDS = 30.0


class Ran(str):
    """What a verb printed on standard output, with the rest at hand."""

    error: str
    code: int


class Desk:
    """Types verbs. Without a token of its own it has the installation's data directory."""

    def __init__(self, installation: Installation, **environment: str) -> None:
        own = {"DATELINE_URL": installation.base_url, "DATELINE_DATA_DIR": str(installation.data_dir)}
        self.environment = clean_environment(**{**own, **environment})

    async def type(self, *words: str, answer: str = "", code: int = 0) -> Ran:
        ended = await asyncio.to_thread(dateline, *words, environment=self.environment, answer=answer)
        ran = Ran(ended.output)
        ran.error, ran.code = ended.error, ended.code
        assert ran.code == code, f"{words} ended with {ran.code}\n{ran}\n{ran.error}"
        return ran


def from_nothing(*words: str) -> list[str]:
    """The command line of a `dateline` that starts as users' do, for a test that reads its pipes."""
    return [sys.executable, "-m", "services.cli.main", *words]


@pytest.fixture
def desk(installation: Installation) -> Desk:
    return Desk(installation)


# The verbs


async def test_an_entry_from_its_publication_to_its_retraction(desk: Desk, newsroom: Newsroom, feed_id: str) -> None:
    opened = await desk.type("open", feed_id, "--title", "Harbour", "--timezone", "Europe/Paris", "--topic", "port")
    assert opened.startswith("Opened: Harbour\n") and f"/live/{feed_id}" in opened
    assert (await newsroom.feed(feed_id))["topics"] == ["port"]

    published = await desk.type("publish", feed_id, "First light", "--id", "e1", "--author", "A. N.", "--tag", "dawn")
    assert published == "Published: First light\n  id e1 · revision 1 · position 1-2\n"
    assert await desk.type("correct", feed_id, "e1", "First light, late", "--note", "It was late") == (
        "Corrected: First light, late\n  id e1 · revision 2 · position 1-3\n"
    )
    assert (await desk.type("pin", feed_id, "e1")).endswith("revision 2 · position 1-4\n")
    assert (await desk.type("pin", feed_id, "e1", "--off")).startswith("Unpinned: ")
    entry = await newsroom.entry(feed_id, "e1")
    assert entry["correction"]["note"] == "It was late" and not entry["pinned"]
    assert entry["authors"] == [{"name": "A. N."}] and entry["tags"] == ["dawn"]

    retracted = await desk.type("retract", feed_id, "e1", "--yes", "--reason", "There was none")
    assert retracted == "Retracted: There was none\n  id e1 · revision 2 · position 1-6\n"
    assert "First light, late" in retracted.error
    assert (await desk.type("retract", feed_id, "e1", "--yes")).startswith("Retracted already: ")
    assert "410" in (await desk.type("correct", feed_id, "e1", "Back", code=1)).error


async def test_every_part_of_an_entry_can_be_given(desk: Desk, feed: str) -> None:
    words = """--text - --quote It&nbsp;holds --attribution N --item one --item two --image https://example.org/i --alt A
        --link https://example.org/l --link-title L --embed https://example.org/e --at 2022-01-10T19:38:00+01:00
        --key-event --pin --json"""
    text = "One <strong>paragraph</strong>\r\n\r\nand <em>another</em>\n"
    entry = json.loads(await desk.type("publish", feed, *words.split(), answer=text))
    assert [block["type"] for block in entry["body"]] == [
        "text",
        "text",
        "quote",
        "list",
        "image",
        "link_card",
        "embed",
    ]
    assert entry["body"][1]["html"] == "and <em>another</em>"
    assert entry["headline"] is None and entry["key_event"] and entry["pinned"]
    assert entry["published_at"] == "2022-01-10T18:38:00.000Z"


async def test_a_correction_changes_only_what_is_given_and_can_clear(desk: Desk, feed: str) -> None:
    await desk.type("publish", feed, "Head", "--text", "Body", "--tag", "t", "--id", "e1")
    changed = json.loads(await desk.type("correct", feed, "e1", "--clear", "tags", "--key-event", "--json"))
    assert (changed["headline"], changed["tags"], changed["key_event"]) == ("Head", [], True)
    assert (await desk.type("correct", feed, "e1", "Head")).startswith("Unchanged: ")


async def test_a_correction_of_an_old_revision_does_not_overwrite_another_desks(desk: Desk, feed: str) -> None:
    await desk.type("publish", feed, "Head", "--id", "e1")
    await desk.type("correct", feed, "e1", "Theirs")
    refused = await desk.type("correct", feed, "e1", "Mine", "--revision", "1", code=1)
    assert "at revision 2, not 1; it reads now: Theirs" in refused.error
    assert (await desk.type("correct", feed, "e1", "Mine", "--revision", "2")).startswith("Corrected: Mine")


async def test_retract_shows_the_headline_and_asks(desk: Desk, newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "Doubtful", id="e1")
    for answer in ("n\n", ""):
        asked = await desk.type("retract", feed, "e1", answer=answer, code=1)
        assert "Doubtful" in asked.error and "for good?" in asked.error and asked == ""
    assert (await newsroom.entry(feed, "e1"))["status"] == "published"
    await desk.type("retract", feed, "e1", answer="y\n")


async def test_open_leaves_a_feed_that_is_open_as_it_is(desk: Desk, newsroom: Newsroom, feed_id: str) -> None:
    await desk.type("open", feed_id, "--title", "Secret", "--private")
    assert (await desk.type("open", feed_id, "--title", "Secret", "--private")).startswith("Open already: Secret")
    # Opened again without --private it must not become public by the way.
    refused = await desk.type("open", feed_id, "--title", "Secret", code=1)
    assert "visibility" in refused.error and "--replace" in refused.error
    assert (await newsroom.get(f"/v1/feeds/{feed_id}")).status == 404
    assert (await desk.type("open", feed_id, "--title", "Known", "--replace")).startswith("Replaced: Known")


async def test_a_refusal_is_one_readable_text_with_paths_and_exit_code_1(desk: Desk, feed: str) -> None:
    refused = await desk.type("publish", feed, "Head", "--link", "javascript:x", "--link-title", "L", code=1)
    assert refused == "" and "not accepted (422 invalid)\n  /body/0/url: " in refused.error
    assert "404" in (await desk.type("publish", "no-such-feed", "Head", code=1)).error
    assert "404" in (await desk.type("retract", feed, "no-such-entry", "--yes", code=1)).error


@pytest.mark.parametrize(
    "words",
    [
        ["publish", "f"],
        ["publish", "f", "Head", "--image", "https://example.org/i"],
        ["publish", "f", "Head", "--link", "https://example.org/l"],
        ["publish", "f", "Head", "--attribution", "nobody said anything"],
        ["publish", "f", "--text", "-", "--text", "-"],
        ["correct", "f", "e"],
        ["correct", "f", "e", "Head", "--clear", "headline"],
        ["correct", "f", "e", "Head", "--revision", "0"],
        ["open", "f"],
        ["pin", "f"],
        ["tail"],
        ["tail", "f", "f"],
        ["tail", "f", "--last", "0"],
        ["publish", "f", "Head", "--url", "nonsense"],
    ],
    ids=" ".join,
)
async def test_what_makes_no_sense_is_a_usage_error(desk: Desk, words: list[str]) -> None:
    assert (await desk.type(*words, code=2)).error.startswith("Usage: ")


async def test_a_token_that_is_wrong_or_missing_is_said_plainly(
    installation: Installation, feed: str, tmp_path: Path
) -> None:
    wrong = await Desk(installation, DATELINE_TOKEN="wrong").type("publish", feed, "Head", code=1)
    missing = await Desk(installation, DATELINE_DATA_DIR=str(tmp_path)).type("publish", feed, "Head", code=1)
    assert "401" in wrong.error and "DATELINE_TOKEN" in wrong.error and "401" in missing.error


async def test_a_server_out_of_reach_is_tried_again_and_then_said_plainly(installation: Installation) -> None:
    nowhere = Desk(installation, DATELINE_URL=f"http://127.0.0.1:{free_port()}")
    refused = await nowhere.type("publish", "f", "Head", code=1)
    assert refused.error.count("again in") >= 2 and "Traceback" not in refused.error
    assert refused.error.splitlines()[-1].startswith("dateline: cannot reach http://127.0.0.1:")


async def test_a_write_whose_answer_was_lost_is_sent_again_and_stands_once(
    installation: Installation, newsroom: Newsroom, feed: str
) -> None:
    relay = Relay(installation.base_url, bytes_before_cut=0, cuts_max=2)
    async with relay.running() as url, DatelineClient(url, installation.token) as client:
        written = await client.publish(feed, {"headline": "Once"})
    assert relay.cuts == 2 and written.replayed
    page = await newsroom.page(feed, min_position=written.position)
    assert [entry["headline"] for entry in page["entries"]] == ["Once"]


async def test_the_client_speaks_the_calls_that_no_verb_needs(installation: Installation, feed: str) -> None:
    async with DatelineClient(installation.base_url, installation.token) as client:
        commands = [{"type": "publish", "id": f"e{n}", "headline": f"Number {n}"} for n in range(3)]
        written = await client.batch(feed, [*commands, {"type": "retract", "id": "e1"}])
        assert [document["id"] for document in written.document["results"]] == ["e0", "e1", "e2", "e1"]
        pages = [page async for page in client.pages(feed, limit=1, min_position=written.position)]
        assert [entry["id"] for page in pages for entry in page["entries"]] == ["e2", "e0"]
        assert [document["id"] for document in await client.all_changes(feed)] == ["e0", "e2", "e1"]
        assert (await client.entry(feed, "e1"))["status"] == "retracted"
        assert feed in [each["id"] for each in (await client.feeds())["feeds"]]


@pytest.mark.parametrize(
    ("status", "said"),
    [("200 OK", "what answered here is not Dateline"), ("502 Bad Gateway", "Bad Gateway (502 http-502)")],
)
async def test_what_is_not_dateline_is_said_plainly(installation: Installation, status: str, said: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<hi>".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert said in (await Desk(installation, DATELINE_URL=url).type("publish", "f", "Head", code=1)).error


# tail


class Tail:
    """A running `dateline tail`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.notices: list[str] = []

    async def read(self, stream: asyncio.StreamReader, into: list[str]) -> None:
        while line := await stream.readline():
            into.append(line.decode().rstrip("\n"))

    async def until(self, text: str, *, notice: bool = False) -> None:
        lines = self.notices if notice else self.lines
        await eventually(
            lambda: any(text in line for line in lines), timeout_seconds=LINE_SECONDS, what=f"a line with {text!r}"
        )


@asynccontextmanager
async def tailing(environment: Mapping[str, str], *words: str) -> AsyncIterator[Tail]:
    """Run it as on a pipe; it must end with 0 at Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        *from_nothing("tail", *words), env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    tail = Tail(process)
    readers = [
        asyncio.create_task(tail.read(process.stdout, tail.lines)),
        asyncio.create_task(tail.read(process.stderr, tail.notices)),
    ]
    try:
        yield tail
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(VERB_SECONDS):
            assert await process.wait() == 0, tail.notices
            await asyncio.gather(*readers)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for reader in readers:
            reader.cancel()


async def test_tail_shows_what_is_written_while_it_runs(desk: Desk, newsroom: Newsroom, feed: str) -> None:
    await newsroom.publish(feed, "Before", id="e1")
    async with tailing(desk.environment, feed) as tail:
        await tail.until("Before")
        entry = await newsroom.publish(
            feed, "Now\x1b[2J", id="e2", body=[{"type": "text", "html": "A &amp; <em>B</em>"}]
        )
        await tail.until("Now␛[2J")
        await tail.until("A & B")
        await newsroom.correct(feed, entry["id"], 1, headline="Then", correction_note="It was then")
        await tail.until("correction: It was then")
        await newsroom.pin(feed, "e1")
        await tail.until("[pinned] Before")
        await newsroom.retract(feed, "e2", "Never")
        await tail.until("[retracted] e2: Never")
    assert tail.notices == []
    assert not any("\x1b" in line for line in tail.lines)


async def test_tail_prints_each_frame_as_a_line_of_json(desk: Desk, newsroom: Newsroom, feed: str) -> None:
    async with tailing(desk.environment, feed, "--json") as tail:
        await tail.until('"live"')
        published = await newsroom.publish(feed, "Line one\u009b31m\u2028not two")
        await tail.until("Line one")
    frames = [json.loads(line) for line in tail.lines]
    assert [frame["event"] for frame in frames] == ["snapshot", "live", "entry"]
    assert frames[-1] == {"event": "entry", "id": published["position"], "data": published}
    assert "\u009b" not in tail.lines[-1]


async def test_tail_of_a_feed_that_is_not_there_ends_with_1(desk: Desk) -> None:
    assert "404" in (await desk.type("tail", "no-such-feed", code=1)).error


async def test_tail_comes_back_after_a_restart_and_misses_nothing(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "data", free_port()).start()
    try:
        desk = Desk(installation)
        await desk.type("open", "f", "--title", "Feed")
        async with tailing(desk.environment, "f") as tail:
            await tail.until("Feed (open, 0 entries)")
            assert await asyncio.to_thread(installation.stop) == 0
            await tail.until("connecting again in", notice=True)
            await asyncio.to_thread(installation.start)
            await desk.type("publish", "f", "While you were away")
            await tail.until("While you were away")
            await tail.until("connected again", notice=True)
        # Resumed from where it was, not begun anew.
        assert sum("Feed (open" in line for line in tail.lines) == 1
    finally:
        installation.kill()

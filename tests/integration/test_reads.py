"""Reads on real servers: pages and differences are of one moment, and walks and folds of them lose and repeat nothing."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec
import pytest

from services.gateway import reads as module
from services.gateway.cursor import Filters, Order, read_cursor
from services.gateway.differences import Folded
from services.gateway.reads import Difference, Page, Reads
from services.gateway.ring import Ready
from shared.errors import Corrupted
from shared.keys import Keys
from shared.position import ORIGIN, Position
from shared.redis import Redis, asking, connect
from tests.integration.conftest import RunningServer
from tests.integration.gateway_kit import SIGNED, Json, Newsroom, Running, minute, number

FEED = "story"


@pytest.fixture
def reads(redis: Redis, keys: Keys) -> Reads:
    return Reads(redis, keys)


async def page_of(reads: Reads, filters: Filters | None = None, *, limit: int = 100, cursor: str | None = None) -> Json:
    filters = filters or Filters()
    after = read_cursor(cursor, FEED, filters) if cursor else None
    page = await reads.page(FEED, filters, limit=limit, after=after)
    assert page is not None
    return cast("Json", msgspec.json.decode(page.body))


async def all_documents(reads: Reads) -> dict[str, Json]:
    """Every document of the feed, tombstones too, straight from the index of changes."""
    found: dict[str, Json] = {}
    after, more = ORIGIN, True
    while more:
        difference = await reads.difference(FEED, after=after)
        assert difference is not None
        found |= {document["id"]: document for document in map(msgspec.json.decode, difference.documents)}
        after, more = difference.position, difference.more
    return found


def order_key(document: Json) -> tuple[str, int]:
    return document["published_at"], number(document["first_position"])


def expected_entries(documents: Iterable[Json], filters: Filters) -> list[Json]:
    """What a page without a limit lists, worked out the slow way."""
    found = [
        document
        for document in documents
        if document["status"] == "published"
        and (filters.tag is None or filters.tag in document["tags"])
        and (not filters.key_events or document["key_event"])
        and (filters.since is None or document["published_at"] >= filters.since)
        and (filters.until is None or document["published_at"] < filters.until)
    ]
    return sorted(found, key=order_key, reverse=filters.order == "newest")


class Desks:
    """Desks that do anything that desks do, at random, and each act is committed at once."""

    def __init__(self, newsroom: Newsroom, seed: int) -> None:
        self._newsroom = newsroom
        self._random = random.Random(seed)
        self._live: dict[str, int] = {}
        self._pinned: set[str] = set()
        self._count = 0
        self.retimed: set[str] = set()

    async def act(self) -> None:
        acts = ["publish"] * 4 + ["correct", "retime", "retract", "mark", "unmark", "pin", "unpin", "retag", "revise"]
        await getattr(self, self._random.choice(acts))()
        if await self._newsroom.head(FEED) != await self.checkpoint():
            await self._newsroom.commit_all(FEED)

    async def checkpoint(self) -> Position | None:
        keys = self._newsroom.keys.feed(FEED)
        active = await self._newsroom.redis.get(keys.active)
        if active is None:
            return None
        raw = await cast("Any", self._newsroom.redis.hget(keys.of_generation(int(active)).meta, "checkpoint"))
        return Position.parse(raw.decode())

    async def publish(self) -> None:
        self._count += 1
        entry = f"e{self._count}"
        # Few instants, so that many entries share one, and half of them back-dated.
        at = minute(self._random.choice([*range(0, 40, 4), self._count * 2]))
        await self._newsroom.publish(
            FEED, entry, published_at=at, tags=self._tags(), key_event=self._random.random() < 0.4
        )
        self._live[entry] = 1

    async def correct(self) -> None:
        await self._correct(headline=f"Corrected {self._random.random()}")

    async def retag(self) -> None:
        await self._correct(tags=self._tags())

    async def retime(self) -> None:
        self.retimed.add(await self._correct(published_at=minute(self._random.randrange(100))))

    async def retract(self) -> None:
        entry = self._any()
        await self._newsroom.retract(FEED, entry)
        del self._live[entry]
        self._pinned.discard(entry)

    async def mark(self) -> None:
        await self._newsroom.mark(FEED, self._any())

    async def unmark(self) -> None:
        await self._newsroom.unmark(FEED, self._any())

    async def pin(self) -> None:
        if len(self._pinned) < 10:
            entry = self._any()
            await self._newsroom.pin(FEED, entry)
            self._pinned.add(entry)

    async def unpin(self) -> None:
        entry = self._any()
        await self._newsroom.unpin(FEED, entry)
        self._pinned.discard(entry)

    async def revise(self) -> None:
        await self._newsroom.revise(FEED, title=f"Title {self._random.random()}")

    async def _correct(self, **fields: Any) -> str:
        entry = self._any()
        before = await self._newsroom.head(FEED)
        await self._newsroom.correct(FEED, entry, revision=self._live[entry], **fields)
        # A correction without a difference appends nothing and makes no revision.
        if await self._newsroom.head(FEED) != before:
            self._live[entry] += 1
        return entry

    def _any(self) -> str:
        return self._random.choice(sorted(self._live))

    def _tags(self) -> list[str]:
        return self._random.sample(["goal", "red card", "rain"], self._random.randrange(3))


async def busy_feed(newsroom: Newsroom, seed: int, *, acts: int) -> Desks:
    await newsroom.story(FEED)
    desks = Desks(newsroom, seed)
    for _ in range(8):
        await desks.publish()
    await newsroom.commit_all(FEED)
    for _ in range(acts):
        await desks.act()
    return desks


# Pages


WALKS = [
    (Filters(), 1),
    (Filters(), 7),
    (Filters(order="oldest"), 3),
    (Filters(order="oldest", tag="goal"), 1),
    (Filters(tag="rain", key_events=True), 2),
    (Filters(key_events=True), 2),
    (Filters(since=minute(8), until=minute(60)), 3),
    (Filters(order="oldest", since=minute(8), tag="red card"), 2),
    (Filters(until=minute(20)), 2),
]


@pytest.mark.parametrize("seed", range(2))
async def test_a_walk_repeats_nothing_and_holds_every_entry_that_stayed(
    newsroom: Newsroom, reads: Reads, seed: int
) -> None:
    """Whatever is published, back-dated, corrected, retracted or flagged between its pages."""
    desks = await busy_feed(newsroom, seed, acts=40)
    for filters, limit in WALKS:
        desks.retimed.clear()
        stayed = {entry["id"] for entry in expected_entries((await all_documents(reads)).values(), filters)}
        seen: list[Json] = []
        cursor: str | None = None
        while True:
            page = await page_of(reads, filters, limit=limit, cursor=cursor)
            assert len(page["entries"]) == limit or page["next"] is None
            seen += page["entries"]
            assert len(seen) < 500, f"{filters} goes round and round"
            cursor = page["next"]
            if cursor is None:
                break
            for _ in range(2):
                await desks.act()
            stayed &= {entry["id"] for entry in expected_entries((await all_documents(reads)).values(), filters)}
        # Only an entry retimed across the cursor may move.
        unmoved = [entry for entry in seen if entry["id"] not in desks.retimed]
        ids = [entry["id"] for entry in unmoved]
        assert len(set(ids)) == len(ids), f"{filters} repeated an entry"
        assert stayed - desks.retimed <= set(ids), f"{filters} skipped an entry"
        keys = [order_key(entry) for entry in unmoved]
        assert keys == sorted(keys, reverse=filters.order == "newest")


@pytest.mark.parametrize("seed", range(3, 5))
async def test_every_page_is_what_its_documents_say(newsroom: Newsroom, reads: Reads, seed: int) -> None:
    """Entries, total, pins and unread, in both orders and under every filter, against the same worked out the slow way."""
    desks = await busy_feed(newsroom, seed, acts=0)
    orders: list[Order] = ["newest", "oldest"]
    for round_ in range(6):
        for _ in range(10):
            await desks.act()
        documents = list((await all_documents(reads)).values())
        head = await newsroom.head(FEED)
        seen_up_to = Position(head.epoch, max(1, head.n * round_ // 6))
        pins = sorted(
            (d for d in documents if d["status"] == "published" and d["pinned"]),
            key=lambda d: number(d["pinned_position"]),
            reverse=True,
        )
        for order in orders:
            for filters, _ in WALKS:
                asked = msgspec.structs.replace(filters, order=order)
                found = await reads.page(FEED, asked, limit=100, unread_since=seen_up_to)
                assert found is not None
                page = msgspec.json.decode(found.body)
                expected = expected_entries(documents, asked)
                assert page["entries"] == expected
                assert page["total"] == len(expected)
                assert page["next"] is None and found.next is None
                assert page["position"] == str(head) == str(found.moment.checkpoint)
                assert page["pinned"] == (pins if order == "newest" else [])
                assert page["unread"] == sum(
                    d["status"] == "published" and number(d["first_position"]) > seen_up_to.n for d in documents
                )


async def test_newest_is_the_exact_reverse_of_oldest_under_every_filter(newsroom: Newsroom, reads: Reads) -> None:
    await busy_feed(newsroom, 99, acts=60)
    for filters, _ in WALKS:
        newest = await page_of(reads, msgspec.structs.replace(filters, order="newest"))
        oldest = await page_of(reads, msgspec.structs.replace(filters, order="oldest"))
        assert newest["entries"] == oldest["entries"][::-1]
        assert newest["total"] == oldest["total"]


async def test_pins_stand_on_the_first_page_of_newest_alone_the_latest_first(newsroom: Newsroom, reads: Reads) -> None:
    await newsroom.story(FEED, 6)
    for entry in ("e2", "e5", "e1"):
        await newsroom.pin(FEED, entry)
    await newsroom.commit_all(FEED)
    first = await page_of(reads, limit=2)
    assert [pin["id"] for pin in first["pinned"]] == ["e1", "e5", "e2"]
    assert [entry["id"] for entry in first["entries"]] == ["e6", "e5"]
    second = await page_of(reads, limit=2, cursor=first["next"])
    assert second["pinned"] == []
    oldest = await page_of(reads, Filters(order="oldest"))
    assert oldest["pinned"] == []


async def test_unread_is_null_unless_asked_for(newsroom: Newsroom, reads: Reads) -> None:
    await newsroom.story(FEED, 1)
    assert (await page_of(reads))["unread"] is None


async def test_a_page_that_holds_exactly_the_rest_has_no_next(newsroom: Newsroom, reads: Reads) -> None:
    await newsroom.story(FEED, 4)
    first = await page_of(reads, limit=2)
    second = await page_of(reads, limit=2, cursor=first["next"])
    assert [entry["id"] for entry in second["entries"]] == ["e2", "e1"]
    assert second["next"] is None


async def test_a_walk_goes_on_after_its_own_entry_was_retracted(newsroom: Newsroom, reads: Reads) -> None:
    await newsroom.story(FEED, 5)
    first = await page_of(reads, limit=2)
    for entry in ("e4", "e5"):
        await newsroom.retract(FEED, entry)
    await newsroom.commit_all(FEED)
    second = await page_of(reads, limit=2, cursor=first["next"])
    assert [entry["id"] for entry in second["entries"]] == ["e3", "e2"]


# One moment


class OneByOne:
    """Counts commands and lets something happen before every command but the first."""

    def __init__(self, happen: Any) -> None:
        self._happen = happen
        self._exchange = asking.exchange
        self.commands: list[str] = []

    async def exchange(self, client: Redis, commands: Sequence[bytes]) -> list[Any]:
        answers = []
        for packed in commands:
            if self.commands:
                await self._happen()
            self.commands.append(packed.split(b"\r\n")[2].decode())
            answers += await self._exchange(client, [packed])
        return answers

    async def refuse(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a read uses {args} beside its script")


@pytest.mark.parametrize("read", ["page", "difference", "document"])
async def test_all_that_a_read_gives_is_of_one_moment(
    newsroom: Newsroom, reads: Reads, server: RunningServer, keys: Keys, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """A commit between any two of its commands would tear it: it is one command, and on one that writes nothing."""
    await newsroom.story(FEED, 3)
    await newsroom.pin(FEED, "e1")
    await newsroom.commit_all(FEED)

    async def between() -> None:
        entry = f"new-{await newsroom.head(FEED)}"
        await newsroom.say(FEED, entry)

    # Whatever the script cache needs is done here.
    await reads.page(FEED, Filters(), limit=1)
    await reads.difference(FEED, after=ORIGIN)
    await reads.document(FEED)
    client = OneByOne(between)
    one_script = connect(server.url)
    watched = Reads(one_script, keys)
    await one_script.ping()
    monkeypatch.setattr(one_script, "execute_command", client.refuse)
    original = asking.exchange
    monkeypatch.setattr(
        asking,
        "exchange",
        lambda asker, commands: (client.exchange if asker is one_script else original)(asker, commands),
    )
    if read == "page":
        page = await watched.page(FEED, Filters(), limit=2, unread_since=Position(1, 1))
        assert page is not None
        moment, positions = page.moment, [e["position"] for e in msgspec.json.decode(page.body)["entries"]]
    elif read == "difference":
        difference = await watched.difference(FEED, after=Position(1, 1))
        assert difference is not None
        moment, positions = difference.moment, [place.position for place in difference.places]
    else:
        found = await watched.document(FEED, "e3")
        assert found is not None and found.document is not None
        moment, positions = found.moment, [msgspec.json.decode(found.document)["position"]]
    assert client.commands == ["EVALSHA_RO"]
    assert msgspec.json.decode(moment.feed)["position"] == str(moment.checkpoint)
    assert max(map(number, positions)) <= moment.checkpoint.n
    await one_script.aclose()


async def test_pages_that_are_read_while_commits_race_are_each_of_one_moment(
    newsroom: Newsroom, gateway: Running
) -> None:
    """Each commit replaces one entry by another: a torn page would list three or five, or pair a state with another position."""
    await newsroom.story(FEED, 4)
    done = asyncio.Event()

    async def replace() -> None:
        for i in range(40):
            await newsroom.batch(
                FEED,
                [
                    {"type": "publish", "id": f"n{i}", "headline": "n", "published_at": minute(10 + i)},
                    {"type": "retract", "id": f"n{i - 4}" if i >= 4 else f"e{i + 1}"},
                ],
            )
            await newsroom.commit_all(FEED)
        done.set()

    writing = asyncio.create_task(replace())
    of_position: dict[str, set[str]] = {}
    while not done.is_set():
        page = await gateway.page(FEED)
        assert len(page["entries"]) == page["total"] == 4
        ids = {entry["id"] for entry in page["entries"]}
        assert of_position.setdefault(page["position"], ids) == ids
        assert all(number(entry["position"]) <= number(page["position"]) for entry in page["entries"])
    await writing
    assert len(of_position) > 10


# Differences


async def states_of(newsroom: Newsroom, reads: Reads) -> dict[int, dict[str, Json]]:
    """Commits the log one event at a time; the documents as they were at each position."""
    states: dict[int, dict[str, Json]] = {}
    head = await newsroom.head(FEED)
    while True:
        checkpoint = await newsroom.commit(FEED, events=1)
        states[checkpoint.n] = await all_documents(reads)
        if checkpoint == head:
            return states


async def written(newsroom: Newsroom) -> None:
    """A log with every kind of event, uncommitted."""
    await newsroom.open(FEED)
    for i in range(1, 7):
        await newsroom.publish(FEED, f"e{i}", published_at=minute(i % 3))
    await newsroom.correct(FEED, "e2", revision=1, headline="Corrected")
    await newsroom.revise(FEED, title="Another title")
    await newsroom.pin(FEED, "e3")
    await newsroom.retract(FEED, "e4")
    await newsroom.mark(FEED, "e2")
    await newsroom.publish(FEED, "e7")
    await newsroom.correct(FEED, "e7", revision=1, published_at=minute(1))
    await newsroom.revise(FEED, status="paused")
    await newsroom.retract(FEED, "e7")


@pytest.mark.parametrize("chunk", [1, 3, 200])
async def test_the_folded_difference_since_any_position_leads_to_the_present(
    newsroom: Newsroom, reads: Reads, chunk: int
) -> None:
    await written(newsroom)
    states = await states_of(newsroom, reads)
    head = max(states)
    for past, state in states.items():
        held = dict(state)
        after, positions, more = Position(1, past), [], True
        while more:
            difference = await reads.difference(FEED, after=after, documents_max=chunk)
            assert difference is not None
            assert difference.changed == sum(number(d["position"]) > after.n for d in states[head].values())
            documents = [msgspec.json.decode(document) for document in difference.documents]
            assert len(documents) <= chunk
            held |= {document["id"]: document for document in documents}
            positions += [number(document["position"]) for document in documents]
            after, more = difference.position, difference.more
            assert not more or after.n == positions[-1]
        assert held == states[head]
        assert positions == sorted(set(positions)), "each entry once, in order of position"
        assert all(position > past for position in positions)
        assert after.n == head


@pytest.mark.parametrize("chunk", [1, 2, 5, 200])
async def test_the_feed_document_stands_at_its_place_in_a_difference_once(
    newsroom: Newsroom, reads: Reads, chunk: int
) -> None:
    await written(newsroom)
    head = await newsroom.commit_all(FEED)
    full = await reads.difference(FEED, after=ORIGIN)
    assert full is not None
    changed = full.feed_position.n
    assert changed == head.n - 1
    for past in range(1, head.n + 1):
        after, more = Position(1, past), True
        frames: list[Ready] = []
        while more:
            difference = await reads.difference(FEED, after=after, documents_max=chunk)
            assert difference is not None
            folded = Folded(FEED, after, difference)
            frames += folded.frames
            after, more = folded.position, folded.more
            assert not more or all(frame.position <= after for frame in frames)
        positions = [frame.position.n for frame in frames]
        assert positions == sorted(set(positions))
        assert [frame.position.n for frame in frames if frame.kind == "feed"] == ([changed] if past < changed else [])


async def test_changes_over_http_fold_to_the_page_in_chunks_of_any_size(
    newsroom: Newsroom, gateway: Running, reads: Reads
) -> None:
    await written(newsroom)
    await newsroom.commit_all(FEED)
    for limit in (1, 2, 100):
        held: dict[str, Json] = {}
        answer: Json = {"more": True}
        query = f"limit={limit}"
        while answer["more"]:
            answer = (await gateway.get(f"/v1/feeds/{FEED}/changes?{query}")).json
            held |= {document["id"]: document for document in answer["documents"]}
            query = f"limit={limit}&after={answer['position']}"
        assert held == await all_documents(reads)
        page = await gateway.page(FEED)
        assert answer["position"] == page["position"]
        assert page["entries"] == expected_entries(held.values(), Filters())
        done = (await gateway.get(f"/v1/feeds/{FEED}/changes?{query}")).json
        assert (done["documents"], done["more"], done["feed_document"]) == ([], False, None)


async def test_a_difference_of_large_documents_comes_in_chunks_of_bounded_bytes(
    newsroom: Newsroom, reads: Reads
) -> None:
    await newsroom.story(FEED)
    for i in range(4):
        block = {"type": "text", "html": "x" * 9_000}
        await newsroom.say(FEED, f"e{i}", body=[block] * 20)
    seen: list[str] = []
    after, more, chunks = ORIGIN, True, 0
    while more:
        difference = await reads.difference(FEED, after=after)
        assert difference is not None
        assert sum(map(len, difference.documents)) <= module.DIFFERENCE_BYTES_MAX
        seen += [msgspec.json.decode(document)["id"] for document in difference.documents]
        after, more, chunks = difference.position, difference.more, chunks + 1
    assert seen == ["e0", "e1", "e2", "e3"]
    assert chunks == 2


async def test_a_document_larger_than_a_chunk_comes_alone(
    newsroom: Newsroom, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the difference would never come to its end."""
    monkeypatch.setattr(module, "DIFFERENCE_BYTES_MAX", 10)
    await newsroom.story(FEED, 3)
    after, found = ORIGIN, []
    for _ in range(3):
        difference = cast("Difference", await reads.difference(FEED, after=after))
        found.append((len(difference.documents), difference.more))
        after = difference.position
    assert found == [(1, True), (1, True), (1, False)]


# What must not be


async def test_an_index_that_names_a_missing_document_is_corruption_and_never_a_shorter_page(
    newsroom: Newsroom, reads: Reads, redis: Redis, keys: Keys
) -> None:
    await newsroom.story(FEED, 3)
    await cast("Any", redis.hdel(keys.feed(FEED).of_generation(1).documents, "e2"))
    with pytest.raises(Corrupted):
        await reads.page(FEED, Filters(), limit=10)
    with pytest.raises(Corrupted):
        await reads.difference(FEED, after=ORIGIN)


async def test_names_that_lead_to_keys_of_another_kind_are_no_feeds(newsroom: Newsroom, gateway: Running) -> None:
    """`story:g1:i:tag` and `active` would spell the key of a sorted set where the generation's number is looked up."""
    names = [f"{'s' * i}:g1:i:tag" for i in range(1, 200)]
    feed, name = next(
        (name.partition(":")[0], name) for name in names if Keys.shard_of(name) == Keys.shard_of(name.partition(":")[0])
    )
    await newsroom.story(feed)
    await newsroom.say(feed, "e1", tags=["active"])
    for path in ("", "/entries", "/entries/e1", "/changes", "/stream"):
        answer = await gateway.get(f"/v1/feeds/{name}{path}")
        assert answer.status == 404, path
        assert answer.json["type"] == "urn:dateline:problem:feed-not-found"
    assert (await gateway.get(f"/live/{name}")).status == 404


async def test_a_server_that_forgot_the_scripts_is_told_them_again(
    newsroom: Newsroom, gateway: Running, redis: Redis
) -> None:
    """After a restart or a failover every script is unknown, in single calls and in pipelines."""
    await newsroom.story(FEED, 2)
    for path in ("/v1/feeds", f"/v1/feeds/{FEED}", f"/v1/feeds/{FEED}/entries", f"/v1/feeds/{FEED}/changes"):
        await cast("Any", redis).script_flush()
        assert (await gateway.get(path)).status == 200, path


async def test_a_feed_that_is_open_and_not_yet_committed_is_not_there(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.open(FEED)
    assert (await gateway.get(f"/v1/feeds/{FEED}")).status == 404
    await newsroom.commit(FEED)
    assert (await gateway.get(f"/v1/feeds/{FEED}")).status == 200


async def test_an_entry_is_a_tombstone_as_soon_as_the_commit_says_so(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1)
    tag = (await gateway.get(f"/v1/feeds/{FEED}/entries/e1")).headers["ETag"]
    position = await newsroom.retract(FEED, "e1")
    assert (await gateway.get(f"/v1/feeds/{FEED}/entries/e1", headers={"If-None-Match": tag})).status == 304
    await newsroom.commit(FEED)
    gone = await gateway.get(
        f"/v1/feeds/{FEED}/entries/e1", headers={"If-None-Match": f'{tag}, *, "1.{position}"'[:-1]}
    )
    assert gone.status in (400, 410)
    gone = await gateway.get(f"/v1/feeds/{FEED}/entries/e1", headers={"If-None-Match": "*"})
    assert gone.status == 410
    assert gone.json["status"] == "retracted"
    assert gone.json["position"] == str(position)
    assert "headline" not in gone.json


async def test_private_pages_are_never_for_shared_caches(newsroom: Newsroom, gateway: Running) -> None:
    await newsroom.story(FEED, 1, visibility="private")
    for path in ("", "/entries", "/entries/e1", "/changes"):
        answer = await gateway.get(f"/v1/feeds/{FEED}{path}", headers=SIGNED)
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert (await gateway.get(f"/v1/feeds/{FEED}{path}")).status == 404


def test_a_snapshot_is_the_page_with_the_feed_document() -> None:
    """Joined from bytes: it must still be one JSON object."""
    page = Page(
        cast("Any", msgspec.defstruct("Moment", [("feed", bytes, b'{"id":"story"}')])()),
        b'{"entries":[],"next":null}',
        None,
    )
    assert msgspec.json.decode(page.snapshot()) == {"entries": [], "next": None, "feed_document": {"id": "story"}}

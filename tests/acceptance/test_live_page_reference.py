"""A real live page as coverage: its entries, published as a desk would, come out in the page's own order, mirrored too.

The page itself is not part of the repository: LIVE_PAGE names its file. Nothing of its text is written here, only
how it is built: a line with time and date, a headline, paragraphs, of which some are quotes, and a card of three lines.
"""

import html
import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.acceptance.harness import REPOSITORY, FoldedFeed, Json, Newsroom, Tags, ids, order_key

TIME = re.compile(r"\A(\d\d):(\d\d) (\d\d)\.(\d\d)\.(\d{4})\Z")
# What stands under a picture ends with its size and day.
CAPTION = re.compile(r", \d{3,4}, (\d\d)\.(\d\d)\.(\d{4})\Z")
QUOTE = re.compile(r'\A"(?P<words>.+)"(?:, (?P<attribution>.+))?\Z', re.DOTALL)
# A paragraph ends as sentences do; headlines, cards and the page's footer do not.
SENTENCE_END = (".", '"', "!", "?", "»")


@dataclass
class Item:
    printed: str
    published_at: str
    headline: str
    body: list[Json] = field(default_factory=list)

    @property
    def command(self) -> Json:
        fields: Json = {"headline": self.headline, "published_at": self.published_at, "body": self.body}
        return fields


def live_page() -> Path:
    return Path(os.environ.get("LIVE_PAGE", REPOSITORY.parent / "shared" / "reference" / "live-page.txt"))


def parse(text: str) -> list[Item]:
    """The entries from the top of the page to its bottom."""
    items: list[Item] = []
    lines = iter([line.strip() for line in text.splitlines() if line.strip()])
    for line in lines:
        if time := TIME.match(line):
            hour, minute, day, month, year = map(int, time.groups())
            at = datetime(year, month, day, hour, minute, tzinfo=UTC).isoformat(timespec="milliseconds")
            items.append(Item(line, at.replace("+00:00", "Z"), next(lines)))
        elif items and (day_of_card := CAPTION.search(line)):
            topic, title = next(lines), next(lines)
            items[-1].body.append(card(topic, title, "-".join(reversed(day_of_card.groups()))))
        elif items and line.endswith(SENTENCE_END):
            items[-1].body.append(paragraph(line))
        elif items:
            break
    return items


def card(topic: str, title: str, day: str) -> Json:
    return {
        "type": "link_card",
        "url": "https://example.org/card",
        "title": title,
        "topic": topic,
        "image": None,
        "published_at": f"{day}T00:00:00.000Z",
    }


def paragraph(line: str) -> Json:
    if quote := QUOTE.match(line):
        attribution = (quote["attribution"] or "").rstrip(".") or None
        return {"type": "quote", "html": html.escape(quote["words"], quote=False), "attribution": attribution}
    return {"type": "text", "html": html.escape(line, quote=False)}


@pytest.fixture(scope="module")
def items() -> list[Item]:
    path = live_page()
    if not path.is_file():
        pytest.skip("the reference page is not at hand; LIVE_PAGE names its file")
    return parse(path.read_text(encoding="utf-8"))


def test_the_page_is_read_as_it_is_printed(items: list[Item]) -> None:
    assert len(items) == 20
    times = [item.published_at for item in items]
    assert times == sorted(times, reverse=True)
    twins = [n for n, item in enumerate(items) if item.printed.startswith("18:38 ")]
    assert len(twins) == 2 and twins[1] == twins[0] + 1
    assert len({item.headline for item in items}) == 20
    cards = [item for item in items if any(block["type"] == "link_card" for block in item.body)]
    assert [item.printed[:5] for item in cards] == ["17:29"]
    kinds = [block["type"] for item in items for block in item.body]
    assert kinds.count("quote") >= 10 and kinds.count("text") >= 4
    assert any(not item.body for item in items)


async def published_as_a_desk_would(newsroom: Newsroom, feed: str, items: list[Item]) -> list[Json]:
    """Oldest first, as it happened; the answer in the page's order."""
    entries = [await newsroom.publish(feed, **item.command) for item in reversed(items)]
    return entries[::-1]


async def test_the_page_comes_out_in_its_own_order_and_mirrored(
    newsroom: Newsroom, feed: str, items: list[Item]
) -> None:
    entries = await published_as_a_desk_would(newsroom, feed, items)
    newest: list[Json] = []
    for limit in (1, 3, 20):
        newest = await newsroom.walk(feed, order="newest", limit=limit)
        oldest = await newsroom.walk(feed, order="oldest", limit=limit)
        assert newest == entries
        assert oldest == entries[::-1]
    assert [entry["headline"] for entry in newest] == [item.headline for item in items]
    assert [entry["published_at"] for entry in newest] == [item.published_at for item in items]
    upper, lower = (entry for item, entry in zip(items, newest, strict=True) if item.printed.startswith("18:38 "))
    assert order_key(upper) > order_key(lower)
    assert (await newsroom.page(feed))["total"] == 20


async def test_the_pages_text_stays_what_was_printed(newsroom: Newsroom, feed: str, items: list[Item]) -> None:
    await published_as_a_desk_would(newsroom, feed, items)
    for item, entry in zip(items, await newsroom.walk(feed), strict=True):
        assert [block["type"] for block in entry["body"]] == [block["type"] for block in item.body]
        for sent, got in zip(item.body, entry["body"], strict=True):
            if "html" in sent:
                assert Tags(got["html"]).text == html.unescape(sent["html"])
                assert Tags(got["html"]).tags == []
            assert {k: v for k, v in got.items() if k != "html"} == {k: v for k, v in sent.items() if k != "html"}


async def test_coverage_published_out_of_order_ends_in_the_same_page(
    newsroom: Newsroom, feed: str, items: list[Item]
) -> None:
    """Back-dating puts entries in place; only the two of one minute depend on which was first."""
    order = sorted(range(20), key=lambda n: (n * 7) % 20)
    twins = [n for n, item in enumerate(items) if item.printed.startswith("18:38 ")]
    # The lower of the two was first on the page, whatever else is shuffled.
    spots = sorted(order.index(n) for n in twins)
    order[spots[0]], order[spots[1]] = twins[1], twins[0]
    commands = [{"type": "publish", "id": f"item-{n}", **items[n].command} for n in order]
    await newsroom.batch(feed, *commands)
    assert ids(await newsroom.walk(feed, limit=3)) == [f"item-{n}" for n in range(20)]
    assert ids(await newsroom.walk(feed, limit=3, order="oldest")) == [f"item-{n}" for n in range(19, -1, -1)]


async def test_a_reader_of_the_page_follows_its_coverage_live(newsroom: Newsroom, feed: str, items: list[Item]) -> None:
    folded = FoldedFeed()
    async with newsroom.stream(feed, query={**newsroom.known(feed), "snapshot": 20}) as stream:
        await stream.follow(folded, newsroom.positions[feed])
        entries = await published_as_a_desk_would(newsroom, feed, items)
        await stream.follow(folded, newsroom.positions[feed])
    assert folded.entries("newest") == entries
    assert folded.entries("oldest") == entries[::-1]

"""The verdict: what readers hold against what the pages say, document by document, and both against the script.

Owns every comparison; all but the fetching of the pages is pure. Printing is left to `summary`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from services.cli.client import DatelineClient
from services.cli.demo.coverage import Outcome
from services.cli.reader import Document, Order, ReaderState
from shared.position import Position

PAGE_SIZES = (2, 7, 100)
ORDERS: tuple[Order, Order] = ("newest", "oldest")
# Of a feed's document these move with every entry, while a `feed` frame tells of the feed's own fields.
MOVING_FIELDS = frozenset({"position", "entry_count", "updated_at"})


class Truth(NamedTuple):
    """A feed as its pages show it, once nothing is being written any more."""

    feed: Document
    position: str
    newest: Sequence[Document]
    pinned: Sequence[Document]
    tombstones: Sequence[Document]


async def read_truth(client: DatelineClient, feed: str, *, position: str) -> tuple[Truth, list[str]]:
    """Walk all pages in both orders and several sizes; gives what they show and where they contradict each other."""
    walks: dict[tuple[Order, int], list[Document]] = {}
    faults: list[str] = []
    pinned: list[Document] = []
    for order in ORDERS:
        for limit in PAGE_SIZES:
            walk: list[Document] = []
            first = True
            async for page in client.pages(feed, order=order, limit=limit, min_position=position):
                walk += page["entries"]
                if page["position"] != position:
                    faults.append(f"{order} by {limit}: a page stands at {page['position']}, the feed at {position}")
                if first and order == "newest":
                    pinned = page["pinned"]
                first = False
            if page["total"] != len(walk):
                faults.append(f"{order} by {limit}: total says {page['total']}, the walk found {len(walk)}")
            walks[order, limit] = walk
    largest = walks["newest", PAGE_SIZES[-1]]
    faults += mirror_faults(walks, expected=largest)
    documents = await client.all_changes(feed)
    tombstones = [document for document in documents if document["status"] == "retracted"]
    feed_document = await client.feed(feed, min_position=position)
    if feed_document["entry_count"] != len(largest):
        faults.append(f"the feed counts {feed_document['entry_count']} entries, the pages show {len(largest)}")
    if [entry for entry in documents if entry["status"] == "published"] != by_position(largest):
        faults.append("the difference from the start and the pages disagree")
    return Truth(feed_document, position, largest, pinned, tombstones), faults


def mirror_faults(walks: Mapping[tuple[Order, int], Sequence[Document]], *, expected: Sequence[Document]) -> list[str]:
    """Every walk shows the same entries, and oldest-first is newest-first read backwards."""
    faults: list[str] = []
    for (order, limit), walk in walks.items():
        forward = walk if order == "newest" else walk[::-1]
        faults += [f"{order} by {limit}: {fault}" for fault in differences(forward, expected)]
    return faults


def compare(state: ReaderState, truth: Truth) -> list[str]:
    """Where a reader's folded state differs from the pages. Empty means: nothing, in any field of any document."""
    faults = list(state.order_check.faults)
    if str(state.position) != truth.position:
        faults.append(f"stands at {state.position}, the feed at {truth.position}")
    expected = truth.newest if state.order == "newest" else truth.newest[::-1]
    faults += differences(state.visible(), [entry for entry in expected if state.shows(entry)])
    if state.order == "newest" or state.next is None:
        faults += [f"pinned: {fault}" for fault in differences(state.pinned(), truth.pinned)]
    faults += _feed_faults(state.feed_document, truth.feed)
    return faults


def compare_tombstones(state: ReaderState, truth: Truth) -> list[str]:
    """For readers who were there from the beginning: they know every retraction."""
    return [f"retractions: {fault}" for fault in differences(state.tombstones(), truth.tombstones)]


def outcome_faults(truth: Truth, expected: Outcome, ids: Mapping[str, str]) -> list[str]:
    """Where a feed differs from what the script must have led to."""
    names = {entry_id: ref for ref, entry_id in ids.items()}

    def refs(documents: Sequence[Document]) -> frozenset[str]:
        return frozenset(names.get(str(document["id"]), str(document["id"])) for document in documents)

    sets = [
        ("live", refs(truth.newest), expected.live),
        ("retracted", refs(truth.tombstones), expected.retracted),
        ("pinned", refs(truth.pinned), expected.pinned),
        ("key events", refs([entry for entry in truth.newest if entry["key_event"]]), expected.key_events),
    ]
    faults = [
        f"{name}: the pages and the script differ in {', '.join(sorted(found ^ wanted))}"
        for name, found, wanted in sets
        if found != wanted
    ]
    for entry in truth.newest:
        ref = names.get(str(entry["id"]), str(entry["id"]))
        if ref in expected.live and entry["revision"] != expected.revisions[ref]:
            faults.append(f"{ref}: revision {entry['revision']}, not {expected.revisions[ref]}")
    if truth.position != f"1-{expected.positions}":
        faults.append(f"the feed stands at {truth.position}; {expected.positions} events were due")
    return faults


def differences(found: Sequence[Document], expected: Sequence[Document]) -> list[str]:
    """How one row of documents differs from another, entry by entry and field by field, then in their order."""
    found_ids = [document["id"] for document in found]
    expected_ids = [document["id"] for document in expected]
    held = dict(zip(found_ids, found, strict=True))
    times = Counter(found_ids)
    faults = [f"{entry_id} is missing" for entry_id in expected_ids if entry_id not in held]
    wanted = set(expected_ids)
    faults += [f"{entry_id} should not be there" for entry_id in found_ids if entry_id not in wanted]
    faults += [f"{entry_id} is there twice" for entry_id in held if times[entry_id] > 1]
    for document in expected:
        other = held.get(document["id"])
        if other is not None and other != document:
            faults.append(f"{document['id']}: {_fields(other, document)}")
    if not faults and found_ids != expected_ids:
        faults.append("the same entries in another order")
    return faults


def by_position(documents: Sequence[Document]) -> list[Document]:
    """As `changes` lists them: the least recently changed first."""
    return sorted(documents, key=lambda document: Position.parse(document["position"]))


def _feed_faults(found: Document | None, expected: Document) -> list[str]:
    if found is None:
        return ["holds no feed document"]
    ours = {name: value for name, value in found.items() if name not in MOVING_FIELDS}
    theirs = {name: value for name, value in expected.items() if name not in MOVING_FIELDS}
    return [] if ours == theirs else [f"feed: {_fields(ours, theirs)}"]


def _fields(found: Document, expected: Document) -> str:
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    return ", ".join(f"{name} {_short(found.get(name))} instead of {_short(expected.get(name))}" for name in names)


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}…"

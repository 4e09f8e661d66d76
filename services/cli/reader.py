"""What a reader holds of one feed: documents folded from frames and pages, as the contract's last word on streams says.

Owns the folded state and the check of its order, both pure. Connections are left to `follow`, showing to the caller.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from shared.position import ORIGIN, Position

# Documents stay as they came: a client ignores the fields, enum values and block types that it does not know.
Document = Mapping[str, Any]
Order = Literal["newest", "oldest"]


class SortKey(NamedTuple):
    """Where an entry stands in its feed; instants have a fixed width and sort as text, positions do not."""

    published_at: str
    first_position: Position


class ReaderState:
    """One feed as one reader holds it, in one order.

    `next` is the cursor of the page after the last one loaded, None when everything is loaded. What sorts beyond the
    last loaded entry is kept but hidden while there is a `next`: between it and the loaded ones others may be missing.
    """

    def __init__(self, feed: str, *, order: Order = "newest") -> None:
        self.feed = feed
        self.order: Order = order
        self.documents: dict[str, Document] = {}
        self.feed_document: Document | None = None
        self.position = ORIGIN
        self.next: str | None = None
        self.order_check = OrderCheck()
        self._last_loaded: SortKey | None = None

    def apply(self, event: str, data: Document, *, position: Position | None) -> None:
        """Take one frame of this feed; events that this client does not know change nothing."""
        if event == "reset":
            self._discard()
        elif event == "snapshot":
            self._discard()
            self.feed_document = data["feed_document"]
            self.load(data)
        elif event in {"entry", "retraction"}:
            self._keep(data)
        elif event == "feed":
            self.feed_document = data
        elif event != "live":
            return
        if position is not None:
            self.position = max(self.position, position)
            self.order_check.see(event, position)

    def load(self, page: Document) -> None:
        """Take a page: the snapshot's own, or the one that `next` led to."""
        for document in [*page["pinned"], *page["entries"]]:
            self._keep(document)
        if page["entries"]:
            self._last_loaded = sort_key(page["entries"][-1])
        self.next = page["next"]

    def connected(self, *, resumed: bool) -> None:
        """A new connection begins: what comes before its `live` is a folded difference, where positions may be missing."""
        self.order_check.connected(resumed=resumed)

    @property
    def live(self) -> bool:
        return self.order_check.live

    def visible(self) -> list[Document]:
        """The entries that a reader sees, in the reader's order."""
        entries = sorted(self._published(), key=sort_key, reverse=self.order == "newest")
        return [entry for entry in entries if self.shows(entry)]

    def shows(self, entry: Document) -> bool:
        """Whether an entry stands within what was loaded."""
        if self.next is None or self._last_loaded is None:
            return True
        key = sort_key(entry)
        return key >= self._last_loaded if self.order == "newest" else key <= self._last_loaded

    def pinned(self) -> list[Document]:
        """The pinned entries, the latest pin first. Complete in a newest-first reader, and wherever all is loaded."""
        entries = [entry for entry in self._published() if entry["pinned"]]
        return sorted(entries, key=lambda entry: Position.parse(entry["pinned_position"]), reverse=True)

    def tombstones(self) -> list[Document]:
        """The retractions that this reader was told of, in order of position."""
        found = [document for document in self.documents.values() if document["status"] == "retracted"]
        return sorted(found, key=lambda document: Position.parse(document["position"]))

    def _published(self) -> Iterable[Document]:
        return (document for document in self.documents.values() if document["status"] == "published")

    def _keep(self, document: Document) -> None:
        held = self.documents.get(document["id"])
        if held is None or Position.parse(document["position"]) > Position.parse(held["position"]):
            self.documents[document["id"]] = document

    def _discard(self) -> None:
        self.documents.clear()
        self.feed_document = None
        self.position = ORIGIN
        self.next = None
        self._last_loaded = None
        self.order_check.discard()


class OrderCheck:
    """Whether positions came as promised: rising, and once live without a gap.

    A reader that fell behind gets a folded difference in the middle of its stream, which skips positions and ends with
    `live`. So a gap stands open until a `live` explains it; one that no `live` follows is a lost frame.
    """

    def __init__(self) -> None:
        self.live = False
        self.repeats: list[str] = []
        self.differences = 0
        self._open_gaps: list[str] = []
        self._last: Position | None = None

    @property
    def faults(self) -> list[str]:
        return [*self.repeats, *self._open_gaps]

    def connected(self, *, resumed: bool) -> None:
        self.live = False
        # What was missing when the connection went is in the difference that a resumed connection begins with.
        self._open_gaps.clear()
        if not resumed:
            self._last = None

    def discard(self) -> None:
        self.live = False
        self._open_gaps.clear()
        self._last = None

    def see(self, event: str, position: Position) -> None:
        last, self._last = self._last, position
        if event == "live":
            if self._open_gaps:
                self.differences += 1
                self._open_gaps.clear()
            self.live = True
            if last is not None and position < last:
                self.repeats.append(f"live at {position} after {last}")
            return
        if event == "snapshot" or last is None:
            return
        if position <= last:
            self.repeats.append(f"{event} at {position} after {last}")
        elif self.live and position != last.next():
            self._open_gaps.append(f"nothing between {last} and {position}")


def sort_key(document: Document) -> SortKey:
    return SortKey(document["published_at"], Position.parse(document["first_position"]))

"""Appends: what is handed to the log for a plan: its events, what must not have changed since, and the records after them. Pure.

Owns which guards a plan needs. How they are held is the append script's, what happens when one does not hold `desk`'s.
"""

from collections.abc import Sequence

from services.writer.commands import Request
from services.writer.decide import Plan
from shared.append import BYTES_PER_APPEND_MAX, EVENTS_PER_APPEND_MAX, Append, Guards, NewRecord, RecordStatus
from shared.documents import Entry
from shared.errors import BodyTooLarge
from shared.events import (
    Encoded,
    EntryPinned,
    EntryPublished,
    EntryRetracted,
    EntryUnpinned,
    FeedOpened,
    FeedRevised,
    FeedStatusChanged,
    encode,
)
from shared.fold import touched
from shared.log import Looked


def append_of(looked: Looked, request: Request, decided: Plan, command: str) -> Append:
    """The append of one plan under the command id `command`; BodyTooLarge for more than one append may hold."""
    events, after = decided.events, decided.after
    encoded = [encode(e, command=command, by=request.by, causation=request.causation) for e in events]
    _bound(encoded)
    records: dict[str, NewRecord] = {}
    for number, event in enumerate(events, start=1):
        entry = touched(event)
        if entry is not None:
            document = after.entries[entry]
            status: RecordStatus = "published" if isinstance(document, Entry) else "retracted"
            records[entry] = NewRecord(status, document.revision, number, after.fingerprints[entry])
    kinds = [type(event) for event in events]
    publishes, of_feed = EntryPublished in kinds, not _OF_FEED.isdisjoint(kinds)
    return Append(
        command=command,
        fingerprint=request.fingerprint,
        events=encoded,
        guards=Guards(
            opens=looked.head is None,
            # A closed feed takes no new entries, and two desks must not revise the feed from the same state.
            version=looked.head.version if looked.head and (publishes or of_feed) else None,
            pins=looked.head.pins if looked.head and EntryPinned in kinds else None,
            entries={entry: record.position if record else None for entry, record in looked.records.items()},
        ),
        live_change=kinds.count(EntryPublished) - kinds.count(EntryRetracted),
        new_status=after.status if of_feed else None,
        sets_version=of_feed,
        sets_pins=not _OF_PINS.isdisjoint(kinds),
        records=records,
    )


_OF_FEED = frozenset({FeedOpened, FeedRevised, FeedStatusChanged})
# A retraction may take a pin with it.
_OF_PINS = frozenset({EntryPinned, EntryUnpinned, EntryRetracted})


def _bound(encoded: Sequence[Encoded]) -> None:
    size = sum(len(event.envelope) + len(event.content) for event in encoded)
    # Sanitising may make text longer than it was sent: `&` becomes `&amp;`.
    if len(encoded) > EVENTS_PER_APPEND_MAX or size > BYTES_PER_APPEND_MAX:
        raise BodyTooLarge(
            f"sanitised, the request makes {len(encoded)} events of {size} bytes; "
            f"{EVENTS_PER_APPEND_MAX} events of {BYTES_PER_APPEND_MAX} bytes are allowed",
            bytes_max=BYTES_PER_APPEND_MAX,
        )

"""The write side against the log: head, records of entries, quarantine, and the hint that wakes a projector.

Owns the comparison, each slice at the end of the log that it was read at. What append scripts keep is counted again in `tally`.
"""

from collections.abc import Callable

import msgspec
from msgspec import Struct

from services.projector.verify.differences import Differences
from services.projector.verify.refold import UNKNOWN, Refold
from services.projector.verify.scratch import Row
from services.projector.verify.stored import Moment, Stored
from services.projector.verify.tally import Mark
from shared.position import Position

ENTRIES_PER_SLICE = 500


class _Skipped(Struct, frozen=True):
    """What every record of the quarantine tells of its event, whatever else it holds."""

    position: str
    recorded_at: int


class WriteSideCheck:
    """Compares what appends keep beside the log."""

    def __init__(self, stored: Stored, refold: Refold, progress: Callable[[int], None]) -> None:
        self.differences = Differences()
        self._stored = stored
        self._refold = refold
        self._scratch = refold.scratch
        self._progress = progress

    async def records(self) -> None:
        """Every entry's record: status, revision, last position, fingerprint of the publication where the log tells it."""
        number = 0
        while rows := self._scratch.rows_after(number, limit=ENTRIES_PER_SLICE):
            asked = [row.entry for row in rows]
            before = self._refold.position
            last, found = await self._stored.records(asked)
            await self._fold_to(last)
            current: dict[str, Row] = {row.entry: row for row in rows}
            if self._refold.position != before:
                current = self._scratch.rows_of(asked)
            for entry, record in zip(asked, found, strict=True):
                self._compare(entry, record, current[entry].record)
            number = rows[-1].number
            self._progress(number)

    def _compare(self, entry: str, record: bytes | None, folded: str) -> None:
        stored = "" if record is None else record.decode(errors="backslashreplace")
        if stored == folded:
            return
        parts, wanted = stored.split(" "), folded.split(" ")
        if len(parts) != len(wanted) or any(b not in (a, UNKNOWN) for a, b in zip(parts, wanted, strict=True)):
            self.differences.add("entries", entry, stored=record, folded=folded)

    async def head(self, moment: Moment) -> None:
        """Head, hint and number of records, as they stood at this moment; names records of entries that never were."""
        await self._fold_to(moment.last or self._archived(moment))
        refold, tally, head = self._refold, self._refold.tally, moment.head
        stored = moment.head_position
        self.differences.equal("head", "position", stored=stored, folded=str(refold.position))
        self._number("recorded_at", head.recorded_at, refold.soundness.recorded_at)
        if tally.certain:
            self.differences.equal("head", "status", stored=_text(head.status), folded=tally.status)
            self._mark("version", head.version, tally.version)
            self._mark("pins", head.pins, tally.pins)
        if tally.live_certain:
            self._number("live", head.live, tally.live)
        if not moment.dirty and stored != (str(moment.checkpoint) if moment.checkpoint else None):
            lag = f"in the set: the head is {stored}, the checkpoint {moment.checkpoint}"
            self.differences.add("dirty", "feed", stored=None, folded=lag)
        if moment.records != refold.entries:
            await self._find_extra_records()

    @staticmethod
    def _archived(moment: Moment) -> Position | None:
        """Where the log ends when its stream is empty: all of it is in the archive."""
        try:
            return Position.parse(moment.head_position or "")
        except ValueError:
            return None

    async def _find_extra_records(self) -> None:
        names: set[str] = set()
        async for entry in self._stored.every_record():
            names.add(entry.decode(errors="backslashreplace"))
            if len(names) >= ENTRIES_PER_SLICE:
                await self._name_extra(names)
                names.clear()
        await self._name_extra(names)

    async def _name_extra(self, names: set[str]) -> None:
        # A record may be of an event that came since: the log is folded up to now before it is said to have none.
        last, records = await self._stored.records(sorted(names))
        await self._fold_to(last)
        known = self._scratch.rows_of(names)
        for name, record in zip(sorted(names), records, strict=True):
            if name not in known and record is not None:
                self.differences.add("entries", name, stored=record, folded=None)

    async def quarantine(self, checkpoint: Position | None) -> None:
        """Every record names an event that the fold skipped, and tells when the log recorded it.

        Records after `checkpoint` came while the comparison ran; what they name must stand in the log all the same.
        """
        later: list[tuple[Position, bytes]] = []
        async for raw_position, record in self._stored.quarantine():
            try:
                position = Position.parse(raw_position.decode())
                skipped = msgspec.json.decode(record, type=_Skipped)
            except (ValueError, msgspec.MsgspecError) as error:
                self.differences.add("quarantine", _text(raw_position), stored=record, folded=str(error))
                continue
            recorded_at = self._scratch.skipped_at(position)
            if recorded_at is not None:
                if skipped != _Skipped(str(position), recorded_at):
                    self.differences.add("quarantine", position, stored=record, folded=f"recorded at {recorded_at}")
            elif checkpoint is not None and position.n > checkpoint.n:
                later.append((position, record))
            else:
                self.differences.add("quarantine", position, stored=record, folded=None)
        if later:
            last, _ = await self._stored.records([])
            await self._fold_to(last)
        for position, record in later:
            if position.n > self._refold.position.n:
                self.differences.add("quarantine", position, stored=record, folded=None)

    async def _fold_to(self, last: Position | None) -> None:
        # An empty stream is one whose events are all in the archive.
        if last is not None:
            await self._refold.to(last, committed=False)

    def _number(self, field: str, stored: bytes | None, folded: int) -> None:
        self.differences.equal("head", field, stored=_text(stored), folded=str(folded))

    def _mark(self, field: str, stored: bytes | None, mark: Mark) -> None:
        if stored is None or not stored.isdigit() or not mark.n <= int(stored) <= mark.last:
            self.differences.add("head", field, stored=stored, folded=str(mark))


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="backslashreplace")

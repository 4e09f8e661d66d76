"""The archive against itself and the log: objects, chain, and every event that stands in both archive and stream.

Owns the comparison. Reading an object and verifying its hash and chain is `shared.archive.archives`'s.
"""

import hashlib
from collections.abc import Mapping, Sequence

from services.projector.verify.differences import Differences
from services.projector.verify.refold import Refold
from shared.archive.archives import Archive, ArchiveState, HeldManifest
from shared.archive.segments import Segment
from shared.errors import CannotFold, Corrupted, Unavailable
from shared.events import about
from shared.keys import Keys
from shared.log import Log, stream_entry
from shared.ndjson import CHAIN_START, StreamEntry
from shared.position import Position
from shared.redis import Redis, command

EVENTS_PER_SLICE = 500


class ArchiveCheck:
    """Compares one feed's archive, segment by segment."""

    def __init__(self, redis: Redis, keys: Keys, refold: Refold) -> None:
        self.differences = Differences()
        self._redis = redis
        self._log_key = keys.feed(refold.feed_id).log
        self._archives = Log(redis, keys).archives
        self._refold = refold

    async def run(self) -> None:
        """Nothing for a feed that was never archived."""
        state = await self._archives.state(self._refold.feed_id)
        if state is None:
            return
        archive = self._archives.at(state.url, self._refold.feed_id)
        try:
            found = await archive.manifest()
            if found is None:
                if state.archived_to.n:
                    self.differences.add("archive", "manifest", stored=None, folded=f"up to {state.archived_to}")
                return
            self._compare_state(state, found)
            # Redactions up to there say which contents are gone.
            await self._refold.to(found.manifest.end, committed=False)
            await self._compare_segments(archive, found)
        except Corrupted as error:
            self.differences.add("archive", error.facts.get("object", "manifest"), stored=error.detail, folded=None)
        except Unavailable as error:
            self.differences.add("archive", state.url, stored=None, folded=error.detail)

    def _compare_state(self, state: ArchiveState, found: HeldManifest) -> None:
        manifest = found.manifest
        if manifest.end.n < state.archived_to.n:
            self.differences.add(
                "archive", "manifest", stored=f"up to {manifest.end}", folded=f"up to {state.archived_to}"
            )
        chains = {segment.end: segment.chain for segment in manifest.segments}
        chain = chains.get(state.archived_to, state.chain)
        self.differences.equal("archive", f"chain at {state.archived_to}", stored=chain, folded=state.chain)
        if state.trimmed_to.n > state.archived_to.n:
            self.differences.add(
                "archive", "trimmed_to", stored=str(state.trimmed_to), folded=f"up to {state.archived_to}"
            )

    async def _compare_segments(self, archive: Archive, found: HeldManifest) -> None:
        end, n, chain = found.manifest.end.n, 1, CHAIN_START
        while n <= end:
            manifest = found.manifest
            number = manifest.holding(n)
            if number is None:
                break
            segment = manifest.segments[number]
            if segment.first_n == n and manifest.chain_before(number) != chain:
                self.differences.add("archive", segment.object, stored=manifest.chain_before(number), folded=chain)
            try:
                entries = await archive.entries(segment, chain_before=manifest.chain_before(number))
            except Corrupted as error:
                self.differences.add("archive", segment.object, stored=error.detail, folded=None)
                n, chain = segment.end.n + 1, segment.chain
                continue
            if entries is None:
                newer = await archive.manifest()
                if newer is not None and newer.manifest.version > manifest.version:
                    # Another run put a longer segment, or one without removed content, in its place.
                    found = newer
                    continue
                self.differences.add("archive", segment.object, stored=None, folded=f"{segment.events} events")
            else:
                await self._compare_events(segment, [entry for entry in entries if entry.position.n >= n])
            n, chain = segment.end.n + 1, segment.chain

    async def _compare_events(self, segment: Segment, entries: Sequence[StreamEntry]) -> None:
        if not entries:
            return
        named = self._refold.scratch.redactions_between(entries[0].position.n, segment.end.n)
        for start in range(0, len(entries), EVENTS_PER_SLICE):
            archived = entries[start : start + EVENTS_PER_SLICE]
            raw = await command(self._redis, "XRANGE", self._log_key, archived[0].id, archived[-1].id)
            stream = {entry.id: entry for entry in map(stream_entry, raw)}
            for entry in archived:
                self._compare_event(entry, stream.get(entry.id), named)

    def _compare_event(self, archived: StreamEntry, stream: StreamEntry | None, named: Mapping[int, str]) -> None:
        position = archived.position
        for field in (b"recorded_at", b"envelope") if stream is not None else ():
            if stream is not None and archived.fields[field] != stream.fields.get(field):
                which = f"{field.decode()} at {position}"
                self.differences.add("archive", which, stored=archived.fields[field], folded=stream.fields.get(field))
        content = archived.fields[b"content"]
        if content and position.n in named:
            self.differences.add(
                "archive", f"content at {position}", stored="the content", folded="removed by a redaction"
            )
            return
        if stream is not None and content != stream.fields.get(b"content") and position.n not in named:
            self.differences.add(
                "archive", f"content at {position}", stored=content, folded=stream.fields.get(b"content")
            )
            return
        self._check_digest(archived, position, named)

    def _check_digest(self, archived: StreamEntry, position: Position, named: Mapping[int, str]) -> None:
        """Events that cannot be folded are in quarantine, whatever their digests say."""
        if self._refold.scratch.skipped_at(position) is not None:
            return
        try:
            digest = about(archived.fields).digest
        except CannotFold:
            return
        content = archived.fields[b"content"]
        found = hashlib.sha256(content).hexdigest() if content else None
        wanted = None if digest == named.get(position.n) else digest
        if found != wanted:
            which = f"content at {position}"
            self.differences.add(
                "archive", which, stored=found and f"SHA-256 {found}", folded=wanted and f"SHA-256 {wanted}"
            )

"""The desks: each performs its own steps of the coverage over HTTP, all of them at the same time.

Owns timing, the desks' shared knowledge of which entry is which, and what a desk does when another was first.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET

from services.cli.client import DatelineClient, Written
from services.cli.demo.coverage import (
    Correct,
    EntryAct,
    FeedCoverage,
    MarkKeyEvent,
    Pin,
    Publish,
    Retract,
    ReviseFeed,
    Step,
    UnmarkKeyEvent,
    Unpin,
    prerequisites,
)
from services.cli.problem import Problem
from services.cli.reader import Document

Clock = Callable[[], float]


class Newsroom:
    """Everyone who works on one feed. `acknowledged` tells of each write: its position, and when it was sent."""

    def __init__(
        self,
        coverage: FeedCoverage,
        *,
        url: str,
        token: str,
        speed: float,
        clock: Clock,
        acknowledged: Callable[[str, Step, Written, float], None],
    ) -> None:
        self.coverage = coverage
        self.conflicts = 0
        # The script's names for entries, the ids that the server gave, and where each last changed.
        self.ids: dict[str, str] = {}
        self._positions: dict[str, str] = {}
        self._url = url
        self._token = token
        self._speed = speed
        self._clock = clock
        self._acknowledged = acknowledged
        self._needed = prerequisites(coverage.steps)
        self._done = [asyncio.Event() for _ in coverage.steps]

    async def open(self) -> None:
        async with DatelineClient(self._url, self._token) as client:
            opened = await client.open_feed(self.coverage.id, _json(self.coverage.document), only_new=True)
            # Readers may come as soon as the read models hold the feed.
            await client.feed(self.coverage.id, min_position=opened.position)

    async def perform(self, *, started_at: datetime) -> None:
        """Run every desk to the end of its steps; raises what a desk cannot mend itself."""
        started = self._clock()
        # To the minute: what several desks date back to the same minute then has exactly the same time.
        base = started_at.replace(second=0, microsecond=0)
        async with AsyncExitStack() as clients, asyncio.TaskGroup() as desks:
            for desk in self.coverage.desks:
                client = await clients.enter_async_context(DatelineClient(self._url, self._token))
                desks.create_task(self._work(desk, client, started=started, base=base), name=desk)

    async def _work(self, desk: str, client: DatelineClient, *, started: float, base: datetime) -> None:
        for index, step in enumerate(self.coverage.steps):
            if step.desk != desk:
                continue
            if self._speed > 0:
                await asyncio.sleep(started + step.after_seconds / self._speed - self._clock())
            for earlier in self._needed[index]:
                await self._done[earlier].wait()
            sent = self._clock()
            written = await self._do(client, step, base=base)
            if not isinstance(step, ReviseFeed):
                self._positions[step.ref] = written.position
            self._acknowledged(self.coverage.id, step, written, sent)
            self._done[index].set()

    async def _do(self, client: DatelineClient, step: Step, *, base: datetime) -> Written:
        feed = self.coverage.id
        match step:
            case Publish(ref=ref, entry=entry):
                written = await client.publish(feed, _dated(_json(entry), base))
                self.ids[ref] = written.document["id"]
                return written
            case Correct():
                return await self._correct(client, step, base=base)
            case Retract(reason=reason):
                return await client.retract(feed, self._id(step), reason=reason)
            case Pin():
                return await client.pin(feed, self._id(step))
            case Unpin():
                return await client.pin(feed, self._id(step), on=False)
            case MarkKeyEvent():
                return await client.key_event(feed, self._id(step))
            case UnmarkKeyEvent():
                return await client.key_event(feed, self._id(step), on=False)
            case ReviseFeed(fields=fields):
                return await client.revise_feed(feed, _json(fields))

    async def _correct(self, client: DatelineClient, step: Correct, *, base: datetime) -> Written:
        feed, entry = self.coverage.id, self._id(step)
        changes = _dated(_json(step.changes), base)
        if step.note is not None:
            changes["correction_note"] = step.note
        revision = step.seen_revision
        if revision is None:
            # A desk reads before it corrects: at least what was acknowledged to any desk here.
            standing = await client.entry(feed, entry, min_position=self._positions[step.ref])
            revision = standing["revision"]
        while True:
            try:
                return await client.correct(feed, entry, changes, revision=revision)
            except Problem as problem:
                if problem.status != 412 or problem.current is None:
                    raise
                # Another desk was first. The script lets two desks change different fields only, so this desk's
                # change stands on top of the other's; a person would read `current` and decide the same.
                self.conflicts += 1
                revision = problem.current["revision"]

    def _id(self, step: EntryAct) -> str:
        return self.ids[step.ref]


def _json(value: Any) -> dict[str, Any]:
    document = msgspec.to_builtins(value)
    return {name: field for name, field in document.items() if field is not UNSET}


def _dated(fields: Document, base: datetime) -> dict[str, Any]:
    dated = dict(fields)
    minutes_before = dated.pop("minutes_before", None)
    if minutes_before is not None:
        dated["published_at"] = (base - timedelta(minutes=minutes_before)).isoformat()
    return dated

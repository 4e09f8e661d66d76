"""How far long work is: a bar with rate and time left on a terminal, log lines now and then otherwise, on standard error.

Owns only the display; how much there is and how much is done is each verb's own.
"""

import sys
import time
from types import TracebackType
from typing import Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

log = structlog.get_logger()

LINE_SECONDS = 5.0


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} events/s" if speed else "")


class Progress:
    """Shows one piece of work after the other, each with its stages; what is counted are events.

    `what` names the work in log lines (`rebuilding`).
    """

    def __init__(self, what: str, *, console: Console | None = None) -> None:
        self._what = what
        console = console or Console(file=sys.stderr)
        self._stage: tuple[str, str] | None = None
        self._stage_from, self._stage_at = 0, 0.0
        self._said_at = time.monotonic()
        self._bars: Bars | None = None
        if console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                Rate(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bars.add_task("", total=None)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, work: str, stage: str = "", *, done: int, total: int, note: str | None = None) -> None:
        """`done` of `total` now; the description is `note`, or work and stage."""
        if self._stage != (work, stage):
            # A rate and the time left are a stage's own.
            self._stage, self._stage_from, self._stage_at = (work, stage), done, time.monotonic()
            if self._bars is not None:
                self._bars.reset(self._task, total=total, completed=done)
        description = note or ": ".join(filter(None, (work, stage)))
        if self._bars is not None:
            self._bars.update(self._task, completed=done, total=total, description=description)
        else:
            self._say(description, done, total)

    def _say(self, description: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said_at < LINE_SECONDS:
            return
        self._said_at = now
        rate = (done - self._stage_from) / max(now - self._stage_at, 1e-9)
        left_seconds = round((total - done) / rate, 1) if rate > 0 else None
        log.info(self._what, done=done, total=total, per_second=round(rate), left_seconds=left_seconds, now=description)

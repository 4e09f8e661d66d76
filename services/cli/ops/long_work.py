"""How far long work is: a bar with rate and time left on a terminal, log lines otherwise, on standard error.

Owns only the display; how much there is and how much is done is each verb's own.
"""

import sys
import time
from types import TracebackType
from typing import Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

log = structlog.get_logger()

LINE_SECONDS = 5.0


class Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else "")


class LongWork:
    """`what` names the work in log lines (`feeds_rebuilt`), `unit` what is counted."""

    def __init__(self, what: str, *, unit: str, console: Console | None = None) -> None:
        self._what = what
        self._console = console or Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._said_at = self._started_at = time.monotonic()
        self._first: int | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                Rate(unit),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int, *, description: str) -> None:
        """`done` of `total` now; a log line now and then where there is no terminal."""
        if self._first is None:
            self._first = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=description)
            return
        now = time.monotonic()
        if now - self._said_at < LINE_SECONDS:
            return
        self._said_at = now
        rate = (done - self._first) / max(now - self._started_at, 1e-9)
        left_seconds = round((total - done) / rate, 1) if rate > 0 else None
        log.info(self._what, done=done, total=total, per_second=round(rate), left_seconds=left_seconds, now=description)

"""How far long work is: a bar on a terminal, a log line now and then otherwise.

Owns only the display, on standard error.
"""

import time
from types import TracebackType
from typing import Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

log = structlog.get_logger()

LINE_SECONDS = 10.0


class Progress:
    """Shows one piece of work after the other, each with its stages."""

    def __init__(self, verb: str, console: Console) -> None:
        self._verb = verb
        self._bars: Bars | None = None
        self._last_line = time.monotonic()
        if console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=40),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bars.add_task("", total=None)
            self._shown: tuple[str, str] | None = None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, work: str, stage: str, *, done: int, total: int) -> None:
        if self._bars is not None:
            if self._shown != (work, stage):
                # A rate and the time left are a stage's own.
                self._bars.reset(self._task, description=f"{work}: {stage}", total=total)
                self._shown = (work, stage)
            self._bars.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            log.info(self._verb, feed=work, stage=stage, done=done, total=total)

"""How far the coverage is: a bar for each feed on a terminal, a line now and then otherwise.

Owns only the display, on standard error.
"""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from services.cli.client import Written
from services.cli.demo.coverage import Coverage, FeedCoverage, Publish, Step
from services.cli.terminal import title_of

# Without a terminal, so many lines for each feed.
LINES_PER_FEED = 4


class Progress:
    """Shows every write; the last headline of each feed beside its bar."""

    def __init__(self, coverage: Coverage, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._done = dict.fromkeys((feed.id for feed in coverage.feeds), 0)
        if console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.fields[feed]}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn(
                    "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
                ),
                console=console,
                expand=True,
            )
            self._tasks = {
                feed.id: self._bars.add_task("", total=len(feed.steps), feed=feed.id) for feed in coverage.feeds
            }

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def see(self, feed: FeedCoverage, step: Step, written: Written) -> None:
        self._done[feed.id] += 1
        done, total = self._done[feed.id], len(feed.steps)
        if self._bars is not None:
            headline = f"{feed.desks[step.desk]}: {title_of(written.document)}" if isinstance(step, Publish) else None
            self._bars.update(self._tasks[feed.id], advance=1, description=headline)
        elif done * LINES_PER_FEED // total > (done - 1) * LINES_PER_FEED // total:
            self._console.print(f"{feed.id}: {done} of {total} steps, at {written.position}")

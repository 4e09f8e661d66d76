"""`dateline tail`: feeds as a ticker in the terminal, entry by entry as they come.

Owns what a frame looks like as lines, and where the lines go. Connections and folded states are `follow`'s, harmless text
`terminal`'s business.
"""

from collections.abc import Iterable, Sequence
from contextlib import aclosing, nullcontext
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.cli.follow import Frame, Interruption, Reader, follow
from services.cli.reader import Document, Order, ReaderState, sort_key
from services.cli.target import Target, run, target, token_option, url_option
from services.cli.terminal import body_lines, clock, escaped_json, plain, title_of, zone_of

CONTENT_FIELDS = ("headline", "body", "authors", "tags")
# As wide as 18:38; where the day stands before the time, the title moves to the right.
TIME_WIDTH = 5
FEED_STYLES = ("cyan", "magenta", "green", "yellow", "blue")


@click.command()
@click.argument("feeds", nargs=-1, required=True, metavar="FEED [FEED…]")
@click.option(
    "--last", type=click.IntRange(1, 100), default=10, show_default=True, help="Entries to begin with, per feed."
)
@click.option(
    "--order",
    type=click.Choice(["newest", "oldest"]),
    default="newest",
    show_default=True,
    help="Begin with the newest entries, or with the story's first. Either way the ticker runs forward in time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each frame as one line of JSON.")
@url_option
@token_option
def tail(
    feeds: tuple[str, ...], last: int, order: Literal["newest", "oldest"], as_json: bool, url: str, token: str | None
) -> None:
    """Follow feeds as they are written, until Ctrl-C. Connects again by itself, and misses nothing."""
    if len(set(feeds)) != len(feeds):
        raise click.UsageError("a feed is named twice")
    server = target(url=url, token=token)
    try:
        run(_tail(server, feeds, last=last, order=order, as_json=as_json), url=url)
    except KeyboardInterrupt:
        # The way a ticker is meant to end.
        return


async def _tail(server: Target, feeds: Sequence[str], *, last: int, order: Order, as_json: bool) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    on_terminal = console.is_terminal and not as_json
    # Notices never mix with what another program reads.
    notices = console if on_terminal else Console(stderr=True, highlight=False, markup=False, emoji=False)
    reader = Reader(feeds, order=order)
    ticker = Ticker(several=len(feeds) > 1)
    status = Status()

    def interrupted(interruption: Interruption) -> None:
        text = f"{plain(interruption.reason)}; connecting again in {interruption.pause_seconds:.1f} s"
        notices.print(Text(f"— {text} —", style="yellow"), soft_wrap=True)
        status.live = False
        if isinstance(display, Live):
            display.update(status, refresh=True)

    display = Live(status, console=console, auto_refresh=False, transient=True) if on_terminal else nullcontext()
    async with server.client() as client:
        frames = follow(client, feeds, snapshot=last, order=order, on_interruption=interrupted)
        with display:
            async with aclosing(frames):
                async for frame in frames:
                    if as_json:
                        _print_frame(frame)
                        continue
                    if frame.connection > 1 and frame.connection != reader.connections:
                        notices.print(Text("— connected again —", style="green"), soft_wrap=True)
                    for line in ticker.lines(frame, reader, now=datetime.now(UTC)):
                        _print_line(console, line, on_terminal=on_terminal)
                    status.see(frame, reader)
                    if isinstance(display, Live):
                        display.update(status, refresh=True)


class Line(NamedTuple):
    """One line of the ticker: a time, where it has one, and the text, which wraps under itself."""

    text: Text
    time: str | None = None
    indented: bool = True


class Ticker:
    """Frames as lines. Compares each document with the one held before it, so it goes before the reader's own fold."""

    def __init__(self, *, several: bool) -> None:
        self._several = several
        self._styles: dict[str, str] = {}

    def lines(self, frame: Frame, reader: Reader, *, now: datetime) -> list[Line]:
        """The lines of a frame, which the reader has then taken."""
        held = self._held(frame, reader)
        state = reader.apply(frame)
        if state is None:
            return []
        match frame.event:
            case "snapshot":
                return self._snapshot(frame.data, state, now=now)
            case "entry" if _newer(frame.data, held):
                return self._entry(frame.data, held, state, now=now)
            case "retraction" if _newer(frame.data, held):
                return [self._line(frame.data, state, now=now, marks=["retracted"], title=_retraction(frame.data))]
            case "feed":
                return [self._note(state, f"{plain(frame.data['title'])} ({plain(frame.data['status'])})")]
            case "reset":
                return [self._note(state, f"begins anew: {plain(str(frame.data.get('reason')))}")]
            case _:
                return []

    @staticmethod
    def _held(frame: Frame, reader: Reader) -> Document | None:
        if frame.event not in {"entry", "retraction"} or frame.feed not in reader.states:
            return None
        return reader.states[frame.feed].documents.get(frame.data["id"])

    def _snapshot(self, page: Document, state: ReaderState, *, now: datetime) -> list[Line]:
        feed = page["feed_document"]
        lines = [self._note(state, f"{plain(feed['title'])} ({plain(feed['status'])}, {_entries(page['total'])})")]
        if feed["summary"]:
            lines.append(Line(Text(plain(feed["summary"]), style="dim")))
        entries = sorted(page["entries"], key=sort_key)
        shown = [line for entry in entries for line in self._entry(entry, None, state, now=now, standing=True)]
        skipped = page["total"] - len(entries)
        gap = [self._note(state, _entries(skipped, "more "))] if skipped > 0 else []
        return [*lines, *shown, *gap] if state.order == "oldest" else [*lines, *gap, *shown]

    def _entry(
        self, entry: Document, held: Document | None, state: ReaderState, *, now: datetime, standing: bool = False
    ) -> list[Line]:
        marks = _standing_marks(entry) if standing else _change_marks(entry, held, state, now=now)
        lines = [self._line(entry, state, now=now, marks=marks, title=title_of(entry))]
        content_is_new = standing or held is None or held.get("revision") != entry["revision"]
        if not content_is_new:
            return lines
        # An entry without a headline has begun with its text already.
        body = body_lines(entry["body"])
        if not entry["headline"] and body and title_of(entry) == body[0]:
            body = body[1:]
        lines += [Line(Text(line)) for line in body]
        if entry["authors"]:
            names = ", ".join(plain(author["name"]) for author in entry["authors"])
            lines.append(Line(Text(f"by {names}", style="dim")))
        if entry["correction"] is not None:
            lines.append(Line(Text(f"correction: {plain(entry['correction']['note'])}", style="yellow")))
        return lines

    def _line(self, document: Document, state: ReaderState, *, now: datetime, marks: Iterable[str], title: str) -> Line:
        text = self._name(state.feed)
        for mark in marks:
            text.append(f"[{mark}] ", style=_mark_style(mark))
        text.append(title, style="bold")
        return Line(text, time=clock(document["published_at"], zone_of(state.feed_document), today=now))

    def _note(self, state: ReaderState, note: str) -> Line:
        return Line(Text.assemble("— ", self._name(state.feed), note, " —"), indented=False)

    def _name(self, feed: str) -> Text:
        if not self._several:
            return Text("")
        style = self._styles.setdefault(feed, FEED_STYLES[len(self._styles) % len(FEED_STYLES)])
        return Text(f"{plain(feed)}  ", style=style)


class Status:
    """The line under the ticker, on a terminal: whether it is live, and where."""

    def __init__(self) -> None:
        self.live = False
        self._positions: dict[str, str] = {}

    def see(self, frame: Frame, reader: Reader) -> None:
        for feed, state in reader.states.items():
            self._positions[feed] = str(state.position)
        self.live = any(state.live for state in reader.states.values())

    def __rich__(self) -> Text:
        text = Text("● live" if self.live else "○ connecting", style="bold green" if self.live else "bold yellow")
        for feed, position in self._positions.items():
            text.append(f"  {plain(feed)} {position}", style="not bold dim")
        return text


def _entries(count: int, which: str = "") -> str:
    return f"{count} {which}{'entry' if count == 1 else 'entries'}"


def _newer(document: Document, held: Document | None) -> bool:
    return held is None or held["position"] != document["position"]


def _standing_marks(entry: Document) -> list[str]:
    flags = [("pinned", entry["pinned"]), ("key event", entry["key_event"])]
    return [name for name, on in flags if on]


def _change_marks(entry: Document, held: Document | None, state: ReaderState, *, now: datetime) -> list[str]:
    if held is None:
        # Never seen here: published just now, or a past entry that changed.
        return [*(["corrected"] if entry["revision"] > 1 else []), *_standing_marks(entry)]
    marks: list[str] = []
    if held["published_at"] != entry["published_at"]:
        marks.append(f"moved from {clock(held['published_at'], zone_of(state.feed_document), today=now)}")
    if any(held.get(name) != entry[name] for name in CONTENT_FIELDS):
        marks.append("corrected")
    if held.get("pinned") != entry["pinned"]:
        marks.append("pinned" if entry["pinned"] else "pin taken off")
    if held.get("key_event") != entry["key_event"]:
        marks.append("key event" if entry["key_event"] else "no longer a key event")
    return marks


def _retraction(tombstone: Document) -> str:
    # The headline is not repeated: it is what was taken back.
    reason = plain(tombstone["reason"]) if tombstone["reason"] else "no reason given"
    return f"{plain(tombstone['id'])}: {reason}"


def _mark_style(mark: str) -> str:
    if mark == "retracted":
        return "bold red"
    return "yellow" if mark == "corrected" or mark.startswith("moved") else "cyan"


def _print_line(console: Console, line: Line, *, on_terminal: bool) -> None:
    time = (line.time or "").ljust(TIME_WIDTH if line.indented else 0)
    if on_terminal and line.indented:
        columns = Table.grid(padding=(0, 2, 0, 0))
        columns.add_row(Text(time, style="dim", no_wrap=True), line.text)
        console.print(columns)
    else:
        # Whoever reads the pipe wraps for itself.
        console.print(Text.assemble(time, "  " if line.indented else "", line.text), soft_wrap=not on_terminal)


def _print_frame(frame: Frame) -> None:
    if frame.event == "ping":
        return
    frame_json = msgspec.json.encode({"event": frame.event, "id": frame.id, "data": frame.data})
    click.echo(escaped_json(frame_json.decode()))

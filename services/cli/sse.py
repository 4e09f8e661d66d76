"""Server-Sent Events as a client reads them: an incremental parser after WHATWG HTML, section 9.2.6.

Owns bytes in, events out, however the bytes were cut. What an event means and when to reconnect is left to `follow`.
"""

import codecs
import re
from dataclasses import dataclass

_LINE_END = re.compile(r"[\r\n]")
# What the standard calls an event without an `event` field.
_UNNAMED = "message"


@dataclass(frozen=True, slots=True)
class SentEvent:
    """One event. `id` is its own `id` field, None without one; `last_event_id` is what resumes after it."""

    event: str
    data: str
    id: str | None
    last_event_id: str


class EventStreamParser:
    """Reads one connection's bytes. What stands unfinished at the end of a connection was never an event (9.2.6)."""

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        # The last `retry:` seen, in milliseconds; the standard lets it take effect at once, not with its event.
        self.retry_ms: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = True
        self._after_cr = False
        self._line: list[str] = []
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, data: bytes) -> list[SentEvent]:
        """Take the next bytes and give the events that they complete."""
        text = self._decoder.decode(data)
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        if self._after_cr and text:
            # A CRLF that was cut in two is one line end.
            self._after_cr = False
            text = text.removeprefix("\n")
        events: list[SentEvent] = []
        start = 0
        for end in _LINE_END.finditer(text):
            if end.start() < start:
                continue
            # Pieces are joined once per line: a long line in many pieces stays linear.
            line = "".join([*self._line, text[start : end.start()]])
            self._line.clear()
            start = end.end()
            if end.group() == "\r":
                if start == len(text):
                    self._after_cr = True
                elif text[start] == "\n":
                    start += 1
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        if start < len(text):
            self._line.append(text[start:])
        return events

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        # A comment is a line with an empty name; names that nobody knows are ignored too.
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)

    def _dispatch(self) -> SentEvent | None:
        if self._id is not None:
            # An id counts even on an event without data, which is otherwise dropped.
            self.last_event_id = self._id
        event = None
        if self._data:
            event = SentEvent(
                event=self._event or _UNNAMED,
                data="\n".join(self._data),
                id=self._id,
                last_event_id=self.last_event_id,
            )
        self._event, self._id = "", None
        self._data.clear()
        return event

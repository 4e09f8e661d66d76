"""Pace: when each event of a replay is due, as far apart as they were recorded, or as much closer as was asked for.

Owns the schedule. Clock, sleep and announcement are the caller's, so that an hour can pass in a test at once.
"""

from collections.abc import Awaitable, Callable

# A silence that is longer looks like something that hangs.
ANNOUNCED_SECONDS = 10.0


class Pace:
    """`speed` 1 is the recorded pace, 60 a minute in a second."""

    def __init__(
        self,
        *,
        speed: float,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        announce: Callable[[str], None],
    ) -> None:
        self._speed = speed
        self._now = now
        self._sleep = sleep
        self._announce = announce
        self._began: tuple[int, float] | None = None
        self._last = 0

    async def wait(self, recorded_at: int) -> None:
        """Wait until the event recorded at that millisecond is due; the first one is at once.

        Reckoned from the first event on: what printing and reading take is no drift.
        """
        if self._began is None:
            self._began = (recorded_at, self._now())
        first, began = self._began
        silence_seconds = (recorded_at - self._last) / 1000
        self._last = recorded_at
        wait_seconds = began + (recorded_at - first) / 1000 / self._speed - self._now()
        if wait_seconds >= ANNOUNCED_SECONDS:
            at_speed = "" if self._speed == 1 else f"; the next event in {spoken(wait_seconds)}"
            self._announce(f"{spoken(silence_seconds)} of silence{at_speed}")
        if wait_seconds > 0:
            await self._sleep(wait_seconds)


def spoken(seconds: float) -> str:
    """A span in its two largest units: `2 d 3 h`, `1 h 5 min`, `3 min`, `12 s`."""
    left = round(seconds)
    parts: list[tuple[int, str]] = []
    for name, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append((count, name))
    return " ".join(f"{count} {name}" for count, name in parts[:2] if count) or "0 s"

"""Instants: RFC 3339 in UTC with milliseconds, the one text form that documents, events and sort keys share.

Owns parsing and writing them. The text form has a fixed width, so that instants of the years 0001 to 9999 sort as text.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

INSTANT_CHARACTERS = 24

# RFC 3339, section 5.6: the offset is required, `t` and `z` may be lower case, a space may stand for `T`.
_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_IN_UTC = _EPOCH.replace(tzinfo=None)


def parse_instant(text: str) -> str:
    """Read an RFC 3339 instant with an offset and give it in UTC, cut to milliseconds; ValueError says what is wrong."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        raise ValueError("an instant is RFC 3339 with an offset, such as 2022-01-10T18:38:00Z")
    day, time, fraction, offset = found.groups()
    microseconds = ((fraction or ".0")[1:] + "000000")[:6]
    try:
        at = datetime.fromisoformat(f"{day}T{time}.{microseconds}{'+00:00' if offset in 'Zz' else offset}")
        return _text(at.astimezone(UTC).replace(tzinfo=None))
    except (ValueError, OverflowError):
        raise ValueError("there is no such instant in the years 0001 to 9999") from None


def instant_of(milliseconds: int) -> str:
    """The instant `milliseconds` after 1970-01-01T00:00:00Z."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03}Z"


# Events that are recorded one after the other mostly share the second.
@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return (_EPOCH_IN_UTC + timedelta(seconds=seconds)).isoformat()


def optional_instant(milliseconds: str | int | None) -> str | None:
    """The instant of milliseconds as Redis has them, None for none."""
    return None if milliseconds is None else instant_of(int(milliseconds))


def milliseconds_of(instant: str) -> int:
    """Milliseconds from 1970 to an instant in Dateline's own text form."""
    return (datetime.fromisoformat(instant) - _EPOCH) // timedelta(milliseconds=1)


def _text(at: datetime) -> str:
    """Of an instant in UTC that does not say so."""
    # isoformat pads the year to four digits, which strftime does not do on every platform.
    return at.isoformat(timespec="milliseconds") + "Z"

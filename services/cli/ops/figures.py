"""Figures for people: sizes and durations in the unit that one would say them in. Owns the wording alone."""

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SECOND_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def bytes_text(size_bytes: int) -> str:
    """1023 B, 1.0 KiB, 21.3 MiB."""
    size = float(size_bytes)
    for unit in _BYTE_UNITS:
        if size < 1024 or unit == _BYTE_UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """0.4 s, 59 s, 2 min, 26 h, 3 d: whole units, of which there are at least two."""
    for length, unit in _SECOND_UNITS:
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def events_text(number: int) -> str:
    """1 event, 2,000 events."""
    return f"{number:,} event" if number == 1 else f"{number:,} events"

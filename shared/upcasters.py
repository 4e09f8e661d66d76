"""Upcasters: what brings an event of an older version to the next one, so that the fold knows one version of each type only.

Owns the table. An upcaster is pure and works on builtins: the event's facts, and its content under `content` (the stand-in of
a content that was removed included). A type that comes to version N + 1 adds the upcaster of (type, N) here and a sample of
version N stays in the golden corpus for ever.
"""

from collections.abc import Callable, Mapping
from typing import Any

Parts = dict[str, Any]

UPCASTERS: Mapping[tuple[str, int], Callable[[Parts], Parts]] = {}

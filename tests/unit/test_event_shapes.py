"""The log's format is kept for years: the shape of every event is pinned to its version.

A change of a shape, a document's block included, must raise the version of each event that holds it and add an upcaster;
only then may `event_shapes.json` be written anew: `python -m tests.unit.test_event_shapes`.
"""

import json
from pathlib import Path
from typing import Any, get_args

import msgspec

from shared.events import Envelope, Event

PINNED = Path(__file__).with_name("event_shapes.json")


def shapes() -> dict[str, Any]:
    """JSON Schemas of the envelope and of each event, facts and content, with its version."""
    kinds = get_args(Event)
    _, components = msgspec.json.schema_components((Envelope, *kinds))
    for component in components.values():
        component.pop("description", None)
    return {"versions": {kind.__name__: kind.version for kind in kinds}, "shapes": components}


def test_no_shape_of_an_event_changes_under_its_version() -> None:
    assert shapes() == json.loads(PINNED.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PINNED.write_text(json.dumps(shapes(), indent=1, sort_keys=True) + "\n", encoding="utf-8")

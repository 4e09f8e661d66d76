"""Read models as data: which ordered indexes a generation keeps over the entry documents, and under which sort key.

Owns sort keys and index membership, both pure. An index is a zero-score sorted set whose members begin with a fixed-width
sort key and end with the entry id, so that a page is a range of text: exact under ties, paged by key, never by rank.
`newest` and `oldest` read one chronological index from either end and therefore cannot disagree.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from shared.documents import Document, Entry
from shared.instants import INSTANT_CHARACTERS

N_CHARACTERS = 20
CHRONOLOGICAL_KEY_CHARACTERS = INSTANT_CHARACTERS + N_CHARACTERS


def position_key(position: str) -> str:
    """n in 20 digits; n alone orders positions, because it goes on across epochs."""
    # Computed several times for every event that is folded, of positions that the fold itself wrote.
    return position.partition("-")[2].rjust(N_CHARACTERS, "0")


def chronological_key(document: Document) -> str:
    """`published_at`, then the order of publication."""
    return document.published_at + position_key(document.first_position)


class ReadModel(NamedTuple):
    """A name, the ordered indexes in which a live entry stands, and its sort key in all of them.

    `retracted`: so do retracted ones. A further read model is one line here and a rebuild.
    """

    name: str
    indexes: Callable[[Any], Sequence[str]]
    key: Callable[[Any], str]
    retracted: bool = False


def _live(index: str, key: Callable[[Entry], str], when: Callable[[Entry], bool] | None = None) -> ReadModel:
    only = (index,)
    if when is None:
        return ReadModel(index, lambda entry: only, key)
    return ReadModel(index, lambda entry: only if when(entry) else (), key)


def _by_tag(name: str, when: Callable[[Entry], bool] = lambda entry: True) -> ReadModel:
    prefix = name + ":"
    return ReadModel(name, lambda entry: [prefix + tag for tag in entry.tags] if when(entry) else (), chronological_key)


def _is_key_event(entry: Entry) -> bool:
    return entry.key_event


def _is_pinned(entry: Entry) -> bool:
    return entry.pinned


def _pinned_key(entry: Entry) -> str:
    return position_key(entry.pinned_position or "")


def _first_key(entry: Entry) -> str:
    return position_key(entry.first_position)


def _changed_key(document: Document) -> str:
    return position_key(document.position)


READ_MODELS: Mapping[str, ReadModel] = {
    model.name: model
    for model in (
        _live("chronological", chronological_key),
        _live("key_events", chronological_key, _is_key_event),
        _live("pinned", _pinned_key, _is_pinned),
        _by_tag("tag"),
        _by_tag("tag_key_events", _is_key_event),
        _live("first_published", _first_key),
        ReadModel("changed", lambda document: ("changed",), _changed_key, retracted=True),
    )
}


def index_for(*, tag: str | None, key_events: bool) -> str:
    """The index that answers a page with these filters: always exactly one."""
    if tag is not None:
        return f"tag_key_events:{tag}" if key_events else f"tag:{tag}"
    return "key_events" if key_events else "chronological"


def members(document: Document | None, models: Iterable[ReadModel]) -> set[tuple[str, str]]:
    """Pairs of index name and member under which a document stands."""
    found: set[tuple[str, str]] = set()
    if document is None:
        return found
    # Most read models share a key: it is made once for each document.
    made: dict[Callable[[Any], str], str] = {}
    live = isinstance(document, Entry)
    for _, indexes, key, retracted in models:
        for index in indexes(document) if live or retracted else ():
            member = made.get(key)
            if member is None:
                member = made[key] = key(document) + document.id
            found.add((index, member))
    return found


class IndexChanges(NamedTuple):
    added: list[tuple[str, str]]
    removed: list[tuple[str, str]]


def index_changes(before: Document | None, after: Document | None, models: Iterable[ReadModel]) -> IndexChanges:
    """What must change in the indexes when a document changes from `before` to `after`."""
    models = tuple(models)
    new = members(after, models)
    if before is None:
        return IndexChanges(added=sorted(new), removed=[])
    old = members(before, models)
    return IndexChanges(added=sorted(new - old), removed=sorted(old - new))

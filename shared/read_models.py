"""Read models as data: which ordered indexes a generation keeps over the entry documents, and under which sort key.

Owns sort keys and index membership, both pure. An index is a zero-score sorted set whose members begin with a fixed-width
sort key and end with the entry id, so that a page is a range of text: exact under ties, paged by key, never by rank.
`newest` and `oldest` read one chronological index from either end and therefore cannot disagree.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

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
    """A name, the ordered indexes that it keeps, and which documents stand in each, under which key.

    `entries(document)` gives pairs of index name and sort key. A further read model is one line here and a rebuild.
    """

    name: str
    entries: Callable[[Document], Iterable[tuple[str, str]]]


def _live(index: str, key: Callable[[Entry], str], when: Callable[[Entry], bool] = lambda entry: True) -> ReadModel:
    def entries(document: Document) -> Iterable[tuple[str, str]]:
        if isinstance(document, Entry) and when(document):
            yield index, key(document)

    return ReadModel(index, entries)


def _by_tag(name: str, when: Callable[[Entry], bool] = lambda entry: True) -> ReadModel:
    def entries(document: Document) -> Iterable[tuple[str, str]]:
        if isinstance(document, Entry) and when(document):
            for tag in document.tags:
                yield f"{name}:{tag}", chronological_key(document)

    return ReadModel(name, entries)


READ_MODELS: Mapping[str, ReadModel] = {
    model.name: model
    for model in (
        _live("chronological", chronological_key),
        _live("key_events", chronological_key, lambda entry: entry.key_event),
        _live("pinned", lambda entry: position_key(entry.pinned_position or ""), lambda entry: entry.pinned),
        _by_tag("tag"),
        _by_tag("tag_key_events", lambda entry: entry.key_event),
        _live("first_published", lambda entry: position_key(entry.first_position)),
        ReadModel("changed", lambda document: [("changed", position_key(document.position))]),
    )
}


def index_for(*, tag: str | None, key_events: bool) -> str:
    """The index that answers a page with these filters: always exactly one."""
    if tag is not None:
        return f"tag_key_events:{tag}" if key_events else f"tag:{tag}"
    return "key_events" if key_events else "chronological"


def members(document: Document | None, models: Iterable[ReadModel]) -> set[tuple[str, str]]:
    """Pairs of index name and member under which a document stands."""
    if document is None:
        return set()
    return {(index, key + document.id) for model in models for index, key in model.entries(document)}


class IndexChanges(NamedTuple):
    added: list[tuple[str, str]]
    removed: list[tuple[str, str]]


def index_changes(before: Document | None, after: Document | None, models: Iterable[ReadModel]) -> IndexChanges:
    """What must change in the indexes when a document changes from `before` to `after`."""
    models = tuple(models)
    old, new = members(before, models), members(after, models)
    return IndexChanges(added=sorted(new - old), removed=sorted(old - new))

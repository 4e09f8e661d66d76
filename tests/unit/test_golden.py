"""Every version of every event ever written is read for ever: the logs in `golden/`, and what they fold to, byte by byte.

A log is NDJSON as `shared.ndjson` writes it and `dateline ops replay` prints it. When the version of an event is raised:
1. before that, see that the old version stands in a log here (the tests hold you to it); no log that is here is ever changed;
2. write the upcaster, let the new release write a log with the new version, and put it here as a further file;
3. `python -m tests.unit.test_golden` writes `<log>.folded`, what it folds to, for each log that has none. Read it.
Where the fold itself changes (FOLD_VERSION) or a read model is added, remove the `.folded` files, write them anew and read
the difference: that is what a rebuild will do to every feed.
"""

import functools
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from shared.documents import Block, render
from shared.events import EntryPublished, Envelope, Event, Recorded, decode, encode
from shared.fold import Documents, fold
from shared.ndjson import StreamEntry, line_of, parse_line
from shared.read_models import READ_MODELS, members
from shared.upcasters import UPCASTERS

GOLDEN = Path(__file__).with_name("golden")
LOGS = sorted(GOLDEN.glob("*.ndjson"))
VERSIONS = {kind.__name__: kind.version for kind in get_args(Event)}
EVER_WRITTEN = [(name, version) for name, newest in VERSIONS.items() for version in range(1, newest + 1)]


def entries(log: Path) -> list[StreamEntry]:
    return [parse_line(line) for line in log.read_bytes().splitlines(keepends=True)]


def recorded(log: Path) -> list[Recorded]:
    return [decode(entry.id, entry.fields) for entry in entries(log)]


def folded(log: Path) -> bytes:
    """One line each: the feed's document, every entry's, every index with its members in order."""
    state = Documents(None, {})
    for found in recorded(log):
        state.apply(fold(state, found, feed_id=log.stem))
    assert state.feed is not None
    indexes: dict[str, list[str]] = {}
    for document in state.entries.values():
        for index, member in members(document, READ_MODELS.values()):
            indexes.setdefault(index, []).append(member)
    lines = [
        render(state.feed),
        *(render(document) for _, document in sorted(state.entries.items())),
        *(msgspec.json.encode({"index": index, "members": sorted(found)}) for index, found in sorted(indexes.items())),
    ]
    return b"".join(line + b"\n" for line in lines)


def samples() -> Iterator[tuple[Path, StreamEntry, Envelope]]:
    for log in LOGS:
        for entry in entries(log):
            yield log, entry, msgspec.json.decode(entry.fields[b"envelope"], type=Envelope)


def folded_file(log: Path) -> Path:
    return log.with_suffix(".folded")


@pytest.mark.parametrize("log", LOGS, ids=lambda log: str(log.stem))
def test_a_log_of_any_release_folds_to_the_same_bytes(log: Path) -> None:
    assert folded(log) == folded_file(log).read_bytes()


@pytest.mark.parametrize(("name", "version"), EVER_WRITTEN)
def test_every_version_of_every_event_stands_in_the_corpus(name: str, version: int) -> None:
    assert (name, version) in {(envelope.type, envelope.version) for _, _, envelope in samples()}


def test_the_corpus_holds_nothing_that_no_release_wrote() -> None:
    assert {(envelope.type, envelope.version) for _, _, envelope in samples()} <= set(EVER_WRITTEN)


def test_every_version_below_the_newest_has_an_upcaster_and_no_other_has_one() -> None:
    assert set(UPCASTERS) == {(name, version) for name, version in EVER_WRITTEN if version < VERSIONS[name]}


def test_every_kind_of_block_stands_in_the_corpus() -> None:
    """A block's shape is part of the version of the events that hold it."""
    events = [found.event for log in LOGS for found in recorded(log)]
    blocks = {type(block) for event in events if isinstance(event, EntryPublished) for block in event.content.body}
    assert blocks == set(get_args(Block))


def test_contents_that_redactions_removed_stand_in_the_corpus() -> None:
    assert {type(found.event).__name__ for log in LOGS for found in recorded(log) if found.removed} == {
        "EntryPublished",
        "EntryCorrected",
        "EntryRetracted",
    }


@pytest.mark.parametrize("log", LOGS, ids=lambda log: str(log.stem))
def test_a_log_reads_back_as_the_lines_that_it_is(log: Path) -> None:
    assert b"".join(map(line_of, entries(log))) == log.read_bytes()
    positions = [entry.position for entry in entries(log)]
    assert [position.n for position in positions] == list(range(1, len(positions) + 1))


def test_the_encoder_still_writes_the_newest_version_as_it_stands_in_the_corpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _, entry, envelope in samples():
        if envelope.version < VERSIONS[envelope.type]:
            continue
        found = decode(entry.id, entry.fields)
        content: dict[str, Any] = msgspec.json.decode(entry.fields[b"content"] or b"{}")
        monkeypatch.setattr(secrets, "token_hex", functools.partial(content.get, "salt"))
        again = encode(found.event, command=envelope.command, by=envelope.by, causation=envelope.causation)
        if found.removed:
            # What was digested is gone: all else of the envelope is compared.
            new = msgspec.json.decode(again.envelope, type=Envelope)
            again = msgspec.structs.replace(
                again, content=b"", envelope=msgspec.json.encode(msgspec.structs.replace(new, digest=envelope.digest))
            )
        assert (again.envelope, again.content) == (entry.fields[b"envelope"], entry.fields[b"content"])


if __name__ == "__main__":
    for missing in [log for log in LOGS if not folded_file(log).exists()]:
        folded_file(missing).write_bytes(folded(missing))
        print(folded_file(missing))

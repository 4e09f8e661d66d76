"""Older versions of events: brought to the newest by a chain of pure steps, in order, before anything is decided on them."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from shared import events
from shared.errors import CannotFold, NewerLog
from shared.events import (
    Encoded,
    EntryContent,
    EntryPinned,
    EntryPublished,
    Envelope,
    decode,
    encode,
)
from shared.upcasters import Parts

# Of no real history: an EntryPublished that came to be as it is in two steps. Version 1 had a title, version 2 one tag.
NEWEST = 3


def title_becomes_headline(parts: Parts) -> Parts:
    content = dict(parts["content"])
    content["headline"] = content.pop("title", None)
    return {**parts, "content": content}


def tag_becomes_tags(parts: Parts) -> Parts:
    content = dict(parts["content"])
    tag = content.pop("tag", None)
    content.setdefault("tags", [tag] if tag else [])
    return {**parts, "key_event": parts.get("key_event", False), "content": content}


@pytest.fixture
def third_version(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """EntryPublished stands at version 3; gives the steps that were taken, in order."""
    taken: list[tuple[str, int]] = []

    def noted(name: str, version: int, step: Callable[[Parts], Parts]) -> Callable[[Parts], Parts]:
        def upcast(parts: Parts) -> Parts:
            taken.append((name, version))
            before = msgspec.json.encode(parts)
            after = step(parts)
            assert msgspec.json.encode(parts) == before
            return after

        return upcast

    name = "EntryPublished"
    steps = {1: title_becomes_headline, 2: tag_becomes_tags}
    monkeypatch.setattr(EntryPublished, "version", NEWEST)
    monkeypatch.setattr(events, "UPCASTERS", {(name, v): noted(name, v, step) for v, step in steps.items()})
    return taken


def stored(version: int, content: dict[str, Any], **facts: Any) -> dict[bytes, bytes]:
    """An EntryPublished as a release of that version wrote it."""
    whole = encode(
        EntryPublished("e", None, False, EntryContent("h", [], [], [])), command="c", by="desk", causation="r"
    )
    envelope = msgspec.json.decode(whole.envelope, type=Envelope)
    salted = msgspec.json.encode({"salt": "00", **content})
    digest = hashlib.sha256(salted).hexdigest()
    envelope = msgspec.structs.replace(envelope, version=version, facts=facts, digest=digest)
    return fields_of(Encoded(msgspec.json.encode(envelope), salted))


def fields_of(encoded: Encoded) -> dict[bytes, bytes]:
    return {b"envelope": encoded.envelope, b"content": encoded.content, b"recorded_at": b"1000"}


EXPECTED = EntryPublished("e", None, False, EntryContent("It is on", [], [], ["live"]))


@pytest.mark.parametrize(
    ("version", "content", "steps"),
    [
        (1, {"title": "It is on", "tag": "live", "body": [], "authors": []}, [1, 2]),
        (2, {"headline": "It is on", "tag": "live", "body": [], "authors": []}, [2]),
        (3, {"headline": "It is on", "tags": ["live"], "body": [], "authors": []}, []),
    ],
)
def test_an_event_of_any_older_version_takes_each_step_once_in_order(
    third_version: list[tuple[str, int]], version: int, content: dict[str, Any], steps: list[int]
) -> None:
    facts = {"entry": "e", "published_at": None, **({"key_event": False} if version == 3 else {})}
    found = decode(b"1-7", stored(version, content, **facts))
    assert found.event == EXPECTED
    assert third_version == [("EntryPublished", step) for step in steps]
    # What stands in the log stays what it is, and so does what is said of it.
    assert (found.envelope.version, found.envelope.facts) == (version, facts)


def test_the_same_bytes_are_read_the_same_however_often(third_version: list[tuple[str, int]]) -> None:
    fields = stored(1, {"title": "It is on", "tag": "live", "body": [], "authors": []}, entry="e", published_at=None)
    assert decode(b"1-7", fields) == decode(b"1-7", fields)
    assert len(third_version) == 4


def test_content_that_a_redaction_removed_takes_the_same_steps(third_version: list[tuple[str, int]]) -> None:
    fields = stored(1, {"title": "It is on"}, entry="e", published_at=None) | {b"content": b""}
    found = decode(b"1-7", fields)
    assert found.removed
    assert found.event == EntryPublished("e", None, False, EntryContent(None, [], [], []))
    assert third_version == [("EntryPublished", 1), ("EntryPublished", 2)]


def test_other_types_take_no_step(third_version: list[tuple[str, int]]) -> None:
    encoded = encode(EntryPinned("e"), command="c", by="desk", causation=None)
    assert decode(b"1-7", fields_of(encoded)).event == EntryPinned("e")
    assert third_version == []


def test_a_version_above_the_newest_is_a_newer_releases(third_version: list[tuple[str, int]]) -> None:
    with pytest.raises(NewerLog, match="version 4 at 1-7"):
        decode(b"1-7", stored(NEWEST + 1, {"headline": "h"}, entry="e"))
    assert third_version == []


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_never_was_cannot_be_folded(third_version: list[tuple[str, int]], version: int) -> None:
    with pytest.raises(CannotFold, match=f"version {version} cannot be brought"):
        decode(b"1-7", stored(version, {"title": "h"}, entry="e"))


def bare(text: bytes, version: int = 1) -> dict[bytes, bytes]:
    digest = hashlib.sha256(text).hexdigest()
    envelope = Envelope("EntryPublished", version, "c", "desk", None, digest, {"entry": "e", "published_at": None})
    return fields_of(Encoded(msgspec.json.encode(envelope), text))


@pytest.mark.parametrize("text", [b"{}", b"[]", b"null", b"1", b'{"title":[]}', b"{", b"\xff", b"[" * 5000])
def test_an_old_event_that_its_upcaster_cannot_take_is_set_aside(
    third_version: list[tuple[str, int]], text: bytes
) -> None:
    with pytest.raises(CannotFold):
        decode(b"1-7", bare(text))

"""Requests: the bodies of the writing calls, parsed, checked and made into commands.

Owns the bodies and the way from bytes to commands, with the path of each field that is wrong. The rules of single fields are
`sanitise`'s, whether a command may happen is `decide`'s.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from services.writer.commands import (
    CorrectEntry,
    EntryCommand,
    MarkKeyEvent,
    OpenFeed,
    PinEntry,
    PublishEntry,
    RetractEntry,
    ReviseFeed,
    UnmarkKeyEvent,
    UnpinEntry,
)
from services.writer.sanitise import (
    HEADLINE_CHARACTERS_MAX,
    LINE_CHARACTERS_MAX,
    TAGS_MAX,
    TEXT_CHARACTERS_MAX,
    TOPICS_MAX,
    Checked,
)
from shared.documents import Author, Block, FeedStatus, Image, Visibility, is_entry_id
from shared.errors import FieldError, Invalid, Malformed
from shared.events import EntryChanges, EntryContent, FeedChanges, FeedFields
from shared.fingerprints import fingerprint, publication_fingerprint

BATCH_COMMANDS_MAX = 200


class _OpenBody(Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    summary: str | None = None
    language: str = "und"
    timezone: str = "UTC"
    topics: list[str] = []
    image: Image | None = None
    url: str | None = None
    visibility: Visibility = "public"


class _ReviseBody(Struct, frozen=True, forbid_unknown_fields=True):
    title: str | UnsetType = UNSET
    summary: str | None | UnsetType = UNSET
    language: str | UnsetType = UNSET
    timezone: str | UnsetType = UNSET
    topics: list[str] | UnsetType = UNSET
    image: Image | None | UnsetType = UNSET
    url: str | None | UnsetType = UNSET
    visibility: Visibility | UnsetType = UNSET
    status: FeedStatus | UnsetType = UNSET


class _PublishBody(Struct, frozen=True, forbid_unknown_fields=True):
    id: str | None = None
    published_at: str | None = None
    headline: str | None = None
    body: list[Block] | None = None
    authors: list[Author] | None = None
    tags: list[str] | None = None
    key_event: bool = False


class _CorrectBody(Struct, frozen=True, forbid_unknown_fields=True):
    published_at: str | UnsetType = UNSET
    headline: str | None | UnsetType = UNSET
    body: list[Block] | None | UnsetType = UNSET
    authors: list[Author] | None | UnsetType = UNSET
    tags: list[str] | None | UnsetType = UNSET
    correction_note: str | None | UnsetType = UNSET


class _RetractBody(Struct, frozen=True, forbid_unknown_fields=True):
    reason: str | None = None


class _BatchPublish(_PublishBody, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="publish"):
    pass


class _BatchCorrect(
    _CorrectBody, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="correct"
):
    id: str
    revision: int


class _BatchRetract(
    _RetractBody, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="retract"
):
    id: str
    revision: int | None = None


class _BatchPin(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="pin"):
    id: str


class _BatchUnpin(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="unpin"):
    id: str


class _BatchMark(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="mark_key_event"):
    id: str


class _BatchUnmark(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="unmark_key_event"):
    id: str


_BatchCommand = _BatchPublish | _BatchCorrect | _BatchRetract | _BatchPin | _BatchUnpin | _BatchMark | _BatchUnmark


class _BatchBody(Struct, frozen=True, forbid_unknown_fields=True):
    commands: list[_BatchCommand]


class Parser:
    """Bytes to commands. `now_milliseconds` is the clock, `new_entry_id` names entries whose desk did not."""

    def __init__(self, *, now_milliseconds: Callable[[], int], new_entry_id: Callable[[], str]) -> None:
        self._now = now_milliseconds
        self._new_entry_id = new_entry_id

    def open_feed(self, body: bytes, *, only_open: bool) -> OpenFeed:
        request = _decode(body, _OpenBody)
        checked = self._checked()
        fields = FeedFields(**_feed_fields(checked, request))
        checked.refuse_if_wrong()
        return OpenFeed(fields, only_open)

    def revise_feed(self, body: bytes) -> ReviseFeed:
        request = _decode(body, _ReviseBody)
        checked = self._checked()
        changes = FeedChanges(**_feed_fields(checked, request))
        checked.refuse_if_wrong()
        return ReviseFeed(changes, None if request.status is UNSET else request.status)

    def publish(self, body: bytes) -> PublishEntry:
        checked = self._checked()
        command = self._publish(checked, _decode(body, _PublishBody), "")
        checked.refuse_if_wrong()
        return command

    def correct(self, body: bytes, *, entry: str, revisions: frozenset[int] | None) -> CorrectEntry:
        checked = self._checked()
        command = _correct(checked, _decode(body, _CorrectBody), "", entry=entry, revisions=revisions)
        checked.refuse_if_wrong()
        return command

    def retract(self, body: bytes, *, entry: str, revisions: frozenset[int] | None) -> RetractEntry:
        checked = self._checked()
        request = _decode(body, _RetractBody) if body else _RetractBody()
        reason = checked.optional_text(request.reason, "/reason", characters_max=LINE_CHARACTERS_MAX)
        checked.refuse_if_wrong()
        return RetractEntry(entry, reason, revisions)

    def batch(self, body: bytes) -> list[EntryCommand]:
        request = _decode(body, _BatchBody)
        checked = self._checked()
        count = len(request.commands)
        if not 1 <= count <= BATCH_COMMANDS_MAX:
            checked.wrong("/commands", f"has {count} commands, 1 to {BATCH_COMMANDS_MAX} are allowed")
            checked.refuse_if_wrong()
        commands = [self._of_batch(checked, item, f"/commands/{i}") for i, item in enumerate(request.commands)]
        checked.refuse_if_wrong()
        return commands

    def _checked(self) -> Checked:
        return Checked(now_milliseconds=self._now())

    def _publish(self, checked: Checked, request: _PublishBody, path: str) -> PublishEntry:
        if request.id is not None:
            _check_entry_id(checked, request.id, f"{path}/id")
        at = request.published_at
        published_at = None if at is None else checked.instant(at, f"{path}/published_at")
        content = EntryContent(
            headline=checked.optional_text(
                request.headline, f"{path}/headline", characters_max=HEADLINE_CHARACTERS_MAX
            ),
            body=checked.body(request.body or [], f"{path}/body"),
            authors=checked.authors(request.authors or [], f"{path}/authors"),
            tags=checked.labels(request.tags or [], f"{path}/tags", count_max=TAGS_MAX),
        )
        if content.headline is None and not content.body:
            checked.wrong(f"{path}/headline", "a headline or a body block is required")
        return PublishEntry(
            entry=request.id if request.id is not None else self._new_entry_id(),
            chosen=request.id is not None,
            published_at=published_at,
            key_event=request.key_event,
            content=content,
            fingerprint=publication_fingerprint(
                published_at=published_at, key_event=request.key_event, content=content
            ),
        )

    def _of_batch(self, checked: Checked, item: _BatchCommand, path: str) -> EntryCommand:
        if isinstance(item, _BatchPublish):
            return self._publish(checked, item, path)
        _check_entry_id(checked, item.id, f"{path}/id")
        match item:
            case _BatchCorrect():
                return _correct(checked, item, path, entry=item.id, revisions=frozenset({item.revision}))
            case _BatchRetract():
                reason = checked.optional_text(item.reason, f"{path}/reason", characters_max=LINE_CHARACTERS_MAX)
                return RetractEntry(item.id, reason, None if item.revision is None else frozenset({item.revision}))
            case _BatchPin():
                return PinEntry(item.id)
            case _BatchUnpin():
                return UnpinEntry(item.id)
            case _BatchMark():
                return MarkKeyEvent(item.id)
            case _BatchUnmark():
                return UnmarkKeyEvent(item.id)


def request_fingerprint(method: str, path: str, body: bytes) -> str:
    """The fingerprint of a whole request, by which a reused idempotency key is told from a repeated request."""
    return fingerprint(method, path, _parsed(body) if body else None)


_T = TypeVar("_T")


def _decode(body: bytes, wanted: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=wanted)
    except msgspec.ValidationError as error:
        # The decoder stops at the first misfit, which may stand before the place where the JSON breaks.
        _parsed(body)
        raise Invalid([_field_error(str(error))]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from None


def _parsed(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from None


def _malformed(error: Exception) -> Malformed:
    if isinstance(error, UnicodeDecodeError):
        return Malformed(f"the body is not UTF-8: {error.reason} at byte {error.start} of a string")
    return Malformed(f"the body is not JSON: {error}")


_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"unknown field `(.*)`")
_MISSING = re.compile(r"missing required field `(.*)`")


def _field_error(text: str) -> FieldError:
    """msgspec's words with its `$.body[0].url` as a JSON pointer; an unknown or missing field is named itself."""
    found = _AT.match(text)
    what, where = (found["what"], found["path"] or "") if found else (text, "")
    path = "".join(f"/{name or number}" for name, number in _STEP.findall(where))
    if named := _UNKNOWN.search(what):
        # RFC 6901, section 3: the two characters that a pointer gives a meaning.
        name = named[1].replace("~", "~0").replace("/", "~1")
        return FieldError(f"{path}/{name}", "is not a field here")
    if named := _MISSING.search(what):
        return FieldError(f"{path}/{named[1]}", "is required")
    return FieldError(path, what[0].lower() + what[1:])


def _check_entry_id(checked: Checked, entry: str, path: str) -> None:
    if not is_entry_id(entry):
        checked.wrong(path, "must be 1 to 64 of A-Z a-z 0-9 _ -")


def _feed_fields(checked: Checked, request: _OpenBody | _ReviseBody) -> dict[str, Any]:
    """The editable fields that the request sets, checked."""
    checks: dict[str, Callable[[Any, str], Any]] = {
        "title": lambda value, path: checked.text(value, path, characters_max=HEADLINE_CHARACTERS_MAX),
        "summary": lambda value, path: checked.optional_text(value, path, characters_max=TEXT_CHARACTERS_MAX),
        "language": checked.language,
        "timezone": checked.timezone,
        "topics": lambda value, path: checked.labels(value, path, count_max=TOPICS_MAX),
        "image": checked.image,
        "url": checked.optional_url,
        "visibility": lambda value, path: value,
    }
    return {
        name: check(value, f"/{name}")
        for name, check in checks.items()
        if (value := getattr(request, name)) is not UNSET
    }


def _correct(
    checked: Checked, request: _CorrectBody, path: str, *, entry: str, revisions: frozenset[int] | None
) -> CorrectEntry:
    changes: dict[str, Any] = {}
    if request.headline is not UNSET:
        changes["headline"] = checked.optional_text(
            request.headline, f"{path}/headline", characters_max=HEADLINE_CHARACTERS_MAX
        )
    if request.body is not UNSET:
        changes["body"] = checked.body(request.body or [], f"{path}/body")
    if request.authors is not UNSET:
        changes["authors"] = checked.authors(request.authors or [], f"{path}/authors")
    if request.tags is not UNSET:
        changes["tags"] = checked.labels(request.tags or [], f"{path}/tags", count_max=TAGS_MAX)
    if request.correction_note is not UNSET:
        changes["correction_note"] = checked.optional_text(
            request.correction_note, f"{path}/correction_note", characters_max=LINE_CHARACTERS_MAX
        )
    at = request.published_at
    published_at = None if at is UNSET else checked.instant(at, f"{path}/published_at")
    return CorrectEntry(entry, revisions, published_at, EntryChanges(**changes))

"""Every error that Dateline itself raises, on one screen, each with its facts and the code a client sees.

Owns the taxonomy; `http.STATUS` maps the codes to status codes, in one table. Refusals are the client's to mend,
`Unavailable` passes by itself, `Corrupted` stops the process.
"""

from typing import Any, ClassVar, NamedTuple


class FieldError(NamedTuple):
    """One thing wrong with one field; `path` is a JSON pointer (RFC 6901) into the body, or `/<parameter>`."""

    path: str
    message: str


class DatelineError(Exception):
    """The root. `code` is the last part of the problem's type, `facts` become members of the problem document."""

    code: ClassVar[str]

    def __init__(self, detail: str, **facts: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts = facts


class Refused(DatelineError):
    """A request that changes nothing."""


class Malformed(Refused):
    """What cannot be parsed: JSON, UTF-8, a header."""

    code = "malformed"


class Invalid(Refused):
    """What parses and is not valid; names each field."""

    code = "invalid"

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{path or '/'}: {message}" for path, message in errors), errors=errors)
        self.errors = errors


class IdempotencyKeyReused(Refused):
    code = "idempotency-key-reused"


class Unauthorized(Refused):
    code = "unauthorized"


class NotFound(Refused):
    code = "not-found"


class FeedNotFound(NotFound):
    code = "feed-not-found"

    def __init__(self, feed: str) -> None:
        super().__init__(f"There is no feed {feed!r} for you here.", feed=feed)


class EntryNotFound(NotFound):
    code = "entry-not-found"

    def __init__(self, feed: str, entry: str) -> None:
        super().__init__(f"The feed {feed!r} has no entry {entry!r}.", feed=feed, entry=entry)


class EntryExists(Refused):
    code = "entry-exists"


class HistoryDiffers(Refused):
    """Events that were recorded elsewhere do not fit what stands here."""

    code = "history-differs"


class FeedClosed(Refused):
    code = "feed-closed"


class TooManyPins(Refused):
    code = "too-many-pins"


class EventQuarantined(Refused):
    """The state that the decision needs rests on an event that could not be folded."""

    code = "event-quarantined"


class NotQuarantined(NotFound):
    """An operator named an event that is not in quarantine."""

    code = "not-quarantined"

    def __init__(self, feed: str, position: str) -> None:
        super().__init__(f"The feed {feed!r} has no event at {position} in quarantine.", feed=feed, position=position)


class EntryRetracted(Refused):
    code = "entry-retracted"


class StalePosition(Refused):
    code = "stale-position"


class RevisionConflict(Refused):
    code = "revision-conflict"


class FeedExists(Refused):
    code = "feed-exists"


class PreconditionRequired(Refused):
    code = "precondition-required"


class BodyTooLarge(Refused):
    code = "body-too-large"


class BodyTooSlow(Refused):
    code = "body-too-slow"


class UnsupportedMediaType(Refused):
    code = "unsupported-media-type"


class Unavailable(DatelineError):
    """Nothing was changed; the same request may be sent again."""

    code = "unavailable"


class OutcomeUnknown(Unavailable):
    """What was asked for is not known to be reached; the same request under the same key or entry id is safe."""

    code = "outcome-unknown"


class NotYet(Unavailable):
    """`min_position` is not in the read models within the time that a read waits."""

    code = "position-not-yet-readable"


class Misconfigured(DatelineError):
    """A setting or a server that this process must not start with."""

    code = "misconfigured"


class Corrupted(DatelineError):
    """Our own data breaks an invariant. Never caught to go on: the process stops, loudly."""

    code = "corrupted"


class NewerLog(DatelineError):
    """The log holds events of a newer release; this one must leave it to a release that knows them."""

    code = "newer-log"


class CannotFold(DatelineError):
    """One event that the fold cannot apply; it is quarantined and the feed goes on."""

    code = "cannot-fold"

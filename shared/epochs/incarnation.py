"""Incarnations: which server process keeps the log, and when another one may have less history than was acknowledged.

Owns the decision, which is pure. Reading the facts and acting on the verdict are `admission`'s, what single positions tell of a
loss is `raising`'s.
"""

from typing import Literal

from msgspec import Struct

# What a server keeps of a write that it answered, whatever is asked of it further.
Kept = Literal["memory", "fsync"]


class ServerFacts(Struct, frozen=True):
    """What a server process tells of itself now.

    `server` is its run id and its replication id: a former primary that follows another and is promoted back has the same
    run id, other history, and another replication id. `promoted`: it goes on from the history of a server that it followed.
    """

    server: str
    kept: Kept
    replicas: int
    promoted: bool


class Incarnation(Struct, frozen=True):
    """A shard's server process as it was admitted; `kept` and `replicas` are the least and the most that it had since.

    `raising` is why epochs are being raised, until all are.
    """

    server: str
    kept: Kept
    replicas: int
    raising: str | None = None


def doubt(before: Incarnation | None, now: ServerFacts) -> str | None:
    """Why acknowledged history may be missing on this server, in words; None when that can be excluded.

    Without an incarnation, data of a release that kept none, the server is taken for the one that wrote it.
    """
    if before is not None and before.raising is not None:
        return before.raising
    if before is not None and before.server == now.server:
        return None
    if now.promoted:
        return f"the server {run_id(now.server)} is a promoted replica{_instead_of(before)}"
    if before is None:
        return None if now.kept == "fsync" else f"the server {run_id(now.server)} keeps durability memory"
    if run_id(before.server) == run_id(now.server):
        # A primary takes a new replication id when its backlog begins or ends; its history is the same.
        return None
    if before.kept != "fsync":
        return f"server restarted from {run_id(before.server)} with durability memory"
    if before.replicas > 0:
        # A replica that was promoted and restarted since tells nothing of that.
        return f"the server {run_id(now.server)} may be one of the {before.replicas} replicas{_instead_of(before)}"
    return None


def run_id(server: str) -> str:
    """The short form for people."""
    return server.partition(" ")[0][:8]


def _instead_of(before: Incarnation | None) -> str:
    return "" if before is None else f" of {run_id(before.server)}"

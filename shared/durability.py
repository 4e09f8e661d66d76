"""Durability: what must confirm a write before it is acknowledged, and whether it did. Pure.

Owns the three promises and the commands that ask for them. What the server keeps of every write anyway is `redis.check_server`'s,
sending the question behind the append `log`'s.
"""

from typing import Any, Literal, NamedTuple, get_args

from shared.errors import OutcomeUnknown

# From the weakest to the strongest.
Durability = Literal["memory", "fsync", "replicated"]
DURABILITIES: tuple[Durability, ...] = get_args(Durability)
_RANKS = {durability: rank for rank, durability in enumerate(DURABILITIES)}

# Under the time that a command may take: the answer says how many confirmed, late or not.
CONFIRM_MILLISECONDS = 2_000


def stronger(one: Durability, other: Durability) -> Durability:
    return one if _RANKS[one] >= _RANKS[other] else other


class Means(NamedTuple):
    """What the server can do: what it `kept` of every write anyway, whether it can say that a write is on disk (WAITAOF, with
    an append-only file), and how many replicas are connected."""

    kept: Literal["memory", "fsync"]
    waitaof: bool
    replicas: int


class Confirmation(NamedTuple):
    """A command that, behind a write on the same connection, waits until the write is as durable as promised."""

    promised: Durability
    command: tuple[str | int, ...]

    def check(self, answer: Any) -> None:
        """OutcomeUnknown unless as many confirmed as were asked: WAITAOF gives two counts, WAIT one."""
        counts = answer if isinstance(answer, list) else [answer]
        if any(count < asked for count, asked in zip(counts, self.command[1:], strict=False)):
            raise OutcomeUnknown(
                f"the write stands in the log, and was not confirmed to be {self.promised} within "
                f"{CONFIRM_MILLISECONDS / 1000:.0f} s; send the same request again under the same key or entry id",
                promised=self.promised,
                confirmed=counts,
            )


def confirmation(promised: Durability, means: Means, *, replicas: int) -> Confirmation | None:
    """What must confirm a write, None where the server's answer is confirmation enough.

    OutcomeUnknown, as the contract has it for all that is not reached, for a promise that is known to be out of reach: then
    nothing was appended.
    """
    if promised == "memory" or (promised == "fsync" and means.kept == "fsync"):
        return None
    if not means.waitaof and means.kept == "memory":
        raise OutcomeUnknown(
            f"the log's server does not sync writes to disk, so {promised} is out of reach; nothing was appended",
            promised=promised,
            kept=means.kept,
        )
    if promised == "fsync":
        return Confirmation(promised, ("WAITAOF", 1, 0, CONFIRM_MILLISECONDS))
    if means.replicas < replicas:
        raise OutcomeUnknown(
            f"{means.replicas} of {replicas} replicas are connected to the log's server; nothing was appended",
            promised=promised,
            replicas=means.replicas,
            needed=replicas,
        )
    if means.waitaof:
        return Confirmation(promised, ("WAITAOF", 1, replicas, CONFIRM_MILLISECONDS))
    return Confirmation(promised, ("WAIT", replicas, CONFIRM_MILLISECONDS))

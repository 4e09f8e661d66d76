"""Durability as a rule: which promise needs which confirmation, and when it came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.durability import DURABILITIES, Confirmation, Durability, Means, confirmation, stronger
from shared.errors import OutcomeUnknown


def test_the_promises_stand_from_the_weakest_to_the_strongest() -> None:
    assert DURABILITIES == ("memory", "fsync", "replicated")
    assert stronger("memory", "fsync") == stronger("fsync", "memory") == "fsync"
    assert stronger("replicated", "fsync") == "replicated"


@pytest.mark.parametrize(
    ("promised", "means", "replicas", "command"),
    [
        ("memory", Means("memory", False, 0), 1, None),
        ("memory", Means("fsync", True, 0), 1, None),
        ("fsync", Means("fsync", False, 0), 1, None),
        ("fsync", Means("memory", True, 0), 1, ("WAITAOF", 1, 0, 2_000)),
        ("replicated", Means("fsync", True, 2), 2, ("WAITAOF", 1, 2, 2_000)),
        ("replicated", Means("memory", True, 1), 1, ("WAITAOF", 1, 1, 2_000)),
        ("replicated", Means("fsync", False, 3), 2, ("WAIT", 2, 2_000)),
    ],
)
def test_what_the_server_does_not_keep_by_itself_must_be_confirmed(
    promised: Durability, means: Means, replicas: int, command: tuple[str | int, ...] | None
) -> None:
    needed = confirmation(promised, means, replicas=replicas)
    assert (needed.command if needed else None) == command


@pytest.mark.parametrize(
    ("promised", "means", "replicas"),
    [
        ("fsync", Means("memory", False, 0), 1),
        ("replicated", Means("memory", False, 2), 1),
        ("replicated", Means("fsync", True, 0), 1),
        ("replicated", Means("fsync", False, 1), 2),
    ],
)
def test_what_is_known_to_be_out_of_reach_is_refused_before_anything_is_appended(
    promised: Durability, means: Means, replicas: int
) -> None:
    with pytest.raises(OutcomeUnknown, match="nothing was appended"):
        confirmation(promised, means, replicas=replicas)


@given(asked=st.integers(1, 5), local=st.integers(0, 1), replicas=st.integers(0, 6))
def test_too_few_confirmations_leave_the_outcome_unknown(asked: int, local: int, replicas: int) -> None:
    waitaof = Confirmation("replicated", ("WAITAOF", 1, asked, 2_000))
    wait = Confirmation("replicated", ("WAIT", asked, 2_000))
    for one, answer, enough in (
        (waitaof, [local, replicas], local and replicas >= asked),
        (wait, replicas, replicas >= asked),
    ):
        if enough:
            one.check(answer)
        else:
            with pytest.raises(OutcomeUnknown):
                one.check(answer)

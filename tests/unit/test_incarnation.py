"""When a server may have less history than it acknowledged: a pure decision, case by case and as a rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.epochs.incarnation import Incarnation, Kept, ServerFacts, doubt

BEFORE = Incarnation("a1 r1", "fsync", 0)


def now(server: str = "b2 r2", *, kept: Kept = "fsync", replicas: int = 0, promoted: bool = False) -> ServerFacts:
    return ServerFacts(server, kept, replicas, promoted)


@pytest.mark.parametrize(
    ("before", "facts"),
    [
        (BEFORE, now()),
        (BEFORE, now("a1 r1")),
        (BEFORE, now("a1 r2")),
        (BEFORE, now(kept="memory")),
        (BEFORE, now(replicas=2)),
        (Incarnation("a1 r1", "memory", 2), now("a1 r2", kept="memory", replicas=2)),
        (None, now()),
    ],
    ids=[
        "a restart on an AOF that was synced",
        "nothing happened",
        "a replication backlog began or ended",
        "a restart into memory: what was before was synced",
        "replicas that came with the restart",
        "the same process, whatever it keeps",
        "data of a release that kept no incarnation",
    ],
)
def test_loss_is_excluded(before: Incarnation | None, facts: ServerFacts) -> None:
    assert doubt(before, facts) is None


@pytest.mark.parametrize(
    ("before", "facts", "because"),
    [
        (Incarnation("a1 r1", "memory", 0), now(), "restarted from a1 with durability memory"),
        (BEFORE, now(promoted=True), "b2 is a promoted replica of a1"),
        (BEFORE, now("a1 r9", promoted=True), "a1 is a promoted replica of a1"),
        (Incarnation("a1 r1", "fsync", 2), now(), "b2 may be one of the 2 replicas of a1"),
        (None, now(promoted=True), "b2 is a promoted replica"),
        (None, now(kept="memory"), "b2 keeps durability memory"),
        (Incarnation("a1 r1", "fsync", 0, "what was found before"), now(), "what was found before"),
    ],
    ids=[
        "a restart from memory",
        "a promoted replica",
        "a primary that followed another and was promoted back",
        "a server that may have been a replica",
        "a promoted replica with data of a release that kept no incarnation",
        "memory with data of a release that kept no incarnation",
        "epochs whose raising was interrupted",
    ],
)
def test_loss_cannot_be_excluded(before: Incarnation | None, facts: ServerFacts, because: str) -> None:
    assert because in (doubt(before, facts) or "")


servers = st.sampled_from(["a1 r1", "a1 r2", "b2 r1", "b2 r2"])
kept = st.sampled_from(["memory", "fsync"])
incarnations = st.builds(Incarnation, servers, kept, st.integers(0, 2), st.none() | st.just("interrupted"))


@given(before=incarnations, facts=st.builds(ServerFacts, servers, kept, st.integers(0, 2), st.booleans()))
def test_another_process_is_trusted_only_with_the_whole_synced_history_of_a_server_without_replicas(
    before: Incarnation, facts: ServerFacts
) -> None:
    if doubt(before, facts) is not None:
        return
    assert before.raising is None
    if before.server != facts.server:
        assert not facts.promoted
        same_process = before.server.split()[0] == facts.server.split()[0]
        assert same_process or (before.kept == "fsync" and before.replicas == 0)

"""Supervisors: how soon a process comes back, how many there are, and that a port is theirs alone."""

import socket

import pytest

from services.cli.up import workers_for
from shared.config import Config
from shared.errors import Misconfigured
from shared.ports import held_ports
from shared.supervisor import restart_delay


def test_a_process_that_keeps_failing_is_started_ever_later_and_soon_again_once_it_has_settled() -> None:
    delays: list[float] = []
    for _ in range(7):
        delays.append(restart_delay(delays[-1] if delays else None, ran_seconds=1))
    assert delays == [0.5, 1, 2, 4, 8, 10, 10]
    assert restart_delay(10, ran_seconds=61) == 0.5


def test_up_leaves_cores_to_the_log_and_the_projector() -> None:
    assert [workers_for(cores) for cores in (1, 2, 3, 4, 5, 6, 64)] == [1, 1, 1, 2, 3, 4, 4]


def listener(port: int) -> socket.socket:
    """As a worker listens: with all others that say so."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen()
    return made


def test_a_port_that_is_held_is_shared_by_our_workers_and_never_with_another_installation() -> None:
    with held_ports(Config(listen_port=0, metrics_port=0)) as held:
        assert held.listen_port and held.metrics_port and held.listen_port != held.metrics_port
        with listener(held.listen_port) as one, listener(held.listen_port) as two:
            assert one.getsockname() == two.getsockname()
            # Of the same user, and as willing to share: the kernel alone would let it in.
            taken = Config(listen_port=held.listen_port)
            with (
                pytest.raises(Misconfigured, match=f"cannot listen on 127.0.0.1:{held.listen_port}"),
                held_ports(taken),
            ):
                pass


def test_one_port_is_not_for_the_service_and_its_metrics() -> None:
    with pytest.raises(Misconfigured, match="8080"), held_ports(Config(listen_port=8080, metrics_port=8080)):
        pass

"""Shared bytes: what many sockets get of one piece, and that it stays what it was until they have it."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from services.gateway.shared_bytes import BYTES_MIN, SOCKETS_MIN, SharedBytes

ONE, OTHER = (bytes([letter]) * BYTES_MIN for letter in b"ab")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection over TCP, as readers have it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as theirs,
        server.accept()[0] as ours,
    ):
        ours.setblocking(False)
        theirs.settimeout(10)
        yield ours, theirs


def test_what_waits_in_a_socket_stays_what_it_was_when_the_next_piece_is_held(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    shared = SharedBytes()
    for piece in (ONE, OTHER):
        assert shared.hold(piece, sockets=SOCKETS_MIN)
        assert shared.write(ours.fileno(), piece) == BYTES_MIN
    shared.close()
    received = b""
    while len(received) < 2 * BYTES_MIN:
        received += theirs.recv(1 << 20)
    assert received == ONE + OTHER


def test_a_full_socket_says_so_as_it_does_to_a_write(pair: tuple[socket.socket, socket.socket]) -> None:
    shared = SharedBytes()
    assert shared.hold(ONE, sockets=SOCKETS_MIN)
    with suppress(BlockingIOError):
        while shared.write(pair[0].fileno(), ONE):
            pass
    with pytest.raises(BlockingIOError):
        shared.write(pair[0].fileno(), ONE)
    shared.close()


def test_few_sockets_small_pieces_and_a_process_without_free_descriptors_share_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = SharedBytes()
    assert not shared.hold(ONE[1:], sockets=SOCKETS_MIN)
    assert not shared.hold(ONE, sockets=SOCKETS_MIN - 1)

    def refuse(_: str) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("services.gateway.shared_bytes.os.memfd_create", refuse)
    assert not shared.hold(ONE, sockets=SOCKETS_MIN)


def test_nothing_is_left_open_when_it_is_closed() -> None:
    shared = SharedBytes()
    files = []
    for piece in (ONE, OTHER):
        shared.hold(piece, sockets=SOCKETS_MIN)
        files.append(os.dup(shared._fd))
    shared.close()
    assert shared._fd == -1
    for file in files:
        # The copy of its number is all there is of it.
        assert sum(_same(file, other) for other in range(3, max(files) + 20)) == 1
        os.close(file)


def _same(file: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(file, other)
    except OSError:
        return False

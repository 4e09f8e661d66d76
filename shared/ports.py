"""Ports: taken once for several processes that listen on them together (SO_REUSEPORT).

Owns holding them. The sockets here are bound and never listen, so nothing comes to them, and a port stays ours while none of
the processes is there.
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from shared.config import Config
from shared.errors import Misconfigured

_NO_SUCH_ADDRESS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


@contextmanager
def held_ports(config: Config) -> Iterator[Config]:
    """The configuration with ports that are taken while this lasts; 0 has become a free one. Raises Misconfigured."""
    if config.metrics_port and config.metrics_port == config.listen_port:
        raise Misconfigured(f"the port {config.metrics_port} cannot be the service's and that of its metrics")
    with ExitStack() as stack:
        listen_port = _hold(stack, config.listen_host, config.listen_port)
        metrics_port = None if config.metrics_port is None else _hold(stack, config.listen_host, config.metrics_port)
        yield msgspec.structs.replace(config, listen_port=listen_port, metrics_port=metrics_port)


def _hold(stack: ExitStack, host: str, port: int) -> int:
    held = 0
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in found:
            try:
                # All addresses of a host get the same port.
                held = _bind(stack, family, (address[0], held or port, *address[2:]))
            except OSError as error:
                # A host may have addresses of a family that is switched off.
                if error.errno not in _NO_SUCH_ADDRESS or (address is found[-1][4] and not held):
                    raise
    except OSError as error:
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return held


def _bind(stack: ExitStack, family: int, address: tuple[object, ...]) -> int:
    # Alone at first: among those that share a port the kernel would let us in beside another installation of the same user.
    with _socket(family) as probe:
        probe.bind(address)
        port: int = probe.getsockname()[1]
    held = stack.enter_context(_socket(family))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((address[0], port, *address[2:]))
    return port


def _socket(family: int) -> socket.socket:
    """With the options of the sockets that asyncio listens on."""
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made

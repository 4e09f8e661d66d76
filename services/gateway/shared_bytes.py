"""Shared bytes: a large piece that goes to many sockets, whose pages the kernel hands to each of them instead of a copy.

Owns the file in memory that holds the pages; when it is closed they live on for as long as a socket needs them. Copying is most
of what a large write costs: of 40 KB about half. Of less than 10 KB a plain write is cheaper.
"""

import os

BYTES_MIN = 16 * 1024
# For fewer it is not worth making a file.
SOCKETS_MIN = 32


class SharedBytes:
    """`data` of `BYTES_MIN` or more for `sockets` sockets; nothing is shared where it does not pay or Linux is not there."""

    def __init__(self) -> None:
        self._fd = -1
        self._size = 0

    def hold(self, data: bytes, *, sockets: int) -> bool:
        """Whether `write` gives `data` from now on, instead of what was held before."""
        self.close()
        if len(data) < BYTES_MIN or sockets < SOCKETS_MIN or not hasattr(os, "memfd_create"):
            return False
        try:
            # A new one for each piece: what was sent of the last one may still wait in a socket, as these very pages.
            self._fd = os.memfd_create("dateline-shared-bytes")
            self._size = os.write(self._fd, data)
        except OSError:
            return False  # no descriptor or no memory is free
        return self._size == len(data)

    def write(self, fd: int, _: bytes) -> int:
        """As `os.write` does what is held."""
        return os.sendfile(fd, self._fd, 0, self._size)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

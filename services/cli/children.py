"""Children: processes that end when their owner does, however it ends. What they run is their caller's business."""

import os
import sys

# Asks the kernel for SIGTERM at the death of the parent, then becomes the program: the request survives exec. A preexec_fn
# would do it in a fork of a process with threads, where it can hang on a lock. Who died before the request sends nothing.
_LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG) failed")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def ending_with_its_owner(command: list[str]) -> list[str]:
    """The command, made to get SIGTERM when the thread that starts it dies. Linux only; elsewhere it is unchanged."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]

"""What child processes need: a port of their own, and an end when their parent ends."""

from __future__ import annotations

import ctypes
import signal
import socket

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Let the kernel end this process when its parent dies, however it dies: a `preexec_fn`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port(host: str = "") -> int:
    """Return a port that nobody listens on just now, at one address or at all."""
    with socket.socket() as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])

"""Starts the children of the supervising process, and ends them with it, whatever ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Protocol

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_SET_NAME = 15  # PR_SET_NAME


class Child(Protocol):
    """A process, as `subprocess.Popen` has it."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code if it has ended, negative for a signal."""
        ...

    def kill(self) -> None:
        """Kill it."""
        ...


class Spawn(Protocol):
    """Starts a child that serves its parent over a connection, of which it gets a copy."""

    def __call__(self, connection: socket.socket, variables: Mapping[str, str]) -> Child:
        """Start it; `variables` come on top of the environment."""
        ...


def spawn(connection: socket.socket, variables: Mapping[str, str]) -> Child:
    """Start a child in a new interpreter.

    It has a process group of its own: a terminal's signals go to the supervisor alone, which ends all in order.
    """
    number = connection.fileno()
    return subprocess.Popen(
        [sys.executable, "-m", "condconv_serve.cluster.workers", str(number)],
        pass_fds=[number],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        process_group=0,
    )


def name_process(name: str) -> None:
    """Give this process a name for `ps -o comm`, `top` and `pgrep`, of up to 15 letters; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_NAME, name.encode(), 0, 0, 0)


def end_with_parent() -> None:
    """Have the system kill this process when its parent dies. Elsewhere than on Linux the link's end does that."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it has died just now
            os._exit(1)

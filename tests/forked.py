"""Servers that start at once: a process that has imported all that they need forks one for each test.

Importing it takes most of a second, which hundreds of tests would wait for. What a server does at the start of its own
process is tested with those that `tests.e2e.server.command` starts.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class ForkedServer:
    """A server's process, with those methods of `subprocess.Popen` that tests call."""

    def __init__(self, forker: Forker, pid: int) -> None:
        self.pid = pid
        self._forker = forker
        self._handle = os.pidfd_open(pid)
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        """Its exit code if it has ended."""
        return self._ended(0)

    def wait(self, timeout: float) -> int:
        """Wait for its end, and return its exit code."""
        exit_code = self._ended(timeout)
        if exit_code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return exit_code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float) -> int | None:
        if self._exit_code is None and select.select([self._handle], [], [], timeout)[0]:
            self._exit_code = self._forker.ask(end=self.pid)
            os.close(self._handle)
        return self._exit_code


class Forker:
    """The process that forks, as the tests see it."""

    def __init__(self, module: str) -> None:
        self._lock = threading.Lock()
        command = [sys.executable, "-m", __name__, module]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        atexit.register(self._close)

    def start(
        self, *arguments: str, environment: Mapping[str, str], output: Path, given: str = os.devnull
    ) -> ForkedServer:
        """Start a server; its standard output and standard error go to a file, and its standard input is another."""
        request = {"arguments": arguments, "environment": dict(environment), "output": str(output), "given": given}
        return ForkedServer(self, self.ask(**request))

    def ask(self, **request: Any) -> int:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def _close(self) -> None:
        self._process.communicate()


@functools.cache
def forker(module: str) -> Forker:
    """What forks servers of a module: `prepare()` of it runs once, and `run()`, which looks at `sys.argv`, in each."""
    return Forker(module)


def _fork(arguments: list[str], environment: dict[str, str], output: str, given: str) -> int:
    with warnings.catch_warnings():
        # NumPy's threads, which wait for work and can be done without.
        warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(given, os.O_RDONLY | os.O_NOCTTY), 0)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[1:] = arguments
    return child


def _serve_requests() -> bool:
    """Fork and tell exit codes until nobody asks any more; returns whether this is a child, which is to run."""
    for line in sys.stdin:
        request = json.loads(line)
        if "end" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["end"], 0)[1])
        else:
            answer = _fork(**request)
            if answer == 0:
                return True
        os.write(1, f"{answer}\n".encode())
    return False


if __name__ == "__main__":
    served = importlib.import_module(sys.argv[1])
    served.prepare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a user's Ctrl-C is for the tests, which end their servers
    gc.collect()
    gc.freeze()
    if _serve_requests():
        served.run()

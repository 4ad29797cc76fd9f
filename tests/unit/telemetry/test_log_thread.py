"""The thread that writes the log: complete and in order if somebody reads, and no hindrance if nobody does."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import TextIO

import pytest

from condconv_serve.telemetry import log_thread
from condconv_serve.telemetry.log_thread import LogThread

FORMAT = logging.Formatter("%(levelname)s %(message)s")
PIPE_BYTES = 4096


class Pipe:
    """A pipe with a `LogThread` at its end, and a logger that writes to it."""

    def __init__(self, max_lines: int) -> None:
        self.reader, self.writer = os.pipe()
        self.lost = 0
        self.thread = LogThread(self._handler, descriptor=self.writer, max_lines=max_lines)
        self.thread.count_lost = self._lose
        self.log = logging.Logger("test")
        self.log.addHandler(self.thread)

    def _handler(self, stream: TextIO) -> logging.Handler:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(FORMAT)
        return handler

    def _lose(self) -> None:
        self.lost += 1

    def read_all(self) -> list[str]:
        """What comes until all has been written."""
        found = io.BytesIO()
        reader = threading.Thread(target=self._drain, args=(found,))
        reader.start()
        self.thread.flush()
        os.write(self.writer, b"\0")
        reader.join()
        return found.getvalue().decode().rstrip("\0").splitlines()

    def _drain(self, found: io.BytesIO) -> None:
        while not found.getvalue().endswith(b"\0"):
            found.write(os.read(self.reader, 65536))


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread may be late on a busy machine: to flush is to wait until all is written."""
    monkeypatch.setattr(log_thread, "CLOSING_SECONDS", 60.0)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe(max_lines=100)
    yield made
    made.read_all()
    os.close(made.reader)
    os.close(made.writer)


def test_all_lines_come_in_order(pipe: Pipe) -> None:
    for number in range(100):
        pipe.log.info("line %d", number)
    assert pipe.read_all() == [f"INFO line {number}" for number in range(100)]
    assert pipe.lost == 0


def test_a_reader_who_stalls_holds_up_nobody_and_learns_what_was_lost(pipe: Pipe) -> None:
    line = "x" * PIPE_BYTES
    for _ in range(300):  # more than the pipe and the queue hold
        pipe.log.info(line)
    assert 180 <= pipe.lost <= 200, "a hundred wait, and the pipe itself holds some"
    found = pipe.read_all()
    pipe.log.info("again")
    found += pipe.read_all()
    assert found.pop() == "INFO again"
    told = [re.fullmatch(r"WARNING (\d+) lines of the log were dropped, since it was not read", line) for line in found]
    assert sum(int(note[1]) for note in told if note) == pipe.lost
    assert found.count(f"INFO {line}") == 300 - pipe.lost


def test_a_message_is_made_at_once_and_an_exception_lets_go(pipe: Pipe) -> None:
    class Held(list[int]):
        pass

    held = Held([1])
    gone = weakref.ref(held)
    pipe.log.info("first %s", held)
    held.append(2)
    try:
        raise ValueError(held)
    except ValueError:
        pipe.log.exception("failed")
    del held
    assert gone() is None, "a waiting line would keep an image in memory"
    first, failed, *_, last = pipe.read_all()
    assert (first, failed, last) == ("INFO first [1]", "ERROR failed", "ValueError: [1, 2]")


def test_a_pipe_that_nobody_can_read_loses_lines_and_nothing_else() -> None:
    pipe = Pipe(max_lines=100)
    os.close(pipe.reader)
    for _ in range(10):
        pipe.log.info("nobody")
    pipe.thread.flush()
    os.close(pipe.writer)
    assert pipe.lost == 10


def test_a_process_ends_though_its_log_is_stuck() -> None:
    """It waits a moment for the reader, and leaves with its own exit code."""
    script = """
import fcntl, logging, sys
from condconv_serve.telemetry.logs import configure_logging
fcntl.fcntl(2, fcntl.F_SETPIPE_SZ, 4096)
configure_logging("info", on_thread=True)
for _ in range(100):
    logging.getLogger("condconv_serve").info("x" * 1000)
sys.exit(3)
"""
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as process:
        assert process.wait(60) == 3
        assert process.stderr is not None
        assert b"Fatal" not in process.stderr.read()


def test_a_signal_may_come_while_a_line_is_handed_over() -> None:
    """Its handler logs, too, in the midst of the main thread's own logging."""
    script = """
import logging, signal, sys
from condconv_serve.telemetry.logs import configure_logging
configure_logging("info", on_thread=True)
log = logging.getLogger("condconv_serve")
signals = 0
def handle(number, frame):
    global signals
    signals += 1
    log.info("signal")
    if signals < 1000:
        signal.setitimer(signal.ITIMER_REAL, 1e-4)  # not at intervals: a busy machine may be slower than these
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 1e-4)
while signals < 1000:
    log.info("line")
sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 3

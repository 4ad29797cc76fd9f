"""Writes the log on a thread of its own, so that a reader who stalls holds up no request."""

from __future__ import annotations

import copy
import io
import logging
import os
import queue
import select
import threading
from collections.abc import Callable
from logging.handlers import QueueHandler
from typing import TextIO, cast

STDERR = 2
MAX_LINES = 2048
"""How many lines wait for the reader. Further ones are dropped."""

CLOSING_SECONDS = 1.0
"""How long the end of the process waits for lines to be written."""


class LogThread(QueueHandler):
    """Hands records to a thread, which hands them to the handler that writes them.

    Attributes:
        count_lost: called for each line that is lost: too many wait already, or nobody can read it.
    """

    def __init__(
        self,
        make_handler: Callable[[TextIO], logging.Handler],
        *,
        descriptor: int = STDERR,
        max_lines: int = MAX_LINES,
    ) -> None:
        """Start the thread. It ends with the process.

        Args:
            make_handler: makes what writes to a stream. It may block.
            descriptor: of the stream; it stays open.
            max_lines: how many records may wait.
        """
        # Not `Queue`: a signal may stop the main thread within `put`, and what it calls may want to log, too.
        self._lines: queue.SimpleQueue[logging.LogRecord | threading.Event] = queue.SimpleQueue()
        self._max_lines = max_lines
        super().__init__(self._lines)
        self.count_lost: Callable[[], object] = lambda: None
        self._dropped = 0
        stream = cast(TextIO, _Stream(descriptor, lambda: self.count_lost()))
        self._handler = make_handler(stream)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Make a record whole that is written later: what it is about may change or must be free to go."""
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Let the thread write a record, or drop it if too many wait. The next one tells how many were dropped."""
        if self._lines.qsize() >= self._max_lines:
            self._dropped += 1
            self.count_lost()
            return
        if self._dropped:
            self._lines.put(_note_of(self._dropped))
            self._dropped = 0
        self._lines.put(record)

    def flush(self) -> None:
        """Wait until all is written, but not for long."""
        written = threading.Event()
        self._lines.put(written)
        written.wait(CLOSING_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
            else:
                # Not `handle`: it holds a lock that the end of the process wants, too.
                self._handler.emit(line)


class _Stream(io.TextIOBase):
    """Text without a buffer, whose lock a stalled write would hold until the end of the process.

    What nobody can read any more is lost. That is no error.
    """

    encoding = "utf-8"

    def __init__(self, descriptor: int, on_loss: Callable[[], object]) -> None:
        self._descriptor = descriptor
        self._on_loss = on_loss

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        left = text.encode("utf-8", "backslashreplace")
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody who shares the pipe has made it so
                select.select([], [self._descriptor], [])
            except OSError:
                self._on_loss()
                break
        return len(text)


def _note_of(dropped: int) -> logging.LogRecord:
    message = "%d lines of the log were dropped, since it was not read"
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (dropped,), None)
    record.request_suffix = ""
    return record

"""Ends rows whose deadline passes before they are computed."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from condconv_serve.errors import DeadlineExceeded
from condconv_serve.inference.batching.key_queue import QueuedRow

GRAIN_SECONDS = 0.005
"""After rows have ended, the next ones end this much later at the earliest, so that many don't cost a timer each."""


class Deadlines:
    """Watches rows with one timer for all, since most rows are computed long before theirs would have rung."""

    def __init__(self) -> None:
        """Watch nothing."""
        self._rows: set[QueuedRow[Any, Any, Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def watch(self, row: QueuedRow[Any, Any, Any]) -> None:
        """Give a row `DeadlineExceeded` at its deadline, unless it is done by then."""
        if row.deadline == math.inf:
            return
        self._rows.add(row)
        if row.deadline < self._rings_at:
            self._ring_at(row.deadline)

    def forget(self, row: QueuedRow[Any, Any, Any]) -> None:
        """A row is done, or its sender has gone."""
        self._rows.discard(row)

    def _ring_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, when
        if when < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(when - time.monotonic(), 0.0), self._ring)

    def _ring(self) -> None:
        now = time.monotonic()
        left = math.inf
        for row in tuple(self._rows):  # receivers have them forgotten
            if row.deadline > now:
                left = min(left, row.deadline)
            elif not row.receiver.done():
                row.receiver.set_exception(DeadlineExceeded("The answer was not ready by the deadline."))
        self._ring_at(max(left, now + GRAIN_SECONDS))

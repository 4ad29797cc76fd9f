"""How many rows a batch may have: less than planned for a while after memory ran out."""

from __future__ import annotations

import time
from collections.abc import Callable

RECOVERY_SECONDS = 30.0
"""After so long without running out of memory, a lowered limit doubles."""


class BatchLimits:
    """The most rows per batch by model; `clock` is monotonic, in seconds."""

    def __init__(self, max_batch_size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with `max_batch_size` for every model."""
        self._max = max_batch_size
        self._clock = clock
        self._lowered: dict[str, tuple[int, float]] = {}

    def of(self, name: str) -> int:
        """The limit of a model now."""
        if name not in self._lowered:
            return self._max
        limit, since = self._lowered[name]
        # A shift by more bits than this could only exceed every limit.
        limit <<= min(int((self._clock() - since) / RECOVERY_SECONDS), 16)
        if limit < self._max:
            return limit
        del self._lowered[name]
        return self._max

    def lower(self, name: str, failed_rows: int) -> int:
        """Halve the limit after a batch of `failed_rows` found no memory; returns it."""
        limit = min(self.of(name), max(failed_rows // 2, 1))
        self._lowered[name] = limit, self._clock()
        return limit

"""How many rows a batch may have: fewer than planned for a while after memory ran out."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

RECOVERY_SECONDS = 30.0
"""A lowered limit doubles each time this passes without running out of memory."""


class BatchLimits:
    """The most rows per batch of each key. One key's lowered limit leaves all others as they are."""

    def __init__(self, max_batch_size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with `max_batch_size` for every key; `clock` is monotonic, in seconds."""
        self._max = max_batch_size
        self._clock = clock
        self._lowered: dict[Hashable, tuple[int, float]] = {}

    def __len__(self) -> int:
        """How many keys have a lowered limit on record."""
        return len(self._lowered)

    def of(self, key: Hashable) -> int:
        """The limit of a key now."""
        if key not in self._lowered:
            return self._max
        limit, since = self._lowered[key]
        # More doublings than this would exceed any limit.
        limit <<= min(int((self._clock() - since) / RECOVERY_SECONDS), 16)
        return min(limit, self._max)

    def lower(self, key: Hashable, failed_rows: int) -> int:
        """Halve the limit after a batch of `failed_rows` rows ran out of memory; returns the new limit."""
        limit = min(self.of(key), max(failed_rows // 2, 1))
        # Limits that are back to normal are dropped here, so that those of versions long gone don't pile up.
        self._lowered = {k: lowered for k, lowered in self._lowered.items() if self.of(k) < self._max}
        self._lowered[key] = limit, self._clock()
        return limit

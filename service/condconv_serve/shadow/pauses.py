"""Versions that are left alone for a while, since they failed again and again or hung."""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES = 5
"""After so many batches in a row that failed, a version gets a pause."""
PAUSE_SECONDS = 60.0
HANG_SECONDS = 600.0
"""The first pause after a batch that hung. Each hang costs a thread until the process ends, so each pause is twice as
long as the one before."""
_LONGEST_HANG_PAUSES = 8


class Pauses:
    """The failures of each version in a row."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing has failed; `clock` is monotonic, in seconds."""
        self._clock = clock
        self._failures: dict[tuple[str, str], int] = {}
        self._hangs: dict[tuple[str, str], int] = {}
        self._until: dict[tuple[str, str], float] = {}

    def paused(self, name: str, version: str) -> bool:
        """Whether a version has a pause now."""
        return self._until.get((name, version), 0.0) > self._clock()

    def succeeded(self, name: str, version: str) -> None:
        """A batch was computed."""
        self._failures.pop((name, version), None)

    def failed(self, name: str, version: str) -> None:
        """A batch failed."""
        self._failures[name, version] = failures = self._failures.get((name, version), 0) + 1
        if failures >= FAILURES:
            self._until[name, version] = self._clock() + PAUSE_SECONDS

    def hung(self, name: str, version: str) -> None:
        """A batch was given up, since it took too long."""
        hangs = self._hangs.get((name, version), 0)
        self._hangs[name, version] = min(hangs + 1, _LONGEST_HANG_PAUSES)
        self._until[name, version] = self._clock() + HANG_SECONDS * 2**hangs

    def forget(self, name: str, version: str) -> None:
        """Forget a version that has gone or was loaded anew; on any thread."""
        for known in (self._failures, self._hangs, self._until):
            known.pop((name, version), None)

"""Whether the engine works, judged by its last batches: a circuit breaker."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_FAILURES = 3
"""After this many batches in a row without an answer, the engine counts as broken."""
COOL_DOWN_SECONDS = 10.0
"""After this long, a broken engine gets another batch. If that fails too, it counts as broken again."""


class EngineHealth:
    """Counts failures in a row; `clock` is monotonic, in seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start healthy."""
        self._clock = clock
        self._failures = 0
        self._failed_at = 0.0
        self._reason = ""

    def succeeded(self) -> None:
        """A row has been computed."""
        self._failures = 0

    def failed(self, reason: str) -> None:
        """No row of a batch could be computed."""
        self._failures += 1
        self._failed_at = self._clock()
        self._reason = reason

    def broken(self) -> str | None:
        """Why the engine counts as broken, until a row has been computed; None if it doesn't."""
        if self._failures < MAX_FAILURES:
            return None
        return f"The engine has failed {self._failures} times in a row: {self._reason}"

    def problem(self) -> tuple[str, float] | None:
        """Why the engine can't be used now, and for how many seconds. None if it can, be it only to try it."""
        reason, remaining = self.broken(), self._failed_at + COOL_DOWN_SECONDS - self._clock()
        return None if reason is None or remaining <= 0 else (reason, remaining)

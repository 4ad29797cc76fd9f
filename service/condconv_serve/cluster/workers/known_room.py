"""What a front knows about the room in the engine process's queue: where there is plenty, it needn't ask."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

KNOWN_SECONDS = 0.1
"""How long the last word counts; other fronts send rows, too."""
REFUSED_SECONDS = 1.0
"""How long all is asked for after a request was refused, or failed as a whole. A queue may have room, and yet be too
long for some deadlines."""


class KnownRoom:
    """The engine process says with each answer how many more rows its queue takes before it is half full."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Know of no room."""
        self._clock = clock
        self._rows = 0
        self._until = -math.inf
        self._ask_until = -math.inf

    def answered(self, spare_rows: int) -> None:
        """An answer has come, which says how much room there is."""
        self._rows, self._until = spare_rows, self._clock() + KNOWN_SECONDS

    def refused(self) -> None:
        """A request was refused, or failed as a whole."""
        self._ask_until = self._clock() + REFUSED_SECONDS

    def holds(self, rows: int) -> bool:
        """Whether there is room for so many rows, as far as this front knows."""
        return self._rows >= rows and self._ask_until <= self._clock() < self._until

    def take(self, rows: int) -> bool:
        """Take so much of it, if there is as much."""
        found = self.holds(rows)
        if found:
            self._rows -= rows
        return found

"""How fast batches are computed, measured from those that were, and so how long a row will wait."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

SMOOTHING = 0.2
"""Weight of the newest batch in the moving average."""

TRUSTED_SECONDS = 10.0
"""For so long an average is taken as it is; then it is halved as often as so much time passes without another batch."""


@dataclass(slots=True)
class _Pace:
    seconds_per_row: float
    from_full_batches: bool
    at: float


class Paces:
    """Seconds that one stream needs per row, by model, as an exponentially weighted moving average.

    Full batches count, since they are what is computed while rows wait; until one has been seen, any do, and after that
    faster ones. What nothing confirms is believed less and less, for it may be what keeps rows from being admitted.
    """

    def __init__(self, streams: int) -> None:
        """Know nothing yet of that many streams."""
        self._streams = streams
        self._by_name: dict[str, _Pace] = {}

    def note(self, name: str, *, rows: int, seconds: float, full: bool) -> None:
        """Learn of a batch."""
        found, now = seconds / rows, time.monotonic()
        known = self._by_name.get(name)
        if known is None or (full and not known.from_full_batches):
            self._by_name[name] = _Pace(found, full, now)
        elif full or not known.from_full_batches or found < known.seconds_per_row:
            known.seconds_per_row += SMOOTHING * (found - known.seconds_per_row)
            known.at = now

    def wait(self, rows: Mapping[str, int]) -> float:
        """Seconds that all streams together need for some rows by model; models never computed count nothing."""
        return sum(n * self._per_row(name) for name, n in rows.items()) / self._streams

    def _per_row(self, name: str) -> float:
        if (known := self._by_name.get(name)) is None:
            return 0.0
        age = time.monotonic() - known.at - known.seconds_per_row
        return known.seconds_per_row * math.exp2(-max(age - TRUSTED_SECONDS, 0.0) / TRUSTED_SECONDS)

    def own(self, name: str, rows: int) -> float:
        """Seconds that some rows of one model need once it is their turn: one row is one stream's work."""
        return self.wait({name: self._streams * math.ceil(rows / self._streams)})

"""How fast batches are computed, measured from those that were, and so how long a row will wait."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

SMOOTHING = 0.2
"""Weight of the newest batch in the moving average."""


@dataclass(slots=True)
class _Pace:
    seconds_per_row: float
    from_full_batches: bool


class Paces:
    """Seconds that one stream needs per row, by model, as an exponentially weighted moving average.

    Full batches count, since they are what is computed while rows wait; until one has been seen, any do.
    """

    def __init__(self, streams: int) -> None:
        """Know nothing yet of that many streams."""
        self._streams = streams
        self._by_name: dict[str, _Pace] = {}

    def note(self, name: str, *, rows: int, seconds: float, full: bool) -> None:
        """Learn of a batch."""
        found = seconds / rows
        known = self._by_name.get(name)
        if known is None or (full and not known.from_full_batches):
            self._by_name[name] = _Pace(found, full)
        elif full or not known.from_full_batches:
            known.seconds_per_row += SMOOTHING * (found - known.seconds_per_row)

    def wait(self, rows: Mapping[str, int]) -> float:
        """Seconds that all streams together need for some rows by model; models never computed count nothing."""
        seconds = (n * self._by_name[name].seconds_per_row for name, n in rows.items() if name in self._by_name)
        return sum(seconds) / self._streams

    def own(self, name: str, rows: int) -> float:
        """Seconds that some rows of one model need once it is their turn: one row is one stream's work."""
        return self.wait({name: self._streams * math.ceil(rows / self._streams)})

"""How fast rows are computed, measured from past batches, and so how long a new row will wait."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from statistics import median_low

TRUSTED_SECONDS = 10.0
"""An estimate counts in full for this long. After that it is halved once per such time, until another batch comes."""

KEPT_SECONDS = 60 * TRUSTED_SECONDS
"""An estimate this old has been halved so often that it counts as nothing, so it can be dropped."""


@dataclass(slots=True)
class _Estimate:
    recent: deque[float]
    from_full_batches: bool
    at: float
    seconds_per_row: float = 0.0


class RowRate:
    """Seconds that one stream needs per row of a key: the lower median of its last batches.

    So a batch that was held up in each stream, by a stopped process say, doesn't move the estimate.

    Two keys never share an estimate: two versions of one model may cost differently.

    Full batches count, since those are what runs while rows wait. Until one has been seen, any batch counts; after
    that, faster ones do too. An estimate that no new batch confirms counts less and less: it may be the reason why no
    rows are admitted.
    """

    def __init__(self, streams: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without any estimates.

        Args:
            streams: how many batches run at the same time.
            clock: monotonic, in seconds.
        """
        self._streams = streams
        # A stopped process holds up a batch in each stream. Those must not be the most.
        self._remembered = 2 * streams + 3
        self._clock = clock
        self._estimates: dict[Hashable, _Estimate] = {}
        self._slowest = 0.0

    def __len__(self) -> int:
        """How many keys have an estimate."""
        return len(self._estimates)

    def note(self, key: Hashable, *, rows: int, seconds: float, full: bool) -> None:
        """Learn from a batch of `rows` rows that took `seconds`; `full` if it could not have been larger."""
        found, now = seconds / rows, self._clock()
        known = self._estimates.get(key)
        if known is None:
            self._drop_old(now)
            known = self._estimates[key] = _Estimate(deque(maxlen=self._remembered), full, now)
        elif not full and known.from_full_batches and found >= known.seconds_per_row:
            return
        known.recent.append(found)
        known.seconds_per_row = median_low(known.recent)  # per batch, since every request asks for it
        known.from_full_batches |= full
        known.at = now
        self._slowest = max(known.seconds_per_row for known in self._estimates.values())

    def most(self, ahead: int, rows: int) -> float:
        """Seconds that `rows` rows with so many ahead need at most, whatever their keys are. It costs little."""
        return self._slowest * (ahead / self._streams + math.ceil(rows / self._streams))

    def wait(self, rows: Iterable[tuple[Hashable, int]]) -> float:
        """Seconds that all streams together need for so many rows of each key. Unknown keys count as nothing."""
        return sum(count * self._per_row(key) for key, count in rows) / self._streams

    def own(self, key: Hashable, rows: int) -> float:
        """Seconds that `rows` rows of one key need once it is their turn. One stream computes each of them."""
        return math.ceil(rows / self._streams) * self._per_row(key)

    def _per_row(self, key: Hashable) -> float:
        if (known := self._estimates.get(key)) is None:
            return 0.0
        age = self._clock() - known.at - known.seconds_per_row
        if age <= TRUSTED_SECONDS:
            return known.seconds_per_row
        return known.seconds_per_row * math.exp2((TRUSTED_SECONDS - age) / TRUSTED_SECONDS)

    def _drop_old(self, now: float) -> None:
        """Drop estimates that haven't been used for long: versions come and go."""
        self._estimates = {k: known for k, known in self._estimates.items() if now - known.at < KEPT_SECONDS}

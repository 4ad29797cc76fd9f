"""What came of the images that one version answered and another one got copies of."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from condconv_serve.shadow.comparison import Comparison

Outcome = Literal[
    "compared", "busy", "full", "late", "paused", "not_served", "other_task", "other_input", "failed", "not_finite"
]
"""compared: both versions answered. busy: callers' images waited for the engine, or kept it busy. full: too many copies
waited. late: the copy wasn't computed in time. paused: the version failed again and again, so it is left alone for a
while. not_served: the version isn't served. other_task: one version classifies, and the other detects. other_input: the
version takes another input, which can't be made any more. failed: it couldn't be computed. not_finite: the answer holds
numbers that are not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowCounts:
    """The figures of one pair of versions. Those of several processes or replicas can be added.

    Attributes:
        model: name of the model.
        version: that answered the callers.
        shadow: the version that got copies.
        since: when counting began, in seconds since the epoch.
        agreement: the sum over all compared images, as the following; see `Comparison`.
        distance: of the answers.
        routing: by block.
        outcomes: images by what came of their copies.
        problem: why the last copy failed; None if none did.
    """

    model: str
    version: str
    shadow: str
    since: float
    agreement: float = 0.0
    distance: float = 0.0
    routing: Mapping[str, float] = field(default_factory=dict)
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    problem: str | None = None

    @property
    def compared(self) -> int:
        """Images whose answers were compared."""
        return self.outcomes.get("compared", 0)

    def merged(self, other: ShadowCounts) -> ShadowCounts:
        """The figures of both, which are of the same versions."""
        return ShadowCounts(
            model=self.model,
            version=self.version,
            shadow=self.shadow,
            since=min(self.since, other.since),
            agreement=self.agreement + other.agreement,
            distance=self.distance + other.distance,
            routing={
                block: self.routing.get(block, 0.0) + other.routing.get(block, 0.0)
                for block in (*self.routing, *(block for block in other.routing if block not in self.routing))
            },
            outcomes=dict(Counter(self.outcomes) + Counter(other.outcomes)),
            problem=self.problem or other.problem,
        )


class PairTally:
    """Counts for one pair of versions; on the event loop."""

    def __init__(self, model: str, version: str, shadow: str) -> None:
        """Nothing has happened yet."""
        self.model, self.version, self.shadow = model, version, shadow
        self._since = time.time()
        self._agreement = self._distance = 0.0
        self._routing: dict[str, float] = {}
        self._outcomes: Counter[Outcome] = Counter()
        self._problem: str | None = None

    def skip(self, outcome: Outcome, *, problem: str | None = None) -> None:
        """Count an image that wasn't compared, and remember what the problem was, if there was one."""
        self._outcomes[outcome] += 1
        if problem is not None:
            self.tell(problem)

    def tell(self, problem: str) -> None:
        """Remember what the last problem was."""
        self._problem = problem

    def add(self, found: Comparison) -> None:
        """Count an image that was."""
        self._outcomes["compared"] += 1
        self._agreement += found.agreement
        self._distance += found.distance
        for block, distance in found.routing.items():
            self._routing[block] = self._routing.get(block, 0.0) + distance

    def read(self) -> ShadowCounts:
        """The figures so far."""
        return ShadowCounts(
            model=self.model,
            version=self.version,
            shadow=self.shadow,
            since=self._since,
            agreement=self._agreement,
            distance=self._distance,
            routing=dict(self._routing),
            outcomes=dict(self._outcomes),
            problem=self._problem,
        )

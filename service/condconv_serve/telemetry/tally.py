"""What each served version has done since the process began, for protocols that ask for it by version.

Prometheus gets its figures elsewhere: a label with the version for all of these would make too many series.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

from condconv_serve.domain import RowAnswer


@dataclass(slots=True)
class Total:
    """How often something happened, and how many seconds it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.seconds += seconds

    def merge(self, other: Total) -> None:
        """Add what was counted elsewhere."""
        self.count += other.count
        self.seconds += other.seconds


@dataclass(slots=True, kw_only=True)
class VersionTally:
    """The figures of one version.

    Attributes:
        last_request: when the last request came, in seconds since the epoch; 0 if none has.
        success: requests whose rows were all answered.
        failure: other requests, refused ones too.
        decode: answered rows and how long they took to make, as the following.
        queue: how long answered rows waited.
        inference: how long the batches of answered rows took.
        rest: what was left of the time of answered rows.
        cache_hit: rows answered from the cache, and how long they waited; they count in no stage.
        cache_miss: rows that were looked for in the cache and computed, and how long that took.
        batches: executions by their number of rows.
    """

    last_request: float = 0.0
    success: Total = field(default_factory=Total)
    failure: Total = field(default_factory=Total)
    decode: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    inference: Total = field(default_factory=Total)
    rest: Total = field(default_factory=Total)
    cache_hit: Total = field(default_factory=Total)
    cache_miss: Total = field(default_factory=Total)
    batches: dict[int, Total] = field(default_factory=dict)

    def merge(self, other: VersionTally) -> None:
        """Add another replica's figures, which stay as they are."""
        self.last_request = max(self.last_request, other.last_request)
        for figure in fields(self):
            if isinstance(total := getattr(self, figure.name), Total):
                total.merge(getattr(other, figure.name))
        for rows, total in other.batches.items():
            self.batches.setdefault(rows, Total()).merge(total)

    @classmethod
    def merged(cls, tallies: Iterable[VersionTally]) -> VersionTally:
        """The sum of several replicas' figures."""
        total = cls()
        for tally in tallies:
            total.merge(tally)
        return total


class Tallies:
    """The figures of all versions that have been asked. They are added to on the event loop."""

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self._tallies: dict[tuple[str, str], VersionTally] = {}

    async def read(self, versions: Sequence[tuple[str, str]]) -> list[VersionTally]:
        """Copies of the figures of versions, by name and version; zeros if nothing has been asked of one."""
        return [copy.deepcopy(self._tallies.get(version)) or VersionTally() for version in versions]

    def request(self, name: str, version: str, *, seconds: float, answers: Iterable[RowAnswer], whole: bool) -> None:
        """Count a request.

        Args:
            name: of the model that was asked.
            version: of it.
            seconds: that the request took.
            answers: its answered rows.
            whole: whether these are all its rows.
        """
        tally = self._tally(name, version)
        tally.last_request = time.time()
        (tally.success if whole else tally.failure).add(seconds)
        for answer in answers:
            times = answer.timings
            if times.cached:
                tally.cache_hit.add(times.total)
                continue
            if times.cached is not None:
                tally.cache_miss.add(times.total)
            tally.decode.add(times.decode)
            tally.queue.add(times.queue)
            tally.inference.add(times.inference)
            tally.rest.add(max(times.total - times.decode - times.queue - times.inference, 0.0))

    def batch(self, name: str, version: str, *, rows: int, seconds: float) -> None:
        """Count a batch that was computed, whoever its rows belonged to."""
        self._tally(name, version).batches.setdefault(rows, Total()).add(seconds)

    def forget(self, name: str, version: str) -> None:
        """Forget a version that serves no more; called on any thread."""
        self._tallies.pop((name, version), None)

    def _tally(self, name: str, version: str) -> VersionTally:
        tally = self._tallies.get((name, version))
        if tally is None:
            tally = self._tallies[name, version] = VersionTally()
        return tally

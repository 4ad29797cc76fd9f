"""What Prometheus gets about images: counted here in plain numbers, and collected at each scrape."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_MAX_PENDING = 1024
_Families = tuple[
    CounterMetricFamily, CounterMetricFamily, HistogramMetricFamily, CounterMetricFamily, CounterMetricFamily
]


class RowCollector(Collector):
    """Counts images. The library's counters and histograms would cost more for each than queueing it. Thread-safe."""

    def __init__(self, buckets: Sequence[float]) -> None:
        """Count nothing yet; `buckets` are those of the stages' seconds."""
        self._lock = threading.Lock()
        self._accepted = Counter[tuple[str]]()
        self._ended = Counter[tuple[str, str, str]]()
        self._by_version = Counter[tuple[str, str]]()
        self._by_cache = Counter[tuple[str, str]]()
        self._seconds = defaultdict[str, _Seconds](lambda: _Seconds(buckets))

    def start(self, model: str, *, outcomes: Iterable[tuple[str, str]], cached: Iterable[str]) -> None:
        """Show zeros: these outcomes, as of `end`, and what a cache may say. So the first image is an increase."""
        with self._lock:
            self._ended.update(dict.fromkeys(((model, *outcome) for outcome in outcomes), 0))
            self._by_cache.update(dict.fromkeys(((model, result) for result in cached), 0))

    def accept(self, model: str, rows: int) -> None:
        """Images were let in."""
        with self._lock:
            self._accepted[model,] += rows

    def answer(self, model: str, version: str, seconds: Mapping[str, float], *, cache: str | None = None) -> None:
        """An image was answered: by which version, how long the stages took, and what a cache said that was asked."""
        with self._lock:
            self._ended[model, "answered", ""] += 1
            self._by_version[model, version] += 1
            if cache is not None:
                self._by_cache[model, cache] += 1
            for stage, took in seconds.items():
                self._seconds[stage].add(took)

    def give_up(self, seconds: float) -> None:
        """An image missed its deadline: who waits for longer than an answer should take has met a slow service, too."""
        with self._lock:
            self._seconds["total"].add(seconds)

    def end(self, model: str, outcomes: Iterable[tuple[str, str]]) -> None:
        """Images ended otherwise; each with its outcome, and whose deadline was missed, if one was."""
        with self._lock:
            for outcome, deadline in outcomes:
                self._ended[model, outcome, deadline] += 1

    def forget(self, model: str, version: str) -> None:
        """Show no more of a version that has gone."""
        with self._lock:
            self._by_version.pop((model, version), None)

    def families(self) -> _Families:
        """The metrics without samples."""
        return (
            CounterMetricFamily(
                "condconv_rows_total",
                "Images by outcome: answered, cancelled, or an error's slug, and by whose deadline was missed, if one "
                "was. What happens to the images?",
                labels=("model", "outcome", "deadline"),
            ),
            CounterMetricFamily(
                "condconv_rows_accepted_total",
                "Images that were let in. Each is counted in condconv_rows_total when it is done. Is any image lost?",
                labels=("model",),
            ),
            HistogramMetricFamily(
                "condconv_stage_seconds",
                "Time that an image spends in a stage: decode, queue, inference, total. An image given up at its "
                "deadline counts in total only, and so does one answered from the cache. Where does the time go?",
                labels=("stage",),
            ),
            CounterMetricFamily(
                "condconv_cache_rows_total",
                "Images answered while there is a response cache, by where the answer came from: hit (the cache), "
                "shared (computed for an equal image at the same time), miss, bypass (computed since the caller asked "
                "for that). Does the cache pay?",
                labels=("model", "result"),
            ),
            CounterMetricFamily(
                "condconv_version_rows_total",
                "Images answered by each version. Does a canary get its share?",
                labels=("model", "version"),
            ),
        )

    def describe(self) -> Iterable[Metric]:
        """The metrics, for the registry to know their names."""
        return self.families()

    def collect(self) -> Iterable[Metric]:
        """The metrics with all samples."""
        ended, accepted, stages, by_cache, by_version = families = self.families()
        with self._lock:
            for family, counts in (
                (ended, self._ended),
                (accepted, self._accepted),
                (by_cache, self._by_cache),
                (by_version, self._by_version),
            ):
                for labels, count in counts.items():
                    family.add_metric(labels, count)
            for stage, seconds in self._seconds.items():
                seconds.add_to(stages, stage)
        return families


class _Seconds:
    """A histogram of seconds. They are put into its buckets many at a time."""

    def __init__(self, buckets: Sequence[float]) -> None:
        self._buckets = np.array(buckets)
        self._counts = np.zeros(len(buckets) + 1, np.int64)
        self._sum = 0.0
        self._pending: list[float] = []

    def add(self, seconds: float) -> None:
        self._pending.append(seconds)
        if len(self._pending) >= _MAX_PENDING:
            self._count()

    def add_to(self, family: HistogramMetricFamily, stage: str) -> None:
        self._count()
        bounds = [*map(floatToGoString, self._buckets), "+Inf"]
        buckets = zip(bounds, self._counts.cumsum().tolist(), strict=True)
        family.add_metric((stage,), list(buckets), self._sum)

    def _count(self) -> None:
        places = np.searchsorted(self._buckets, self._pending)
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += sum(self._pending)
        self._pending.clear()

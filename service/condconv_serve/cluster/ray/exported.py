"""Puts a replica's metrics into Ray's exporter: our names behind Ray's prefix `ray_`, and a label `replica`."""

from __future__ import annotations

import asyncio
import logging

from prometheus_client import CollectorRegistry
from ray.util.metrics import Gauge

EXPORT_SECONDS = 10.0
_LABEL = "replica"
logger = logging.getLogger(__name__)


class RayExport:
    """Copies a registry's samples. Use it as a task: `keep_copying` ends when it is cancelled.

    Counters and the buckets of histograms are gauges for Ray, which has no way to set them. Their values are the same,
    so `rate` and `histogram_quantile` work.
    """

    def __init__(self, registry: CollectorRegistry, *, replica: str) -> None:
        """Copy from `registry`, for the replica of this name."""
        self._registry = registry
        self._replica = replica
        self._gauges: dict[str, Gauge] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._set: dict[str, set[tuple[str, ...]]] = {}

    async def keep_copying(self, *, seconds: float = EXPORT_SECONDS) -> None:
        """Copy all samples every `seconds`."""
        while True:
            try:
                await asyncio.to_thread(self.copy)
            except Exception:  # answers don't depend on it
                logger.exception("the metrics couldn't be given to Ray")
            await asyncio.sleep(seconds)

    def copy(self) -> None:
        """Copy all samples once. What is no longer there becomes NaN, which Prometheus takes for none."""
        gone = {name: set(known) for name, known in self._set.items()}
        for family in self._registry.collect():
            for sample in family.samples:
                names = tuple(sorted(sample.labels))
                gauge = self._gauges.get(sample.name)
                if gauge is None:
                    gauge = Gauge(sample.name, family.documentation, tag_keys=(*names, _LABEL))
                    self._gauges[sample.name] = gauge.set_default_tags({_LABEL: self._replica})
                values = tuple(sample.labels[name] for name in names)
                gauge.set(sample.value, tags=dict(sample.labels))
                self._set.setdefault(sample.name, set()).add(values)
                gone.get(sample.name, set()).discard(values)
                self._names.setdefault(sample.name, names)
        for name, series in gone.items():
            for values in series:
                self._gauges[name].set(float("nan"), tags=dict(zip(self._names[name], values, strict=True)))
                self._set[name].discard(values)

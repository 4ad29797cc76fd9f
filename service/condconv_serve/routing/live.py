"""The live routing statistics of all served versions."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from condconv_serve.domain import ROUTING, ModelInfo, RoutingLayout, RoutingProfile, RowAnswer
from condconv_serve.routing.drift import BlockDrift, DriftMeter
from condconv_serve.routing.found import classes_in
from condconv_serve.routing.insight import ClassMeans
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.statistics import RoutingStatistics, Window
from condconv_serve.routing.tally import CLASS_BYTES, EDGES, Tally
from condconv_serve.telemetry.routing_metrics import WEIGHT_BUCKETS, BlockRouting

GAUGE_WINDOW: Window = "15m"
"""The window that gauges show."""
# The buckets' upper ends are among those of the bins.
_LAST_BINS = [EDGES.index(bucket) - 1 for bucket in WEIGHT_BUCKETS]


@dataclass(frozen=True, slots=True, eq=False)
class LiveModel:
    """One served version with its statistics."""

    name: str
    version: str
    layout: RoutingLayout
    statistics: RoutingStatistics
    profile: RoutingProfile | None
    meter: DriftMeter | None

    def drift(self, tally: Tally) -> list[BlockDrift]:
        """Drift of each block; empty without a reference profile."""
        return [] if self.meter is None else self.meter.measure(tally)


class LiveRouting:
    """Statistics by model and version, each made when it is first asked for. Thread-safe."""

    def __init__(self, *, class_bytes: int = CLASS_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty; arguments are those of `RoutingStatistics`."""
        self._class_bytes = class_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._models: dict[tuple[str, str], LiveModel] = {}

    def observe(self, model: ModelInfo, row: RowAnswer) -> None:
        """Count what the network answered for one image: its routing weights, for its classes (see `classes_in`)."""
        if model.routing:
            self.of(model).statistics.observe(row.tensors[ROUTING], classes_in(row.tensors))

    def of(self, model: ModelInfo) -> LiveModel:
        """Return a served version's statistics. A version that is loaded again keeps them if it has the same blocks."""
        live = self._models.get((model.name, model.version))
        if live is not None and live.profile is model.routing_profile and live.layout == model.routing:
            return live
        with self._lock:
            live = self._models.get((model.name, model.version))
            live = LiveModel(
                model.name,
                model.version,
                model.routing,
                live.statistics
                if live is not None and live.layout == model.routing
                else RoutingStatistics(model.routing, class_bytes=self._class_bytes, clock=self._clock),
                model.routing_profile,
                None if model.routing_profile is None else DriftMeter(model.routing_profile, model.routing),
            )
            self._models[model.name, model.version] = live
        return live

    def forget(self, name: str, version: str) -> None:
        """Drop the statistics of a version that is no longer served."""
        with self._lock:
            self._models.pop((name, version), None)

    def __iter__(self) -> Iterator[LiveModel]:
        """All versions that have been asked for."""
        with self._lock:
            return iter(list(self._models.values()))

    async def state(self, model: str, version: str, windows: Sequence[Window]) -> RoutingState | None:
        """A copy of a version's windows, made on a thread; None if nothing is known of the version."""
        live = self._models.get((model, version))
        if live is None:
            return None
        return await asyncio.to_thread(
            RoutingState.of, live.statistics, model=model, version=version, windows=tuple(windows)
        )

    async def class_means(self, model: str, version: str, classes: Collection[int]) -> ClassMeans:
        """Images of classes (see `classes_in`) and their mean weights; a class without images is left out."""
        if (live := self._models.get((model, version))) is None:
            return {}
        found = ((index, live.statistics.class_of(index)) for index in classes)
        return {index: seen for index, seen in found if seen is not None}

    async def reset(self, model: str | None = None, version: str | None = None) -> list[tuple[str, str]]:
        """Forget what was counted of all models, of all versions of a model, or of one version.

        Returns:
            Names and versions of those that were reset.
        """
        chosen = [live for live in self if model in (None, live.name) and version in (None, live.version)]
        for live in chosen:
            live.statistics.reset()
        return [(live.name, live.version) for live in chosen]

    def exported(self) -> Iterator[BlockRouting]:
        """What Prometheus gets about each block."""
        for live in self:
            totals = live.statistics.read("all", classes=False)
            recent = live.statistics.read(GAUGE_WINDOW, classes=False)
            drift = live.drift(recent)
            cumulative = totals.histogram.cumsum(axis=-1)[..., _LAST_BINS]
            sums = totals.mean * totals.count
            for number, (block, count) in enumerate(zip(live.layout.blocks, live.layout.experts, strict=True)):
                moved = drift[number] if drift else None
                yield BlockRouting(
                    model=live.name,
                    version=live.version,
                    block=block,
                    buckets=cumulative[number, :count].tolist(),
                    sums=sums[number, :count].tolist(),
                    entropy=float(recent.entropy_mean[number]) if recent.count else None,
                    drift={} if moved is None else {"psi": moved.psi, "js": moved.js, "psi_alert": moved.alert_above},
                )

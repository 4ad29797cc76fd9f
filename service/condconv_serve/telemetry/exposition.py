"""What Prometheus gets: the text of all metrics, in the form that the scraper accepts.

Where fronts are processes of their own, the metrics of one service are those of its engine process and what its fronts
have counted in files, added up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Sample

from condconv_serve.telemetry.front_files import FrontFiles

_Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Exposed:
    """The text of all metrics, and what it is."""

    content: bytes
    content_type: str


class Exposition(Protocol):
    """Writes down all metrics of a service, of all its processes."""

    async def expose(self, accept: str) -> Exposed:
        """All metrics in the Prometheus text format, or in OpenMetrics if the header `accept` asks for it."""
        ...


class RegistryExposition:
    """The metrics of one registry: implements `Exposition` for a service in one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Expose `registry`."""
        self._registry = registry

    async def expose(self, accept: str) -> Exposed:
        """See `Exposition.expose`."""
        return written(self._registry.collect(), accept)


class CombinedExposition:
    """The metrics of the engine process and of all fronts: implements `Exposition`, in any of the processes.

    In the engine process `own` collects the registry of its `Metrics`. A front asks the engine process for the same
    list, which can be pickled; then reading the files, about 10 ms of CPU for each front, costs the engine nothing.
    """

    def __init__(self, own: Callable[[], Awaitable[Iterable[Metric]]], fronts: FrontFiles) -> None:
        """Expose what `own` returns, the families of the engine process, added to what fronts have counted."""
        self._own = own
        self._fronts = fronts

    async def expose(self, accept: str) -> Exposed:
        """See `Exposition.expose`. Errors of `own` pass through."""
        own = await self._own()
        return await asyncio.to_thread(lambda: written(add_up(own, self._fronts.families()), accept))


def written(families: Iterable[Metric], accept: str) -> Exposed:
    """Write down families of metrics in the form that the header `accept` asks for."""
    encode, content_type = choose_encoder(accept)
    collector: Any = _Collected(families)
    return Exposed(encode(collector), content_type)


def add_up(*processes: Iterable[Metric]) -> list[Metric]:
    """Add up the families of several processes: those of the same name, sample by sample with the same labels.

    Counters and histograms add up, and so do gauges that several processes have: see `Metrics` for which these are.
    When something was created is the first time that it was in any process.
    """
    families: dict[str, Metric] = {}
    groups: dict[str, dict[_Labels, dict[tuple[str, _Labels], Sample]]] = {}
    for family in (family for process in processes for family in process):
        families.setdefault(family.name, Metric(family.name, family.documentation, family.type, family.unit))
        of_family = groups.setdefault(family.name, {})
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            # OpenMetrics wants the samples of one histogram next to each other.
            group = of_family.setdefault(tuple(label for label in labels if label[0] != "le"), {})
            place = (sample.name, labels)
            group[place] = sample if place not in group else _sum(group[place], sample)
    for name, family in families.items():
        family.samples = [sample for group in groups[name].values() for sample in group.values()]
    return list(families.values())


def _sum(one: Sample, other: Sample) -> Sample:
    value = min(one.value, other.value) if one.name.endswith("_created") else one.value + other.value
    return one._replace(value=value)


class _Collected:
    """What encoders ask of a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

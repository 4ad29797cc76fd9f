"""What Prometheus gets about routing: figures that are kept elsewhere, collected at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

WEIGHT_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRouting:
    """What is exported about one CondConv block of a served version.

    Attributes:
        model: its name.
        version: of the model.
        block: its name.
        buckets: by expert, images by weight, cumulative, one number for each of `WEIGHT_BUCKETS`.
        sums: by expert, the sum of the weights.
        entropy: mean of the lately answered images; None if there are none.
        drift: by measure; empty without a reference or without images.
    """

    model: str
    version: str
    block: str
    buckets: Sequence[Sequence[int]]
    sums: Sequence[float]
    entropy: float | None
    drift: Mapping[str, float]


class RoutingCollector(Collector):
    """Exports routing statistics that are kept elsewhere: observing every weight here would cost too much."""

    def __init__(self) -> None:
        """Export nothing yet."""
        self._source: Callable[[], Iterable[BlockRouting]] = lambda: ()

    def set_source(self, source: Callable[[], Iterable[BlockRouting]]) -> None:
        """Ask `source` at each scrape."""
        self._source = source

    def families(self) -> tuple[HistogramMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        """The metrics without samples."""
        return (
            HistogramMetricFamily(
                "condconv_routing_weight",
                "Routing weights of answered images by block and expert. Which experts does the traffic use?",
                labels=("model", "version", "block", "expert"),
            ),
            GaugeMetricFamily(
                "condconv_routing_entropy",
                "Mean routing entropy of the images of the last 15 minutes: 0 (one expert) to 1 (all alike). Do "
                "blocks choose between their experts?",
                labels=("model", "version", "block"),
            ),
            GaugeMetricFamily(
                "condconv_routing_drift",
                "How far the routing of the last 15 minutes is from the model's reference profile, by measure: psi, "
                "js, and psi_alert. A psi above psi_alert is more than chance. Is the traffic still like the images "
                "of the reference profile?",
                labels=("model", "version", "block", "measure"),
            ),
        )

    def describe(self) -> Iterable[Metric]:
        """The metrics, for the registry to know their names."""
        return self.families()

    def collect(self) -> Iterable[Metric]:
        """The metrics with all samples."""
        weight, entropy, drift = self.families()
        for block in self._source():
            labels = (block.model, block.version, block.block)
            for expert, (counts, total) in enumerate(zip(block.buckets, block.sums, strict=True)):
                buckets = [(str(le), count) for le, count in zip(WEIGHT_BUCKETS, counts, strict=True)]
                weight.add_metric((*labels, str(expert)), [*buckets, ("+Inf", counts[-1])], total)
            if block.entropy is not None:
                entropy.add_metric(labels, block.entropy)
            for measure, value in block.drift.items():
                drift.add_metric((*labels, measure), value)
        return weight, entropy, drift

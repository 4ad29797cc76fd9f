"""Every Prometheus collector and every bucket list of the service.

They live on a registry that is passed in, so one process can hold several services.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from condconv_serve.telemetry.front_files import SUMMED_GAUGES, WORKER_RESTARTS, WORKER_RESTARTS_HELP
from condconv_serve.telemetry.routing_metrics import WEIGHT_BUCKETS, RoutingCollector
from condconv_serve.telemetry.row_metrics import RowCollector

SECONDS_BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075),
    *(0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8),
    *(1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
    *(10.0, 12.5, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0),
)
"""Quantiles are read from these. From 0.1 s to the longest requests, one is off by a third at most."""
LOAD_SECONDS_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
SCORE_BUCKETS = WEIGHT_BUCKETS
DISTANCE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
DETECTIONS_BUCKETS = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
"""The first one holds the images in which nothing was found."""
_PAIR = ("model", "version", "shadow")
_PAIR_AND_OUTCOME = (*_PAIR, "outcome")


class Metrics:
    """The collectors. `docs/operations.md` says which question each one answers.

    Where fronts are processes, each has a `Metrics` of its own, and the figures of all of them are added up. Of gauges
    this is so if their `multiprocess_mode` is `SUMMED_GAUGES`; all others are the engine process's alone.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register everything on `registry`, the figures of the process too.

        Raises:
            ValueError: the registry has these collectors already.
        """
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        self.requests = Counter(
            "condconv_requests_total",
            "Requests by front, route, method, status code, and whose deadline was missed, if one was: caller (its own "
            "timeout_ms, or only-if-cached) or service. How much traffic is there, and how much of it fails?",
            ("front", "route", "method", "code", "deadline"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "condconv_request_seconds",
            "Time from a request's headers to the end of its answer. How long do callers wait?",
            ("front", "route"),
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.rows = RowCollector(SECONDS_BUCKETS)
        registry.register(self.rows)
        self.replica_retries = Counter(
            "condconv_replica_retries_total",
            "On Ray: how often a request's rows were sent to a model replica again, by why: replica_lost, or the slug "
            "of a refusal. Do replicas die or refuse, though callers don't notice?",
            ("reason",),
            registry=registry,
        )
        self.rejected = Counter(
            "condconv_rejected_total",
            "Requests answered with an error, by its slug, and by whose deadline was or would have been missed, if one "
            "was. Why are requests refused?",
            ("reason", "deadline"),
            registry=registry,
        )
        self.lingering_connections = Gauge(
            "condconv_lingering_connections",
            "Connections whose answer was given before the whole request had come, and whose rest is read and thrown "
            "away. Do callers send much that is refused?",
            multiprocess_mode=SUMMED_GAUGES,
            registry=registry,
        )
        self.batch_size = Histogram(
            "condconv_batch_size",
            "Rows per batch. Does batching work, and is there room?",
            ("model",),
            buckets=BATCH_SIZE_BUCKETS,
            registry=registry,
        )
        self.cache_evictions = Counter(
            "condconv_cache_evictions_total",
            "Images whose answers left the response cache, by reason: room (for newer ones), version (it serves no "
            "more). Is the cache too small?",
            ("reason",),
            registry=registry,
        )
        self.cache_bytes = Gauge(
            "condconv_cache_bytes", "Memory that the response cache takes. How full is it?", registry=registry
        )
        self.cache_max_bytes = Gauge(
            "condconv_cache_max_bytes",
            "Most memory that the response cache may take; 0 without one. How full is it?",
            registry=registry,
        )
        self.detections = Histogram(
            "condconv_detections",
            "Objects returned for each image that a detector answered, at the thresholds of its request. How much do "
            "the images show, and in how many is nothing found?",
            ("model",),
            buckets=DETECTIONS_BUCKETS,
            registry=registry,
        )
        self.detection_score = Histogram(
            "condconv_detection_score",
            "Scores of the objects that were returned. Is a detector as sure as it used to be?",
            ("model",),
            buckets=SCORE_BUCKETS,
            registry=registry,
        )
        self.queue_rows = Gauge(
            "condconv_queue_rows",
            "Rows that wait for a batch, rows being decoded included. Is the service saturated?",
            registry=registry,
        )
        self.predicted_wait_seconds = Gauge(
            "condconv_predicted_wait_seconds",
            "Time until all rows in the queue are computed, at the pace of the last batches. How long will a new row "
            "wait?",
            registry=registry,
        )
        self.rows_in_flight = Gauge(
            "condconv_rows_in_flight", "Rows being computed now. How busy is the engine?", registry=registry
        )
        self.padding_rows = Counter(
            "condconv_padding_rows_total",
            "Rows added to fill a fixed batch size. How much of an accelerator's work is wasted?",
            registry=registry,
        )
        self.batch_failures = Counter(
            "condconv_batch_failures_total",
            "Batches that failed and were cut in half, by reason: error, out_of_memory. Are there bad images, or too "
            "little memory?",
            ("model", "reason"),
            registry=registry,
        )
        self.stream_stalls = Counter(
            "condconv_stream_stalls_total",
            "Batches given up because the engine hung. Does the engine misbehave?",
            registry=registry,
        )
        self.model_info = Gauge(
            "condconv_model_info",
            "1 for each served version. What is being served, and by which engine?",
            ("model", "version", "architecture", "engine", "precision", "device"),
            registry=registry,
        )
        self.native_info = Gauge(
            "condconv_native_info",
            "1 for each served version, with what native kernels do for it: used, off, unavailable (they can't be used "
            "on this machine), unsupported (they know no layer of it), failed, differs (their answers did). Is a "
            "version slower than it could be?",
            ("model", "version", "state", "isa"),
            registry=registry,
        )
        self.native_layers = Gauge(
            "condconv_native_layers",
            "Layers of each served version by what computes them: native, tensorflow. How much of a version do native "
            "kernels compute?",
            ("model", "version", "computed_by"),
            registry=registry,
        )
        self.model_load_seconds = Gauge(
            "condconv_model_load_seconds",
            "Time that loading and warming up a version took. How long does a start or a swap take?",
            ("model", "version"),
            registry=registry,
        )
        self.model_loads = Counter(
            "condconv_model_loads_total",
            "Versions loaded, failed to load, and unloaded, by outcome. Did a new version arrive, or was it broken?",
            ("model", "outcome"),
            registry=registry,
        )
        self.model_version_state = Gauge(
            "condconv_model_version_state",
            "1 for a version's state: available, loading, serving, stale (serves from memory, but its files are gone "
            "or broken), retiring, incomplete (its files are still being copied), failed. Which versions serve, and "
            "would they after a restart?",
            ("model", "version", "state"),
            registry=registry,
        )
        self.default_model = Gauge(
            "condconv_default_model",
            "1 for the model that requests get which name none. Do all replicas agree on it?",
            ("model",),
            registry=registry,
        )
        self.store_unfollowed = Gauge(
            "condconv_store_unfollowed",
            "1 for a file of the model store that is not followed: it is gone or damaged, or names what can't be "
            "served. Would a restart change which model or version answers?",
            ("file",),
            registry=registry,
        )
        self.model_swap_seconds = Histogram(
            "condconv_model_swap_seconds",
            "Time from finding a version to serving it: checking, loading and warming up. How long does a swap take?",
            buckets=LOAD_SECONDS_BUCKETS,
            registry=registry,
        )
        self.shadow_rows = Counter(
            "condconv_shadow_rows_total",
            "Copies of answered images for another version (shadow), by outcome: compared, busy (callers' images "
            "waited), full (too many copies waited), late, paused (the version failed again and again), not_served, "
            "other_task, other_input, failed, not_finite. How many comparisons are the other figures made of?",
            _PAIR_AND_OUTCOME,
            registry=registry,
        )
        self.shadow_agreement = Counter(
            "condconv_shadow_agreement_total",
            "Sum of agreements of the compared images: 1 where both versions name the same class, or the share of "
            "objects that both found. How often does a new version say the same?",
            _PAIR,
            registry=registry,
        )
        self.shadow_distance = Histogram(
            "condconv_shadow_distance",
            "Distance of the answers to an image, 0 to 1: total variation of the classes' probabilities, or the mean "
            "difference of the objects' scores. How far apart are the answers of a new version?",
            _PAIR,
            buckets=DISTANCE_BUCKETS,
            registry=registry,
        )
        self.shadow_routing_distance = Histogram(
            "condconv_shadow_routing_distance",
            "Mean difference of an image's routing weights over the blocks that both versions have. Does a new version "
            "route images in another way?",
            _PAIR,
            buckets=DISTANCE_BUCKETS,
            registry=registry,
        )
        self.ready = Gauge(
            "condconv_ready", "1 while the service takes requests. Is this replica in service?", registry=registry
        )
        self.streams = Gauge(
            "condconv_streams",
            "Batches that can be computed at the same time. Does the service use all of its CPUs?",
            registry=registry,
        )
        self.max_queue_rows = Gauge(
            "condconv_max_queue_rows", "Most rows that may wait. How full is the queue?", registry=registry
        )
        self.memory_limit_bytes = Gauge(
            "condconv_memory_limit_bytes",
            "Memory that this process may use: its container's limit, or all of the machine's. How much is left?",
            registry=registry,
        )
        self.log_lines_lost = Counter(
            "condconv_log_lines_lost_total",
            "Lines of the log that were dropped, since nobody read it fast enough or at all. Is the log complete?",
            registry=registry,
        )
        self.worker_restarts = Counter(
            f"{WORKER_RESTARTS}_total", WORKER_RESTARTS_HELP, ("process",), registry=registry
        )
        """Fronts show it: whoever restarts processes counts it in a file beside theirs."""
        self.routing = RoutingCollector()
        registry.register(self.routing)

    def count_objects(self, model: str, scores: Sequence[float]) -> None:
        """Count the objects that an answer for one image holds, by their scores."""
        self.detections.labels(model).observe(len(scores))
        observe = self.detection_score.labels(model).observe
        for score in scores:
            observe(score)

    def count_shadow(
        self, pair: tuple[str, str, str], *, agreement: float, distance: float, routing: Sequence[float]
    ) -> None:
        """Count an image that two versions answered.

        Args:
            pair: the model's name, the version that the caller got, and the other one.
            agreement: 0 to 1, as the following.
            distance: of the answers.
            routing: distance of the weights of each block that both have.
        """
        self.shadow_rows.labels(*pair, "compared").inc()
        self.shadow_agreement.labels(*pair).inc(agreement)
        self.shadow_distance.labels(*pair).observe(distance)
        if routing:
            self.shadow_routing_distance.labels(*pair).observe(sum(routing) / len(routing))

    def forget_shadow(self, pair: tuple[str, str, str], *, outcomes: Iterable[str]) -> None:
        """Show no more of two versions, one of which has gone; `outcomes` are all that copies can have."""
        for metric in (self.shadow_agreement, self.shadow_distance, self.shadow_routing_distance):
            with contextlib.suppress(KeyError):
                metric.remove(*pair)
        for outcome in outcomes:
            with contextlib.suppress(KeyError):
                self.shadow_rows.remove(*pair, outcome)

    def describe(self) -> list[tuple[str, str, tuple[str, ...], str]]:
        """Name, type, labels and help text of each of the service's own metrics, as they are exposed."""
        found = list[tuple[str, str | None, Sequence[str], str]]()
        for metric in vars(self).values():
            if isinstance(metric, MetricWrapperBase):
                found.append((metric._name, metric._type, metric._labelnames, metric._documentation))
            elif isinstance(metric, RowCollector | RoutingCollector):
                found += [(one.name, one.type, one._labelnames, one.documentation) for one in metric.families()]
        return [
            (name + ("_total" if kind == "counter" else ""), str(kind), tuple(labels), documentation)
            for name, kind, labels, documentation in found
        ]

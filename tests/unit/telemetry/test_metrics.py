import sys
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.settings import Settings
from condconv_serve.tasks.detection import MAX_DETECTIONS
from condconv_serve.telemetry import metrics as metrics_module
from condconv_serve.telemetry.metrics import Metrics


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


def exposed(metrics):
    """Names of all families, without `_total`, `_bucket` and the like."""
    return {family.name for family in metrics.registry.collect()}


def test_no_label_is_given_twice(metrics):
    assert all(len(labels) == len(set(labels)) for _, _, labels, _ in metrics.describe())


def test_the_description_names_what_is_exposed(metrics):
    own = {name.removesuffix("_total") for name in (row[0] for row in metrics.describe())}
    assert own == {name for name in exposed(metrics) if name.startswith("condconv_") and not name.endswith("_created")}


def test_the_interpreter_and_the_process_are_exposed_too(metrics):
    assert {"python_info", "python_gc_collections"} <= exposed(metrics)
    if sys.platform == "linux":
        assert {"process_resident_memory_bytes", "process_open_fds"} <= exposed(metrics)


def test_each_registry_has_its_own(metrics):
    other = Metrics(CollectorRegistry())
    metrics.rows.end("m", [("answered", "")])
    assert (
        metrics.registry.get_sample_value("condconv_rows_total", {"model": "m", "outcome": "answered", "deadline": ""})
        == 1
    )
    assert (
        other.registry.get_sample_value("condconv_rows_total", {"model": "m", "outcome": "answered", "deadline": ""})
        is None
    )
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(metrics.registry)


@pytest.mark.parametrize("name", [name for name in vars(metrics_module) if name.endswith("_BUCKETS")])
def test_buckets_grow(name):
    buckets = getattr(metrics_module, name)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[0] > 0 or name == "DETECTIONS_BUCKETS"


def test_quantiles_can_be_read_up_to_the_longest_request():
    buckets = metrics_module.SECONDS_BUCKETS
    assert buckets[-1] > Settings.model_fields["request_timeout"].default
    slow = [(low, high) for low, high in pairwise(buckets) if low >= 0.1]
    assert slow[0][0] == 0.1
    assert max(high / low for low, high in slow) <= 4 / 3 + 1e-9, "a quantile lies somewhere within its bucket"
    assert max(high / low for low, high in slow if 1 <= low < 2) <= 1.25
    assert 1.0 in buckets, "which the objective for latency counts"


def test_bucket_borders():
    assert metrics_module.SECONDS_BUCKETS[0] == 0.0005
    assert all(size & (size - 1) == 0 for size in metrics_module.BATCH_SIZE_BUCKETS), "powers of two"
    assert metrics_module.WEIGHT_BUCKETS[-1] == 1, "a routing weight is at most 1"
    assert metrics_module.DETECTIONS_BUCKETS[0] == 0, "images in which nothing is found"
    assert metrics_module.DETECTIONS_BUCKETS[-1] == MAX_DETECTIONS

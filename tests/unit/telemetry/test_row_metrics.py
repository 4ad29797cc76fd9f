import random
import threading

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from condconv_serve.telemetry.metrics import SECONDS_BUCKETS, Metrics

STAGES = ("decode", "queue", "inference", "total")


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


def count(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"condconv_{name}", labels)


def took(seconds):
    return dict(zip(STAGES, (seconds, 2 * seconds, 3 * seconds, 7 * seconds), strict=True))


@pytest.mark.parametrize("images", [1, 1023, 1024, 5000])
def test_stages_are_those_of_the_librarys_histogram(metrics, images):
    registry, chance = CollectorRegistry(), random.Random(images)
    expected = Histogram("expected", "", ("stage",), buckets=SECONDS_BUCKETS, registry=registry)
    for _ in range(images):
        seconds = took(chance.choice([0.0, 0.0005, chance.uniform(0, 0.01), chance.expovariate(1), 1e6]))
        metrics.rows.answer("m", "1", seconds)
        for stage in STAGES:
            expected.labels(stage).observe(seconds[stage])
    ours = histogram(metrics.registry, "condconv_stage_seconds")
    assert ours == pytest.approx(histogram(registry, "expected"))
    assert count(metrics, "version_rows_total", model="m", version="1") == images


def histogram(registry, name):
    """A histogram's samples by stage, kind and bucket."""
    samples = [sample for family in registry.collect() if family.name == name for sample in family.samples]
    return {
        (sample.labels["stage"], sample.name.removeprefix(name), sample.labels.get("le")): sample.value
        for sample in samples
        if not sample.name.endswith("_created")
    }


def test_each_stage_counts_what_it_was_given(metrics):
    for cache in ("hit", "shared"):
        metrics.rows.answer("m", "1", {"total": 7.0}, cache=cache)
    for cache in ("miss", "bypass", None):
        metrics.rows.answer("m", "1", took(1.0), cache=cache)
    metrics.rows.give_up(30.0)
    counts = {stage: count(metrics, "stage_seconds_count", stage=stage) for stage in STAGES}
    assert counts == {"decode": 3, "queue": 3, "inference": 3, "total": 6}
    assert count(metrics, "stage_seconds_sum", stage="total") == 5 * 7 + 30
    asked = {cache: count(metrics, "cache_rows_total", model="m", result=cache) for cache in ("hit", "miss")}
    assert asked == {"hit": 1, "miss": 1}


def test_outcomes_are_shown_before_there_are_any(metrics):
    shown = {"outcomes": [("answered", ""), ("inference_failed", "")], "cached": ["hit"]}
    metrics.rows.start("m", **shown)
    assert count(metrics, "rows_total", model="m", outcome="inference_failed", deadline="") == 0
    assert count(metrics, "cache_rows_total", model="m", result="hit") == 0
    assert count(metrics, "rows_accepted_total", model="m") is None
    metrics.rows.accept("m", 3)
    metrics.rows.end("m", [("answered", ""), ("deadline_exceeded", "caller"), ("answered", "")])
    metrics.rows.start("m", **shown)
    assert count(metrics, "rows_accepted_total", model="m") == 3
    assert count(metrics, "rows_total", model="m", outcome="answered", deadline="") == 2
    assert count(metrics, "rows_total", model="m", outcome="deadline_exceeded", deadline="caller") == 1


def test_a_version_that_has_gone_is_shown_no_more(metrics):
    for version in "12":
        metrics.rows.answer("m", version, took(1.0))
    metrics.rows.forget("m", "1")
    metrics.rows.forget("m", "3")  # it has answered nothing
    assert count(metrics, "version_rows_total", model="m", version="1") is None
    assert count(metrics, "version_rows_total", model="m", version="2") == 1


def test_a_scrape_on_another_thread_loses_no_image(metrics):
    done = threading.Event()

    def scrape():
        while not done.is_set():
            generate_latest(metrics.registry)

    scraping = threading.Thread(target=scrape)
    scraping.start()
    for _ in range(20_000):
        metrics.rows.answer("m", "1", took(0.01))
    done.set()
    scraping.join()
    assert count(metrics, "stage_seconds_count", stage="total") == 20_000
    assert count(metrics, "stage_seconds_bucket", stage="total", le="+Inf") == 20_000

"""What the response cache keeps, and for how many bytes."""

from __future__ import annotations

import gc
import math
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from condconv_serve.domain import Placement, RowAnswer, Timings, rows_of
from condconv_serve.errors import ConfigurationError
from condconv_serve.inference.cache import KeptRow, RowCache, RowKey, kept, row_cache
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import served_model

MODELS = [served_model(), served_model()]
TIMINGS = Timings(decode=0.001, queue=0.002, inference=0.003, total=0.007)


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(max_bytes: int, clock: Clock | None = None) -> tuple[RowCache, Metrics]:
    metrics = Metrics(CollectorRegistry())
    return RowCache(max_bytes, metrics=metrics, clock=clock or Clock()), metrics


def key(digest: int | bytes, scope: str = "", model: int = 0) -> RowKey:
    return RowKey(MODELS[model], scope, digest if isinstance(digest, bytes) else digest.to_bytes(32, "big"))


def row(classes: int = 10, at: float = 100.0, value: float = 0.0) -> KeptRow:
    tensors = {"logits": np.full(classes, value, np.float32)}
    return kept(RowAnswer(tensors=tensors, timings=TIMINGS, batch_size=3), at=at)


def test_an_answer_is_kept_whole_and_apart_from_its_batch() -> None:
    batch = {
        "logits": np.arange(8, dtype=np.float32).reshape(2, 4),
        "routing": np.ones((2, 2, 3), np.float32),
        "sharpness": np.array([1, 2], np.float32),
    }
    placement = Placement(photo_width=40, photo_height=30, left=5, top=0, width=30, height=30)
    answer = RowAnswer(tensors=rows_of(batch)[1], timings=TIMINGS, batch_size=2, placement=placement)
    found = kept(answer, at=7.0)
    batch["logits"][:] = -1  # what a batch's memory holds later
    assert found.tensors["logits"].tolist() == [4, 5, 6, 7]
    assert found.tensors["routing"].shape == (2, 3)
    assert found.tensors["sharpness"].tolist() == 2.0
    assert found.tensors["logits"].base is None, "it holds the whole batch"
    assert (found.batch_size, found.placement, found.at) == (2, placement, 7.0)
    with pytest.raises(ValueError, match="read-only"):
        found.tensors["logits"][0] = 1


def test_the_least_lately_used_goes_first() -> None:
    size = row().nbytes
    cache, metrics = made(3 * size + size // 2)
    for digest in range(3):
        cache.put(key(digest), row(value=digest))
    assert cache.get(key(0)) is not None  # so that the next one is the oldest
    cache.put(key(3), row())
    assert [cache.get(key(digest)) is not None for digest in range(4)] == [True, False, True, True]
    assert (len(cache), cache.nbytes, cache.free_bytes) == (3, 3 * size, size // 2)
    assert metrics.registry.get_sample_value("condconv_cache_evictions_total", {"reason": "room"}) == 1
    assert metrics.registry.get_sample_value("condconv_cache_bytes") == 3 * size
    assert metrics.registry.get_sample_value("condconv_cache_max_bytes") == cache.max_bytes


def test_an_answer_larger_than_the_cache_drives_nobody_out() -> None:
    cache, _ = made(2 * row().nbytes)
    cache.put(key(0), row())
    cache.put(key(1), row(classes=10_000))
    assert cache.get(key(1)) is None
    assert cache.get(key(0)) is not None
    cache.put(key(0), row(classes=10_000))  # a newer answer, so the older one isn't right any more
    assert cache.get(key(0)) is None
    assert cache.nbytes == 0


def test_a_cache_of_no_bytes_keeps_nothing() -> None:
    cache, _ = made(0)
    cache.put(key(0), row())
    assert len(cache) == 0


@pytest.mark.parametrize(
    "other", [key(1), key(0, scope="someone else"), key(0, model=1)], ids=["image", "scope", "load of the version"]
)
def test_nobody_gets_what_is_kept_for(other: RowKey) -> None:
    cache, _ = made(10_000)
    cache.put(key(0), row())
    assert cache.get(other) is None


def test_an_answer_may_be_too_old() -> None:
    clock = Clock()
    cache, _ = made(10_000, clock)
    cache.put(key(0), row(at=clock.now))
    assert cache.get(key(0), max_age=0) is None
    clock.now += 9.5
    assert cache.get(key(0), max_age=10) is not None
    assert cache.get(key(0), max_age=9) is None
    assert cache.get(key(0)) is not None, "it is too old for somebody, but not for all"


def test_a_version_goes_with_all_its_answers() -> None:
    cache, metrics = made(100_000)
    for digest in range(4):
        cache.put(key(digest, scope="a"), row())
        cache.put(key(digest, scope="b", model=1), row())
    cache.drop(MODELS[0])
    assert (cache.holds("a"), cache.holds("b"), len(cache)) == (False, True, 4)
    assert cache.nbytes == 4 * row().nbytes
    assert metrics.registry.get_sample_value("condconv_cache_evictions_total", {"reason": "version"}) == 4


def test_it_leaves_others_what_it_does_not_need() -> None:
    cache, _ = made(1_000_000)
    assert cache.left_beside(lambda: 5_000_000) == 4_000_000
    cache.put(key(0), row(classes=100_000))
    assert cache.left_beside(lambda: 5_000_000) == 5_000_000 - cache.free_bytes > 4_000_000
    assert cache.left_beside(lambda: 100) == 0
    assert cache.left_beside(lambda: None) is None


def test_a_cache_larger_than_all_memory_is_refused() -> None:
    def of(limit: int | None) -> RowCache:
        return row_cache(1000, memory_limit=limit, metrics=Metrics(CollectorRegistry()))

    with pytest.raises(ConfigurationError, match="CONDCONV_CACHE_BYTES"):
        of(1000)
    assert of(1001).max_bytes == of(None).max_bytes == 1000


def test_the_bytes_are_those_that_python_takes() -> None:
    cache, _ = made(10**9)
    shapes = {"logits": (1000,), "routing": (7, 4), "features": (1280,)}
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for digest in range(2000):
            batch = {name: np.zeros((2, *shape), np.float32) for name, shape in shapes.items()}
            placement = Placement(
                photo_width=640, photo_height=480, left=80.0 + digest, top=0.5, width=480.25, height=480.75
            )
            answer = RowAnswer(tensors=rows_of(batch)[0], timings=TIMINGS, batch_size=2, placement=placement)
            cache.put(key(digest), kept(answer, at=float(digest)))
        del batch, answer
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.98 < cache.nbytes / taken < 1.1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.integers(0, 1), st.sampled_from("ab"), st.integers(1, 400)),
        st.tuples(st.just("get"), st.integers(0, 5), st.integers(0, 1), st.sampled_from("ab")),
        st.tuples(st.just("drop"), st.integers(0, 1)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS, max_bytes=st.integers(0, 8000))
def test_whatever_is_put_and_asked(steps: list[tuple[Any, ...]], max_bytes: int) -> None:
    cache, _ = made(max_bytes)
    known: dict[RowKey, KeptRow] = {}  # in the order of their last use
    for what, *given_ in steps:
        match what, given_:
            case "put", [digest, model, scope, classes]:
                place, answer = key(digest, scope, model), row(classes)
                cache.put(place, answer)
                known.pop(place, None)
                if answer.nbytes <= max_bytes:
                    while sum(each.nbytes for each in known.values()) + answer.nbytes > max_bytes:
                        del known[next(iter(known))]
                    known[place] = answer
            case "get", [digest, model, scope]:
                place = key(digest, scope, model)
                assert cache.get(place) is known.get(place)
                if place in known:
                    known[place] = known.pop(place)
            case "drop", [gone]:
                cache.drop(MODELS[gone])
                known = {place: answer for place, answer in known.items() if place.model is not MODELS[gone]}
        assert len(cache) == len(known)
        assert cache.nbytes == sum(each.nbytes for each in known.values()) <= max_bytes
        assert {scope for scope in "ab" if cache.holds(scope)} == {place.scope for place in known}


def test_versions_go_on_other_threads_while_rows_come() -> None:
    cache, _ = made(200 * row().nbytes)
    going, failures = threading.Event(), list[BaseException]()

    def drop() -> None:
        try:
            while not going.is_set():
                cache.drop(MODELS[1])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=drop)
    thread.start()
    for digest in range(3000):
        cache.put(key(digest % 300, model=digest % 2), row())
        cache.get(key(digest % 7, model=1), max_age=math.inf)
    going.set()
    thread.join()
    assert not failures
    cache.drop(MODELS[0])
    cache.drop(MODELS[1])
    assert (len(cache), cache.nbytes) == (0, 0)

"""What requests say of the response cache, and what they hear of it."""

from __future__ import annotations

import math

import pytest

from condconv_serve.domain.caching import CacheResult
from condconv_serve.domain.facts import RequestFacts
from condconv_serve.domain.trace import TraceContext
from condconv_serve.http.cache_control import cache_status, note_cache_control


def facts_with(header: str | None) -> RequestFacts:
    facts = RequestFacts(request_id="mine", trace=TraceContext.following(None))
    note_cache_control(facts, header)
    return facts


@pytest.mark.parametrize(
    ("header", "max_age", "store"),
    [
        (None, math.inf, True),
        ("", math.inf, True),
        ("no-cache", 0, True),
        ("No-Cache", 0, True),
        ("no-store", math.inf, False),
        ("no-store, no-cache", 0, False),
        ("max-age=0", 0, True),
        ("max-age=60", 60, True),
        ('max-age="60"', 60, True),
        ("max-age=60, no-cache", 0, True),
        ("no-cache,max-age=60", 0, True),
        ("max-age=60, max-age=5", 5, True),
        ("max-age = 7 , no-store", 7, False),
        ("max-age", 0, True),
        ("max-age=-1", 0, True),
        ("max-age=1e9", 0, True),
        ("max-age=\u0663", 0, True),
        ("max-age=99999999999999999999", 0, True),
        ("max-stale=60, no-transform, min-fresh=5", math.inf, True),
        ("x-no-cache, no-storefront", math.inf, True),
        ('private="no-cache, no-store"', math.inf, True),
        (",, ,no-store,,", math.inf, False),
    ],
)
def test_cache_control(header: str | None, max_age: float, store: bool) -> None:
    facts = facts_with(header)
    assert (facts.cache_max_age, facts.cache_store) == (max_age, store)
    assert (facts.cache.max_age, facts.cache.store) == (max_age, store)


@pytest.mark.parametrize(
    ("header", "only"),
    [(None, False), ("only-if-cached", True), ("max-age=5, Only-If-Cached", True), ("x-only-if-cached", False)],
)
def test_only_if_cached(header: str | None, only: bool) -> None:
    assert facts_with(header).cache.only is only


@pytest.mark.parametrize(
    ("cached", "says"),
    [
        ({}, None),
        ({"hit": 3}, "condconv-serve; hit"),
        ({"shared": 1}, "condconv-serve; fwd=miss; collapsed"),
        ({"hit": 1, "shared": 1}, "condconv-serve; fwd=miss; collapsed"),
        ({"hit": 1, "miss": 2}, 'condconv-serve; fwd=partial; detail="1 of 3 images"'),
        ({"miss": 2}, "condconv-serve; fwd=miss"),
        ({"bypass": 2}, "condconv-serve; fwd=request"),
    ],
)
def test_cache_status(cached: dict[CacheResult, int], says: str | None) -> None:
    facts = facts_with(None)
    facts.cached = cached
    assert cache_status(facts) == says


def test_a_long_header_is_read_at_once() -> None:
    assert facts_with("a=" * 50_000 + ", no-store").cache_store is False
    assert facts_with("a" * 100_000 + " b, no-store").cache_store is False
    assert facts_with(", " * 50_000 + "no-store").cache_store is False

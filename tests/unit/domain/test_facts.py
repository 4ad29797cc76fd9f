"""What is known of a request, and what of it is told."""

from __future__ import annotations

import pytest

from condconv_serve.domain import Timings
from condconv_serve.domain.caching import CacheResult
from condconv_serve.domain.facts import Deadline, DeadlineBy, KeyScope, RequestFacts
from condconv_serve.domain.trace import TraceContext

PREDICT: frozenset[KeyScope] = frozenset({"predict"})
ALL: frozenset[KeyScope] = frozenset({"predict", "admin"})


def request() -> RequestFacts:
    return RequestFacts(request_id="mine", trace=TraceContext.following(None))


def test_what_is_not_known_is_not_told() -> None:
    facts = request()
    assert facts.told() == {}
    facts.rows, facts.outcome = 0, "answered"
    assert facts.told() == {"rows": 0, "outcome": "answered"}


def test_the_longest_time_of_each_stage_is_told_and_the_slowest_image_is_traced() -> None:
    facts = request()
    facts.note_answer(
        [
            Timings(decode=0.004, queue=0.001, inference=0.01, total=0.015),
            Timings(decode=0.002, queue=0.003, inference=0.02, total=0.025),
        ]
    )
    assert facts.told() == {"decode_ms": 4.0, "queue_ms": 3.0, "inference_ms": 20.0}
    assert facts.stages is not None
    assert list(facts.stages.seconds.items()) == [("decode", 0.002), ("queue", 0.003), ("inference", 0.02)]


def test_how_many_images_needed_no_computing_is_told_where_there_is_a_cache() -> None:
    facts = request()
    results: list[CacheResult] = ["hit", "shared", "miss"]
    facts.note_answer([Timings(decode=0, queue=0, inference=0, total=0, cache=result) for result in results])
    assert (facts.told()["cached"], facts.cached) == (2, {"hit": 1, "shared": 1, "miss": 1})
    facts.note_answer([Timings(decode=0, queue=0, inference=0, total=0, cache="miss")])
    assert facts.told()["cached"] == 0


def test_only_the_same_key_with_the_same_scopes_has_the_same_answers() -> None:
    scopes = set()
    for name, grants in ((None, ALL), (None, PREDICT), ("ci", PREDICT), ("ci", ALL), ("c", PREDICT)):
        facts = request()
        facts.key_name, facts.grants = name, grants
        assert facts.cache.scope == facts.cache.scope
        scopes.add(facts.cache.scope)
    assert len(scopes) == 5


def test_where_no_image_could_be_used_there_are_no_times() -> None:
    facts = request()
    facts.note_answer([])
    assert (facts.told(), facts.stages) == ({}, None)


@pytest.mark.parametrize("slug", ["deadline_exceeded", "wait_too_long"])
@pytest.mark.parametrize("by", ["caller", "service"])
def test_whose_deadline_was_missed_is_told(slug: str, by: DeadlineBy) -> None:
    facts = request()
    facts.deadline, facts.slug = Deadline(5.0, by=by), slug
    assert facts.missed == by
    assert facts.told() == {"deadline": by}
    assert facts.deadline == 5.0


def test_who_takes_answers_from_the_cache_alone_waits_for_nothing_else() -> None:
    facts = request()
    facts.slug = "not_cached"
    assert facts.missed == "caller"


def test_a_deadline_that_was_not_missed_is_nobodys() -> None:
    facts = request()
    facts.deadline = Deadline(5.0, by="caller")
    for facts.slug in (None, "queue_full", "corrupt_image"):
        assert facts.missed == ""
        assert facts.told() == {}
    facts.deadline, facts.slug = float("inf"), "deadline_exceeded"
    assert facts.missed == "service", "nobody else set one"

"""What is known of a request, and what of it is told."""

from __future__ import annotations

from condconv_serve.domain import Timings
from condconv_serve.domain.facts import RequestFacts
from condconv_serve.domain.trace import TraceContext


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


def test_where_no_image_could_be_used_there_are_no_times() -> None:
    facts = request()
    facts.note_answer([])
    assert (facts.told(), facts.stages) == ({}, None)

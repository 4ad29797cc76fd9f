"""The figures of versions, of one replica and of several together."""

from __future__ import annotations

import pickle
from dataclasses import fields

import pytest

from condconv_serve.domain import RowAnswer, Timings
from condconv_serve.telemetry.tally import Tallies, Total, VersionTally

SECONDS = [0.5, 0.25, 2.0, 1.0, 0.125]


def booked(tallies: Tallies, number: int) -> None:
    timings = Timings(decode=0.5, queue=0.25 * number, inference=1.0, total=2.0 + number)
    answers = [RowAnswer(tensors={}, timings=timings, batch_size=1)] * number
    tallies.request("m", "1", seconds=SECONDS[number], answers=answers, whole=number % 2 == 0)
    tallies.batch("m", "1", rows=number % 3, seconds=SECONDS[number])


async def test_replicas_add_up_to_one() -> None:
    pooled, replicas = Tallies(), [Tallies() for _ in range(3)]
    for number in range(len(SECONDS)):
        for tallies in (pooled, replicas[number % 2]):  # the last one has nothing to do
            booked(tallies, number)
    parts = [(await each.read([("m", "1"), ("m", "2")])) for each in replicas]
    known, nothing = (VersionTally.merged(pickle.loads(pickle.dumps(each))) for each in zip(*parts, strict=True))
    (expected,) = await pooled.read([("m", "1")])
    assert known.last_request == pytest.approx(expected.last_request, abs=5)
    known.last_request = expected.last_request
    assert known == expected  # these seconds add up exactly in whichever order
    assert nothing == VersionTally()


async def test_what_was_read_stays_as_it_was() -> None:
    tallies = Tallies()
    booked(tallies, 2)
    (before,) = await tallies.read([("m", "1")])
    (same,) = await tallies.read([("m", "1")])
    booked(tallies, 2)
    before.merge(before)
    assert (same.success.count, same.batches[2].count) == (1, 1)
    (now,) = await tallies.read([("m", "1")])
    assert (now.success.count, now.batches[2].count) == (2, 2)


def test_every_figure_adds_up() -> None:
    def tally(number: int) -> VersionTally:
        totals = (
            field.name for field in fields(VersionTally) if isinstance(getattr(VersionTally(), field.name), Total)
        )
        each = {name: Total(number * place, number * place / 4) for place, name in enumerate(totals, start=1)}
        batches = {1: Total(number, 0.5), number: Total(number, 0.5)}
        return VersionTally(last_request=float(number), batches=batches, **each)

    total, expected = VersionTally.merged([tally(3), tally(2)]), tally(5)
    expected.last_request, expected.batches = 3.0, {1: Total(5, 1.0), 3: Total(3, 0.5), 2: Total(2, 0.5)}
    assert total == expected

"""Requests whose rows come one by one, over the real batcher: what is told, counted and given back."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.domain import MadeRow, ModelInfo, RowAnswer, RowSource
from condconv_serve.domain.facts import Deadline
from condconv_serve.errors import CorruptImage, DeadlineExceeded, Draining, QueueFull, ServiceError
from condconv_serve.inference.batching import Batcher
from condconv_serve.inference.open_request import OpenRequest
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.inference.runner import finite_rows
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tally import Tallies
from tests.contract.fakes import FakeModels, served_model
from tests.contract.until import until

MODEL = served_model()


def made(shade: int) -> MadeRow:
    return MadeRow(np.full((32, 32, 3), shade, np.uint8), 0.25)


class Subject:
    """A plane. Batches wait while `free` is cleared; `broken` parts raise."""

    def __init__(self) -> None:
        self.metrics, self.tallies = Metrics(CollectorRegistry()), Tallies()
        self.free = asyncio.Event()
        self.free.set()
        self.broken = set[str]()
        self.mirrored = list[int]()
        self.batcher: Any = Batcher(self._run, streams=1, max_batch_size=4, max_queue_rows=8, metrics=self.metrics)
        self.plane = InferencePlane(
            FakeModels(MODEL),
            self.batcher,
            metrics=self.metrics,
            tallies=self.tallies,
            observe=self._observe,
            mirror=self._mirror,
        )

    async def _run(self, model: Any, rows: Any) -> Any:
        await self.free.wait()
        return finite_rows(model.engine(np.stack(rows), 0))

    def _observe(self, model: ModelInfo, answer: RowAnswer) -> None:
        if "observe" in self.broken:
            raise ZeroDivisionError

    def _mirror(self, model: Any, row: MadeRow, answer: RowAnswer) -> None:
        if "mirror" in self.broken:
            raise ZeroDivisionError
        self.mirrored.append(int(row.row[0, 0, 0]))

    def open(self, rows: int, **options: Any) -> tuple[OpenRequest, asyncio.Future[Any]]:
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        return self.plane.open(MODEL, rows, ended, **options), ended

    def rows(self) -> dict[str, float]:
        """Counted rows by outcome; those that nothing happened to are left out."""
        (family,) = (family for family in self.metrics.registry.collect() if family.name == "condconv_rows")
        samples = [sample for sample in family.samples if sample.name == "condconv_rows_total"]
        return {sample.labels["outcome"]: sample.value for sample in samples if sample.value}

    async def requests(self) -> tuple[int, int]:
        """Counted requests: those with all answers, and others."""
        (tally,) = await self.tallies.read([(MODEL.name, MODEL.version)])
        return tally.success.count, tally.failure.count

    @property
    def room_taken(self) -> int:
        """Rows that wait, or may come."""
        return len(self.batcher._queue)


@pytest.fixture
async def subject() -> AsyncIterator[Subject]:
    subject = Subject()
    async with asyncio.timeout(20), subject.batcher:
        try:
            yield subject
        finally:
            subject.free.set()


async def test_outcomes_come_in_the_order_of_the_rows_whatever_the_order_in_which_they_are_put(
    subject: Subject,
) -> None:
    request, ended = subject.open(3)
    request.put(2, made(30))
    request.unmade(1, CorruptImage("Half of it is missing."))
    await asyncio.sleep(0.05)
    assert not ended.done()
    request.put(0, made(10))
    first, second, third = await ended
    assert [row.tensors["logits"].max() > 0 for row in (first, third)] == [True, True]
    assert isinstance(second, CorruptImage)
    assert sorted(subject.mirrored) == [10, 30]
    assert subject.rows() == {"answered": 2, "corrupt_image": 1}
    assert await subject.requests() == (0, 1)
    assert subject.room_taken == 0


async def test_a_request_without_rows_ends_at_once(subject: Subject) -> None:
    _, ended = subject.open(0)
    assert await ended == []
    assert await subject.requests() == (1, 0)
    with subject.plane.lease() as model:
        assert await subject.plane.infer_each(model, []) == []


async def test_who_leaves_gives_back_all_room_and_is_told_nothing(subject: Subject) -> None:
    subject.free.clear()
    blocking, blocked = subject.open(1)
    blocking.put(0, made(1))
    await until(lambda: subject.room_taken == 0)
    request, ended = subject.open(3)
    request.put(0, made(2))
    request.unmade(1, CorruptImage("No image."))
    assert subject.room_taken == 2, "the room of a row that can't be made goes back at once"
    for _ in range(2):
        request.close()
    assert subject.room_taken == 0
    request.put(2, made(3))
    request.unmade(2, CorruptImage("No image."))
    subject.free.set()
    await blocked
    await asyncio.sleep(0.05)
    assert not ended.done()
    assert subject.mirrored == [1]
    assert subject.rows() == {"answered": 1, "corrupt_image": 1, "cancelled": 2}
    assert await subject.requests() == (1, 1)


async def test_a_row_that_is_being_computed_when_its_sender_leaves_is_cancelled(subject: Subject) -> None:
    subject.free.clear()
    request, ended = subject.open(1)
    request.put(0, made(1))
    await until(lambda: subject.room_taken == 0)
    request.close()
    subject.free.set()
    other, answered = subject.open(1)
    other.put(0, made(2))
    await answered
    assert not ended.done()
    assert subject.rows() == {"answered": 1, "cancelled": 1}
    assert subject.mirrored == [2]


async def test_deadlines_end_rows_that_wait_and_those_that_are_computed(subject: Subject) -> None:
    subject.free.clear()
    request, ended = subject.open(6, deadline=Deadline(time.monotonic() + 0.1, by="caller"))
    for index in range(6):
        request.put(index, made(index))
    assert [type(row) for row in await ended] == [DeadlineExceeded] * 6
    assert subject.room_taken == 0
    missed = subject.metrics.registry.get_sample_value(
        "condconv_rows_total", {"model": MODEL.name, "outcome": "deadline_exceeded", "deadline": "caller"}
    )
    assert missed == 6


async def test_what_is_refused_is_a_failed_request_and_takes_no_room(subject: Subject) -> None:
    with pytest.raises(QueueFull):
        subject.open(9)
    assert subject.room_taken == 0
    subject.batcher.close()
    with pytest.raises(Draining):
        subject.open(1)
    assert await subject.requests() == (0, 2)
    assert subject.rows() == {}


@pytest.mark.parametrize("part", ["observe", "mirror"])
async def test_a_defect_costs_at_most_its_row_and_is_logged_for_its_request(
    part: str, subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    logged = list[int]()

    def context(log: Any) -> None:
        logged.append(len(caplog.records))
        log()

    request, ended = subject.open(2, context=context)
    subject.broken.add(part)
    request.put(0, made(1))
    await until(lambda: len(caplog.records) == 1)
    subject.broken.clear()
    request.put(1, made(2))
    first, second = await ended
    assert logged == [0]
    assert (caplog.records[0].levelno, caplog.records[0].exc_info is not None) == (logging.ERROR, True)
    assert "ZeroDivisionError" in caplog.text
    assert isinstance(second, RowAnswer)
    if part == "observe":
        assert isinstance(first, RowAnswer)
    else:
        assert (type(first), first.slug) == (ServiceError, "internal_error")


async def test_rows_and_answers_are_freed_without_the_garbage_collector(subject: Subject) -> None:
    gc.collect()
    gc.disable()
    try:
        row = made(7).row
        seen = weakref.ref(row)
        request, ended = subject.open(1, deadline=time.monotonic() + 60)
        request.put(0, MadeRow(row))
        (answer,) = await ended
        answered = weakref.ref(answer.tensors["logits"])
        del row, request, ended, answer
        await asyncio.sleep(0)
        assert seen() is None
        assert answered() is None

        kept = [made(8)]
        seen = weakref.ref(kept[0].row)

        async def make() -> MadeRow:
            return kept.pop()

        await subject.plane.infer_each(MODEL, [RowSource(make)], deadline=math.inf)
        await asyncio.sleep(0)
        assert seen() is None
    finally:
        gc.enable()

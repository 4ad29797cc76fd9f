"""One request in the plane: rows that are put into the queue, their outcomes, and all that is counted of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from condconv_serve.domain import MadeRow, ModelInfo, Row, RowAnswer, ServedModel, Tensors, Timings
from condconv_serve.domain.caching import FROM_CACHE, CacheResult
from condconv_serve.domain.facts import STAGES, deadline_by
from condconv_serve.errors import DeadlineExceeded, ServiceError, let_go, unexpected_error
from condconv_serve.inference.batching import Admission, Batcher, QueuedRow, RowResult
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tally import Tallies

logger = logging.getLogger(__name__)

RowBatcher = Batcher[ServedModel, Row, Tensors]
Outcome = RowAnswer | ServiceError
InContext = Callable[[Callable[[], None]], None]
"""Calls a function that logs, so that its lines have the ids of a request."""


class Listener(Protocol):
    """Hears of a request's end: a future, or the like. It must not raise."""

    def done(self) -> bool:
        """Whether it has heard of it, or has gone."""
        ...

    def set_result(self, outcomes: list[Outcome], /) -> None:
        """Each row's answer or error, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """Who hears of requests and rows; see `InferencePlane`."""

    metrics: Metrics
    tallies: Tallies
    observe: Callable[[ModelInfo, RowAnswer], None]
    mirror: Callable[[ServedModel, MadeRow, RowAnswer], None]

    def refused(self, model: ServedModel) -> None:
        """A request was not let in."""
        self.tallies.request(model.name, model.version, seconds=0.0, answers=(), whole=False)


class OpenRequest:
    """A request that was let in. Its rows come one by one, and each ends on its own; then the request does.

    Nothing is awaited here: most rows need no task, which would cost more than all that is counted of them.
    """

    def __init__(
        self,
        model: ServedModel,
        rows: int,
        listener: Listener,
        *,
        admission: Admission[ServedModel] | None,
        deadline: float,
        batcher: RowBatcher,
        counting: Counting,
        context: InContext,
    ) -> None:
        """Open it; `InferencePlane.open` says what the arguments are."""
        self.model = model
        self.listener = listener
        self.admission = admission
        self._deadline = deadline
        self._batcher = batcher
        self._counting = counting
        self._context = context
        self._started = time.monotonic()
        self._outcomes: list[Outcome | None] = [None] * rows
        self._left = rows
        self._put = dict[int, QueuedRow[ServedModel, Row, RowResult[Tensors]]]()
        self.closed = False
        counting.metrics.rows.accept(model.name, rows)
        if not rows:
            self._end()

    def put(self, index: int, made: MadeRow) -> None:
        """Queue a row that was made."""
        if self.closed:
            return
        assert self.admission is not None
        receiver = _PutRow(self, index, made)
        self._put[index] = self._batcher.put(made.row, self.admission, receiver, deadline=self._deadline)

    def unmade(self, index: int, error: Exception) -> None:
        """A row can't be made: as `fail`, and its room goes back at once, since batches wait for rows that may come."""
        if self.closed:
            return
        assert self.admission is not None
        self.admission.give_back_one()
        self.fail(index, error)

    def answer(self, index: int, answer: RowAnswer) -> None:
        """A row has its answer."""
        if self.closed:
            return
        model, timings = self.model, answer.timings
        self._counting.metrics.rows.answer(model.name, model.version, _seconds_by_stage(timings), cache=timings.cache)
        try:
            self._counting.observe(model.info, answer)
        except Exception:  # statistics must not cost anybody an answer
            self._log("an answer of %s/%s is missing in the statistics")
        self._settle(index, answer)

    def fail(self, index: int, error: Exception) -> None:
        """A row has none. What isn't an error of the service's own is logged, and its sender isn't told what it is."""
        if self.closed:
            return
        rows = self._counting.metrics.rows
        if not isinstance(error, ServiceError):  # a defect of ours must not spoil the request's other rows
            self._log("a row of %s/%s met an unexpected error", error)
            error = unexpected_error()
        late = isinstance(error, DeadlineExceeded)
        if late:
            rows.give_up(time.monotonic() - self._started)
        rows.end(self.model.name, [(error.slug, deadline_by(self._deadline) if late else "")])
        self._settle(index, let_go(error))  # where it was raised there is the request, which keeps it

    def close(self) -> None:
        """End the request, if it hasn't ended: its sender has gone. Rows that wait are taken out of the queue."""
        if self.closed:
            return
        self.closed = True
        for row in self._put.values():
            self._batcher.forget(row)
        self._put.clear()
        if self.admission is not None:
            self.admission.close()
        if self._left:
            self._counting.metrics.rows.end(self.model.name, [("cancelled", "")] * self._left)
        answers = [row for row in self._outcomes if isinstance(row, RowAnswer)]
        self._counting.tallies.request(
            self.model.name,
            self.model.version,
            seconds=time.monotonic() - self._started,
            answers=answers,
            whole=len(answers) == len(self._outcomes),
        )

    def computed(self, index: int, made: MadeRow, found: RowResult[Tensors]) -> None:
        """A row that was put has been computed."""
        answer = computed_answer(made, found, since=self._started)
        try:
            self._counting.mirror(self.model, made, answer)
        except Exception as error:
            self.fail(index, error)
        else:
            self.answer(index, answer)

    def _log(self, problem: str, error: Exception | bool = True) -> None:
        self._context(partial(logger.error, problem, self.model.name, self.model.version, exc_info=error))

    def _settle(self, index: int, outcome: Outcome) -> None:
        if row := self._put.pop(index, None):
            self._batcher.forget(row)
        self._outcomes[index] = outcome
        self._left -= 1
        if not self._left:
            self._end()

    def _end(self) -> None:
        self.close()
        if not self.listener.done():
            self.listener.set_result([outcome for outcome in self._outcomes if outcome is not None])


class _PutRow:
    """Hears how a row ended that waits in the queue."""

    __slots__ = ("_index", "_made", "_over", "_request")

    def __init__(self, request: OpenRequest, index: int, made: MadeRow) -> None:
        self._request = request
        self._index = index
        self._made = made
        self._over = False

    def done(self) -> bool:
        return self._over or self._request.closed or self._request.listener.done()

    def set_result(self, found: RowResult[Tensors]) -> None:
        self._over = True
        self._request.computed(self._index, self._made, found)

    def set_exception(self, error: Exception) -> None:
        self._over = True
        self._request.fail(self._index, error)


def computed_answer(
    made: MadeRow, found: RowResult[Tensors], *, since: float, cache: CacheResult | None = None
) -> RowAnswer:
    """The answer for a row that was computed; `since` is when its request began, on the monotonic clock."""
    return RowAnswer(
        tensors=found.output,
        timings=Timings(
            decode=made.seconds,
            queue=found.queue,
            inference=found.inference,
            total=time.monotonic() - since,
            cache=cache,
        ),
        batch_size=found.batch_size,
        placement=made.placement,
    )


def _seconds_by_stage(timings: Timings) -> dict[str, float]:
    if timings.cache in FROM_CACHE:  # what wasn't computed says nothing about how long that takes
        return {"total": timings.total}
    return {**{stage: getattr(timings, stage) for stage in STAGES}, "total": timings.total}

"""The inference plane: leases a model, admits rows, batches them, runs them. It doesn't know what they mean."""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from condconv_serve.domain import (
    MadeRow,
    ModelInfo,
    ModelSource,
    Row,
    RowAnswer,
    RowSource,
    ServedModel,
    Tensors,
)
from condconv_serve.domain.caching import CacheUse
from condconv_serve.errors import InvalidParameter, ServiceError
from condconv_serve.inference.batching import Admission, Priority
from condconv_serve.inference.open_request import (
    Counting,
    InContext,
    Listener,
    OpenRequest,
    Outcome,
    RowBatcher,
    computed_answer,
)
from condconv_serve.inference.sharing import AskedRow, RowSharing, answer_of
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tally import Tallies


class InferencePlane:
    """Rows in, named tensors out: the same for every front and every task.

    All that is counted about rows is counted here, wherever the fronts are. Rows that never come here are counted by
    whoever could not send them.
    """

    def __init__(
        self,
        models: ModelSource,
        batcher: RowBatcher,
        *,
        metrics: Metrics,
        tallies: Tallies | None = None,
        observe: Callable[[ModelInfo, RowAnswer], None] = lambda model, row: None,
        sharing: RowSharing | None = None,
        mirror: Callable[[ServedModel, MadeRow, RowAnswer], None] = lambda model, made, answer: None,
    ) -> None:
        """Wire the parts together.

        Args:
            models: where models are found.
            batcher: computes their rows.
            metrics: counts each row's result.
            tallies: counts each request by version.
            observe: gets what the network answered for each row, for statistics; called on the event loop. Answers from
                the cache count, too: what the traffic is like doesn't depend on what had to be computed.
            sharing: has the answers of equal rows; None if each row is computed.
            mirror: gets each row that was computed, with its answer, to try other versions on it; it returns at once.
        """
        self._models = models
        self._batcher = batcher
        self._sharing = sharing
        self._counting = Counting(metrics=metrics, tallies=tallies or Tallies(), observe=observe, mirror=mirror)

    def lease(
        self, model: str | None = None, version: str | None = None, *, split_key: str | None = None
    ) -> AbstractContextManager[ServedModel]:
        """Find a model and keep it loaded until the block ends; arguments and errors are those of `ModelSource.get`."""
        return self._models.lease(model, version, key=split_key)

    async def check(
        self,
        model: str | None = None,
        version: str | None = None,
        *,
        split_key: str | None = None,
        priority: Priority = Priority.NORMAL,
        deadline: float = math.inf,
        cache: CacheUse | None = None,
    ) -> None:
        """Refuse a request before its body is read, if not even one row of it could be answered.

        Raises:
            ModelNotFound, VersionNotFound: there is no such model. QueueFull, WaitTooLong, Draining: as `infer_each`.
        """
        found = self._models.get(model, version, key=split_key)
        self.check_room(found, priority=priority, deadline=deadline, cache=cache)

    @property
    def spare_rows(self) -> int:
        """How many more rows may come before the queue is half full."""
        return self._batcher.spare_rows

    def check_room(
        self,
        model: ServedModel,
        *,
        priority: Priority = Priority.NORMAL,
        deadline: float = math.inf,
        cache: CacheUse | None = None,
    ) -> None:
        """Do the same for a model that has been found."""
        if self._sharing is None or cache is None or not self._sharing.may_answer(cache):
            self._batcher.check(model, 1, priority=priority, deadline=deadline)

    async def infer(
        self, model: ServedModel, rows: Row, *, priority: Priority = Priority.NORMAL, deadline: float = math.inf
    ) -> Tensors:
        """Compute the rows of one request, which may be split over several batches.

        Args:
            model: leased by the caller.
            rows: `[N, image_size, image_size, 3]`, of the model's row type or uint8; at least one.
            priority: how urgent they are.
            deadline: when the caller stops waiting, on the monotonic clock in seconds.

        Returns:
            The model's outputs by name, `[N, ...]`, in the order of the rows.

        Raises:
            InvalidParameter: the rows are none of this model's, or there are none.
            ServiceError: as `infer_each`, and the error of the first row that failed.
        """
        sources = sources_of(rows, model)
        return whole_answer(await self.infer_each(model, sources, priority=priority, deadline=deadline))

    async def infer_each(
        self,
        model: ServedModel,
        sources: Sequence[RowSource],
        *,
        priority: Priority = Priority.NORMAL,
        deadline: float = math.inf,
        cache: CacheUse | None = None,
    ) -> list[RowAnswer | ServiceError]:
        """Make and compute the rows of one request. If a row fails, the others are still answered.

        Args:
            model: leased by the caller.
            sources: make the rows when there is room for all of them.
            priority: how urgent they are.
            deadline: when the caller stops waiting, on the monotonic clock in seconds.
            cache: how it may use the cache, where there is one and rows have digests; not at all if None. Rows whose
                answer is there, or is being computed for an equal one, aren't made and take no room.

        Returns:
            Each row's answer or error, in order.

        Raises:
            QueueFull: the rows don't fit into the queue; no row was made.
            WaitTooLong: they would not be computed by the deadline; no row was made.
            Draining: the service is shutting down.
        """
        ended: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        if self._sharing is None or cache is None:
            request = self.open(model, len(sources), ended, priority=priority, deadline=deadline)
            work = [_make(request, index, source) for index, source in enumerate(sources)]
            return await _ended(request, work, ended)
        terms = _Terms(model, priority, deadline)
        with self._sharing.asked(model, sources, cache, priority) as rows:
            request = self._open(len(rows), ended, terms, room=sum(row.needs_room for row in rows))
            work = [self._share(request, index, row, terms) for index, row in enumerate(rows)]
            return await _ended(request, work, ended)

    def open(
        self,
        model: ServedModel,
        rows: int,
        listener: Listener,
        *,
        priority: Priority = Priority.NORMAL,
        deadline: float = math.inf,
        context: InContext | None = None,
    ) -> OpenRequest:
        """Let in a request whose rows come one by one; the cache isn't asked. Close it when its sender leaves.

        Args:
            model: it stays loaded until the request ends; the caller sees to that.
            rows: how many will come.
            listener: gets each row's answer or error, in order, and nothing else.
            priority: how urgent they are.
            deadline: when the caller stops waiting, on the monotonic clock in seconds.
            context: in which to log; that of the caller if None.

        Raises:
            QueueFull, WaitTooLong, Draining: as `infer_each`.
        """
        return self._open(rows, listener, _Terms(model, priority, deadline), room=rows, context=context)

    def _open(
        self,
        rows: int,
        listener: Listener,
        terms: _Terms,
        *,
        room: int,
        context: InContext | None = None,
    ) -> OpenRequest:
        try:
            admission = self._admit(room, terms) if room else None
        except ServiceError:
            self._counting.refused(terms.model)
            raise
        return OpenRequest(
            terms.model,
            rows,
            listener,
            admission=admission,
            deadline=terms.deadline,
            batcher=self._batcher,
            counting=self._counting,
            context=context or contextvars.copy_context().run,
        )

    def _admit(self, rows: int, terms: _Terms) -> Admission[ServedModel]:
        return self._batcher.admit(terms.model, rows, priority=terms.priority, deadline=terms.deadline)

    async def _share(self, request: OpenRequest, index: int, row: AskedRow, terms: _Terms) -> None:
        """Have a row answered from wherever its answer can be had."""
        try:
            request.answer(index, await self._answer(request, row, terms))
        except Exception as error:
            request.fail(index, error)

    async def _answer(self, request: OpenRequest, row: AskedRow, terms: _Terms) -> RowAnswer:
        started = time.monotonic()
        if row.hit is not None:
            return answer_of(row.hit, "hit", seconds=time.monotonic() - started)
        if row.follows is not None:
            assert self._sharing is not None
            if found := await self._sharing.follow(row.follows, terms.priority, deadline=terms.deadline):
                return answer_of(found, "shared", seconds=time.monotonic() - started)
            with self._admit(1, terms) as own, self._sharing.leading(row, terms.priority) as leader:
                return await self._led(leader, terms, own)
        assert request.admission is not None  # it needed room
        return await self._led(row, terms, request.admission)

    async def _led(self, row: AskedRow, terms: _Terms, admission: Admission[ServedModel]) -> RowAnswer:
        """Compute a row, for others too if it leads."""
        if row.leads is None:
            return await self._computed(row, terms, admission)
        assert self._sharing is not None
        try:
            answer = await self._computed(row, terms, admission)
        except Exception as error:
            self._sharing.fail(row.leads, error)
            raise
        self._sharing.keep(row.leads, answer)
        return answer

    async def _computed(self, row: AskedRow, terms: _Terms, admission: Admission[ServedModel]) -> RowAnswer:
        started = time.monotonic()
        try:
            made = await row.source.make()
        except Exception:
            admission.give_back_one()  # batches wait for rows that may come
            raise
        found = await self._batcher.submit(made.row, admission, deadline=terms.deadline)
        answer = computed_answer(made, found, since=started, cache=row.result)
        self._counting.mirror(terms.model, made, answer)
        return answer


async def _make(request: OpenRequest, index: int, source: RowSource) -> None:
    try:
        made = await source.make()
    except Exception as error:
        request.unmade(index, error)
    else:
        request.put(index, made)


async def _ended(
    request: OpenRequest, work: Sequence[Coroutine[Any, Any, None]], ended: asyncio.Future[list[Outcome]]
) -> list[Outcome]:
    """Do the work of each row, and wait for the request's end."""
    try:
        if len(work) == 1:  # most requests: a task would cost more than all that is counted
            await work[0]
        else:
            await asyncio.gather(*work)
        return await ended
    finally:
        request.close()


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the rows of one request have in common."""

    model: ServedModel
    priority: Priority
    deadline: float


def sources_of(rows: Row, model: ServedModel) -> list[RowSource]:
    """The rows of one request as `infer_each` takes them; arguments and errors are those of `InferencePlane.infer`."""
    preprocessing = model.info.preprocessing
    size, types = preprocessing.image_size, sorted({"uint8", np.dtype(preprocessing.row_type).name})
    if rows.shape[1:] != (size, size, 3) or not len(rows) or rows.dtype.name not in types:
        raise InvalidParameter(
            f"Rows of {model.name} are {' or '.join(types)} [N, {size}, {size}, 3] with N at least 1, not "
            f"{rows.dtype.name} {list(rows.shape)}."
        )
    return [made_source(MadeRow(row)) for row in rows]


def made_source(made: MadeRow | ServiceError) -> RowSource:
    """The source of a row that is there already, or of the error that stands in its place."""

    async def make() -> MadeRow:
        if isinstance(made, ServiceError):
            raise made
        return made

    return RowSource(make)


def whole_answer(found: Sequence[RowAnswer | ServiceError]) -> Tensors:
    """The outputs of all rows by name, `[N, ...]`.

    Raises:
        ServiceError: that of the first row that failed.
    """
    answers = []
    for outcome in found:
        if isinstance(outcome, ServiceError):
            raise outcome
        answers.append(outcome.tensors)
    return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}

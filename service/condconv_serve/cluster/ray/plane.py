"""The inference plane of an ingress replica: it makes the rows here, and has a model replica compute them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from condconv_serve.cluster.ray.messages import Caller, ReplicaLost, RowsReply, RowsRequest
from condconv_serve.cluster.ray.mirror import Mirror
from condconv_serve.cluster.ray.retries import Retries
from condconv_serve.deadline import ending_at
from condconv_serve.domain import MadeRow, Row, RowAnswer, RowSource, ServedModel, Tensors
from condconv_serve.domain.caching import CacheUse
from condconv_serve.domain.facts import deadline_by, deadlines_of
from condconv_serve.domain.trace import Stages
from condconv_serve.errors import DeadlineExceeded, NotReady, QueueFull, ServiceError, unexpected_error
from condconv_serve.inference.batching import Priority
from condconv_serve.inference.plane import sources_of, whole_answer
from condconv_serve.telemetry.logs import current_request
from condconv_serve.telemetry.metrics import Metrics

GRACE_SECONDS = 0.5
"""How much later than the deadline a replica's answer may come: it says which rows were late, and has counted them."""
ENDINGS = [(slug, by) for slug in (DeadlineExceeded.slug, NotReady.slug) for by in deadlines_of(slug)]
"""What becomes of rows that no replica answers, as `RowCollector.start` takes it."""
logger = logging.getLogger(__name__)


class Send(Protocol):
    """Gives rows to a model replica, whichever has them soonest. Cancelling takes them back."""

    async def __call__(self, request: RowsRequest, /, *, not_taken: Callable[[], None]) -> RowsReply:
        """Return the replica's answer.

        Args:
            request: the rows.
            not_taken: called if this is cancelled before a replica has them.

        Raises:
            ReplicaLost: there will be none from this replica.
        """
        ...


@dataclass(slots=True)
class _Place:
    """Where the rows of a request are.

    Attributes:
        here: whether no replica has them, nor has refused them. Then whatever ends them is counted here.
    """

    here: bool = True

    def back(self) -> None:
        """They are here again."""
        self.here = True


class ReplicaPlane:
    """Implements `condconv_serve.pipeline.Plane`.

    A request is sent again if its replica died, or can't take it while others may. So every row is answered once, by
    one replica, and its sender hears of nothing. What is counted about rows is counted by the replica that has them.
    Those that end while no replica has them are counted here.
    """

    def __init__(
        self,
        models: Mirror,
        send: Send,
        *,
        max_rows: int,
        metrics: Metrics,
    ) -> None:
        """Wire the parts together.

        Args:
            models: what the replicas serve.
            send: gives rows to a replica.
            max_rows: most rows here for each model replica that there is, from before they are made until they are
                answered.
            metrics: counts requests that are sent again, and rows that end here.
        """
        self._models = models
        self._send = send
        self._max_rows = max_rows
        self._metrics = metrics
        self._rows = 0

    def lease(
        self, model: str | None = None, version: str | None = None, *, split_key: str | None = None
    ) -> AbstractContextManager[ServedModel]:
        """Find a model. The replica keeps it loaded."""
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
        """Refuse a request before its body is read, if it couldn't be taken here. A replica may still refuse it."""
        self._models.get(model, version, key=split_key)
        self._demand_room(1)

    async def infer(
        self, model: ServedModel, rows: Row, *, priority: Priority = Priority.NORMAL, deadline: float = math.inf
    ) -> Tensors:
        """See `condconv_serve.inference.plane.InferencePlane.infer`."""
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
        """See `condconv_serve.inference.plane.InferencePlane.infer_each`.

        Rows are made before a replica is asked whether it has room for them. That one may have the answer of an equal
        row in its cache.
        """
        started, facts = time.monotonic(), current_request()
        place, rows = _Place(), list[MadeRow | ServiceError]()
        with self._room(len(sources)):
            try:
                rows = await asyncio.gather(*(_made(source) for source in sources))
                made = [row.seconds for row in rows if isinstance(row, MadeRow)]
                if facts is not None and made:
                    facts.stages = Stages({"decode": max(made)}, time.monotonic())  # the replica exports the others
                request = RowsRequest(
                    token=uuid.uuid4().hex,
                    model=model.name,
                    version=model.version,
                    rows=tuple(rows),
                    priority=priority,
                    timeout=None,
                    deadline_by=deadline_by(deadline),
                    digests=tuple(source.digest for source in sources),
                    cache=cache,
                    caller=Caller.current(),
                )
                outcomes = await self._answered(request, deadline, place)
            except (ServiceError, asyncio.CancelledError) as error:
                slug = error.slug if isinstance(error, ServiceError) else "cancelled"
                slugs = [row.slug if isinstance(row, ServiceError) else slug for row in rows or sources]
                if place.here:
                    self._count(model.name, slugs, deadline, time.monotonic() - started)
                if not isinstance(error, DeadlineExceeded):
                    raise
                outcomes = [row if isinstance(row, ServiceError) else error for row in rows]
        seconds = time.monotonic() - started
        return [_with_total(outcome, seconds) for outcome in outcomes]

    async def _answered(
        self, request: RowsRequest, deadline: float, place: _Place
    ) -> Sequence[RowAnswer | ServiceError]:
        retries = Retries(deadline, replicas=self._models.replicas)
        while True:
            left = None if deadline == math.inf else max(deadline - time.monotonic(), 0.0)
            place.here = False
            try:
                async with ending_at(deadline + GRACE_SECONDS):
                    reply = await self._send(replace(request, timeout=left), not_taken=place.back)
                if reply.refusal is None:
                    return reply.outcomes
                reason, pause = reply.refusal.slug, retries.after_refusal(reply.refusal)
                logger.info("replica %s can't take the rows now (%s)", reply.replica, reason)
            except ReplicaLost as lost:
                place.back()  # what it had counted died with it
                reason, pause = "replica_lost", retries.after_loss()
                logger.warning("the rows are sent again: %s", lost)
            place.back()
            self._metrics.replica_retries.labels(reason).inc()
            async with ending_at(deadline):
                await asyncio.sleep(pause)

    def _count(self, model: str, slugs: Sequence[str], deadline: float, seconds: float) -> None:
        """Count rows that end here, as replicas count theirs."""
        outcomes = [(slug, deadline_by(deadline) if slug == DeadlineExceeded.slug else "") for slug in slugs]
        self._metrics.rows.accept(model, len(outcomes))
        self._metrics.rows.end(model, outcomes)
        for slug in slugs:
            if slug == DeadlineExceeded.slug:
                self._metrics.rows.give_up(seconds)

    @contextmanager
    def _room(self, rows: int) -> Iterator[None]:
        self._demand_room(rows)
        self._rows += rows
        try:
            yield
        finally:
            self._rows -= rows

    def _demand_room(self, rows: int) -> None:
        most = self._max_rows * max(self._models.replicas, 1)
        if self._rows + rows > most:
            raise QueueFull(
                f"{self._rows} of {most} images are waiting; there is no room for {rows} more.", retry_after=1.0
            )


async def _made(source: RowSource) -> MadeRow | ServiceError:
    try:
        return await source.make()
    except ServiceError as error:
        return error
    except Exception:  # a defect of ours must not spoil the request's other rows
        logger.exception("a row met an unexpected error")
        return unexpected_error()


def _with_total(outcome: RowAnswer | ServiceError, seconds: float) -> RowAnswer | ServiceError:
    if isinstance(outcome, ServiceError):
        return outcome
    return replace(outcome, timings=replace(outcome.timings, total=seconds))

"""Calls from ingress replicas to model replicas, and what it means when none of them answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from condconv_serve.cluster.ray.control import Asked
from condconv_serve.cluster.ray.messages import Caller, ReplicaLost, RowsReply, RowsRequest
from condconv_serve.errors import ServiceError


class Calls:
    """Calls model replicas: implements `plane.Send` and `control.Ask`."""

    def __init__(
        self, models: Any, *, lost: tuple[type[Exception], ...], unassigned: Callable[[Any], bool] = lambda call: False
    ) -> None:
        """Prepare.

        Args:
            models: Ray Serve's handle of their deployment.
            lost: Ray's exceptions which say that there will be no answer.
            unassigned: whether a call was cancelled before Ray gave it to a replica.
        """
        self._models = models
        self._lost = lost
        self._unassigned = unassigned

    async def __call__(self, request: RowsRequest, /, *, not_taken: Callable[[], None]) -> RowsReply:
        """See `condconv_serve.cluster.ray.plane.Send`."""
        models = self._models.options(method_name="infer", multiplexed_model_id=f"{request.model}/{request.version}")
        reply: RowsReply = await self._result(models.remote(request), not_taken)
        return reply

    async def one(self, method: Asked, *arguments: Any) -> Any:
        """See `condconv_serve.cluster.ray.control.Ask`."""
        return await self._result(self._models.options(method_name="ask").remote(Caller.current(), method, *arguments))

    async def each(self, method: Asked, *arguments: Any) -> Sequence[Any]:
        """See `condconv_serve.cluster.ray.control.Ask`."""
        try:
            asked = self._models.broadcast("ask", Caller.current(), method, *arguments)
            answers = await asked.results_async(return_exceptions=True)
        except self._lost:  # no replica is running
            return []
        lost = (*self._lost, asyncio.CancelledError)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, (*lost, ServiceError)):
                raise answer
        return [answer for answer in answers if not isinstance(answer, lost)]

    async def _result(self, response: Any, not_taken: Callable[[], None] = lambda: None) -> Any:
        try:
            return await response
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # nobody here has given up: Ray did
                raise ReplicaLost("Ray cancelled the call.") from error
            response.cancel()  # rows leave the replica's queue
            if self._unassigned(response):
                not_taken()
            raise
        except self._lost as error:
            raise ReplicaLost(f"{type(error).__name__}: {error}") from error

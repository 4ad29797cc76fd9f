"""Calls from ingress replicas to model replicas, and what it means when none of them answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from condconv_serve.cluster.ray.control import Asked
from condconv_serve.cluster.ray.messages import ReplicaLost, RowsReply, RowsRequest
from condconv_serve.errors import ServiceError


class Calls:
    """Calls model replicas: implements `plane.Send` and `control.Ask`."""

    def __init__(self, models: Any, *, lost: tuple[type[Exception], ...]) -> None:
        """Prepare.

        Args:
            models: Ray Serve's handle of their deployment.
            lost: Ray's exceptions which say that there will be no answer.
        """
        self._models = models
        self._lost = lost

    async def __call__(self, request: RowsRequest, /) -> RowsReply:
        """See `condconv_serve.cluster.ray.plane.Send`."""
        version = f"{request.model}/{request.version}"
        reply: RowsReply = await self._call("infer", request, multiplexed_model_id=version)
        return reply

    async def one(self, method: Asked, *arguments: Any) -> Any:
        """See `condconv_serve.cluster.ray.control.Ask`."""
        return await self._call("ask", method, *arguments)

    async def each(self, method: Asked, *arguments: Any) -> Sequence[Any]:
        """See `condconv_serve.cluster.ray.control.Ask`."""
        try:
            answers = await self._models.broadcast("ask", method, *arguments).results_async(return_exceptions=True)
        except self._lost:  # no replica is running
            return []
        lost = (*self._lost, asyncio.CancelledError)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, (*lost, ServiceError)):
                raise answer
        return [answer for answer in answers if not isinstance(answer, lost)]

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        response = self._models.options(method_name=method, **options).remote(*arguments)
        try:
            return await response
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # nobody here has given up: Ray did
                raise ReplicaLost("Ray cancelled the call.") from error
            response.cancel()  # rows leave the replica's queue
            raise
        except self._lost as error:
            raise ReplicaLost(f"{type(error).__name__}: {error}") from error

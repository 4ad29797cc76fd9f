"""The inference plane in a front: finds models here, and has the engine process compute their rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from condconv_serve.cluster.workers.remote_engine import RemoteEngine
from condconv_serve.domain import Row, RowAnswer, RowSource, ServedModel, Tensors
from condconv_serve.domain.caching import CacheUse
from condconv_serve.errors import ServiceError
from condconv_serve.inference.batching import Priority
from condconv_serve.inference.plane import sources_of, whole_answer
from condconv_serve.serving.leases import Lease

CHECK = "check"
"""The call that refuses a request before its body is read."""


class RemotePlane:
    """Implements `condconv_serve.pipeline.Plane`. All limits and all accounting are those of the engine process.

    Methods raise what those of `condconv_serve.inference.plane.InferencePlane` raise, and `NotReady` if the engine
    process has gone.
    """

    def __init__(self, engine: RemoteEngine, *, caches: bool = False) -> None:
        """Have rows computed by `engine`; `caches` says whether it has a response cache."""
        self._engine = engine
        self._caches = caches

    def lease(self, model: str | None = None, version: str | None = None, *, split_key: str | None = None) -> Lease:
        """Find a model and keep it loaded until the block ends."""
        return self._engine.models.lease(model, version, key=split_key)

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
        """Refuse a request before its body is read, if not even one row of it could be admitted."""
        with self.lease(model, version, split_key=split_key) as found:
            session, number = self._engine.session_of(found)
            if session.room.holds(1):  # if that is no longer so, the request itself is refused
                return
            await self._engine.call(CHECK, number, int(priority), float(deadline), cache if self._caches else None)

    async def infer(
        self, model: ServedModel, rows: Row, *, priority: Priority = Priority.NORMAL, deadline: float = math.inf
    ) -> Tensors:
        """Compute the rows of one request."""
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
        """Make and compute the rows of one request."""
        return await self._engine.infer_each(
            model, sources, priority=priority, deadline=deadline, cache=cache if self._caches else None
        )

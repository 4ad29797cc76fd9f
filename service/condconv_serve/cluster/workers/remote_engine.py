"""The engine process, as a front sees it: it may not be there yet, and it may go and come back."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from condconv_serve.cluster.engine_stub import EngineStub
from condconv_serve.cluster.workers.engine_session import EngineSession
from condconv_serve.cluster.workers.mirrors import MirroredModels, MirroredReadiness
from condconv_serve.domain import RowAnswer, RowSource, ServedModel
from condconv_serve.domain.caching import CacheUse
from condconv_serve.errors import ServiceError
from condconv_serve.inference.batching import Priority

logger = logging.getLogger(__name__)


class RemoteEngine:
    """Sends requests and calls to the engine process that is there now.

    Attributes:
        models: what it serves.
        readiness: whether requests can be answered.
    """

    def __init__(self, *, on_lost: Callable[[], None] = lambda: None) -> None:
        """Start without an engine process; `on_lost` is called when the one that was there has gone."""
        self._on_lost = on_lost
        self.models = MirroredModels()
        self.readiness = MirroredReadiness()
        self._session: EngineSession | None = None

    def connect(self, connection: socket.socket) -> None:
        """Talk to a new engine process; called on the event loop. The one before has gone."""
        self.close()
        self._session = EngineSession(connection, self.models, self.readiness, on_close=self._lost)

    def close(self) -> None:
        """Leave the engine process."""
        session, self._session = self._session, None
        if session is not None:
            self.readiness.lost()
            session.close()

    async def infer_each(
        self,
        model: ServedModel,
        sources: Sequence[RowSource],
        *,
        priority: Priority,
        deadline: float,
        cache: CacheUse | None,
    ) -> list[RowAnswer | ServiceError]:
        """See `condconv_serve.inference.plane.InferencePlane.infer_each`.

        Raises:
            NotReady: the engine process has gone, or is another one than that which served the model.
        """
        session, number = self.session_of(model)
        return await session.infer_each(number, sources, priority=priority, deadline=deadline, cache=cache)

    async def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the table in `condconv_serve.cluster.workers.calls`, and return what it returns.

        Raises:
            NotReady: the engine process isn't there, or has gone before it answered.
            ServiceError: what the function raises.
        """
        return await self._demand().call(name, *arguments)

    def tell(self, name: str, *arguments: Any) -> None:
        """Call such a function without waiting for it; if there is no engine process, that is lost."""
        if self._session is not None:
            self._session.tell(name, *arguments)

    def session_of(self, model: ServedModel) -> tuple[EngineSession, int]:
        """The connection with the engine process that has a model, and the model's number there.

        Raises:
            NotReady: it has gone.
        """
        session, engine = self._demand(), model.engine
        if not isinstance(engine, EngineStub) or engine.connection is not session:
            raise self.readiness.gone()
        return session, engine.number

    def _demand(self) -> EngineSession:
        if self._session is None or not self._session.welcomed:
            raise self.readiness.gone()
        return self._session

    def _lost(self, session: EngineSession) -> None:
        if self._session is session:
            self._session = None
            self.readiness.lost()
            self._on_lost()

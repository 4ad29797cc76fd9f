"""The engine process's side of all fronts: takes their connections, and tells them what is served and what is ready."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable, Collection
from types import TracebackType

from condconv_serve.cluster.workers.front_session import Calls, FrontSession
from condconv_serve.cluster.workers.messages import ReadinessReport
from condconv_serve.errors import CapacityError
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.serving.readiness import Readiness
from condconv_serve.serving.served import LeasedModels

LOOK_SECONDS = 0.1
"""How often readiness is looked at: it depends on time, too, so nothing tells when it changes. And at requests."""
BEAT_LOOKS = 20
"""Every so many times fronts hear of it though nothing has changed, so that they notice when this process hangs."""


class Hub:
    """All fronts, as the engine process sees them. Use as a context manager; leaving it ends the connections."""

    def __init__(
        self,
        plane: InferencePlane,
        models: LeasedModels,
        readiness: Readiness,
        *,
        slots: int,
        calls: Callable[[FrontSession], Calls],
    ) -> None:
        """Prepare.

        Args:
            plane: computes the fronts' rows.
            models: what is served.
            readiness: whether requests can be answered.
            slots: how many rows a front may have in shared memory at once, in each of its arenas.
            calls: makes the table of what a front may call.
        """
        self._plane = plane
        self._models = models
        self._readiness = readiness
        self._slots = slots
        self._calls = calls
        self._sessions: set[FrontSession] = set()
        self._told: ReadinessReport | None = None
        self._changed = False
        self._looking: asyncio.Task[None] | None = None

    def __enter__(self) -> Hub:
        """Follow models and readiness; called on the event loop."""
        loop = asyncio.get_running_loop()

        def on_change() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._models_changed)

        self._models.watch(on_change)
        self._looking = loop.create_task(self._look())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the connections."""
        self._models.watch(lambda: None)
        if self._looking is not None:
            self._looking.cancel()
        for session in tuple(self._sessions):
            session.close()

    def take(self, connection: socket.socket) -> None:
        """A front has connected."""
        session = FrontSession(
            connection,
            self._plane,
            self._models,
            slots=self._slots,
            calls=self._calls,
            on_failure=self.tell_ready,
            on_close=self._sessions.discard,
        )
        self._sessions.add(session)
        self._tell_models([session])
        session.tell_ready(self._state())

    def tell_ready(self) -> None:
        """Tell the fronts at once whether requests can be answered, if that has changed."""
        state = self._state()
        if self._told is None or _words(state) != _words(self._told):
            self._told = state
            for session in self._sessions:
                session.tell_ready(state)

    def _state(self) -> ReadinessReport:
        readiness = self._readiness
        return ReadinessReport(readiness.refusal(), readiness.unready(), readiness.problems(), readiness.draining)

    def _models_changed(self) -> None:
        """Tell the fronts once for all changes of one turn of the loop."""
        if not self._changed:
            self._changed = True
            asyncio.get_running_loop().call_soon(self._tell_all)

    def _tell_all(self) -> None:
        self._changed = False
        self._tell_models(self._sessions)
        self.tell_ready()

    def _tell_models(self, sessions: Collection[FrontSession]) -> None:
        while True:
            served = self._models.served
            with contextlib.ExitStack() as held:
                for versions in served.models.values():
                    for model in versions.values():
                        held.enter_context(self._models.hold(model))
                if self._models.served is not served:  # something may have gone before it was held
                    continue
                for session in sessions:
                    session.tell_models(served)
                return

    async def _look(self) -> None:
        for look in itertools.count(1):
            await asyncio.sleep(LOOK_SECONDS)
            self.tell_ready()
            for session in self._sessions:
                session.end_late()
            if look % BEAT_LOOKS == 0:
                state = self._state()
                for session in self._sessions:
                    session.beat(state)


def _words(state: ReadinessReport) -> tuple[object, ...]:
    """What of a state matters: errors are never equal, and nobody needs fractions of seconds."""
    refusal, unready, problems, draining = state
    return _said(refusal), _said(unready), problems, draining


def _said(error: CapacityError | None) -> tuple[str, str, int] | None:
    return None if error is None else (error.slug, str(error), round(error.retry_after or 0))

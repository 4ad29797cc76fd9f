"""A front and an engine process, as two ends of a real connection on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any
from unittest.mock import Mock

import numpy as np
from prometheus_client import CollectorRegistry

from condconv_serve.cluster.workers.calls import EngineParts, calls_of
from condconv_serve.cluster.workers.front_session import Calls, FrontSession
from condconv_serve.cluster.workers.hub import Hub
from condconv_serve.cluster.workers.remote_engine import RemoteEngine
from condconv_serve.cluster.workers.remote_plane import RemotePlane
from condconv_serve.domain import MadeRow, RowSource, ServedModel, rows_of
from condconv_serve.inference.ablation_queue import AblationQueue
from condconv_serve.inference.batching import Batcher
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.serving.readiness import Readiness
from condconv_serve.serving.served import LeasedModels, Served
from condconv_serve.store.default import Default
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tally import Tallies
from tests.contract.fakes import FunctionEngine, ShadeEngine, model_info, served_model
from tests.contract.until import until

SHADES = ShadeEngine()
GUILTY = 251
"""Rows of this shade can't be computed."""


def compute(rows: Any, stream: int) -> Any:
    """As `ShadeEngine`, but one shade breaks it."""
    if (rows[:, 0, 0, 0] == GUILTY).any():
        raise RuntimeError("secret")
    return SHADES(rows, stream)


def model(name: str = "fake", version: str = "1") -> ServedModel:
    return served_model(model_info(name, version), FunctionEngine(compute))


def pixels(shade: int) -> Any:
    return np.full((32, 32, 3), shade, np.uint8)


def source(shade: int) -> RowSource:
    async def make() -> MadeRow:
        return MadeRow(pixels(shade), 0.25)

    return RowSource(make)


class Models(LeasedModels):
    """Models of an engine process."""

    def __init__(self, *served: ServedModel) -> None:
        super().__init__(Served(default=Default(name="fake", reason="")), release_memory=lambda: None)
        self.serve(*served)

    def serve(self, *served: ServedModel) -> None:
        """Serve these, and no others."""
        models: dict[str, dict[str, ServedModel]] = {}
        for one in served:
            models.setdefault(one.name, {})[one.version] = one
        before = self._change(lambda _: {"models": models})
        for versions in before.models.values():
            for one in versions.values():
                if not self.served.holds(one):
                    self._leases.retire(one, lambda: None)


class Pair:
    """Both ends. Batches wait while `free` is cleared."""

    def __init__(self, *, slots: int = 8, max_queue_rows: int = 64, calls: Mapping[str, Any] | None = None) -> None:
        self.metrics, self.tallies = Metrics(CollectorRegistry()), Tallies()
        self.free = asyncio.Event()
        self.free.set()
        self.models = Models(model())
        self.batcher: Any = Batcher(
            self._run, streams=1, max_batch_size=4, max_queue_rows=max_queue_rows, metrics=self.metrics
        )
        self.engine_plane = InferencePlane(self.models, self.batcher, metrics=self.metrics, tallies=self.tallies)
        self.ablator = AblationQueue(Mock(), max_waiting=2)
        self.readiness = Readiness(self.batcher.health.problem)
        self._more_calls = dict(calls or {})
        self.sessions: list[FrontSession] = []
        self.hub = Hub(self.engine_plane, self.models, self.readiness, slots=slots, calls=self._calls)
        self.engine = RemoteEngine()
        self.plane = RemotePlane(self.engine)

    def _calls(self, session: FrontSession) -> Calls:
        self.sessions.append(session)

        parts = EngineParts(
            plane=self.engine_plane,
            rates=Mock(),
            versions=Mock(),
            routing=None,
            recent=None,
            tallies=self.tallies,
            shadows=Mock(),
            ablator=self.ablator,
            metrics=self.metrics,
        )
        return {**calls_of(parts)(session), **self._more_calls}

    async def _run(self, model: ServedModel, rows: Any) -> Any:
        await self.free.wait()
        return rows_of(model.engine(np.stack(rows), 0))

    async def connect(self, engine: RemoteEngine | None = None) -> None:
        """Connect a front, by default `engine`."""
        engine = engine or self.engine
        ours, theirs = socket.socketpair()
        self.hub.take(theirs)
        engine.connect(ours)
        await until(lambda: engine.models.models() == {} or engine.readiness.refusal() is None)
        await until(engine.models.models)

    async def infer(self, *shades: int, deadline: float = float("inf")) -> list[Any]:
        """Have rows computed by the front."""
        with self.plane.lease() as leased:
            return await self.plane.infer_each(leased, [source(shade) for shade in shades], deadline=deadline)

    def outcomes(self) -> dict[str, float]:
        """Rows that the engine process has counted, by outcome."""
        (family,) = (family for family in self.metrics.registry.collect() if family.name == "condconv_rows")
        return {s.labels["outcome"]: s.value for s in family.samples if s.name == "condconv_rows_total"}

    def free_slots(self) -> list[int]:
        """How many slots of each of the front's arenas are free."""
        session = self.engine._session
        assert session is not None
        return [arena.free for arena in session._arenas]


@contextlib.asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[Pair]:
    """A front that is connected with an engine process that is ready."""
    pair = Pair(**options)
    pair.readiness.loaded()
    async with pair.batcher, asyncio.timeout(20):
        with pair.hub:
            try:
                await pair.connect()
                yield pair
            finally:
                pair.free.set()
                pair.engine.close()

"""What a front may call in the engine process: an explicit table, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from prometheus_client import Metric

from condconv_serve.cluster.workers.engine_session import CROP
from condconv_serve.cluster.workers.front_session import Calls, FrontSession
from condconv_serve.cluster.workers.remote_plane import CHECK
from condconv_serve.domain import Ablated, Ablator, Pixels, RoutingOverrides, Row
from condconv_serve.domain.caching import CacheUse
from condconv_serve.fronts.context import RecentAnswers, RoutingFigures, Shadows, TallySource, VersionAdmin
from condconv_serve.fronts.rates import Rates
from condconv_serve.inference.batching import Priority
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.store.aliases import Alias
from condconv_serve.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParts:
    """The parts of the engine process whose functions fronts call; those that are switched off are None."""

    plane: InferencePlane
    rates: Rates
    versions: VersionAdmin
    routing: RoutingFigures | None
    recent: RecentAnswers | None
    tallies: TallySource
    shadows: Shadows
    ablator: Ablator
    metrics: Metrics


def calls_of(parts: EngineParts) -> Callable[[FrontSession], Calls]:
    """Make what makes the table for one front."""

    def table(session: FrontSession) -> Calls:
        versions, ablations = parts.versions, _Ablations(session, parts.ablator)

        async def collect() -> list[Metric]:
            return list(parts.metrics.registry.collect())

        async def set_alias(name: str, alias: str, to: Mapping[str, int], mirror: Mapping[str, int]) -> Alias:
            return await versions.set_alias(name, alias, to, mirror=mirror)

        found: dict[str, Callable[..., Any]] = {
            CHECK: _check(session, parts.plane),
            CROP: _crop(session),
            "metrics.collect": collect,
            "rates.use": parts.rates.use,
            "versions.status": lambda: asyncio.to_thread(versions.status),
            "versions.load": versions.load,
            "versions.unload": versions.unload,
            "versions.set_alias": set_alias,
            "versions.roll_back": versions.roll_back,
            "versions.delete_alias": versions.delete_alias,
            "tallies.read": parts.tallies.read,
            "shadows.read": parts.shadows.read,
            "ablator.check": ablations.check,
            "ablator.enter": ablations.enter,
            "ablator.leave": ablations.leave,
            "ablator.ablate": ablations.ablate,
        }
        if parts.routing is not None:
            routing = parts.routing
            found |= {
                "routing.state": routing.state,
                "routing.class_means": routing.class_means,
                "routing.reset": routing.reset,
            }
        if parts.recent is not None:
            recent = parts.recent

            async def remember(request: RecentRequest, owner: str | None) -> None:
                recent.remember(request, owner=owner)

            async def find(request_id: str, owner: str | None) -> RecentRequest:
                return await recent.find(request_id, owner=owner)

            found |= {"recent.remember": remember, "recent.find": find}
        return found

    return table


def _check(session: FrontSession, plane: InferencePlane) -> Callable[..., Any]:
    def check(model: int, priority: int, deadline: float, cache: CacheUse | None) -> None:
        plane.check_room(session.model(model), priority=Priority(priority), deadline=deadline, cache=cache)

    return check


def _crop(session: FrontSession) -> Callable[..., Any]:
    async def crop(model: int, data: bytes, left: int, top: int, side: int) -> Pixels | None:
        cropper = session.model(model).crop_jpeg
        return None if cropper is None else await asyncio.to_thread(cropper, data, left, top, side)

    return crop


class _Ablations:
    """Ablations for one front, which numbers its places. They are given back when it goes."""

    def __init__(self, session: FrontSession, ablator: Ablator) -> None:
        self._session = session
        self._ablator = ablator
        self._places: dict[int, AsyncExitStack] = {}
        session.closing.push_async_callback(self._leave_all)

    async def check(self) -> None:
        await self._ablator.check()

    async def enter(self, number: int) -> None:
        place = AsyncExitStack()
        await place.enter_async_context(self._ablator.admit())
        self._places[number] = place

    async def leave(self, number: int) -> None:
        if place := self._places.pop(number, None):  # the front doesn't know whether it has got it
            await place.aclose()

    async def ablate(self, model: int, row: Row, overrides: RoutingOverrides, deadline: float) -> Ablated:
        return await self._ablator.ablate(self._session.model(model), row, overrides, deadline=deadline)

    async def _leave_all(self) -> None:
        for place in tuple(self._places.values()):
            await place.aclose()

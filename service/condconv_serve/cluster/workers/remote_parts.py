"""What a front's application works with where the thing itself is in the engine process: one class for each part.

All of them raise what the thing itself raises, and `NotReady` if the engine process isn't there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from condconv_serve.cluster.workers.remote_engine import RemoteEngine
from condconv_serve.domain import Ablated, RoutingOverrides, Row, ServedModel
from condconv_serve.fronts.keys import ApiKey
from condconv_serve.routing.insight import ClassMeans
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.statistics import Window
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.shadow.counts import ShadowCounts
from condconv_serve.store.aliases import NO_MIRROR, Alias
from condconv_serve.telemetry.tally import VersionTally


class _Remote:
    def __init__(self, engine: RemoteEngine) -> None:
        """Ask `engine`."""
        self._engine = engine


class RemoteRates(_Remote):
    """How often each key was used, at all fronts: implements `Rates`."""

    async def use(self, key: ApiKey) -> None:
        """See `condconv_serve.fronts.rates.Rates.use`."""
        if key.requests_per_minute is not None:
            await self._engine.call("rates.use", key)


class RemoteVersions(_Remote):
    """What admins ask for: implements `condconv_serve.fronts.context.VersionAdmin`."""

    def __init__(self, engine: RemoteEngine, loop: asyncio.AbstractEventLoop) -> None:
        """Ask `engine`, from threads over the event loop that it is used on."""
        super().__init__(engine)
        self._loop = loop

    def status(self) -> Mapping[str, list[VersionStatus]]:
        """See the protocol; called on a thread."""
        asked = self._engine.call("versions.status")
        found: Mapping[str, list[VersionStatus]] = asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        return found

    async def load(self, name: str, version: str) -> VersionStatus:
        """See the protocol."""
        found: VersionStatus = await self._engine.call("versions.load", name, version)
        return found

    async def unload(self, name: str, version: str) -> VersionStatus:
        """See the protocol."""
        found: VersionStatus = await self._engine.call("versions.unload", name, version)
        return found

    async def set_alias(
        self, name: str, alias: str, versions: Mapping[str, int], *, mirror: Mapping[str, int] = NO_MIRROR
    ) -> Alias:
        """See the protocol."""
        found: Alias = await self._engine.call("versions.set_alias", name, alias, dict(versions), dict(mirror))
        return found

    async def roll_back(self, name: str, alias: str) -> Alias:
        """See the protocol."""
        found: Alias = await self._engine.call("versions.roll_back", name, alias)
        return found

    async def delete_alias(self, name: str, alias: str) -> None:
        """See the protocol."""
        await self._engine.call("versions.delete_alias", name, alias)


class RemoteRouting(_Remote):
    """Live routing statistics of all fronts: implements `condconv_serve.fronts.context.RoutingFigures`."""

    async def state(self, model: str, version: str, windows: Sequence[Window]) -> RoutingState | None:
        """See the protocol."""
        found: RoutingState | None = await self._engine.call("routing.state", model, version, tuple(windows))
        return found

    async def class_means(self, model: str, version: str, classes: Collection[int]) -> ClassMeans:
        """See the protocol."""
        found: ClassMeans = await self._engine.call("routing.class_means", model, version, tuple(classes))
        return found

    async def reset(self, model: str | None = None, version: str | None = None) -> Sequence[tuple[str, str]]:
        """See the protocol."""
        found: Sequence[tuple[str, str]] = await self._engine.call("routing.reset", model, version)
        return found


class RemoteRecent(_Remote):
    """Recent requests of all fronts: implements `condconv_serve.fronts.context.RecentAnswers`."""

    def remember(self, request: RecentRequest, *, owner: str | None) -> None:
        """See the protocol."""
        self._engine.tell("recent.remember", request, owner)

    async def find(self, request_id: str, *, owner: str | None) -> RecentRequest:
        """See the protocol."""
        found: RecentRequest = await self._engine.call("recent.find", request_id, owner)
        return found


class RemoteTallies(_Remote):
    """What each version has done for all fronts: implements `condconv_serve.fronts.context.TallySource`."""

    async def read(self, versions: Sequence[tuple[str, str]]) -> Sequence[VersionTally]:
        """See the protocol."""
        found: Sequence[VersionTally] = await self._engine.call("tallies.read", tuple(versions))
        return found


class RemoteShadows(_Remote):
    """How versions compare that got copies: implements `condconv_serve.fronts.context.Shadows`."""

    async def read(self, name: str) -> Sequence[ShadowCounts]:
        """See the protocol."""
        found: Sequence[ShadowCounts] = await self._engine.call("shadows.read", name)
        return found


class RemoteAblator(_Remote):
    """Ablations: implements `condconv_serve.domain.Ablator`. One object numbers the places of a front."""

    def __init__(self, engine: RemoteEngine) -> None:
        """Ask `engine`."""
        super().__init__(engine)
        self._places = itertools.count()

    async def check(self) -> None:
        """See the protocol."""
        await self._engine.call("ablator.check")

    @asynccontextmanager
    async def admit(self) -> AsyncGenerator[None, None]:
        """See the protocol."""
        place = next(self._places)
        try:
            await self._engine.call("ablator.enter", place)
            yield
        finally:
            self._engine.tell("ablator.leave", place)

    async def ablate(self, model: ServedModel, row: Row, overrides: RoutingOverrides, *, deadline: float) -> Ablated:
        """See the protocol."""
        _, number = self._engine.session_of(model)
        found: Ablated = await self._engine.call("ablator.ablate", number, row, overrides, float(deadline))
        return found

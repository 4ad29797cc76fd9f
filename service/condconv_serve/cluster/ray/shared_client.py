"""What all replicas share, as a replica asks for it: `SharedState` in another process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast

from condconv_serve.cluster.ray.figures import HandOver
from condconv_serve.cluster.ray.mirror import ClusterState
from condconv_serve.cluster.ray.shared import ReplicaReport
from condconv_serve.errors import NotReady, RoutingNotFound
from condconv_serve.fronts.keys import ApiKey
from condconv_serve.routing.insight import ClassMeans
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.statistics import Window
from condconv_serve.shadow.counts import ShadowCounts
from condconv_serve.telemetry.tally import VersionTally

MAX_REMEMBERING = 1000
"""Requests that are on their way to be remembered. While that takes long, others are left out."""
logger = logging.getLogger(__name__)


class Call(Protocol):
    """Calls a method of the one `SharedState`."""

    async def __call__(self, method: str, /, *arguments: Any, **options: Any) -> Any:
        """Return what it returns.

        Raises:
            NotReady: it can't be reached now. It comes back by itself.
        """
        ...


class SharedShadows:
    """Implements `condconv_serve.fronts.context.Shadows`."""

    def __init__(self, call: Call) -> None:
        """Take what calls."""
        self._call = call

    async def read(self, name: str) -> Sequence[ShadowCounts]:
        """See `SharedState.shadows`; none while it can't be reached, since all else about a model is known."""
        try:
            found: Sequence[ShadowCounts] = await self._call("shadows", name)
        except NotReady:
            return ()
        return found


class SharedClient:
    """Asks for what is shared.

    Attributes:
        shadows: how versions compare that got copies of requests.
    """

    def __init__(self, call: Call) -> None:
        """Take what calls."""
        self._call = call
        self.shadows = SharedShadows(call)
        self._remembering: set[asyncio.Task[None]] = set()

    async def publish(self, report: ReplicaReport) -> None:
        """See `SharedState.publish`."""
        await self._call("publish", report)

    async def heard(self, replica: str, number: int) -> bool:
        """See `SharedState.heard`."""
        return bool(await self._call("heard", replica, number))

    async def leave(self, replica: str) -> None:
        """See `SharedState.leave`."""
        await self._call("leave", replica)

    async def watch(self, seen: int, *, wait: float) -> tuple[int, ClusterState] | None:
        """See `SharedState.watch`."""
        found: tuple[int, ClusterState] | None = await self._call("watch", seen, wait=wait)
        return found

    async def use(self, key: ApiKey) -> None:
        """Implements `condconv_serve.fronts.rates.Rates`. Keys without a limit aren't counted."""
        if key.requests_per_minute is None:
            return
        if error := await self._call("use_key", key):
            raise error

    async def hand_over(self, given: HandOver) -> None:
        """See `SharedState.hand_over`."""
        await self._call("hand_over", given)

    async def state(self, model: str, version: str, windows: Sequence[Window]) -> RoutingState | None:
        """Implements `condconv_serve.fronts.context.RoutingFigures`, as the next two do."""
        found: RoutingState | None = await self._call("routing_state", model, version, windows)
        return found

    async def class_means(self, model: str, version: str, classes: Collection[int]) -> ClassMeans:
        """See `SharedState.class_means`."""
        found: ClassMeans = await self._call("class_means", model, version, classes)
        return found

    async def reset(self, model: str | None = None, version: str | None = None) -> Sequence[tuple[str, str]]:
        """See `SharedState.reset`."""
        found: Sequence[tuple[str, str]] = await self._call("reset", model, version)
        return found

    async def read(self, versions: Sequence[tuple[str, str]]) -> Sequence[VersionTally]:
        """Implements `condconv_serve.fronts.context.TallySource`."""
        found: Sequence[VersionTally] = await self._call("tallies", versions)
        return found

    def remember(self, request: RecentRequest, *, owner: str | None) -> None:
        """Implements `condconv_serve.fronts.context.RecentAnswers`, as the next one does."""
        if len(self._remembering) >= MAX_REMEMBERING:
            return
        remembering = asyncio.get_running_loop().create_task(self._call("remember", request, owner))
        self._remembering.add(remembering)
        remembering.add_done_callback(self._remembered)

    async def find(self, request_id: str, *, owner: str | None) -> RecentRequest:
        """See `SharedState.find_recent`."""
        found = await self._call("find_recent", request_id, owner)
        if isinstance(found, RoutingNotFound):
            raise found
        return cast("RecentRequest", found)

    def _remembered(self, done: asyncio.Task[None]) -> None:
        self._remembering.discard(done)
        if not done.cancelled() and (error := done.exception()):
            logger.warning("a request's routing wasn't kept: %s", error)

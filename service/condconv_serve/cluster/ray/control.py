"""What admins and ablations ask of model replicas, as an ingress replica's fronts ask it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, Protocol

from condconv_serve.cluster.ray.messages import ReplicaLost
from condconv_serve.domain import Ablated, RoutingOverrides, Row, ServedModel
from condconv_serve.errors import NotReady, ServiceError
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store.aliases import NO_MIRROR, Alias

STATUS_SECONDS = 10.0
Asked = Literal["ablate", "change_alias", "load", "look_again", "status", "unload"]
"""Methods of `condconv_serve.cluster.ray.model.ModelReplica` that are asked for here. They return errors."""


class Ask(Protocol):
    """Asks model replicas."""

    async def one(self, method: Asked, *arguments: Any) -> Any:
        """One replica's answer, which may be a `ServiceError`.

        Raises:
            ReplicaLost: there will be none.
        """
        ...

    async def each(self, method: Asked, *arguments: Any) -> Sequence[Any]:
        """Every replica's answer. Replicas that die meanwhile are left out."""
        ...


class ReplicaVersions:
    """Implements `condconv_serve.fronts.context.VersionAdmin`: versions of all replicas, aliases in their store."""

    def __init__(self, ask: Ask) -> None:
        """Ask model replicas; call it on the event loop."""
        self._ask = ask
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Note the event loop, on which everything is asked."""
        self._loop = asyncio.get_running_loop()

    def status(self) -> Mapping[str, list[VersionStatus]]:
        """The state of every version: that of the replica whose state says most. Not for the event loop."""
        if self._loop is None:
            return {}
        asking = asyncio.run_coroutine_threadsafe(self._ask.each("status"), self._loop)
        try:
            return _together(asking.result(STATUS_SECONDS))
        except TimeoutError as error:
            asking.cancel()
            raise NotReady(
                "Not all model replicas told the state of their versions in time.", retry_after=5.0
            ) from error

    async def load(self, name: str, version: str) -> VersionStatus:
        """Load a version on all replicas that there are. Later ones serve what the store says."""
        return await self._of_all("load", name, version)

    async def unload(self, name: str, version: str) -> VersionStatus:
        """Serve a version no more, on all replicas that there are."""
        return await self._of_all("unload", name, version)

    async def set_alias(
        self, name: str, alias: str, versions: Mapping[str, int], *, mirror: Mapping[str, int] = NO_MIRROR
    ) -> Alias:
        """Point an alias at versions: one replica loads them and writes the store, then the others look at it."""
        changed: Alias = await self._change(name, alias, "set", dict(versions), dict(mirror))
        return changed

    async def roll_back(self, name: str, alias: str) -> Alias:
        """Point an alias back to where it pointed before."""
        changed: Alias = await self._change(name, alias, "roll_back")
        return changed

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""
        await self._change(name, alias, "delete")

    async def _change(self, *arguments: Any) -> Any:
        found = await _one(self._ask, "change_alias", *arguments)
        await self._ask.each("look_again")
        return found

    async def _of_all(self, method: Asked, name: str, version: str) -> VersionStatus:
        answers = await self._ask.each(method, name, version)
        if not answers:
            raise NotReady("No model replica can be asked now.", retry_after=5.0)
        statuses: list[VersionStatus] = [_demand(answer) for answer in answers]
        return statuses[0]


class ReplicaAblator:
    """Implements `condconv_serve.domain.Ablator`: a replica computes it, if not too many wait there."""

    def __init__(self, ask: Ask) -> None:
        """Ask model replicas."""
        self._ask = ask

    async def check(self) -> None:
        """Do nothing: the replica refuses when it is asked."""

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Do nothing: the replica takes the place."""
        yield

    async def ablate(
        self, model: ServedModel, row: Row, overrides: RoutingOverrides, *, deadline: float = math.inf
    ) -> Ablated:
        """See `condconv_serve.inference.ablation_queue.AblationQueue.ablate`.

        Raises:
            AblationBusy: too many are waiting there.
        """
        timeout = None if deadline == math.inf else max(deadline - time.monotonic(), 0.0)
        found: Ablated = await _one(self._ask, "ablate", model.name, model.version, row, overrides, timeout)
        return found


_SAYS_MOST = ("loading", "failed", "stale", "incomplete", "serving", "retiring", "available")


def _together(answers: Sequence[Mapping[str, list[VersionStatus]]]) -> Mapping[str, list[VersionStatus]]:
    found: dict[str, dict[str, VersionStatus]] = {}
    for statuses in answers:
        for name, versions in statuses.items():
            for status in versions:
                mine = found.setdefault(name, {}).get(status.version)
                if mine is None or _SAYS_MOST.index(status.state) < _SAYS_MOST.index(mine.state):
                    found[name][status.version] = status
    return {name: list(versions.values()) for name, versions in found.items()}


async def _one(ask: Ask, method: Asked, *arguments: Any) -> Any:
    try:
        return _demand(await ask.one(method, *arguments))
    except ReplicaLost as lost:
        raise NotReady("The replica that was asked has died. Ask again.", retry_after=1.0) from lost


def _demand(answer: Any) -> Any:
    if isinstance(answer, ServiceError):
        raise answer
    return answer

"""The actor that keeps what all replicas share, and a way to call it that outlives its restarts."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from condconv_serve.cluster.ray.mirror import ClusterState
from condconv_serve.cluster.ray.shared import ReplicaReport, SharedState
from condconv_serve.errors import NotReady
from condconv_serve.fronts.keys import ApiKey

NAMESPACE = "condconv-serve"
_HEAD = {"node:__internal_head__": 0.001}
"""Where the head is, Ray Serve's controller is, too. Without it nothing goes on in any case."""
_MANY_CALLS = 10_000


class SharedClient:
    """Calls the actor. It is made by whoever calls first, and stays when the application is updated."""

    def __init__(self, name: str) -> None:
        """Know the actor's name, one for each application."""
        self._name = name
        self._actor: Any = None

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

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method.

        Raises:
            NotReady: the actor can't be reached now. It comes back by itself.
        """
        try:
            if self._actor is None:
                self._actor = (
                    ray.remote(SharedState)
                    .options(
                        name=self._name,
                        namespace=NAMESPACE,
                        get_if_exists=True,
                        lifetime="detached",
                        max_restarts=-1,
                        max_concurrency=_MANY_CALLS,
                        num_cpus=0,
                        resources=_HEAD,
                    )
                    .remote()
                )
            return await getattr(self._actor, method).remote(*args, **kwargs)
        except (RayError, ValueError) as error:
            self._actor = None
            raise NotReady("What the replicas share can't be reached now.", retry_after=1.0) from error

"""The actor that keeps what all replicas share, and a way to call it that outlives its restarts."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from condconv_serve.cluster.ray.shared import SharedState
from condconv_serve.errors import NotReady

NAMESPACE = "condconv-serve"
_HEAD = {"node:__internal_head__": 0.001}
"""Where the head is, Ray Serve's controller is, too. Without it nothing goes on in any case."""
_MANY_CALLS = 10_000


class SharedActor:
    """Implements `condconv_serve.cluster.ray.shared_client.Call`.

    The actor is made by whoever calls first. It stays when the application is updated, and comes back when it dies.
    """

    def __init__(self, name: str) -> None:
        """Know the actor's name, one for each application."""
        self._name = name
        self._actor: Any = None

    async def __call__(self, method: str, /, *arguments: Any, **options: Any) -> Any:
        """Call a method of `SharedState`.

        Raises:
            NotReady: the actor can't be reached now. It comes back by itself.
        """
        try:
            if self._actor is None:
                self._actor = await asyncio.to_thread(self._found)  # it asks the head, which may not answer
            return await getattr(self._actor, method).remote(*arguments, **options)
        except RayTaskError:  # it was reached, and has a defect
            raise
        except (RayError, ValueError) as error:
            self._actor = None
            raise NotReady("What the replicas share can't be reached now.", retry_after=1.0) from error

    def _found(self) -> Any:
        return (
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

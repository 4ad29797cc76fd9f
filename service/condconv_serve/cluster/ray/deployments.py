"""The two deployments as Ray Serve runs them."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import disable_created_metrics
from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from starlette.types import ASGIApp

from condconv_serve.cluster.ray.actor import SharedActor
from condconv_serve.cluster.ray.advertising import advertise
from condconv_serve.cluster.ray.calls import Calls
from condconv_serve.cluster.ray.control import Asked
from condconv_serve.cluster.ray.exported import RayExport
from condconv_serve.cluster.ray.fronts import Ingress
from condconv_serve.cluster.ray.messages import Caller, RowsReply, RowsRequest
from condconv_serve.cluster.ray.model import ModelReplica
from condconv_serve.cluster.ray.request_ids import OneRequestId
from condconv_serve.cluster.ray.scaling import ROWS
from condconv_serve.cluster.ray.shared_client import SharedClient
from condconv_serve.machine.interpreter import serve_rather_than_compute
from condconv_serve.settings import Settings
from condconv_serve.telemetry.logs import configure_logging

_LOST = (
    DeploymentUnavailableError,
    NodeDiedError,
    ObjectLostError,  # an answer that was too large to be sent along, on a node that died
    OutOfMemoryError,
    RayActorError,
    ReplicaUnavailableError,
    TaskCancelledError,
    WorkerCrashedError,
)


class Model:
    """Runs a `ModelReplica`."""

    async def __init__(self, settings: Settings, shared: str) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        """Load the models; `shared` is the name of the actor that keeps what is shared."""
        _prepare_process(settings)
        name = serve.get_replica_context().replica_tag
        self._exporting: asyncio.Task[None] | None = None
        self._replica = ModelReplica(settings, name=name, told=SharedClient(SharedActor(shared)), advertise=advertise)
        await self._replica.start()
        export = RayExport(self._replica.service.metrics.registry, replica=name)
        self._exporting = asyncio.create_task(export.keep_copying())

    async def infer(self, request: RowsRequest) -> RowsReply:
        """Compute rows."""
        return await self._replica.infer(request)

    async def ask(self, caller: Caller | None, method: Asked, *arguments: Any) -> Any:
        """Call another method of the replica."""
        return await self._replica.ask(caller, method, *arguments)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `condconv_serve.cluster.ray.scaling.ByRows` gets."""
        return {ROWS: self._replica.rows()}

    def check_health(self) -> None:
        """Raise while the engine is broken."""
        self._replica.check_health()

    async def __del__(self) -> None:
        """Ray Serve has waited for all answers."""
        if self._exporting is not None:  # else it never started
            self._exporting.cancel()
            await self._replica.stop()


class IngressWithFronts:
    """Runs an `Ingress`."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, models: DeploymentHandle, settings: Settings, shared: str
    ) -> None:
        """Wire the parts together."""
        _prepare_process(settings)
        serve_rather_than_compute()
        calls = Calls(models, lost=_LOST, unassigned=_unassigned)
        self._ingress = Ingress(settings, send=calls, ask=calls, shared=SharedClient(SharedActor(shared)))
        export = RayExport(self._ingress.metrics.registry, replica=serve.get_replica_context().replica_tag)
        self._exporting = asyncio.create_task(export.keep_copying())

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application; Ray Serve calls this."""
        return OneRequestId(self._ingress.app())


def _unassigned(call: DeploymentResponse[Any]) -> bool:
    """Whether a call was cancelled while Ray had no replica for it.

    Ray has no public way to tell. Another release may differ: then all calls count as assigned.
    """
    assigning = getattr(call, "_replica_result_future", None)
    return assigning is not None and assigning.cancelled()


def _prepare_process(settings: Settings) -> None:
    configure_logging(settings.log_level, settings.log_format)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series

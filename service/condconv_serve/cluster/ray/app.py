"""The Ray Serve application: `condconv_serve.cluster.ray.app:build` is what a Serve config imports."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, TaskCancelledError, WorkerCrashedError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from condconv_serve.cluster.ray.actor import SharedClient
from condconv_serve.cluster.ray.advertising import advertise
from condconv_serve.cluster.ray.fronts import Ingress
from condconv_serve.cluster.ray.messages import ReplicaLost, RowsReply, RowsRequest
from condconv_serve.cluster.ray.model import ModelReplica
from condconv_serve.cluster.ray.request_ids import OneRequestId
from condconv_serve.cluster.ray.scaling import ROWS, ByRows
from condconv_serve.settings import Settings
from condconv_serve.telemetry.logs import configure_logging

MODEL, INGRESS = "model", "ingress"
"""Names of the deployments."""
_ROWS_PER_STREAM = 8


class Autoscaling(BaseModel):
    """How many model replicas there are.

    Attributes:
        min_replicas: at least.
        max_replicas: at most.
        target_rows: rows of a replica that wait or are being computed, at which it is well used; 8 for each of its
            streams if None.
        upscale_delay_s: seconds for which there must be more rows before there are more replicas.
        downscale_delay_s: seconds for which there must be fewer rows before there are fewer replicas.
        look_back_period_s: seconds over which rows are averaged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    target_rows: float | None = Field(None, gt=0)
    upscale_delay_s: float = Field(10, ge=0)
    downscale_delay_s: float = Field(120, ge=0)
    look_back_period_s: float = Field(15, gt=0)


class Arguments(BaseModel):
    """`args` of the application in a Serve config.

    Attributes:
        settings: settings by their lower-case name, as `model_store`. The others are read from the environment of the
            process that builds the application.
        name: tells applications of one cluster apart, if there are several.
        num_cpus: cores of a model replica. It has as many streams, unless the settings say otherwise.
        num_gpus: GPUs of a model replica.
        replicas: model replicas, if they don't follow the load.
        autoscaling: how they follow the load; None if they don't.
        ingress_replicas: replicas that have the fronts.
        ingress_cpus: cores of each of these, for HTTP and decoding.
        model_options: more `ray_actor_options` of model replicas, such as `resources`.
        ingress_options: more `ray_actor_options` of ingress replicas.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any] = Field(default_factory=dict)
    name: str = "condconv"
    num_cpus: float = Field(2, gt=0)
    num_gpus: float = Field(0, ge=0)
    replicas: int = Field(1, ge=1)
    autoscaling: Autoscaling | None = None
    ingress_replicas: int = Field(1, ge=1)
    ingress_cpus: float = Field(1, gt=0)
    model_options: dict[str, Any] = Field(default_factory=dict)
    ingress_options: dict[str, Any] = Field(default_factory=dict)


class _Model:
    """Runs a `ModelReplica`."""

    async def __init__(self, settings: Settings, shared: str) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        configure_logging(settings.log_level, settings.log_format)
        name = serve.get_replica_context().replica_tag
        self._replica = ModelReplica(settings, name=name, told=SharedClient(shared), advertise=advertise)
        await self._replica.start()

    async def infer(self, request: RowsRequest) -> RowsReply:
        return await self._replica.infer(request)

    def record_autoscaling_stats(self) -> dict[str, float]:
        return {ROWS: self._replica.rows()}

    def check_health(self) -> None:
        self._replica.check_health()

    async def __del__(self) -> None:
        await self._replica.stop()


class _Ingress:
    """Runs an `Ingress`."""

    def __init__(self, models: DeploymentHandle, settings: Settings, shared: str) -> None:
        configure_logging(settings.log_level, settings.log_format)
        self._ingress = Ingress(settings, send=_Sender(models), shared=SharedClient(shared))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return OneRequestId(self._ingress.app())


class _Sender:
    """Implements `condconv_serve.cluster.ray.plane.Send`."""

    def __init__(self, models: DeploymentHandle) -> None:
        self._models = models

    async def __call__(self, request: RowsRequest, /) -> RowsReply:
        handle = self._models.options(method_name="infer", multiplexed_model_id=f"{request.model}/{request.version}")
        response = handle.remote(request)
        try:
            reply: RowsReply = await response
        except asyncio.CancelledError:
            response.cancel()  # its rows leave the replica's queue
            raise
        except (
            RayActorError,
            ActorUnavailableError,
            WorkerCrashedError,
            TaskCancelledError,
            ReplicaUnavailableError,
        ) as error:
            raise ReplicaLost(f"{type(error).__name__}: {error}") from error
        return reply


def build(arguments: Arguments | dict[str, Any]) -> serve.Application:
    """Build the application from the `args` of a Serve config, which Ray hands over as they are written there.

    Raises:
        pydantic.ValidationError: an argument or a setting is wrong.
    """
    arguments = Arguments.model_validate(arguments)
    settings = Settings(**arguments.settings)
    if settings.streams == "auto" and not arguments.num_gpus:
        settings = settings.model_copy(update={"streams": max(1, int(arguments.num_cpus))})
    if settings.decode_threads == "auto":
        settings = settings.model_copy(update={"decode_threads": max(1, int(arguments.ingress_cpus))})
    shared = f"{arguments.name}-shared"
    model = serve.deployment(_Model).options(
        name=MODEL,
        **_number_of(arguments, settings),
        # The replica's own queue refuses what is too much, by priority and deadline. So Ray's must never be full.
        max_ongoing_requests=2 * settings.max_queue_rows + 100,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        ray_actor_options={
            "num_cpus": arguments.num_cpus,
            "num_gpus": arguments.num_gpus,
            **arguments.model_options,
        },
    )
    ingress = serve.deployment(serve.ingress(None)(_Ingress)).options(
        name=INGRESS,
        num_replicas=arguments.ingress_replicas,
        max_ongoing_requests=settings.max_connections,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": arguments.ingress_cpus, **arguments.ingress_options},
    )
    application: serve.Application = ingress.bind(model.bind(settings, shared), settings, shared)
    return application


def _number_of(arguments: Arguments, settings: Settings) -> dict[str, Any]:
    scaling = arguments.autoscaling
    if scaling is None:
        return {"num_replicas": arguments.replicas}
    streams = 1 if settings.streams == "auto" else settings.streams
    policy = AutoscalingPolicy(
        policy_function=f"{ByRows.__module__}:{ByRows.__name__}",
        policy_kwargs={"target_rows": scaling.target_rows or _ROWS_PER_STREAM * streams},
    )
    return {
        "num_replicas": "auto",
        "autoscaling_config": AutoscalingConfig(policy=policy, **scaling.model_dump(exclude={"target_rows"})),
    }

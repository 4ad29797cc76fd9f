"""The Ray Serve application: `condconv_serve.cluster.ray.app:build` is what a Serve config imports."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from condconv_serve.cluster.ray.deployments import IngressWithFronts, Model
from condconv_serve.cluster.ray.scaling import ByRows
from condconv_serve.settings import Settings

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
        num_gpus: GPUs of a model replica; with any it computes on them, unless the settings say otherwise.
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


def build(arguments: Arguments | dict[str, Any]) -> serve.Application:
    """Build the application from the `args` of a Serve config, which Ray hands over as they are written there.

    Raises:
        pydantic.ValidationError: an argument or a setting is wrong.
    """
    arguments = Arguments.model_validate(arguments)
    settings = Settings(**arguments.settings)
    if settings.device == "auto":
        settings = settings.model_copy(update={"device": "gpu" if arguments.num_gpus else "cpu"})
    if settings.streams == "auto" and not arguments.num_gpus:
        settings = settings.model_copy(update={"streams": max(1, int(arguments.num_cpus))})
    if settings.decode_threads == "auto":
        settings = settings.model_copy(update={"decode_threads": max(1, int(arguments.ingress_cpus))})
    shared = f"{arguments.name}-shared"
    model = serve.deployment(Model).options(
        name=MODEL,
        **_number_of(arguments, settings),
        # The replica's own queue refuses what is too much, by priority and deadline. So Ray's must never be full.
        max_ongoing_requests=2 * settings.max_queue_rows + 100,
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={
            "num_cpus": arguments.num_cpus,
            "num_gpus": arguments.num_gpus,
            **arguments.model_options,
        },
    )
    ingress = serve.deployment(serve.ingress(None)(IngressWithFronts)).options(
        name=INGRESS,
        num_replicas=arguments.ingress_replicas,
        # Ray Serve's proxies pass HTTP on, but each of these has a gRPC port of its own.
        max_replicas_per_node=None if settings.grpc_port is None else 1,
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

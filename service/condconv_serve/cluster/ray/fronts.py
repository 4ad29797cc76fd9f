"""An ingress replica: all fronts, whose rows are computed by model replicas."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Protocol

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from condconv_serve.application import create_application
from condconv_serve.cluster.ray.control import Ask, ReplicaAblator, ReplicaVersions
from condconv_serve.cluster.ray.mirror import ClusterState, Mirror
from condconv_serve.cluster.ray.plane import ENDINGS, ReplicaPlane, Send
from condconv_serve.front_door import body_limits
from condconv_serve.fronts.context import AppContext, RecentAnswers, RoutingFigures, Shadows, TallySource
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.rates import Rates
from condconv_serve.grpc_port import GrpcPort
from condconv_serve.http.body import OpenBodies
from condconv_serve.imaging import ImageDecoder
from condconv_serve.key_loading import load_keys
from condconv_serve.machine.cores import available_cores
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.routing.drawer import Drawer
from condconv_serve.serving.readiness import Readiness
from condconv_serve.settings import Settings
from condconv_serve.telemetry.exposition import RegistryExposition
from condconv_serve.telemetry.logs import ContextThreads
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tracing import make_tracer

WATCH_SECONDS = 5.0
"""How long one question for changes waits."""
RETRY_SECONDS = 0.5
logger = logging.getLogger(__name__)


class Shared(Rates, RoutingFigures, RecentAnswers, TallySource, Protocol):
    """What all replicas share; see `condconv_serve.cluster.ray.shared.SharedState`."""

    @property
    def shadows(self) -> Shadows:
        """How versions compare that got copies of requests."""
        ...

    async def watch(self, seen: int, *, wait: float) -> tuple[int, ClusterState] | None:
        """What is served, once it isn't what the caller has seen."""
        ...


class Ingress:
    """One replica. It knows nothing of Ray."""

    def __init__(self, settings: Settings, *, send: Send, ask: Ask, shared: Shared) -> None:
        """Wire the parts together.

        Args:
            settings: what the fronts allow.
            send: gives rows to a model replica.
            ask: asks model replicas for everything else.
            shared: what all replicas share.

        Raises:
            ConfigurationError: the API keys can't be used, or traces can't be exported as asked.
        """
        self._settings = settings
        self._shared = shared
        self._tracer = make_tracer(settings.otlp_endpoint)
        self.metrics = Metrics(CollectorRegistry())
        self.models = Mirror()
        self.readiness = Readiness(
            self.models.engine_problem,
            models_trouble=self.models.models_trouble,
            any_served=lambda: bool(self.models.models()),
            problems=self.models.problems,
        )
        threads = available_cores() if settings.decode_threads == "auto" else settings.decode_threads
        self._decoders = ContextThreads(threads, thread_name_prefix="decode")
        self._drawer = Drawer()
        self._versions = ReplicaVersions(ask)
        plane = ReplicaPlane(
            self.models,
            send,
            max_rows=settings.max_queue_rows,
            metrics=self.metrics,
        )
        self._context = AppContext(
            images=ImagePipeline(
                plane,
                ImageDecoder(self._decoders, max_pixels=settings.max_pixels),
                digests=settings.cache_bytes > 0,
                aliases=self.models.aliases,
                count_objects=self.metrics.count_objects,
            ),
            models=self.models,
            metrics=self.metrics,
            exposition=RegistryExposition(self.metrics.registry),
            limits=body_limits(settings),
            gatekeeper=Gatekeeper(
                self.readiness,
                keys=load_keys(settings),
                open_admin=False,  # nobody knows here who can reach Ray Serve's proxies
                request_timeout=settings.request_timeout,
                rates=shared,
            ),
            readiness=self.readiness,
            tracer=self._tracer,
            versions=self._versions,
            routing=shared if settings.routing_statistics else None,
            recent=shared if settings.routing_statistics else None,
            ablator=ReplicaAblator(ask),
            tallies=shared,
            shadows=shared.shadows,
            drawer=self._drawer,
            bodies=OpenBodies(pause=settings.body_timeout, total=settings.body_total_timeout),
        )
        self.metrics.ready.set_function(lambda: 0 if self.readiness.unready() else 1)

    def app(self) -> ASGIApp:
        """The application. While it runs it follows what the model replicas serve.

        Raises:
            ConfigurationError: the root path begins as a route does, or the settings of gRPC can't be used.
        """
        grpc = GrpcPort.of(self._settings, self._context, _no_grpc)

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
            self._versions.start()
            with self._decoders, self._drawer:
                following = asyncio.create_task(self._follow())
                async with grpc.serving(self._settings.host):
                    yield
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await asyncio.to_thread(self._tracer.close, self._settings.shutdown_timeout)

        return create_application(
            self._context,
            lifespan=lifespan,
            cors_origins=self._settings.cors_origins,
            root_path=self._settings.root_path,
        )

    async def _follow(self) -> None:
        seen = -1
        while True:
            try:
                found = await self._shared.watch(seen, wait=WATCH_SECONDS)
            except Exception as error:
                logger.warning("what the model replicas serve isn't known now: %s", error)
                seen = -1
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if found is not None:
                seen, state = found
                self.models.update(state)
                for name in state.served.models:
                    self.metrics.rows.start(name, outcomes=ENDINGS, cached=())
                if state.served.models:
                    self.readiness.loaded()


def _no_grpc(error: Exception) -> None:
    logger.error("this replica has no gRPC port: %s", error)

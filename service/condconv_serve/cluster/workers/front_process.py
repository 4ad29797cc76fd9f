"""A front: the applications of HTTP and gRPC, and decoding. It knows no network, and asks the engine process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Metric

from condconv_serve.cluster.workers.connection_counts import ConnectionCounts
from condconv_serve.cluster.workers.orders import Connect, LookAgain, StartFront, Stop
from condconv_serve.cluster.workers.parent import Parent
from condconv_serve.cluster.workers.remote_engine import RemoteEngine
from condconv_serve.cluster.workers.remote_parts import (
    RemoteAblator,
    RemoteRates,
    RemoteRecent,
    RemoteRouting,
    RemoteShadows,
    RemoteTallies,
    RemoteVersions,
)
from condconv_serve.cluster.workers.remote_plane import RemotePlane
from condconv_serve.errors import NotReady, ServiceError, unexpected_error
from condconv_serve.front_door import FrontDoor, body_limits
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.keys import KeyRing
from condconv_serve.http.body import OpenBodies
from condconv_serve.http.limits import allow_open_files
from condconv_serve.http.server import DrainingServer, config
from condconv_serve.imaging import ImageDecoder
from condconv_serve.key_loading import load_keys
from condconv_serve.machine.cores import available_cores
from condconv_serve.machine.interpreter import serve_rather_than_compute
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.routing.drawer import Drawer
from condconv_serve.settings import Settings
from condconv_serve.telemetry.exposition import CombinedExposition
from condconv_serve.telemetry.front_files import FrontFiles, ProcessFigures
from condconv_serve.telemetry.logs import ContextThreads, count_lost_lines
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tracing import make_tracer

logger = logging.getLogger(__name__)


async def run_front(order: StartFront, parent: Parent, listener: socket.socket, probes: socket.socket | None) -> None:
    """Serve on ports that the parent has opened, until it says that this is the end.

    Raises:
        ConfigurationError: the settings can't be used.
    """
    settings = order.settings
    front = Front(order, RemoteEngine(on_lost=parent.tell_disconnected))
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.stop()

    elsewhere = partial(ConnectionCounts(order.metrics, fronts=order.fronts).tell, order.number)
    elsewhere(0)
    door = FrontDoor(settings, front.context, on_failure=stop, probes=probes, fronts=order.fronts, elsewhere=elsewhere)

    @contextlib.asynccontextmanager
    async def running() -> AsyncGenerator[None, None]:
        async with front.running():
            parent.tell_started()
            yield

    server = DrainingServer(
        config(
            door.application(running),
            door.http_protocol(),
            timeout_keep_alive=settings.keep_alive_timeout,
        ),
        on_drain=front.drain,
        drain_delay=settings.drain_delay,
        shutdown_timeout=settings.shutdown_timeout,
        on_hangup=front.look_again,
        on_stop_listening=lambda: door.stop_listening(front.seconds_left()),
        on_last_answers=front.context.bodies.give_up,
    )
    server.take_signals()
    allow_open_files(settings.max_connections * (1 if settings.grpc_port is None else 2))
    serve_rather_than_compute()
    following = asyncio.create_task(_follow(parent, front, server))
    try:
        await server.serve(sockets=[listener])
    finally:
        following.cancel()
        front.engine.close()
    if failures:
        raise failures[0] if isinstance(failures[0], ServiceError) else unexpected_error()


async def _follow(parent: Parent, front: Front, server: DrainingServer) -> None:
    while True:
        said: Any
        said, connection = await parent.orders.get()
        match said:
            case Connect():
                assert connection is not None
                front.engine.connect(connection)
            case LookAgain():
                front.look_again()
            case Stop():
                server.end_by(said.signal)


class Front:
    """The parts of a front, wired together.

    Attributes:
        context: what its applications work with.
        engine: the engine process.
        threads: decode images.
    """

    def __init__(self, order: StartFront, engine: RemoteEngine) -> None:
        """Wire them as `order` says, with an engine process that needn't be there yet."""
        settings = self._settings = order.settings
        self.engine = engine
        self._keys = load_keys(settings)
        self._drawer = Drawer()
        self._tracer = make_tracer(settings.otlp_endpoint)
        self.threads = ContextThreads(_decode_threads(settings, order.fronts), thread_name_prefix="decode")
        self._ends_at: float | None = None
        self._metrics = order.metrics
        self._figures = ProcessFigures()
        metrics = Metrics(CollectorRegistry())
        count_lost_lines(metrics.log_lines_lost.inc)
        self.context = self._context(metrics, self._keys, open_admin=order.open_admin)

    def _context(self, metrics: Metrics, keys: KeyRing | None, *, open_admin: bool) -> AppContext:
        settings, engine = self._settings, self.engine
        statistics = settings.routing_statistics
        return AppContext(
            images=ImagePipeline(
                RemotePlane(engine, caches=settings.cache_bytes > 0),
                ImageDecoder(self.threads, max_pixels=settings.max_pixels),
                digests=settings.cache_bytes > 0,
                aliases=engine.models.aliases,
                count_objects=metrics.count_objects,
            ),
            models=engine.models,
            metrics=metrics,
            exposition=CombinedExposition(self._engine_metrics, FrontFiles(self._metrics)),
            limits=body_limits(settings),
            gatekeeper=Gatekeeper(
                engine.readiness,
                keys=keys,
                open_admin=open_admin,
                request_timeout=settings.request_timeout,
                rates=RemoteRates(engine),
            ),
            readiness=engine.readiness,
            tracer=self._tracer,
            versions=RemoteVersions(engine, asyncio.get_running_loop()),
            routing=RemoteRouting(engine) if statistics else None,
            recent=RemoteRecent(engine) if statistics else None,
            ablator=RemoteAblator(engine),
            drawer=self._drawer,
            tallies=RemoteTallies(engine),
            shadows=RemoteShadows(engine),
            bodies=OpenBodies(pause=settings.body_timeout, total=settings.body_total_timeout),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Run the threads of this front."""
        with self._drawer:
            following = asyncio.create_task(self._figures.follow())
            yield
            following.cancel()
            self.engine.close()  # threads may wait for it, and hear of its end on the event loop
            await asyncio.to_thread(self.threads.shutdown)
        await asyncio.to_thread(self._tracer.close, math.inf if self._ends_at is None else self.seconds_left())

    async def _engine_metrics(self) -> Sequence[Metric]:
        """What the engine process has counted; nothing if it isn't there."""
        try:
            found: Sequence[Metric] = await self.engine.call("metrics.collect")
        except NotReady:
            return ()
        return found

    def drain(self) -> None:
        """Be ready no more; this front is about to end, within the time for a shutdown."""
        self._ends_at = time.monotonic() + self._settings.shutdown_timeout
        self.engine.readiness.drain()

    def seconds_left(self) -> float:
        """How long a shutdown may take from now on."""
        ends_at = self._ends_at or time.monotonic() + self._settings.shutdown_timeout
        return ends_at - time.monotonic()

    def look_again(self) -> None:
        """Look at the API keys again."""
        if self._keys is not None:
            self._keys.read_again()


def _decode_threads(settings: Settings, fronts: int) -> int:
    if settings.decode_threads != "auto":
        return settings.decode_threads
    return max(2, math.ceil(available_cores() / fronts))

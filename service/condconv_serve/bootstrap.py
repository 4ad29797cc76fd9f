"""The composition root: the only place where settings become parts and parts are wired together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from functools import cache, partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from condconv_serve.ablation_loading import load_ablation
from condconv_serve.domain import ModelInfo, RowAnswer, ServedModel
from condconv_serve.engine_planning import plan_engines
from condconv_serve.front_door import body_limits
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.keys import KeyRing
from condconv_serve.fronts.rates import RateLimits
from condconv_serve.http.body import OpenBodies
from condconv_serve.imaging import ImageDecoder
from condconv_serve.inference.ablation_queue import AblationQueue
from condconv_serve.inference.batching import Batcher
from condconv_serve.inference.cache import row_cache
from condconv_serve.inference.open_request import RowBatcher
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.inference.runner import BatchRunner
from condconv_serve.inference.sharing import RowSharing
from condconv_serve.inference.streams import StreamPool
from condconv_serve.machine.cores import available_cores
from condconv_serve.machine.interpreter import serve_rather_than_compute
from condconv_serve.machine.memory import memory_left, memory_limit
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.routing.drawer import Drawer
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.recent import RecentRequests
from condconv_serve.runtime.load_memory import IMPORT_BYTES, ablation_bytes, load_bytes
from condconv_serve.runtime.model_loader import ModelLoader
from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.runtime.tensorflow_import import import_tensorflow
from condconv_serve.serving.default_model import DefaultModel
from condconv_serve.serving.memory_check import MemoryCheck
from condconv_serve.serving.readiness import Readiness
from condconv_serve.serving.registry import Registry
from condconv_serve.serving.store_follower import StoreFollower
from condconv_serve.serving.store_health import StoreHealth
from condconv_serve.serving.version_admin import VersionAdmin
from condconv_serve.serving.version_ledger import VersionLedger
from condconv_serve.settings import Settings
from condconv_serve.shadow.traffic import Shadow
from condconv_serve.store import Bundle, open_bundle
from condconv_serve.store.default import check_store
from condconv_serve.telemetry.exposition import RegistryExposition
from condconv_serve.telemetry.logs import ContextThreads, count_lost_lines
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tally import Tallies
from condconv_serve.telemetry.tracing import make_tracer

logger = logging.getLogger(__name__)

_SECONDS_FOR_ABANDONED_ROWS = 1.0


@cache
def import_engines() -> None:
    """Import what loads models, once."""
    started = time.monotonic()
    import_tensorflow()
    import condconv_serve.runtime.loading  # noqa: F401

    logger.info("TensorFlow imported in %.1f s", time.monotonic() - started)


@cache
def prepare_server() -> None:
    """Import what loads models, and have the process serve rather than compute for somebody; the port is open then."""
    import_engines()
    serve_rather_than_compute()


def load_model(bundle: Bundle, plan: EnginePlan, *, metrics: Metrics | None = None) -> ServedModel:
    """Make an engine from a bundle. The first call imports TensorFlow."""
    import_engines()
    from condconv_serve.runtime.loading import load_model

    return load_model(bundle, plan, metrics=metrics)


class Service:
    """One service, made from settings: its models, its plane, its application."""

    def __init__(
        self,
        settings: Settings,
        *,
        only: str | None = None,
        load: ModelLoader | None = None,
        on_copy: Callable[[ModelInfo, RowAnswer], None] = lambda model, row: None,
    ) -> None:
        """Find and check the bundles. Nothing is loaded yet.

        Args:
            settings: what to serve and how.
            only: name of the model that `load_only` will load; None for a server, which follows the store.
            load: makes an engine from a bundle; `load_model` if None.
            on_copy: gets what versions answer to copies of requests, beside the routing statistics.

        Raises:
            BundleError: there is no such store.
            ConfigurationError: the store is empty or lacks the model that is set as the default, the cache is larger
                than the memory, or traces can't be exported as asked.
        """
        self._settings = settings
        self._on_copy = on_copy
        self.tracer = make_tracer(settings.otlp_endpoint)
        self._at_start = (only,) if only else check_store(settings.model_store, default_model=settings.default_model)
        self.plan = plan_engines(settings)
        logger.info("engine: %s", self.plan)
        self.metrics = Metrics(CollectorRegistry())
        self.tallies = Tallies()
        self.metrics.streams.set(self.plan.streams)
        self.metrics.max_queue_rows.set(settings.max_queue_rows)
        self.cache = row_cache(settings.cache_bytes, memory_limit=memory_limit(), metrics=self.metrics)
        count_lost_lines(self.metrics.log_lines_lost.inc)
        self.metrics.memory_limit_bytes.set(memory_limit() or math.inf)
        self.registry = Registry(
            partial(load or load_model, plan=self.plan, metrics=self.metrics),
            default_model=only,
            warm_up_sizes=range(1, self.plan.max_batch_size + 1),
            streams=self.plan.streams,
            metrics=self.metrics,
            on_gone=self._forget,
            on_released=self.cache.drop,
        )
        memory = MemoryCheck(
            partial(load_bytes, plan=self.plan),
            prepare=prepare_server if load is None else lambda: None,
            prepare_bytes=IMPORT_BYTES if load is None else 0,
            left=partial(self.cache.left_beside, memory_left) if settings.check_memory else lambda: None,
        )
        self.ledger = VersionLedger(settings.model_store, self.registry, metrics=self.metrics)
        self.store_health = StoreHealth(
            self.registry, metrics=self.metrics, at_start=self._at_start, ready_models=settings.ready_models
        )
        default = DefaultModel(
            settings.model_store,
            self.registry,
            self.store_health,
            metrics=self.metrics,
            asked=settings.default_model,
        )
        self.follower = StoreFollower(
            settings.model_store,
            self.registry,
            self.ledger,
            newest=settings.served_versions,
            health=self.store_health,
            metrics=self.metrics,
            memory=memory,
            follow_default=default.look,
        )
        self.versions = VersionAdmin(settings.model_store, self.registry, self.ledger, self.follower)
        self.routing = LiveRouting() if settings.routing_statistics else None
        if self.routing is not None:
            self.metrics.routing.set_source(self.routing.exported)
        decode_threads = available_cores() if settings.decode_threads == "auto" else settings.decode_threads
        self._streams = StreamPool(self.plan.streams, stall_timeout=settings.stall_timeout, metrics=self.metrics)
        self._decoders = ContextThreads(decode_threads, thread_name_prefix="decode")
        self._batcher: RowBatcher = Batcher(
            BatchRunner(self._streams, hold=self.registry.hold, tallies=self.tallies),
            streams=self.plan.streams,
            max_batch_size=self.plan.max_batch_size,
            max_queue_rows=settings.max_queue_rows,
            batch_timeout=self.plan.batch_timeout,
            priority_ageing=settings.priority_ageing,
            # By then the server has waited for all answers, so nobody waits any more.
            drain_timeout=_SECONDS_FOR_ABANDONED_ROWS,
            metrics=self.metrics,
            label_of=lambda model: model.name,
            identity_of=lambda model: (model.name, model.version),
        )
        self.shadow = Shadow(
            self.registry,
            stall_timeout=settings.stall_timeout,
            max_pixels=settings.max_pixels,
            metrics=self.metrics,
            callers=self._batcher,
            observe=self._observe_copy,
        )
        self.plane = InferencePlane(
            self.registry,
            self._batcher,
            metrics=self.metrics,
            tallies=self.tallies,
            observe=self._observe,
            sharing=RowSharing(self.cache) if self.cache.max_bytes else None,
            mirror=self.shadow.offer,
        )
        self.images = ImagePipeline(
            self.plane,
            ImageDecoder(self._decoders, max_pixels=settings.max_pixels),
            digests=self.cache.max_bytes > 0,
            aliases=self.registry.aliases,
            count_objects=self.metrics.count_objects,
        )
        ablation_memory = MemoryCheck(partial(ablation_bytes, plan=self.plan), left=memory.left)
        self.ablator = AblationQueue(partial(load_ablation, settings, self.plan, ablation_memory))
        self._drawer = Drawer()
        self.readiness = Readiness(
            self._batcher.health.problem,
            models_trouble=self.store_health.unready,
            any_served=lambda: bool(self.registry.models()),
            problems=self.store_health.problems,
        )
        self.rates = RateLimits()
        self.recent = None if self.routing is None else RecentRequests()
        self.bodies = OpenBodies(pause=settings.body_timeout, total=settings.body_total_timeout)
        self._ends_at: float | None = None
        self._looking: set[asyncio.Task[None]] = set()
        self.metrics.ready.set_function(lambda: 0 if self.readiness.unready() else 1)

    @contextlib.asynccontextmanager
    async def computing(self) -> AsyncGenerator[None, None]:
        """Run what answers images. Leaving the block finishes the admitted rows."""
        with self._streams, self._decoders:
            async with self._batcher:
                yield

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Run all threads and the batcher. Leaving the block finishes the admitted rows."""
        with self._drawer, self.ablator:
            async with self.computing(), self.shadow:
                yield
        await asyncio.to_thread(self.tracer.close, math.inf if self._ends_at is None else self.seconds_left())

    def engine_broken(self) -> str | None:
        """Why the engine counts as broken, also while it is tried again; None if it doesn't."""
        return self._batcher.health.broken()

    def rows(self) -> int:
        """Rows that are being made, wait for a batch, or are being computed."""
        return self._batcher.rows

    def drain(self) -> None:
        """Be ready no more; the process is about to end, within the time for a shutdown."""
        self._ends_at = time.monotonic() + self._settings.shutdown_timeout
        self.readiness.drain()
        self.shadow.close()

    def seconds_left(self) -> float:
        """How long a shutdown may take from now on."""
        ends_at = self._ends_at or time.monotonic() + self._settings.shutdown_timeout
        return ends_at - time.monotonic()

    def look_again(self) -> None:
        """Look at the model store now rather than at the next change; called on the event loop."""
        looking = asyncio.get_running_loop().create_task(self.follower.sync())
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)

    def _observe(self, model: ModelInfo, row: RowAnswer) -> None:
        if self.routing is not None:
            self.routing.observe(model, row)

    def _observe_copy(self, model: ModelInfo, row: RowAnswer) -> None:
        self._observe(model, row)
        self._on_copy(model, row)

    def _forget(self, name: str, version: str) -> None:
        if version not in self.registry.models().get(name, {}):
            self.tallies.forget(name, version)
            if self.routing is not None:
                self.routing.forget(name, version)
        self.shadow.forget(name, version)
        self.ablator.forget(name, version)

    def load(self) -> None:
        """Load and warm up the versions to serve, then be ready.

        Raises:
            BundleError: no model can be served. Broken versions beside those that serve are only reported.
        """
        self.follower.sync_now()
        self._loaded()

    def load_only(self, bundle: Path) -> ServedModel:
        """Load and warm up one version, and nothing else: enough for work without a server.

        Args:
            bundle: its directory.

        Raises:
            BundleError: it is damaged, or doesn't fit.
        """
        model = self.registry.load(open_bundle(bundle))
        self.readiness.loaded()
        return model

    async def load_now(self) -> None:
        """Do the same beside a running event loop, on the loader's thread."""
        await self.follower.sync()
        self._loaded()

    def _loaded(self) -> None:
        if not self.registry.models():
            self.ledger.demand(self.registry.default_model or self._at_start[0])
        self.readiness.loaded()

    def context(self, *, keys: KeyRing | None = None, open_admin: bool = True) -> AppContext:
        """What fronts in this process work with.

        Args:
            keys: the API keys that are accepted; None lets everybody in.
            open_admin: whether everybody has the scope `admin` if there are no keys.
        """
        return AppContext(
            images=self.images,
            models=self.registry,
            metrics=self.metrics,
            exposition=RegistryExposition(self.metrics.registry),
            limits=body_limits(self._settings),
            gatekeeper=Gatekeeper(
                self.readiness,
                keys=keys,
                open_admin=open_admin,
                request_timeout=self._settings.request_timeout,
                rates=self.rates,
            ),
            readiness=self.readiness,
            tracer=self.tracer,
            versions=self.versions,
            routing=self.routing,
            recent=self.recent,
            ablator=self.ablator,
            drawer=self._drawer,
            tallies=self.tallies,
            shadows=self.shadow,
            bodies=self.bodies,
        )

    @contextlib.asynccontextmanager
    async def serving(
        self, on_failure: Callable[[Exception], None], *, on_loaded: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[None, None]:
        """Do all of `running`, load the models in the background, and follow the store.

        Args:
            on_failure: called if the models can't be loaded.
            on_loaded: called once they are loaded.
        """

        async def load_and_watch() -> None:
            try:
                # An engine's own threads inherit the low priority of the loader's.
                await self.load_now()
            except Exception as error:
                self.readiness.failed("The service could not load its models.")
                on_failure(error)
            else:
                on_loaded()
                await self.follower.watch(interval=self._settings.store_poll_interval)

        async with self.running():
            watching = asyncio.create_task(load_and_watch())
            yield
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self.follower.close()

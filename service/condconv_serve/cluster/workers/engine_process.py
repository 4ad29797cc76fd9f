"""The engine process: a whole service but for its fronts, which are in processes of their own."""

from __future__ import annotations

import logging
import os
from typing import Any

from condconv_serve.bootstrap import Service
from condconv_serve.cluster.workers.calls import EngineParts, calls_of
from condconv_serve.cluster.workers.hub import Hub
from condconv_serve.cluster.workers.orders import Connect, Drain, LookAgain, StartEngine, Stop
from condconv_serve.cluster.workers.parent import Parent
from condconv_serve.errors import ServiceError, unexpected_error

logger = logging.getLogger(__name__)


async def run_engine(order: StartEngine, parent: Parent) -> None:
    """Compute for fronts until the parent says that the last of them has ended.

    Raises:
        BundleError, ConfigurationError: the models or the settings can't be used.
    """
    settings = order.settings
    service = Service(settings)
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        parent.orders.put_nowait((None, None))

    slots = settings.max_queue_rows + 2 * service.plan.streams * service.plan.max_batch_size
    parts = EngineParts(
        plane=service.plane,
        rates=service.rates,
        versions=service.versions,
        routing=service.routing,
        recent=service.recent,
        tallies=service.tallies,
        shadows=service.shadow,
        ablator=service.ablator,
        metrics=service.metrics,
    )
    async with service.serving(stop, on_loaded=parent.tell_started):
        with Hub(service.plane, service.registry, service.readiness, slots=slots, calls=calls_of(parts)) as hub:
            await _follow(parent, service, hub)
    if failures:
        raise failures[0] if isinstance(failures[0], ServiceError) else unexpected_error()
    if service.follower.loading or service.ablator.busy or service.shadow.busy:
        # It may take seconds or never end, and the interpreter can't end while TensorFlow computes.
        logger.info("work that was under way is dropped")
        logging.shutdown()
        os._exit(0)


async def _follow(parent: Parent, service: Service, hub: Hub) -> None:
    while True:
        said: Any
        said, connection = await parent.orders.get()
        match said:
            case Connect():
                assert connection is not None
                hub.take(connection)
            case Drain():
                service.drain()
                hub.tell_ready()
            case LookAgain():
                service.look_again()
            case Stop() | None:
                return

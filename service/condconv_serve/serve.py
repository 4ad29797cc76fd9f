"""`condconv serve`: one process that listens until a signal ends it."""

from __future__ import annotations

import logging
import os

from prometheus_client import disable_created_metrics

from condconv_serve.bootstrap import Service
from condconv_serve.front_door import FrontDoor
from condconv_serve.http.limits import allow_open_files
from condconv_serve.http.server import DrainingServer, config, is_local, listen
from condconv_serve.key_loading import load_keys
from condconv_serve.runtime.model_loader import ModelLoader
from condconv_serve.settings import Settings
from condconv_serve.startup_log import log_ports

logger = logging.getLogger(__name__)


def serve(settings: Settings, *, load: ModelLoader | None = None) -> None:
    """Serve until a signal ends it.

    Args:
        settings: what to serve and how.
        load: makes an engine of a bundle; `load_model` if None.

    Raises:
        BundleError, ConfigurationError: the models or the settings can't be used.
    """
    # Timestamps of creation would double the number of series.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    keys = load_keys(settings)
    service = Service(settings, load=load)
    allow_open_files(settings.max_connections * (1 if settings.grpc_port is None else 2))
    listener = listen(settings.host, settings.port)
    probes = None if settings.metrics_port is None else listen(settings.host, settings.metrics_port)
    if settings.grpc_port:
        listen(settings.host, settings.grpc_port).close()  # gRPC opens it later, and wouldn't say what is wrong
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.stop()

    def look_again() -> None:
        logger.info("SIGHUP: looking at the API keys and the model store again")
        if keys is not None:
            keys.read_again()
        service.look_again()

    context = service.context(keys=keys, open_admin=is_local(listener))
    door = FrontDoor(settings, context, on_failure=stop, probes=probes)
    server = DrainingServer(
        config(
            door.application(lambda: service.serving(stop)),
            door.http_protocol(),
            timeout_keep_alive=settings.keep_alive_timeout,
        ),
        on_drain=service.drain,
        drain_delay=settings.drain_delay,
        shutdown_timeout=settings.shutdown_timeout,
        on_hangup=look_again,
        on_stop_listening=lambda: door.stop_listening(service.seconds_left()),
        on_last_answers=service.bodies.give_up,
    )
    server.take_signals()  # whoever reads that it listens may end it at once
    log_ports(listener, probes, keys)
    server.run(sockets=[listener])
    if failures:
        raise failures[0]
    if service.follower.loading or service.ablator.busy or service.shadow.busy:
        # It may take seconds or never end, and the interpreter can't end while TensorFlow computes.
        logger.info("work that was under way is dropped")
        logging.shutdown()
        os._exit(0)

"""All fronts of one process, wherever the engine is: their application, their gRPC port, their limits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from fastapi import FastAPI
from starlette.types import ASGIApp

from condconv_serve.application import create_application, create_probes, renderers
from condconv_serve.fronts.context import AppContext, BodyLimits
from condconv_serve.grpc_port import GrpcPort
from condconv_serve.http.guard import guarded_protocol
from condconv_serve.http.limits import LINGER_BYTES, ConnectionLimits
from condconv_serve.http.server import serving_beside
from condconv_serve.settings import Settings


class FrontDoor:
    """What a process needs to serve its fronts over sockets."""

    def __init__(
        self,
        settings: Settings,
        context: AppContext,
        *,
        on_failure: Callable[[Exception], None],
        probes: socket.socket | None = None,
        fronts: int = 1,
        elsewhere: Callable[[int], int] = lambda own: 0,
    ) -> None:
        """Prepare.

        Args:
            settings: of ports and limits.
            context: what the fronts work with.
            on_failure: called if the gRPC port can't be opened.
            probes: port for metrics and probes, served until the last request is answered; None means the main one.
            fronts: how many processes of this service serve the same ports.
            elsewhere: gets how many connections the main port has in this process, and returns those in the others.

        Raises:
            ConfigurationError: the settings of gRPC can't be used.
        """
        self._settings = settings
        self._context = context
        self._probes = probes
        self._grpc = GrpcPort.of(settings, context, on_failure, shares_port=fronts > 1)
        self._fronts = fronts
        self._elsewhere = elsewhere

    def http_protocol(self) -> type[asyncio.Protocol]:
        """The protocol of the main port's connections."""
        share = max(1, self._settings.max_connections // self._fronts)
        return self._protocol(replace(self._limits(), elsewhere=self._elsewhere, share=share))

    def _limits(self) -> ConnectionLimits:
        return ConnectionLimits(
            header_timeout=self._settings.header_timeout,
            write_timeout=self._settings.body_timeout,
            max_connections=self._settings.max_connections,
            linger_bytes=max(LINGER_BYTES, 2 * self._settings.max_body_bytes),
        )

    def _protocol(self, limits: ConnectionLimits) -> type[asyncio.Protocol]:
        renderer_of = renderers(root_path=self._settings.root_path)
        return guarded_protocol(limits, self._context.metrics, renderer_of=renderer_of)

    def application(self, running: Callable[[], AbstractAsyncContextManager[None]]) -> ASGIApp:
        """The application.

        Args:
            running: runs what the fronts need, for as long as the application lives.

        Raises:
            ConfigurationError: the root path begins as a route does.
        """
        root_path = self._settings.root_path

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
            side = create_probes(self._context, root_path=root_path)
            async with (
                serving_beside(side, self._probes, self._protocol(self._limits())),
                running(),
                self._grpc.serving(self._settings.host),
            ):
                yield

        return create_application(
            self._context,
            lifespan=lifespan,
            cors_origins=self._settings.cors_origins,
            serve_metrics=self._probes is None,
            root_path=root_path,
        )

    def stop_listening(self, seconds: float) -> None:
        """Take no more calls of gRPC, and end those that are open after so many seconds; called on the event loop."""
        self._grpc.stop(max(seconds, 0))


def body_limits(settings: Settings) -> BodyLimits:
    """What a request's body may hold."""
    return BodyLimits(
        max_body_bytes=settings.max_body_bytes,
        # More rows than the queue holds would never be admitted, so don't tell the client to try again.
        max_images=min(settings.max_images_per_request, settings.max_queue_rows),
    )

"""The gRPC port: which services it has, and when it opens and closes. gRPC is imported only if there is a port."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from condconv_serve.errors import ConfigurationError
from condconv_serve.fronts.context import AppContext
from condconv_serve.settings import Settings

if TYPE_CHECKING:
    from condconv_serve.fronts.grpc.server import GrpcServer

logger = logging.getLogger(__name__)

SERVICES = (
    "condconv_serve.fronts.oip.grpc:service",
    "condconv_serve.fronts.tfserving.grpc:prediction_service",
    "condconv_serve.fronts.tfserving.grpc:model_service",
)
"""Functions that make a service of an `AppContext`, by module and name."""


class GrpcPort:
    """The gRPC server of a service, if there is one."""

    def __init__(
        self,
        server: GrpcServer | None,
        port: int,
        on_failure: Callable[[Exception], None],
        *,
        shares_port: bool = False,
    ) -> None:
        """Serve on `port`; `on_failure` is called if that can't be. Who shares it says itself where it is."""
        self._server = server
        self._port = port
        self._on_failure = on_failure
        self._shares_port = shares_port

    @classmethod
    def of(
        cls,
        settings: Settings,
        context: AppContext,
        on_failure: Callable[[Exception], None],
        *,
        shares_port: bool = False,
    ) -> GrpcPort:
        """Make the server that the settings ask for; `shares_port` if other processes open the same port.

        Raises:
            ConfigurationError: the settings of TLS don't fit each other, or the files can't be used.
        """
        certificate, key = settings.grpc_tls_certificate, settings.grpc_tls_key
        if (certificate is None) != (key is None) or (settings.grpc_tls_client_ca and not certificate):
            raise ConfigurationError(
                "TLS needs both CONDCONV_GRPC_TLS_CERTIFICATE and CONDCONV_GRPC_TLS_KEY; CONDCONV_GRPC_TLS_CLIENT_CA "
                "comes on top."
            )
        if settings.grpc_port is None:
            return cls(None, 0, on_failure)
        from condconv_serve.fronts.grpc.server import GrpcLimits, GrpcServer
        from condconv_serve.fronts.grpc.tls import TlsFiles

        server = GrpcServer(
            [resolve_name(name)(context) for name in SERVICES],
            context,
            limits=GrpcLimits(
                max_connections=settings.max_connections,
                handshake_timeout=settings.header_timeout,
                idle_timeout=settings.keep_alive_timeout,
                write_timeout=settings.body_timeout,
                shares_port=shares_port,
            ),
            tls=TlsFiles(certificate, key, settings.grpc_tls_client_ca) if certificate and key else None,
        )
        return cls(server, settings.grpc_port, on_failure, shares_port=shares_port)

    @contextlib.asynccontextmanager
    async def serving(self, host: str) -> AsyncGenerator[None, None]:
        """Serve for as long as the block lasts, or until `stop`."""
        if self._server is None:
            yield
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                port = await stack.enter_async_context(self._server.serving(host, self._port))
            except ConfigurationError as error:
                self._on_failure(error)
            else:
                level = logging.DEBUG if self._shares_port else logging.INFO
                logger.log(level, "gRPC on %s:%d", f"[{host}]" if ":" in host else host, port)
            yield

    def stop(self, seconds: float) -> None:
        """Take no more calls, and end those that are open after so many seconds; called on the event loop."""
        if self._server is not None:
            self._server.stop(seconds)

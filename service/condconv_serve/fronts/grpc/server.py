"""The gRPC server: it listens on a port of its own, in the process and on the event loop of all fronts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from condconv_serve.errors import ConfigurationError
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.grpc import health, reflection
from condconv_serve.fronts.grpc.calls import Calls
from condconv_serve.fronts.grpc.fallback import Fallback
from condconv_serve.fronts.grpc.health import Health
from condconv_serve.fronts.grpc.service import Method, Route, Service
from condconv_serve.fronts.grpc.streams import stream
from condconv_serve.fronts.grpc.tls import TlsFiles, server_credentials

MESSAGE_ROOM = 64 * 1024
"""Bytes by which a message may be longer than the body of a request over HTTP: its names and shapes."""
_PING_SECONDS = 60.0
_PONG_SECONDS = 20.0
_CLIENTS_PING_SECONDS = 5.0
_LAST_ANSWERS_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcLimits:
    """Limits of the server.

    Attributes:
        max_connections: most connections, and most calls at the same time.
        handshake_timeout: seconds that a client may take from connecting to its first frame.
        idle_timeout: seconds after which a connection without calls is closed; clients open it anew by themselves.
        write_timeout: most seconds that a client may leave an answer of a stream unread.
        shares_port: whether other processes of the same service listen on the same port.
    """

    max_connections: int = 1024
    handshake_timeout: float = 10.0
    idle_timeout: float = 75.0
    write_timeout: float = 30.0
    shares_port: bool = False


class GrpcServer:
    """Serves some services, with health and reflection."""

    def __init__(
        self, services: Sequence[Service], context: AppContext, *, limits: GrpcLimits, tls: TlsFiles | None = None
    ) -> None:
        """Prepare.

        Args:
            services: what to serve.
            context: what the service works with.
            limits: of connections and calls.
            tls: files for TLS; None serves in the clear.
        """
        self._services = services
        self._context = context
        self._limits = limits
        self._tls = tls
        self._calls = Calls(context, max_calls=limits.max_connections)
        self._health = Health(context.readiness, services=[service.name for service in services])
        self._stopping: asyncio.Task[None] | None = None
        self._server: grpc.aio.Server | None = None

    @contextlib.asynccontextmanager
    async def serving(self, host: str, port: int) -> AsyncGenerator[int, None]:
        """Serve for as long as the block lasts, or until `stop`.

        Args:
            host: address to listen on.
            port: 0 takes a free one.

        Yields:
            The port.

        Raises:
            ConfigurationError: the port can't be opened, or the files of TLS can't be used.
        """
        self._server = grpc.aio.server(options=self._options())
        self._server.add_generic_rpc_handlers(tuple(self._handlers()))
        bound = self._listen(self._server, host, port)
        await self._server.start()
        following = asyncio.create_task(self._health.follow())
        try:
            yield bound
        finally:
            following.cancel()
            self.stop(0)
            assert self._stopping is not None
            await self._stopping

    def stop(self, seconds: float) -> None:
        """Take no more calls, and end those that are open after so many seconds; called on the event loop."""
        if self._stopping is None and self._server is not None:
            self._calls.stop()
            self._health.wake()
            self._stopping = asyncio.get_running_loop().create_task(self._stop(self._server, seconds))

    async def _stop(self, server: grpc.aio.Server, seconds: float) -> None:
        last = min(_LAST_ANSWERS_SECONDS, seconds / 2)
        given_up = asyncio.get_running_loop().call_later(seconds - last, self._calls.give_up)
        await server.stop(seconds)
        given_up.cancel()

    def _options(self) -> list[tuple[str, int]]:
        limits, longest = self._limits, self._context.limits.max_body_bytes + MESSAGE_ROOM
        return [
            # Otherwise a stranger could listen on the same port, and each get some of the connections.
            ("grpc.so_reuseport", int(limits.shares_port)),
            ("grpc.max_receive_message_length", longest),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_allowed_incoming_connections", limits.max_connections),
            ("grpc.max_concurrent_streams", limits.max_connections),
            ("grpc.server_handshake_timeout_ms", round(limits.handshake_timeout * 1e3)),
            ("grpc.max_connection_idle_ms", round(limits.idle_timeout * 1e3)),
            ("grpc.keepalive_time_ms", round(_PING_SECONDS * 1e3)),
            ("grpc.keepalive_timeout_ms", round(_PONG_SECONDS * 1e3)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", round(_CLIENTS_PING_SECONDS * 1e3)),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", round(_CLIENTS_PING_SECONDS * 1e3)),
        ]

    def _listen(self, server: grpc.aio.Server, host: str, port: int) -> int:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._tls is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, server_credentials(self._tls))
        except RuntimeError as error:
            raise ConfigurationError(f"Can't listen on {host}:{port} for gRPC; is it in use?") from error

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        names = [service.name for service in self._services]
        found = [self._handler(service) for service in self._services]
        return [
            *found,
            self._health_handler(),
            *reflection.handlers(
                self._calls,
                [*names, health.NAME],
                [*(file for service in self._services for file in service.files), *health.FILES],
            ),
            Fallback(self._calls),
        ]

    def _handler(self, service: Service) -> grpc.GenericRpcHandler:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for name, method in service.methods.items():
            route = Route(f"/{service.name}/{name}", service.front, quiet=isinstance(method, Method) and method.quiet)
            if isinstance(method, Method):
                handlers[name] = grpc.stream_unary_rpc_method_handler(self._calls.unary(route, method))
            else:
                handlers[name] = grpc.stream_stream_rpc_method_handler(
                    stream(self._calls, route, method, write_timeout=self._limits.write_timeout)
                )
        return grpc.method_handlers_generic_handler(service.name, handlers)

    def _health_handler(self) -> grpc.GenericRpcHandler:
        check, watch = self._health.check(), self._health.watch(self._calls)
        route = Route(f"/{health.NAME}/Check", "grpc", quiet=check.quiet)
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.stream_unary_rpc_method_handler(self._calls.unary(route, check)),
            "Watch": grpc.unary_stream_rpc_method_handler(
                watch,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(health.NAME, handlers)

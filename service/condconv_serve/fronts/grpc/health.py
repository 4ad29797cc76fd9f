"""The standard health service (grpc.health.v1): whether load balancers should send calls.

The messages are the library's. Its servicer has to be told of each change, and one watcher that doesn't read keeps it
from telling the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2

from condconv_serve.errors import NotFound
from condconv_serve.fronts.gatekeeper import ReadyState
from condconv_serve.fronts.grpc.calls import Calls
from condconv_serve.fronts.grpc.service import Call, Method

NAME = "grpc.health.v1.Health"
FILES = (health_pb2.DESCRIPTOR.serialized_pb,)

_LOOK_SECONDS = 0.1
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Says of each service whether it is ready; all of them are when the whole service is."""

    def __init__(self, readiness: ReadyState, *, services: Collection[str]) -> None:
        """Follow `readiness` for these services, and for the empty name, which means all."""
        self._readiness = readiness
        self._services = frozenset(("", *services))
        self._changed = asyncio.Event()
        self._last: object = None

    async def follow(self) -> None:
        """Look for changes, which those who watch are waiting for."""
        while True:
            self._look()
            await asyncio.sleep(_LOOK_SECONDS)

    def wake(self) -> None:
        """Let those who watch look."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _look(self) -> None:
        if (now := self._status("")) != self._last:
            self._last = now
            self.wake()

    def check(self) -> Method:
        """The method `Check`."""

        async def check(request: Any, call: Call) -> Any:
            if request.service not in self._services:
                there_are = ", ".join(sorted(self._services - {""}))
                raise NotFound(f"There is no service {request.service[:100]!r}; there are: {there_are}.")
            return health_pb2.HealthCheckResponse(status=self._status(request.service))

        return Method(request=health_pb2.HealthCheckRequest, answer=check, access="open", quiet=True)

    def watch(self, calls: Calls) -> Callable[[Any, ServicerContext[Any, Any]], Awaitable[None]]:
        """What answers `Watch`: the state, and then each change. It ends when `wake` finds that the server stops."""

        async def watch(request: Any, context: ServicerContext[Any, Any]) -> None:
            async def follow() -> None:
                last, stopping = None, False
                while not stopping:
                    self._look()  # what is told here is what the next look is compared with
                    changed, stopping = self._changed, calls.stopping
                    if (status := self._status(request.service)) != last:
                        last = status
                        await context.write(health_pb2.HealthCheckResponse(status=status))
                    if not stopping:
                        await changed.wait()

            await calls.unbooked(context, follow)

        return watch

    def _status(self, service: str) -> Any:
        if service not in self._services:
            return _UNKNOWN
        return _SERVING if self._readiness.unready() is None else _NOT_SERVING

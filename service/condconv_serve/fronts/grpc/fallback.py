"""Calls of methods that there are not: refused and booked as any other."""

from __future__ import annotations

from typing import Any

import grpc
from grpc.aio import ServicerContext

from condconv_serve.errors import NotSupported
from condconv_serve.fronts.grpc.calls import Calls, without_circles
from condconv_serve.fronts.grpc.service import Call, Route

UNMATCHED = Route("/unmatched", "grpc")
"""The route of all of them, so that they make no new series."""


class Fallback(grpc.GenericRpcHandler):
    """Comes after all services."""

    def __init__(self, calls: Calls) -> None:
        """Book in `calls`."""
        self._calls = calls

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler that refuses the call."""
        method = str(handler_call_details.method)

        async def answer(_: Any, context: ServicerContext[Any, Any]) -> bytes:
            async def work(call: Call) -> bytes:
                raise NotSupported(f"There is no method {method[:200]}; server reflection lists those that there are.")

            return await self._calls.run(context, work, route=UNMATCHED)

        return grpc.stream_unary_rpc_method_handler(without_circles(answer))

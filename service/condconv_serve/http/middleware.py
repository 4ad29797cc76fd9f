"""What every request gets: an id, a place in a trace, a time limit for its body, a count, a log line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from condconv_serve.errors import Draining, ServiceError, unexpected_error
from condconv_serve.http.answer import ErrorRenderer
from condconv_serve.http.body import OpenBodies, PatientBody
from condconv_serve.http.cache_control import (
    CACHE_CONTROL_HEADER,
    CACHE_STATUS_HEADER,
    cache_status,
    note_cache_control,
)
from condconv_serve.http.scope import REQUEST_ID_HEADER, keep_facts, path_of
from condconv_serve.telemetry.logs import request_logged_as
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.requests import Ending, RequestBook
from condconv_serve.telemetry.tracing import Tracer

TRACE_HEADER = "traceresponse"
"""Header of the answer with the request's trace and span, written like `traceparent`."""

logger = logging.getLogger(__name__)


class RequestContext:
    """ASGI middleware around one front.

    It keeps the facts of each request for the front to read and add to (`condconv_serve.http.scope.facts_of`), and
    tells metrics, log and trace of each answer. Errors that the front doesn't expect become answers in its own shape.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        front: str,
        render: ErrorRenderer,
        metrics: Metrics,
        tracer: Tracer | None = None,
        draining: Callable[[], bool] = lambda: False,
        bodies: OpenBodies | None = None,
    ) -> None:
        """Wrap a front.

        Args:
            app: what answers.
            front: its name, for metrics.
            render: makes the front's answer of an error.
            metrics: counts requests.
            tracer: traces requests.
            draining: says whether callers should open their next connection elsewhere.
            bodies: keeps the bodies that are being received, and says how long they may take; all fronts share it.
        """
        self._app = app
        self._book = RequestBook(front=front, metrics=metrics, tracer=tracer)
        self._render = render
        self._draining = draining
        self._bodies = bodies or OpenBodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other kinds of connections pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request = self._book.open(
            request_id=headers.get(REQUEST_ID_HEADER),
            traceparent=headers.get("traceparent"),
            quiet=path_of(scope) in _QUIET,
        )
        facts = request.facts
        note_cache_control(facts, ", ".join(headers.getlist(CACHE_CONTROL_HEADER)))
        keep_facts(scope, facts)
        body = PatientBody(receive, bodies=self._bodies)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID_HEADER] = facts.request_id
                answer[TRACE_HEADER] = str(facts.trace)
                if told := cache_status(facts):
                    answer[CACHE_STATUS_HEADER] = told
                # Whoever waits for our 100 may send the body all the same or not at all, and the rest of a body that
                # timed out may never come: nobody could tell where the next request begins.
                unasked = headers.get("expect", "").lower() == "100-continue" and not body.asked_for
                if body.timed_out or unasked or self._draining():
                    answer["Connection"] = "close"
            await send(message)

        with request_logged_as(facts):
            try:
                await self._app(scope, body.receive, send_with_id)
            except ClientDisconnect:
                pass  # nobody is left who could be answered
            except asyncio.CancelledError:
                if status or not self._bodies.given_up:
                    raise
                late = Draining("The service is shutting down, and no time was left to answer.", retry_after=1.0)
                facts.slug = late.slug
                await self._render(late).send(send_with_id)
            except Exception:
                place = quote(scope["path"])
                logger.exception("unexpected error in %s %s [%s]", scope["method"], place, facts.request_id)
                facts.outcome = ServiceError.slug
                if status:  # half an answer is out, so the connection must end
                    raise
                error = unexpected_error()
                await self._render(error).send(send_with_id)
            finally:
                request.close(ending := _ending(scope, status), quiet=ending.route in _QUIET)


def _ending(scope: Scope, status: int) -> Ending:
    """How a request ended; its status is 0 if there was no answer."""
    route, method = _route(scope), scope["method"] if scope["method"] in _METHODS else "other"
    # 499: the client went away before there was an answer.
    code = status or 499
    # Quoted, since a decoded path may hold line breaks and so forge lines of the log.
    path = quote(scope["path"])
    return Ending(
        route=route,
        method=method,
        code=code,
        answered=bool(status),
        line=f"{quote(scope['method'])} {path} {code}",
        span=f"{method} {route}" if route != "unmatched" else method,
        fields={"method": method, "path": path, "status": code},
        attributes={
            "http.request.method": method if method != "other" else "_OTHER",
            "http.route": route if route != "unmatched" else None,
            "http.response.status_code": code,
            "url.path": path,
            "url.scheme": scope.get("scheme"),
        },
    )


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/metrics", "/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"})


def _route(scope: Scope) -> str:
    """The route's template. Unknown paths share one label, so they can't make new ones."""
    route: Any = scope.get("route")
    return getattr(route, "path", None) or "unmatched"

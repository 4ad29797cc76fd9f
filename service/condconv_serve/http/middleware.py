"""What every request gets: an id, a place in a trace, a time limit for its body, a count, a log line."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from condconv_serve.domain.facts import RequestFacts
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import Draining, ServiceError, unexpected_error
from condconv_serve.http.answer import ErrorRenderer
from condconv_serve.http.body import OpenBodies, PatientBody
from condconv_serve.http.scope import REQUEST_ID_HEADER, keep_facts, path_of
from condconv_serve.telemetry.logs import request_logged_as
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tracing import RequestSpan, Tracer

TRACE_HEADER = "traceresponse"
"""Header of the answer with the request's trace and span, written like `traceparent`."""

_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")

logger = logging.getLogger("condconv_serve.access")


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
        self._front = front
        self._render = render
        self._metrics = metrics
        self._tracer = tracer or Tracer()
        self._draining = draining
        self._bodies = bodies or OpenBodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other kinds of connections pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        parent = TraceContext.parse(headers.get("traceparent"))
        span = self._tracer.start(parent, export=path_of(scope) not in _QUIET)
        facts = RequestFacts(request_id=_accept(headers.get(REQUEST_ID_HEADER)), trace=span.context)
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
                self._finish(scope, facts, span, status, time.monotonic() - started)

    def _finish(self, scope: Scope, facts: RequestFacts, span: RequestSpan, status: int, seconds: float) -> None:
        route, method = _route(scope), scope["method"] if scope["method"] in _METHODS else "other"
        # 499: the client went away before there was an answer.
        code = status or 499
        self._metrics.requests.labels(self._front, route, method, code, facts.missed).inc()
        self._metrics.request_seconds.labels(self._front, route).observe(seconds)
        if facts.slug:
            self._metrics.rejected.labels(facts.slug, facts.missed).inc()
        facts.outcome = facts.outcome or facts.slug or ("answered" if status else "disconnected")
        # Quoted, since a decoded path may hold line breaks and so forge lines of the log.
        path, trace, told = quote(scope["path"]), facts.trace, facts.told()
        # Lines for people leave out what nearly all lines have in common.
        shown = {name: value for name, value in told.items() if (name, value) != ("outcome", "answered")}
        shown |= {"trace": trace.trace_id} if trace.sampled else {}
        logger.log(
            logging.DEBUG if route in _QUIET else logging.INFO,
            "%s %s %d in %.1f ms [%s]%s",
            quote(scope["method"]),
            path,
            code,
            seconds * 1e3,
            facts.request_id,
            "".join(f" {name}={value}" for name, value in shown.items()),
            extra={
                "request_id": facts.request_id,
                "trace_id": trace.trace_id,
                "span_id": trace.span_id,
                "method": method,
                "route": route,
                "path": path,
                "status": code,
                "total_ms": round(seconds * 1e3, 1),
                **told,
            },
        )
        span.end(
            name=f"{method} {route}" if route != "unmatched" else method,
            failed=code >= 500,
            stages=facts.stages,
            attributes={
                "http.request.method": method if method != "other" else "_OTHER",
                "http.route": route if route != "unmatched" else None,
                "http.response.status_code": code,
                "url.path": path,
                "url.scheme": scope.get("scheme"),
                "error.type": facts.outcome if code >= 500 else None,
                "condconv.request_id": facts.request_id,
                **{f"condconv.{name}": value for name, value in told.items()},
            },
        )


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/metrics", "/livez", "/readyz", "/healthz"})


def _accept(given: str | None) -> str:
    """Take the caller's id if it is harmless, or else make one."""
    return given if given and _REQUEST_ID.match(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """The route's template. Unknown paths share one label, so they can't make new ones."""
    route: Any = scope.get("route")
    return getattr(route, "path", None) or "unmatched"

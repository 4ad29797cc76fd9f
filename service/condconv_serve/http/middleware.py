"""What happens around every request: an id, a place in a trace, a limit to its body's time, a count, a log line."""

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

from condconv_serve.domain import Classification
from condconv_serve.errors import RequestTimeout, ServiceError
from condconv_serve.fronts.native.problems import Problem, problem_response
from condconv_serve.telemetry.logs import request_logged_as
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tracing import RequestSpan, Stages, TraceContext, Tracer

REQUEST_ID_HEADER = "X-Request-Id"
TRACE_HEADER = "traceresponse"
"""Tells the caller the trace and the span of its request, in the form of `traceparent`."""

_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
logger = logging.getLogger("condconv_serve.access")


class RequestContext:
    """ASGI middleware: echoes a request id, tells metrics, log and trace of each answer, and answers the unexpected.

    Routes may set in the scope: `condconv.slug`, `condconv.key_name`, `condconv.model`, `condconv.rows`,
    `condconv.timings` (milliseconds by stage) and `condconv.stages`; `note_classification` sets the last four.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        tracer: Tracer | None = None,
        body_timeout: float = 30.0,
        body_total_timeout: float = 300.0,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wrap an app.

        Args:
            app: what answers.
            metrics: counts requests.
            tracer: traces requests.
            body_timeout: seconds that a body may pause.
            body_total_timeout: seconds that a body may take.
            draining: whether callers should open their next connection elsewhere.
        """
        self._app = app
        self._metrics = metrics
        self._tracer = tracer or Tracer()
        self._body_timeout = body_timeout
        self._body_total_timeout = body_total_timeout
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other kinds of connections pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        request_id = _accept(headers.get(REQUEST_ID_HEADER))
        parent = TraceContext.parse(headers.get("traceparent"))
        span = self._tracer.start(parent, export=scope["path"] not in _QUIET)
        scope["condconv.request_id"] = request_id
        scope["condconv.trace"] = span.context
        body = _PatientBody(receive, self._body_timeout, self._body_total_timeout)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID_HEADER] = request_id
                answer[TRACE_HEADER] = str(span.context)
                # The rest of a body that timed out would be taken for the next request.
                if body.timed_out or self._draining():
                    answer["Connection"] = "close"
            await send(message)

        with request_logged_as(request_id, span.context):
            try:
                await self._app(scope, body.receive, send_with_id)
            except ClientDisconnect:
                pass  # nobody is left who could be answered
            except Exception:
                logger.exception("unexpected error in %s %s [%s]", scope["method"], quote(scope["path"]), request_id)
                scope["condconv.outcome"] = ServiceError.slug
                if status:  # half an answer is out, so the connection must end
                    raise
                error = ServiceError("Something went wrong in the service; its log says what.")
                await problem_response(Problem.of(error))(scope, receive, send_with_id)
            finally:
                self._finish(scope, request_id, span, status, time.monotonic() - started)

    def _finish(self, scope: Scope, request_id: str, span: RequestSpan, status: int, seconds: float) -> None:
        route, method = _route(scope), scope["method"] if scope["method"] in _METHODS else "other"
        # 499: the client went away before there was an answer.
        code = status or 499
        self._metrics.requests.labels(route, method, code).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        slug = scope.get("condconv.slug")
        if slug:
            self._metrics.rejected.labels(slug).inc()
        outcome = scope.get("condconv.outcome") or slug or ("answered" if status else "disconnected")
        # Quoted, since a decoded path may hold line breaks and so forge lines of the log.
        path = quote(scope["path"])
        facts = {
            "key": scope.get("condconv.key_name"),
            "model": scope.get("condconv.model"),
            "rows": scope.get("condconv.rows"),
            **{f"{stage}_ms": ms for stage, ms in scope.get("condconv.timings", {}).items()},
            "outcome": outcome,
        }
        facts = {name: value for name, value in facts.items() if value is not None}
        trace = span.context
        # Lines for people leave out what is the same in nearly all of them.
        told = {k: v for k, v in facts.items() if (k, v) != ("outcome", "answered")}
        told |= {"trace": trace.trace_id} if trace.sampled else {}
        logger.log(
            logging.DEBUG if route in _QUIET else logging.INFO,
            "%s %s %d in %.1f ms [%s]%s",
            quote(scope["method"]),
            path,
            code,
            seconds * 1e3,
            request_id,
            "".join(f" {name}={value}" for name, value in told.items()),
            extra={
                "request_id": request_id,
                "trace_id": trace.trace_id,
                "span_id": trace.span_id,
                "method": method,
                "route": route,
                "path": path,
                "status": code,
                "total_ms": round(seconds * 1e3, 1),
                **facts,
            },
        )
        span.end(
            name=f"{method} {route}" if route != "unmatched" else method,
            failed=code >= 500,
            stages=scope.get("condconv.stages"),
            attributes={
                "http.request.method": method if method != "other" else "_OTHER",
                "http.route": route if route != "unmatched" else None,
                "http.response.status_code": code,
                "url.path": path,
                "url.scheme": scope.get("scheme"),
                "error.type": outcome if code >= 500 else None,
                "condconv.request_id": request_id,
                **{f"condconv.{name}": value for name, value in facts.items()},
            },
        )


class _PatientBody:
    """Receives a request's body, with an end to patience; afterwards waits for the disconnect as long as it takes."""

    def __init__(self, receive: Receive, pause: float, total: float) -> None:
        self._receive = receive
        self._pause = pause
        self._total = total
        self._end: float | None = None
        self._complete = False
        self.timed_out = False

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            RequestTimeout: the client sent nothing for too long, or takes too long altogether.
        """
        if self._complete:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._end = self._end or now + self._total
        try:
            async with asyncio.timeout_at(min(now + self._pause, self._end)):
                message = await self._receive()
        except TimeoutError as error:
            self.timed_out = True
            late = asyncio.get_running_loop().time() >= self._end
            raise RequestTimeout(
                f"The body did not arrive within {self._total:g} seconds."
                if late
                else f"The body is incomplete, and nothing more of it came for {self._pause:g} seconds."
            ) from error
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message


def note_classification(scope: Scope, classification: Classification) -> None:
    """Keep what log and trace tell of a classification: model, rows, the longest time of each stage."""
    scope["condconv.model"] = f"{classification.model.name}/{classification.model.version}"
    scope["condconv.rows"] = len(classification.results)
    timings = [result.prediction.timings for result in classification.results if result.prediction]
    if not timings:
        return
    scope["condconv.timings"] = {
        stage: round(max(getattr(timing, stage) for timing in timings) * 1e3, 1) for stage in _STAGES
    }
    slowest = max(timings, key=lambda timing: timing.total)
    scope["condconv.stages"] = Stages({stage: getattr(slowest, stage) for stage in _STAGES}, time.monotonic())


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/metrics", "/livez", "/readyz", "/healthz"})
_STAGES = ("decode", "queue", "inference")


def _accept(given: str | None) -> str:
    """Take the caller's id if it is harmless, else make one."""
    return given if given and _REQUEST_ID.match(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """The route's template: paths that match none must not make new metric labels."""
    route: Any = scope.get("route")
    return getattr(route, "path", None) or "unmatched"

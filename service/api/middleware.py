"""What happens around every request: an id, a count, a log line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import Problem, problem_response
from service.errors import ServiceError
from service.metrics import Metrics

REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
logger = logging.getLogger("service.access")


class RequestContext:
    """ASGI middleware: echoes a request id, tells metrics and log of each answer, and answers the unexpected."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        """Wrap an app."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other kinds of connections pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        request_id = _accept(Headers(scope=scope).get(REQUEST_ID_HEADER))
        scope["condconv.request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # nobody is left who could be answered
        except Exception:
            logger.exception("unexpected error in %s %s [%s]", scope["method"], quote(scope["path"]), request_id)
            if status:  # half an answer is out, so the connection must end
                raise
            error = ServiceError("Something went wrong in the service; its log says what.")
            await problem_response(Problem.of(error))(scope, receive, send_with_id)
        finally:
            self._finish(scope, request_id, status, time.monotonic() - started)

    def _finish(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route, method = _route(scope), scope["method"] if scope["method"] in _METHODS else "other"
        # 499: the client went away before there was an answer.
        code = status or 499
        self._metrics.requests.labels(route, method, code).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if slug := scope.get("condconv.slug"):
            self._metrics.rejected.labels(slug).inc()
        level = logging.DEBUG if route in _QUIET else logging.INFO
        # Quoted, since a decoded path may hold line breaks and so forge lines of the log.
        path = quote(scope["path"])
        logger.log(level, "%s %s %d in %.1f ms [%s]", scope["method"], path, code, seconds * 1e3, request_id)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/metrics", "/livez", "/readyz", "/healthz"})


def _accept(given: str | None) -> str:
    """Take the caller's id if it is harmless, else make one."""
    return given if given and _REQUEST_ID.match(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """The route's template: paths that match none must not make new metric labels."""
    route: Any = scope.get("route")
    return getattr(route, "path", None) or "unmatched"

"""What every request leaves behind, in every front: a count, a line of the log, a span."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from condconv_serve.domain.facts import RequestFacts
from condconv_serve.domain.trace import TraceContext
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tracing import RequestSpan, Tracer

_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")

logger = logging.getLogger("condconv_serve.access")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a request ended, in the words of its protocol.

    Attributes:
        route: what was asked for, one of few values.
        method: how it was asked for, one of few values.
        code: status code; fronts whose protocol isn't HTTP give the one that HTTP has for it.
        answered: whether there was an answer. Without one the client has gone.
        line: how the line of the log begins: what was asked for, and the protocol's own status.
        span: the span's name.
        fields: more fields of the line.
        attributes: of the span.
    """

    route: str
    method: str
    code: int
    answered: bool
    line: str
    span: str
    fields: Mapping[str, Any]
    attributes: Mapping[str, Any]


class RequestBook:
    """Books the requests of one front."""

    def __init__(self, *, front: str, metrics: Metrics, tracer: Tracer | None = None) -> None:
        """Count in `metrics` under the name `front`, and trace with `tracer`."""
        self._front = front
        self._metrics = metrics
        self._tracer = tracer or Tracer()

    def open(self, *, request_id: str | None, traceparent: str | None, quiet: bool = False) -> BookedRequest:
        """A request begins.

        Args:
            request_id: the caller's own, which is taken if it is harmless.
            traceparent: where the caller stands in a trace (W3C Trace Context).
            quiet: whether it is a probe, which leaves no span.
        """
        span = self._tracer.start(TraceContext.parse(traceparent), export=not quiet)
        return BookedRequest(self._front, self._metrics, span, _accepted(request_id))


class BookedRequest:
    """A request that is being answered.

    Attributes:
        facts: of the request.
    """

    def __init__(self, front: str, metrics: Metrics, span: RequestSpan, request_id: str) -> None:
        """The request begins now."""
        self.facts = RequestFacts(request_id=request_id, trace=span.context)
        self._front = front
        self._metrics = metrics
        self._span = span
        self._started = time.monotonic()

    def close(self, ending: Ending, *, quiet: bool = False) -> None:
        """The request has ended. The line of a `quiet` one has level debug."""
        facts, metrics, seconds = self.facts, self._metrics, time.monotonic() - self._started
        metrics.requests.labels(self._front, ending.route, ending.method, ending.code, facts.missed).inc()
        metrics.request_seconds.labels(self._front, ending.route).observe(seconds)
        if facts.slug:
            metrics.rejected.labels(facts.slug, facts.missed).inc()
        facts.outcome = facts.outcome or facts.slug or ("answered" if ending.answered else "disconnected")
        trace, told = facts.trace, facts.told()
        # Lines for people leave out what nearly all lines have in common.
        shown = {name: value for name, value in told.items() if (name, value) != ("outcome", "answered")}
        shown |= {"trace": trace.trace_id} if trace.sampled else {}
        logger.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s in %.1f ms [%s]%s",
            ending.line,
            seconds * 1e3,
            facts.request_id,
            "".join(f" {name}={value}" for name, value in shown.items()),
            extra={
                "request_id": facts.request_id,
                "trace_id": trace.trace_id,
                "span_id": trace.span_id,
                "route": ending.route,
                **ending.fields,
                "total_ms": round(seconds * 1e3, 1),
                **told,
            },
        )
        self._span.end(
            name=ending.span,
            failed=ending.code >= 500,
            stages=facts.stages,
            attributes={
                **ending.attributes,
                "error.type": facts.outcome if ending.code >= 500 else None,
                "condconv.request_id": facts.request_id,
                **{f"condconv.{name}": value for name, value in told.items()},
            },
        )


def _accepted(given: str | None) -> str:
    """Take the caller's id if it is harmless, or else make one."""
    return given if given and _REQUEST_ID.match(given) else uuid.uuid4().hex

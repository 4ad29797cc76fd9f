"""Traces (OpenTelemetry): where a request's time went."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from condconv_serve import __version__
from condconv_serve.domain.trace import SAMPLED, Stages, TraceContext
from condconv_serve.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

# A collector that doesn't answer must not hold up the shutdown, nor the exporting thread for long.
EXPORT_SECONDS = 5.0


class RequestSpan:
    """One request in its trace. Without an exporter it is a context and nothing else."""

    def __init__(self, context: TraceContext) -> None:
        """Keep the context."""
        self.context = context

    def end(self, *, name: str, failed: bool, attributes: Mapping[str, Any], stages: Stages | None = None) -> None:
        """The request is over; `stages` become children."""


class Tracer:
    """Starts a span per request, and exports nothing."""

    def start(self, parent: TraceContext | None, *, export: bool = True) -> RequestSpan:
        """Continue the parent's trace, or start one. With `export` false, such as for probes, nothing is exported."""
        return RequestSpan(TraceContext.following(parent))

    def close(self, seconds: float = EXPORT_SECONDS) -> None:
        """Export what is left; blocks for so many seconds at most, and never for more than `EXPORT_SECONDS`."""


def make_tracer(otlp_endpoint: str | None) -> Tracer:
    """A tracer that exports to an OpenTelemetry collector over HTTP, if there is one.

    Args:
        otlp_endpoint: base URL such as `http://collector:4318`, or the full one that ends with `/v1/traces`.

    Raises:
        ConfigurationError: there is an endpoint, but OpenTelemetry is not installed.
    """
    if otlp_endpoint is None:
        return Tracer()
    try:
        return _OtlpTracer(otlp_endpoint)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "CONDCONV_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: "
            "pip install 'condconv-serve[telemetry]'."
        ) from error


class _OtlpTracer(Tracer):
    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        url = endpoint.rstrip("/")
        url = url if url.endswith("/v1/traces") else f"{url}/v1/traces"
        ours = Resource({SERVICE_NAME: "condconv-serve", SERVICE_VERSION: __version__})
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say comes before our own.
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url, timeout=EXPORT_SECONDS)))
        self._tracer = self._provider.get_tracer("condconv-serve", __version__)

    def start(self, parent: TraceContext | None, *, export: bool = True) -> RequestSpan:
        if not export:
            return super().start(parent)
        from opentelemetry import trace

        context = trace.set_span_in_context(trace.INVALID_SPAN)  # never the parent of other instrumented spans
        if parent is not None:
            remote = trace.SpanContext(
                int(parent.trace_id, 16),
                int(parent.span_id, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(SAMPLED if parent.sampled else 0),
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        return _OtlpSpan(self._tracer, self._tracer.start_span("request", context, kind=trace.SpanKind.SERVER))

    def close(self, seconds: float = EXPORT_SECONDS) -> None:
        # The exporter's own limits hold for each of its tries, so it is left behind when the time is over.
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(max(min(seconds, EXPORT_SECONDS), 0))


class _OtlpSpan(RequestSpan):
    def __init__(self, tracer: Any, span: Span) -> None:
        ids = span.get_span_context()
        super().__init__(
            TraceContext(
                trace_id=f"{ids.trace_id:032x}", span_id=f"{ids.span_id:016x}", sampled=ids.trace_flags.sampled
            )
        )
        self._tracer = tracer
        self._span = span

    def end(self, *, name: str, failed: bool, attributes: Mapping[str, Any], stages: Stages | None = None) -> None:
        from opentelemetry import trace

        self._span.update_name(name)
        self._span.set_attributes({key: value for key, value in attributes.items() if value is not None})
        if failed:
            self._span.set_status(trace.StatusCode.ERROR)
        if stages is not None and self._span.is_recording():
            # The stages follow each other without gaps, so their lengths and the last one's end give all their times.
            end = time.time_ns() - int((time.monotonic() - stages.ended) * 1e9)
            for stage, seconds in reversed(list(stages.seconds.items())):
                start = end - int(seconds * 1e9)
                child = self._tracer.start_span(stage, trace.set_span_in_context(self._span), start_time=start)
                child.end(end)
                end = start
        self._span.end()

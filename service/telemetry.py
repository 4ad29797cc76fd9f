"""Logs, trace context and traces: what tells an operator what became of a request. Images are never in it."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from pythonjsonlogger.json import JsonFormatter

from service import __version__
from service.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

LogFormat = Literal["auto", "json", "pretty"]
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_SAMPLED = 0x01
# A collector that is away must hold up neither the shutdown nor, for long, the thread that exports.
_EXPORT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """Where a request stands in a trace (W3C Trace Context): ids in lower-case hexadecimal, 32 and 16 digits."""

    trace_id: str
    span_id: str
    sampled: bool = False

    @classmethod
    def parse(cls, traceparent: str | None) -> TraceContext | None:
        """Read the header `traceparent`; None if it is absent or invalid, as the standard wants it ignored then."""
        match = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        # Later versions may append fields; this one has exactly four.
        if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id=trace_id, span_id=span_id, sampled=bool(int(flags, 16) & _SAMPLED))

    @classmethod
    def following(cls, parent: TraceContext | None) -> TraceContext:
        """A new span in the parent's trace, or in a trace of its own."""
        return cls(
            trace_id=parent.trace_id if parent else secrets.token_hex(16),
            span_id=secrets.token_hex(8),
            sampled=parent.sampled if parent else False,
        )

    def __str__(self) -> str:
        """The context as a header has it."""
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.sampled else 0:02x}"


@dataclass(frozen=True, slots=True)
class _Request:
    request_id: str
    trace: TraceContext


_request: ContextVar[_Request | None] = ContextVar("condconv_request", default=None)


@contextlib.contextmanager
def request_logged_as(request_id: str, trace: TraceContext) -> Iterator[None]:
    """Put a request's ids on every line that is logged within, by this task and those that it starts."""
    token = _request.set(_Request(request_id, trace))
    try:
        yield
    finally:
        _request.reset(token)


class ContextThreads(ThreadPoolExecutor):
    """Threads that log with the ids of the request they work for."""

    def submit(
        self, fn: Callable[Arguments, Returned], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Returned]:
        """Run a function in the caller's context."""
        return super().submit(partial(copy_context().run, fn, *args, **kwargs))


class _RequestIds(logging.Filter):
    """Adds the request's ids to a record; `request_suffix` is empty where the message names the id itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_suffix = ""
        request = _request.get()
        if request is not None and not hasattr(record, "request_id"):
            record.request_id = request.request_id
            record.trace_id = request.trace.trace_id
            record.request_suffix = f" [{request.request_id}]"
        return True


def configure_logging(level: str, log_format: LogFormat = "auto") -> None:
    """Log to stderr from now on, replacing what was configured before.

    Args:
        level: least severe level of the service's own lines; libraries log warnings and errors.
        log_format: one JSON object per line, colours for a person, or, for auto, colours on a terminal and plain
            lines elsewhere.
    """
    handler = _handler(log_format)
    handler.addFilter(_RequestIds())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("service").setLevel(level.upper())


def _handler(log_format: LogFormat) -> logging.Handler:
    terminal = sys.stderr.isatty()
    if log_format == "pretty" or (log_format == "auto" and terminal):
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(stderr=True, emoji=False, force_terminal=True, width=None if terminal else 200)
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, log_time_format="%X", omit_repeated_times=False
        )
        handler.setFormatter(logging.Formatter("%(message)s%(request_suffix)s"))
        return handler
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(json_formatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s%(request_suffix)s"))
    return handler


def json_formatter() -> JsonFormatter:
    """One JSON object per record: timestamp, level, logger, message, and what the record carries besides."""
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
        # uvicorn's message once more, with escape sequences.
        reserved_attrs=[*_standard_attributes(), "request_suffix", "color_message"],
    )


def _standard_attributes() -> list[str]:
    return [*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"]


@dataclass(frozen=True, slots=True)
class Stages:
    """Where one image's time went: seconds of each stage, in order, the last of which ended at `ended` (monotonic)."""

    seconds: Mapping[str, float]
    ended: float


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
        """Continue the parent's trace, or start one; `export` is false for what nobody wants to look at."""
        return RequestSpan(TraceContext.following(parent))

    def close(self) -> None:
        """Export what is left; blocks for some seconds at most."""


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
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url, timeout=_EXPORT_SECONDS)))
        self._tracer = self._provider.get_tracer("condconv-serve", __version__)

    def start(self, parent: TraceContext | None, *, export: bool = True) -> RequestSpan:
        if not export:
            return super().start(parent)
        from opentelemetry import trace

        context = trace.set_span_in_context(trace.INVALID_SPAN)  # never the parent of whatever else is instrumented
        if parent is not None:
            remote = trace.SpanContext(
                int(parent.trace_id, 16),
                int(parent.span_id, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(_SAMPLED if parent.sampled else 0),
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        return _OtlpSpan(self._tracer, self._tracer.start_span("request", context, kind=trace.SpanKind.SERVER))

    def close(self) -> None:
        self._provider.force_flush(int(_EXPORT_SECONDS * 1e3))
        self._provider.shutdown()


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

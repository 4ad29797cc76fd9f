"""Log lines, trace context, and traces as a collector receives them."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from condconv_serve.domain import Timings
from condconv_serve.domain.facts import RequestFacts
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import ConfigurationError
from condconv_serve.http.answer import Answer
from condconv_serve.http.middleware import RequestContext
from condconv_serve.http.scope import facts_of
from condconv_serve.telemetry import tracing
from condconv_serve.telemetry.logs import ContextThreads, configure_logging, request_logged_as
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tracing import Tracer, make_tracer
from tests.contract.collector import Collector, attributes

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "sampled"),
    [(SAMPLED, True), (f"00-{TRACE}-{SPAN}-00", False), (f"cc-{TRACE}-{SPAN}-03-future", True), (f" {SAMPLED} ", True)],
)
def test_valid_traceparent(header: str, sampled: bool) -> None:
    assert TraceContext.parse(header) == TraceContext(trace_id=TRACE, span_id=SPAN, sampled=sampled)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "x",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"{SAMPLED}, {SAMPLED}",
    ],
)
def test_invalid_traceparent_is_ignored(header: str | None) -> None:
    assert TraceContext.parse(header) is None


def test_a_trace_is_continued_or_started() -> None:
    continued = TraceContext.following(TraceContext.parse(SAMPLED))
    assert (continued.trace_id, continued.sampled) == (TRACE, True)
    assert continued.span_id != SPAN
    started = TraceContext.following(None)
    assert TraceContext.parse(str(started)) == started
    assert not started.sampled


def facts(request_id: str) -> RequestFacts:
    return RequestFacts(request_id=request_id, trace=TraceContext.following(None))


class Written:
    """What the log has written."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """What the log writes; afterwards logging is as it was."""
    root, service = logging.getLogger(), logging.getLogger("condconv_serve")
    levels = root.level, service.level
    yield Written(capsys)
    root.handlers[:] = [handler for handler in root.handlers if type(handler).__module__.startswith("_pytest")]
    root.setLevel(levels[0])
    service.setLevel(levels[1])


def test_plain_lines_name_the_request_once(stderr: Written) -> None:
    configure_logging("info")
    log = logging.getLogger("condconv_serve.test")
    log.info("before")
    with request_logged_as(facts("abc")):
        log.info("during")
        log.info("access [abc]", extra={"request_id": "abc"})
    log.info("after")
    lines = [line.split(" ", 2)[2] for line in stderr.getvalue().splitlines()]
    assert lines == ["INFO    before", "INFO    during [abc]", "INFO    access [abc]", "INFO    after"]


def test_json_lines(stderr: Written) -> None:
    configure_logging("info", "json")
    log = logging.getLogger("condconv_serve.test")
    request = facts("abc")
    with request_logged_as(request):
        log.warning("two\nlines", extra={"rows": 3, "color_message": "\x1b"})
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("failed")
    log.debug("not shown")
    first, second = map(json.loads, stderr.getvalue().splitlines())
    assert first.pop("timestamp").endswith("+00:00")
    assert first == {
        "level": "WARNING",
        "logger": "condconv_serve.test",
        "message": "two\nlines",
        "request_id": "abc",
        "trace_id": request.trace.trace_id,
        "rows": 3,
    }
    assert "ValueError: broken" in second["exc_info"]


def test_pretty_lines_have_colours(stderr: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    configure_logging("info", "pretty")
    with request_logged_as(facts("abc")):
        logging.getLogger("condconv_serve.test").info("hello")
    assert "\x1b[" in stderr.getvalue()
    assert "hello" in stderr.getvalue()
    assert "abc" in stderr.getvalue()


def test_threads_log_for_the_request_they_work_for(stderr: Written) -> None:
    configure_logging("info", "json")
    with ContextThreads(1) as threads:
        for name in ("a", "b"):
            with request_logged_as(facts(name)):
                threads.submit(logging.getLogger("condconv_serve.test").info, "in a thread").result()
    assert [json.loads(line)["request_id"] for line in stderr.getvalue().splitlines()] == ["a", "b"]


TIMINGS = [
    Timings(decode=0.004, queue=0.001, inference=0.01, total=0.015),
    Timings(decode=0.002, queue=0.003, inference=0.02, total=0.025),
]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """A route that classifies three images, one of which fails; `/broken` breaks."""
    scope["route"] = SimpleNamespace(path=scope["path"])
    facts = facts_of(scope)
    facts.key_name = "ci"
    await receive()
    facts.model, facts.rows = "b0/1", 3
    facts.note_answer(TIMINGS)
    if scope["path"] == "/broken":
        raise RuntimeError("swordfish")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def post(path: str, tracer: Tracer | None = None, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
    app = RequestContext(
        answer,
        front="test",
        render=lambda _: Answer(500, [], b"broken"),
        metrics=Metrics(CollectorRegistry()),
        tracer=tracer,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post(path, content=b"the picture", headers=headers)


async def test_access_line(stderr: Written) -> None:
    configure_logging("info", "json")
    response = await post("/predict", headers={"traceparent": SAMPLED, "X-Request-Id": "mine"})
    context = TraceContext.parse(response.headers["traceresponse"])
    assert context is not None
    assert context.trace_id == TRACE
    (line,) = map(json.loads, stderr.getvalue().splitlines())
    assert line.pop("total_ms") >= 0
    assert line.pop("message").startswith("POST /predict 200 in ")
    del line["timestamp"]
    assert line == {
        "level": "INFO",
        "logger": "condconv_serve.access",
        "request_id": "mine",
        "trace_id": TRACE,
        "span_id": context.span_id,
        "method": "POST",
        "route": "/predict",
        "path": "/predict",
        "status": 200,
        "key": "ci",
        "model": "b0/1",
        "rows": 3,
        "decode_ms": 4.0,
        "queue_ms": 3.0,
        "inference_ms": 20.0,
        "outcome": "answered",
    }
    assert "picture" not in stderr.getvalue()


async def test_an_unexpected_error_is_the_outcome(stderr: Written) -> None:
    configure_logging("info", "json")
    assert (await post("/broken")).status_code == 500
    trouble, access = map(json.loads, stderr.getvalue().splitlines())
    assert "swordfish" in trouble["exc_info"]
    assert (access["status"], access["outcome"]) == (500, "internal_error")
    assert trouble["request_id"] == access["request_id"]


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export may take so long that it is never given up on a busy machine."""
    monkeypatch.setattr(tracing, "EXPORT_SECONDS", 60.0)


@pytest.mark.usefixtures("_patient")
async def test_traces_reach_a_collector() -> None:
    with Collector() as collector:
        tracer = make_tracer(collector.url)
        response = await post("/predict", tracer, headers={"traceparent": SAMPLED})
        await post("/broken", tracer)
        await post("/livez", tracer)
        await post("/unsampled", tracer, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
        tracer.close(60)
        spans = collector.spans()
    assert set(collector.paths) == {"/v1/traces"}
    assert set(spans) == {"POST /predict", "POST /broken", "decode", "queue", "inference"}
    resource = {
        item.key: item.value.string_value for item in collector.requests[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "condconv-serve"
    span = spans["POST /predict"]
    assert response.headers["traceresponse"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    told = attributes(span)
    assert (told["http.route"], told["http.response.status_code"]) == ("/predict", 200)
    assert (told["condconv.model"], told["condconv.rows"]) == ("b0/1", 3)
    broken = spans["POST /broken"]
    assert broken.status.code == 2
    assert attributes(broken)["error.type"] == "internal_error"
    assert broken.trace_id.hex() != TRACE


@pytest.mark.usefixtures("_patient")
async def test_stages_are_children_that_follow_each_other() -> None:
    with Collector() as collector:
        tracer = make_tracer(f"{collector.url}/v1/traces")
        await post("/predict", tracer)
        tracer.close(60)
        spans = collector.spans()
    stages = [spans[name] for name in ("decode", "queue", "inference")]
    assert {stage.parent_span_id for stage in stages} == {spans["POST /predict"].span_id}
    lengths = [(stage.end_time_unix_nano - stage.start_time_unix_nano) / 1e9 for stage in stages]
    assert lengths == pytest.approx([0.002, 0.003, 0.02], abs=1e-5), "those of the slowest image"
    assert stages[0].end_time_unix_nano == stages[1].start_time_unix_nano
    assert stages[1].end_time_unix_nano == stages[2].start_time_unix_nano
    assert stages[2].end_time_unix_nano <= spans["POST /predict"].end_time_unix_nano


@pytest.mark.usefixtures("_patient")
async def test_the_end_does_not_wait_for_a_collector_for_longer_than_it_has() -> None:
    """A collector that takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = make_tracer(f"http://127.0.0.1:{silent.getsockname()[1]}")
        await post("/predict", tracer)
        closing = threading.Thread(target=tracer.close, args=(0.1,), daemon=True)
        closing.start()
        closing.join(tracing.EXPORT_SECONDS / 2)
        assert not closing.is_alive()
        # What is left behind would complain in the middle of another test.
        exporting, _ = silent.accept()
        with exporting:
            exporting.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            for thread in threading.enumerate():
                if thread.name == "traces":
                    thread.join(60)


def test_an_endpoint_without_opentelemetry_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert type(make_tracer(None)) is Tracer
    with pytest.raises(ConfigurationError, match=r"condconv-serve\[telemetry\]"):
        make_tracer("http://localhost:4318")

"""Clients that send slowly, or nothing, or nonsense, over real sockets; others must not suffer from them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry

from condconv_serve.fronts.native import problems
from condconv_serve.fronts.native.body import read_body
from condconv_serve.http.middleware import RequestContext
from condconv_serve.http.protocol import (
    MAX_HEADER_BYTES,
    MAX_PIPELINED,
    REFUSED_AT_ONCE,
    ConnectionLimits,
    http_protocol,
)
from condconv_serve.telemetry.metrics import Metrics
from tests.e2e.server import wait_for

PATIENCE = 0.4
LIMITS = {"header_timeout": PATIENCE, "write_timeout": PATIENCE, "max_connections": 20}
HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
GET = b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n"


gone = threading.Event()
"""The client of `/until_gone` has left."""


@dataclass
class Running:
    address: tuple[str, int]
    metrics: Metrics
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def rejected(self, slug: str) -> float:
        return self.metrics.registry.get_sample_value("condconv_rejected_total", {"reason": slug}) or 0.0

    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self) -> socket.socket:
        connected = socket.create_connection(self.address)
        connected.settimeout(10)
        return connected


def application(metrics: Metrics) -> RequestContext:
    app = FastAPI()
    problems.install(app)
    gone.clear()

    @app.get("/ok")
    async def ok() -> str:
        return "ok"

    @app.get("/until_gone")
    async def until_gone(request: Request) -> str:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()
        return "gone"

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(3 * PATIENCE)
        return "slow"

    @app.get("/large")
    async def large() -> str:
        return "x" * 20_000_000

    @app.post("/echo")
    async def echo(request: Request) -> str:
        return (await read_body(request, 1000)).decode()

    @app.post("/early")
    async def early() -> str:
        return "early"

    return RequestContext(app, metrics=metrics, body_timeout=PATIENCE, body_total_timeout=4 * PATIENCE)


@contextlib.contextmanager
def serving(**limits: Any) -> Iterator[Running]:
    metrics = Metrics(CollectorRegistry())
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            application(metrics),
            http=http_protocol(ConnectionLimits(**(LIMITS | limits)), metrics),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: server.started, seconds=10)
        yield Running(listener.getsockname(), metrics, server)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def running() -> Iterator[Running]:
    with serving() as server:
        yield server


def everything(connected: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connected.recv(65536):
            received += chunk
    return received


def answer(connected: socket.socket) -> bytes:
    """One answer with a length, leaving the connection open."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connected.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += connected.recv(65536)
    return head + b"\r\n\r\n" + body


def assert_problem(received: bytes, status: int, slug: str) -> None:
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].split()[1] == str(status).encode(), received
    assert b"content-type: application/problem+json" in lines
    assert b"connection: close" in lines
    assert any(line.startswith(b"x-request-id: ") for line in lines)
    problem = json.loads(body)
    assert (problem["status"], problem["slug"]) == (status, slug)


def test_silent_connection_is_closed(running: Running) -> None:
    started = time.monotonic()
    with running.connect() as connected:
        assert everything(connected) == b""
    assert PATIENCE * 0.9 < time.monotonic() - started < PATIENCE + 2
    assert running.rejected("request_timeout") == 1


def test_headers_that_trickle_in_are_cut_off(running: Running) -> None:
    """A byte now and then does not prolong the deadline."""
    started = time.monotonic()
    with running.connect() as connected, contextlib.suppress(OSError):
        connected.settimeout(PATIENCE / 8)
        received = b""
        for byte in GET[:-2] + b"X: " + b"y" * 1000:
            connected.send(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                if received := connected.recv(65536):
                    break
        assert_problem(received, 408, "request_timeout")
    assert time.monotonic() - started < PATIENCE + 2


def test_keep_alive_outlasts_the_header_timeout(running: Running) -> None:
    """Between requests a connection may be idle for longer: that is uvicorn's keep-alive timeout."""
    with running.connect() as connected:
        connected.sendall(GET)
        assert answer(connected).endswith(b'"ok"')
        time.sleep(PATIENCE * 2)
        connected.sendall(GET)
        assert answer(connected).endswith(b'"ok"')
        connected.sendall(GET[:20])
        assert_problem(everything(connected), 408, "request_timeout")


def test_blank_lines_keep_no_connection_open(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(GET)
        answer(connected)
        started = time.monotonic()
        connected.sendall(b"\r\n")  # ends uvicorn's keep-alive timeout without beginning a request
        everything(connected)
        assert time.monotonic() - started < PATIENCE + 2


def test_slow_answers_are_waited_for(running: Running) -> None:
    slow = GET.replace(b"/ok", b"/slow")
    with running.connect() as connected:
        connected.sendall(slow)
        assert answer(connected).endswith(b'"slow"')
    with running.connect() as connected:
        connected.sendall(slow + GET[:20])  # the second request's headers wait for the first answer
        assert answer(connected).endswith(b'"slow"')


def test_pipelined_requests(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(GET * 2 + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert everything(connected).count(b'"ok"') == 3


WISH = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
"""Other protocols may be asked for with any request, as by curl --http2; none is spoken."""


def wishing(request: bytes) -> bytes:
    return request.replace(b"\r\n\r\n", b"\r\n" + WISH + b"\r\n", 1)


@pytest.mark.parametrize("pieces", [1, 2, 20])
def test_a_wish_for_another_protocol_is_ignored(running: Running, pieces: int) -> None:
    smuggled = b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n"
    echo = wishing(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(smuggled)) + smuggled
    step = -(-len(echo) // pieces)
    with running.connect() as connected:
        for _ in range(2):  # on the same connection
            for start in range(0, len(echo), step):
                connected.sendall(echo[start : start + step])
                time.sleep(0.1 / pieces)
            assert json.loads(answer(connected).partition(b"\r\n\r\n")[2]) == smuggled.decode()
        connected.sendall(GET)
        assert answer(connected).endswith(b'"ok"')


def test_wishes_among_pipelined_requests(running: Running) -> None:
    chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    requests = [wishing(GET), GET, wishing(chunked) + b"4\r\nbody\r\n0\r\n\r\n", wishing(GET) * 500, GET]
    with running.connect() as connected:
        connected.sendall(b"".join(requests)[:-2] + b"Connection: close\r\n\r\n")
        received = everything(connected)
    assert received.count(b"HTTP/1.1 200 OK") == 504
    assert received.count(b'"ok"') == 503
    assert received.count(b'"body"') == 1


def test_body_that_never_comes_after_a_wish(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(wishing(HEAD))
        assert_problem(everything(connected), 408, "request_timeout")


@pytest.mark.parametrize("target", [b"x:80", b"/ok"])
def test_no_tunnel(running: Running, target: bytes) -> None:
    with running.connect() as connected:
        connected.sendall(b"CONNECT " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert_problem(everything(connected), 400, "malformed_request")
    with running.connect() as connected:
        connected.sendall(GET + b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        assert everything(connected).startswith(b"HTTP/1.1 200 OK")


def test_body_that_stalls(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(HEAD + b"12345")
        assert_problem(everything(connected), 408, "request_timeout")
    wait_for(lambda: running.rejected("request_timeout") == 1, seconds=5)


def test_body_that_never_starts(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(HEAD)
        assert_problem(everything(connected), 408, "request_timeout")


def test_body_that_trickles_in_is_cut_off(running: Running) -> None:
    head = HEAD.replace(b"10\r\n\r\n", b"900\r\n\r\n")
    started = time.monotonic()
    with running.connect() as connected:
        connected.sendall(head)
        connected.settimeout(PATIENCE / 4)
        received = b""
        while not received and time.monotonic() - started < 10:
            connected.send(b"x")
            with contextlib.suppress(TimeoutError):
                received = connected.recv(65536)
    assert_problem(received, 408, "request_timeout")
    assert PATIENCE * 3 < time.monotonic() - started < PATIENCE * 4 + 2


def test_slow_body_in_time(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(HEAD)
        for _ in range(5):
            time.sleep(PATIENCE / 4)
            connected.sendall(b"12")
        assert answer(connected).endswith(b'"1212121212"')


def test_rest_of_a_body_that_was_answered_early(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(HEAD.replace(b"/echo", b"/early") + b"1")
        assert answer(connected).endswith(b'"early"')
        started = time.monotonic()
        connected.sendall(b"2")
        assert everything(connected) == b""
        assert time.monotonic() - started < PATIENCE + 2


def test_keep_alive_after_a_body_that_was_answered_early(running: Running) -> None:
    """Once the rest of the body is here, the connection is idle like any other."""
    with running.connect() as connected:
        connected.sendall(HEAD.replace(b"/echo", b"/early") + b"1")
        assert answer(connected).endswith(b'"early"')
        connected.sendall(b"234567890")
        time.sleep(PATIENCE * 2)
        connected.sendall(GET)
        assert answer(connected).endswith(b'"ok"')


def test_a_connection_is_idle_once_the_rest_of_a_body_has_come(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert b"200" in answer(connected)
        connected.sendall(b"x" * 10)
        assert connected.recv(1) == b"", "closed as others are"


def test_more_requests_than_may_wait_behind_one(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + GET * (2 * MAX_PIPELINED))
        received = everything(connected)
    assert received.count(b"HTTP/1.1 200 OK") == 1 + MAX_PIPELINED


def test_endless_trailers(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n")
        with contextlib.suppress(OSError):
            for _ in range(20):
                connected.sendall(b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(1000)))
        assert_problem(everything(connected), 431, "headers_too_large")


def test_a_client_that_leaves_is_noticed_behind_pipelined_requests(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(b"GET /until_gone HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        time.sleep(0.2)
    assert gone.wait(5)


def test_large_rest_of_a_body_is_no_header(running: Running) -> None:
    size = MAX_HEADER_BYTES * 10
    with running.connect() as connected:
        connected.sendall(HEAD.replace(b"/echo", b"/early").replace(b"10\r\n\r\n", b"%d\r\n\r\n" % size))
        assert answer(connected).endswith(b'"early"')
        connected.sendall(bytes(size) + GET)
        assert answer(connected).endswith(b'"ok"')


@pytest.mark.parametrize("rubbish", [b"\x16\x03\x01\x02\x00\x01\x00", b"NONSENSE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_no_http(running: Running, rubbish: bytes) -> None:
    with running.connect() as connected:
        connected.sendall(rubbish)
        assert_problem(everything(connected), 400, "malformed_request")
    assert running.rejected("malformed_request") == 1


def test_body_that_is_no_chunked_encoding(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(HEAD.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked") + b"xyz\r\n")
        assert_problem(everything(connected), 400, "malformed_request")


def test_rubbish_behind_a_request_leaves_its_answer_alone(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(GET.replace(b"/ok", b"/slow") + b"NONSENSE\r\n\r\n")
        received = everything(connected)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert received.endswith(b'"slow"')


def test_endless_headers(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(GET[:-2] + b"X: ")
        with contextlib.suppress(OSError):
            for _ in range(100):
                connected.sendall(b"y" * 10_000)
                time.sleep(0.001)
                if running.rejected("headers_too_large"):
                    break
        assert_problem(everything(connected), 431, "headers_too_large")


def test_answer_that_nobody_reads(running: Running) -> None:
    """The server gives it up, so that its memory is not held for ever."""
    with running.connect() as connected:
        connected.sendall(GET.replace(b"/ok", b"/large"))
        wait_for(lambda: running.connections() == 1, seconds=5)
        wait_for(lambda: running.connections() == 0, seconds=10)


def test_idle_connections_while_others_are_served() -> None:
    with serving(max_connections=300, header_timeout=1.5) as running, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(running.connect()) for _ in range(250)]
        for connected in idle[::2]:
            connected.sendall(GET[:20])
        wait_for(lambda: running.connections() == 250, seconds=10)
        with httpx.Client(base_url=running.url, trust_env=False) as client:
            for _ in range(50):
                assert client.get("/ok", timeout=5).json() == "ok"
            wait_for(lambda: running.connections() <= 1, seconds=10)
            assert client.get("/ok").json() == "ok"
        assert running.rejected("request_timeout") == 250


def test_connections_beyond_the_limit_are_told() -> None:
    with serving(header_timeout=30.0) as running, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(running.connect()) for _ in range(20)]
        wait_for(lambda: running.connections() == 20, seconds=10)
        response = httpx.get(f"{running.url}/ok", trust_env=False)
        assert (response.status_code, response.json()["slug"]) == (503, "too_many_connections")
        assert response.headers["retry-after"] == "1"
        assert response.headers["connection"] == "close"
        upload = httpx.post(f"{running.url}/echo", content=bytes(500_000), trust_env=False)
        assert upload.json()["slug"] == "too_many_connections"
        idle[0].close()
        wait_for(lambda: running.connections() == 19, seconds=10)
        assert httpx.get(f"{running.url}/ok", trust_env=False).status_code == 200


def test_a_flood_of_connections_beyond_the_limit_is_closed() -> None:
    with serving(header_timeout=30.0, max_connections=1) as running, contextlib.ExitStack() as stack:
        first = stack.enter_context(running.connect())
        wait_for(lambda: running.connections() == 1, seconds=10)
        flood = [stack.enter_context(running.connect()) for _ in range(REFUSED_AT_ONCE + 30)]
        assert [everything(connected) for connected in flood] == [b""] * len(flood)
        assert running.rejected("too_many_connections") >= 30
        first.sendall(GET)
        assert answer(first).endswith(b'"ok"')

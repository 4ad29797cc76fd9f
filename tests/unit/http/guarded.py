"""A small application behind the guard, on a real socket, and clients that speak to it byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from condconv_serve.errors import (
    BodyTooLarge,
    Draining,
    HeadersTooLarge,
    MalformedRequest,
    RequestTimeout,
    ServiceError,
    TooManyConnections,
)
from condconv_serve.http.answer import Answer, ErrorRenderer
from condconv_serve.http.body import OpenBodies, read_body
from condconv_serve.http.guard import guarded_protocol
from condconv_serve.http.limits import ConnectionLimits
from condconv_serve.http.middleware import RequestContext
from condconv_serve.http.scope import facts_of
from condconv_serve.telemetry.metrics import Metrics

PATIENCE = 0.4
LIMITS = {
    "header_timeout": PATIENCE,
    "write_timeout": PATIENCE,
    "linger_pause": PATIENCE,
    "head_grace": 60.0,
    "max_connections": 20,
}
HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
GET = b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n"
STATUS: dict[type[ServiceError], int] = {
    RequestTimeout: 408,
    MalformedRequest: 400,
    HeadersTooLarge: 431,
    BodyTooLarge: 413,
    TooManyConnections: 503,
    Draining: 503,
}

gone = threading.Event()
"""The client of `/until_gone` has left."""


def render(error: ServiceError) -> Answer:
    """An error in a shape that only these tests know."""
    body = json.dumps({"slug": error.slug, "detail": str(error)}).encode()
    headers = [(b"content-type", b"application/test+json"), (b"content-length", b"%d" % len(body))]
    if isinstance(error, TooManyConnections) and error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    return Answer(STATUS[type(error)], headers, body)


def renderer_of(target: bytes) -> ErrorRenderer:
    """Answers about what is below `/other/` have a kind of their own."""
    if not target.startswith(b"/other/"):
        return render

    def other(error: ServiceError) -> Answer:
        answer = render(error)
        kind = [(b"content-type", b"application/other+json")]
        return Answer(answer.status, [*kind, *answer.headers[1:]], answer.body)

    return other


@dataclass
class Running:
    address: tuple[str, int]
    metrics: Metrics
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def rejected(self, slug: str) -> float:
        return (
            self.metrics.registry.get_sample_value("condconv_rejected_total", {"reason": slug, "deadline": ""}) or 0.0
        )

    def lingering(self) -> float | None:
        return self.metrics.registry.get_sample_value("condconv_lingering_connections")

    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self) -> socket.socket:
        connected = socket.create_connection(self.address)
        connected.settimeout(10)
        return connected


async def echo(request: Request) -> Response:
    return PlainTextResponse(await read_body(request, 1000))


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    facts_of(request.scope).slug = error.slug
    answer = render(error)
    return Response(answer.body, answer.status, {k.decode(): v.decode() for k, v in answer.headers})


def application(metrics: Metrics) -> RequestContext:
    gone.clear()

    async def ok(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def until_gone(request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()
        return PlainTextResponse("gone")

    async def slow(_: Request) -> Response:
        await asyncio.sleep(3 * PATIENCE)
        return PlainTextResponse("slow")

    async def large(_: Request) -> Response:
        return PlainTextResponse("x" * 20_000_000)

    async def early(_: Request) -> Response:
        return PlainTextResponse("early")

    app = Starlette(
        routes=[
            Route("/ok", ok),
            Route("/until_gone", until_gone),
            Route("/slow", slow),
            Route("/large", large),
            Route("/echo", echo, methods=["POST"]),
            Route("/early", early, methods=["POST"]),
        ],
        exception_handlers={ServiceError: refuse},
    )
    return RequestContext(
        app, front="test", render=render, metrics=metrics, bodies=OpenBodies(pause=PATIENCE, total=4 * PATIENCE)
    )


@contextlib.contextmanager
def serving(*, options: dict[str, Any] | None = None, **limits: Any) -> Iterator[Running]:
    """Serve in a thread; `limits` in place of those of `LIMITS`, and options of uvicorn."""
    metrics = Metrics(CollectorRegistry())
    protocol = guarded_protocol(ConnectionLimits(**(LIMITS | limits)), metrics, renderer_of=renderer_of)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            application(metrics),
            http=protocol,
            ws="none",
            log_config=None,
            access_log=False,
            **({"timeout_graceful_shutdown": 2} | (options or {})),
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Running(listener.getsockname(), metrics, server)
    finally:
        server.should_exit = True
        thread.join()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened for {seconds} seconds"
        time.sleep(0.01)


def everything(connected: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connected.recv(65536):
            received += chunk
    return received


def answer(connected: socket.socket) -> bytes:
    """One answer with a length, and nothing of what may already follow it; the connection stays open."""

    def more(most: int) -> bytes:
        chunk = connected.recv(most)
        assert chunk, "closed before the whole answer came"
        return chunk

    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += more(1)
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    body = b""
    while len(body) < length:
        body += more(length - len(body))
    return head + body


def assert_refused(received: bytes, status: int, slug: str) -> None:
    """The guard, or the application behind it, refuses a request and ends the connection."""
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].split()[1] == str(status).encode(), received
    assert b"content-type: application/test+json" in lines
    assert b"connection: close" in lines
    assert any(line.startswith(b"x-request-id: ") for line in lines)
    assert json.loads(body)["slug"] == slug

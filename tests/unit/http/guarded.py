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
from unittest import mock

import httpx
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
from condconv_serve.http import guard
from condconv_serve.http.answer import Answer, ErrorRenderer
from condconv_serve.http.body import OpenBodies, read_body
from condconv_serve.http.guard import guarded_protocol
from condconv_serve.http.limits import ConnectionLimits
from condconv_serve.http.middleware import RequestContext
from condconv_serve.http.scope import facts_of
from condconv_serve.telemetry.metrics import Metrics

PATIENCE = 0.4
"""Seconds that a server waits whose patience is tested."""
LONG = 60.0
"""Seconds that all others wait, so that a thread of a test may stand still for a while anywhere."""
LIMITS = {
    "header_timeout": LONG,
    "write_timeout": LONG,
    "linger_pause": LONG,
    "linger_timeout": LONG,
    "head_grace": LONG,
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

begun, gone = threading.Event(), threading.Event()
"""`/until_gone` or `/held` has been asked for; the client of `/until_gone` has left."""
may_answer = threading.Event()
"""`/held` waits for this."""


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


class _Server(uvicorn.Server):
    loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)


@dataclass
class Running:
    address: tuple[str, int]
    metrics: Metrics
    server: _Server

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
        connected.settimeout(LONG)
        return connected

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """What clients do meanwhile reaches the server all at once."""
        stands, may_go_on = threading.Event(), threading.Event()

        def stand() -> None:
            stands.set()
            may_go_on.wait(LONG)

        self.server.loop.call_soon_threadsafe(stand)
        assert stands.wait(LONG)
        try:
            yield
        finally:
            may_go_on.set()

    def connect_with(self, first: bytes) -> socket.socket:
        """Connect, and have sent this before the server's clocks run."""
        with self.standing_still():
            connected = self.connect()
            connected.sendall(first)
        return connected

    def get(self, path: str = "/ok") -> httpx.Response:
        """Ask on a new connection."""
        return httpx.get(f"{self.url}{path}", trust_env=False, timeout=LONG)


async def echo(request: Request) -> Response:
    return PlainTextResponse(await read_body(request, 1000))


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    facts_of(request.scope).slug = error.slug
    answer = render(error)
    return Response(answer.body, answer.status, {k.decode(): v.decode() for k, v in answer.headers})


def application(metrics: Metrics, bodies: OpenBodies) -> RequestContext:
    for event in (begun, gone, may_answer):
        event.clear()

    async def ok(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def until_gone(request: Request) -> Response:
        begun.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()
        return PlainTextResponse("gone")

    async def slow(_: Request) -> Response:
        await asyncio.sleep(3 * PATIENCE)
        return PlainTextResponse("slow")

    async def held(_: Request) -> Response:
        begun.set()
        await asyncio.to_thread(may_answer.wait, LONG)
        return PlainTextResponse("held")

    async def large(_: Request) -> Response:
        return PlainTextResponse("x" * 20_000_000)

    async def early(_: Request) -> Response:
        return PlainTextResponse("early")

    app = Starlette(
        routes=[
            Route("/ok", ok),
            Route("/until_gone", until_gone),
            Route("/slow", slow),
            Route("/held", held),
            Route("/large", large),
            Route("/echo", echo, methods=["POST"]),
            Route("/early", early, methods=["POST"]),
        ],
        exception_handlers={ServiceError: refuse},
    )
    return RequestContext(app, front="test", render=render, metrics=metrics, bodies=bodies)


@contextlib.contextmanager
def serving(
    *,
    options: dict[str, Any] | None = None,
    bodies: OpenBodies | None = None,
    refusal_seconds: float = LONG,
    **limits: Any,
) -> Iterator[Running]:
    """Serve in a thread.

    Args:
        options: of uvicorn.
        bodies: how long they may take.
        refusal_seconds: how long connections beyond the limit wait for a request that is refused.
        limits: in place of those of `LIMITS`.
    """
    metrics = Metrics(CollectorRegistry())
    protocol = guarded_protocol(ConnectionLimits(**(LIMITS | limits)), metrics, renderer_of=renderer_of)
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Server(
        uvicorn.Config(
            application(metrics, bodies or OpenBodies(pause=LONG, total=LONG)),
            http=protocol,
            ws="none",
            log_config=None,
            access_log=False,
            **({"timeout_graceful_shutdown": 2, "timeout_keep_alive": LONG} | (options or {})),
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with mock.patch.object(guard, "_REFUSAL_SECONDS", refusal_seconds):
            wait_for(lambda: server.started)
            yield Running(listener.getsockname(), metrics, server)
    finally:
        may_answer.set()
        server.should_exit = True
        thread.join()


def hasty(**limits: Any) -> contextlib.AbstractContextManager[Running]:
    """Serve without patience; `limits` as those of `serving`."""
    given = dict.fromkeys(("header_timeout", "write_timeout", "linger_pause"), PATIENCE) | limits
    return serving(options={"timeout_keep_alive": 5}, bodies=OpenBodies(pause=PATIENCE, total=4 * PATIENCE), **given)


def wait_for(condition: Callable[[], bool], seconds: float = LONG) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened for {seconds} seconds"
        time.sleep(0.01)


def everything(connected: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = []
    with contextlib.suppress(ConnectionResetError):
        while chunk := connected.recv(65536):
            received.append(chunk)
    return b"".join(received)


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

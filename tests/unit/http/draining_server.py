"""`DrainingServer` behind the guard as a process of its own, which `tests.forked` starts with three numbers of seconds.

It says `draining` at the first signal, and drains for the first number; it says `hangup` at SIGHUP. What is open ends
after the second number more, and what can't be answered is told so after half of it. For the third number the same
signal is the first one. `/slow` says `asked` and takes half a second, and `/echo` answers its body.
"""

from __future__ import annotations

import asyncio
import sys

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from condconv_serve.errors import ServiceError
from condconv_serve.http import server as server_module
from condconv_serve.http.body import OpenBodies
from condconv_serve.http.guard import guarded_protocol
from condconv_serve.http.limits import ConnectionLimits
from condconv_serve.http.middleware import RequestContext
from condconv_serve.http.server import DrainingServer, config, listen, url
from condconv_serve.telemetry.metrics import Metrics
from tests.unit.http.guarded import echo, refuse, render


async def ok(_: Request) -> Response:
    return PlainTextResponse("ok")


async def slow(_: Request) -> Response:
    print("asked", flush=True)
    await asyncio.sleep(0.5)
    return PlainTextResponse("slow")


def prepare() -> None:
    """Nothing takes long."""


def run() -> None:
    drain_delay, time_for_answers, server_module.REPEAT_SECONDS = map(float, sys.argv[1:])
    server_module.LAST_ANSWERS_SECONDS = time_for_answers  # half of it at most, so that there is time to answer
    limits = ConnectionLimits(header_timeout=60, write_timeout=60, max_connections=20)
    metrics = Metrics(CollectorRegistry())
    protocol = guarded_protocol(limits, metrics, renderer_of=lambda _: render)
    listener = listen("127.0.0.1", 0)
    bodies = OpenBodies()
    routes = [Route("/ok", ok), Route("/slow", slow), Route("/echo", echo, methods=["POST"])]
    app = RequestContext(
        Starlette(routes=routes, exception_handlers={ServiceError: refuse}),
        front="test",
        render=render,
        metrics=metrics,
        bodies=bodies,
    )
    server = DrainingServer(
        config(app, protocol),
        on_drain=lambda: print("draining", flush=True),
        drain_delay=drain_delay,
        shutdown_timeout=drain_delay + time_for_answers,
        on_hangup=lambda: print("hangup", flush=True),
        on_last_answers=bodies.give_up,
    )
    print(url(listener), flush=True)
    server.run(sockets=[listener])
    print("ended", flush=True)

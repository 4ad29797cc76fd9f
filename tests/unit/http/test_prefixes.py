"""Two fronts on one server: each has its own shape of errors, and both are counted and logged alike."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from condconv_serve.domain import Classification
from condconv_serve.errors import ConfigurationError, InferenceFailed, QueueFull, ServiceError
from condconv_serve.http.answer import Answer, ErrorRenderer
from condconv_serve.http.middleware import RequestContext
from condconv_serve.http.prefixes import ByPrefix, RenderersByPrefix, RootPath, check_root_path
from condconv_serve.http.scope import facts_of
from condconv_serve.telemetry.metrics import Metrics
from tests.unit.fronts.native.application import application


def rendered(shape: str) -> ErrorRenderer:
    def render(error: ServiceError) -> Answer:
        body = json.dumps({shape: error.slug}).encode()
        return Answer(429 if error.slug == "queue_full" else 500, [(b"content-type", b"application/json")], body)

    return render


def front(name: str, prefix: str, metrics: Metrics) -> ASGIApp:
    """A front that says its name, is full, or breaks; its errors are objects with its name for a key."""
    render = rendered(name)

    async def who(request: Request) -> Response:
        facts_of(request.scope).model = name
        return JSONResponse(name)

    async def full(request: Request) -> Response:
        raise QueueFull("Full.")

    async def broken(request: Request) -> Response:
        raise RuntimeError("unexpected")

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        facts_of(request.scope).slug = error.slug
        answer = render(error)
        return Response(answer.body, answer.status, dict.fromkeys(["content-type"], "application/json"))

    async def nowhere(request: Request, error: Exception) -> Response:
        return JSONResponse({name: "nowhere"}, 404)

    app = FastAPI(openapi_url=None, exception_handlers={ServiceError: refuse, 404: nowhere})
    for path, route in (("who", who), ("full", full), ("broken", broken)):
        app.add_api_route(f"{prefix}/{path}", route)
    app.add_middleware(RequestContext, front=name, render=render, metrics=metrics)
    return app


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
async def client(metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    app = ByPrefix(
        front("main", "", metrics),
        {"/v2": front("second", "/v2", metrics), "/v2/more": front("third", "/v2/more", metrics)},
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as found:
        yield found


@pytest.mark.parametrize(("prefix", "name"), [("", "main"), ("/v2", "second"), ("/v2/more", "third")])
async def test_each_front_answers_and_refuses_in_its_own_shape(
    client: httpx.AsyncClient, prefix: str, name: str
) -> None:
    assert (await client.get(f"{prefix}/who")).json() == name
    for path, status, slug in (("full", 429, "queue_full"), ("broken", 500, "internal_error"), ("no", 404, "nowhere")):
        response = await client.get(f"{prefix}/{path}", headers={"X-Request-Id": "mine"})
        assert (response.status_code, response.json()) == (status, {name: slug})
        assert response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(("path", "name"), [("/v2", "second"), ("/v2/x/more", "second"), ("/v20/who", "main")])
async def test_prefixes_are_whole_segments(client: httpx.AsyncClient, path: str, name: str) -> None:
    assert list((await client.get(path)).json()) == [name]


async def test_all_fronts_are_counted_and_logged(
    client: httpx.AsyncClient, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="condconv_serve.access"):
        for path in ("/who", "/v2/who", "/v2/full"):
            await client.get(path)
    count = metrics.registry.get_sample_value
    for name, route, code in (("main", "/who", "200"), ("second", "/v2/who", "200"), ("second", "/v2/full", "429")):
        labels = {"front": name, "route": route, "method": "GET", "code": code, "deadline": ""}
        assert count("condconv_requests_total", labels) == 1
    assert count("condconv_rejected_total", {"reason": "queue_full", "deadline": ""}) == 1
    models = [getattr(record, "model", None) for record in caplog.records]
    assert models == ["main", "second", None]


async def test_under_a_path_prefix_of_the_whole_server() -> None:
    called = []

    def remember(name: str) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            called.append(name)

        return app

    nothing: Any = None
    app = ByPrefix(remember("main"), {"/v2": remember("second")})
    for path in ("/serving/v2/who", "/serving/who"):
        await app({"type": "http", "path": path, "root_path": "/serving"}, nothing, nothing)
    await app({"type": "lifespan"}, nothing, nothing)
    assert called == ["second", "main", "main"]


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ("/team/app/v2/who", "/team/app/v2/who"),
        ("/v2/who", "/team/app/v2/who"),
        ("/", "/team/app/"),
        ("/team/app", "/team/app/"),
        ("/team/app/", "/team/app/"),
        ("/team/application", "/team/app/team/application"),
        ("/team", "/team/app/team"),
        ("/a%2Fb", "/team/app/a%2Fb"),
    ],
)
async def test_root_path_is_seen_whether_or_not_a_proxy_takes_it_off(asked: str, seen: str) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    nothing: Any = None
    given = {"type": "http", "path": unquote(asked), "raw_path": asked.encode()}
    await RootPath(app, "/team/app")(given, nothing, nothing)
    (scope,) = scopes
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/team/app", unquote(seen), seen.encode())
    assert given["path"] == unquote(asked), "others may keep the scope"


async def test_fronts_are_told_apart_under_a_root_path(metrics: Metrics) -> None:
    app = RootPath(ByPrefix(front("main", "", metrics), {"/v2": front("second", "/v2", metrics)}), "/classify")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path, name in (("/who", "main"), ("/v2/who", "second")):
            for asked in (path, f"/classify{path}"):
                response = await client.get(asked)
                assert (response.status_code, response.json()) == (200, name)
    for name, route in (("main", "/who"), ("second", "/v2/who")):
        labels = {"front": name, "route": route, "method": "GET", "code": "200", "deadline": ""}
        assert metrics.registry.get_sample_value("condconv_requests_total", labels) == 2


@pytest.mark.parametrize("first", ["models", "predict", "web", "docs", "openapi.json", "static-offline-docs", "livez"])
def test_root_path_that_could_be_a_route_is_refused(first: str) -> None:
    app, _ = application(no_answer)
    for root_path in (f"/{first}", f"/{first}/mine"):
        with pytest.raises(ConfigurationError, match=f"begins with /{first}, a path of the server's own"):
            check_root_path(root_path, app.routes)
    check_root_path(f"/{first}s2", app.routes)
    check_root_path(f"/mine/{first}", app.routes)


async def no_answer() -> Classification:
    raise InferenceFailed("Not needed here.")


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        (b"/v2/models/x?a=/v1/", "second"),
        (b"/v2", "second"),
        (b"/v2/mod", "second"),
        (b"/app/v2/models", "second"),
        (b"http://host:8000/v2/models", "second"),
        (b"/v2/models/\xff\x01", "second"),
        (b"/v20/models", "main"),
        (b"/app/v20", "main"),
        (b"/appv2/v2/x", "main"),
        (b"/", "main"),
        (b"*", "main"),
        (b"", "main"),
        (b"\0\xff", "main"),
        (b"host:443", "main"),
    ],
)
def test_errors_without_an_application(target: bytes, shape: str) -> None:
    find = RenderersByPrefix(rendered("main"), {"/v2": rendered("second")}, root_path="/app")
    assert json.loads(find(target)(QueueFull("Full.")).body) == {shape: "queue_full"}

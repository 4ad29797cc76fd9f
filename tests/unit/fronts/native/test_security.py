"""Who is let in, what every answer carries, and what none of them tells."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry

import condconv_serve
from condconv_serve.domain import Classification
from condconv_serve.errors import CorruptImage, InferenceFailed, QueueFull
from condconv_serve.fronts import security
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.keys import ApiKey, KeyRing
from condconv_serve.fronts.native import problems
from condconv_serve.http.middleware import RequestContext
from condconv_serve.http.scope import facts_of
from condconv_serve.serving.readiness import Readiness
from condconv_serve.telemetry.metrics import Metrics
from tests.unit.fronts.native.application import application, connect

OPEN = ("/livez", "/readyz", "/healthz", "/metrics")
USER, ADMIN, LIMITED, SUSPENDED = "user-secret", "admin-secret", "limited-secret", "suspended-secret"


def key(secret: str, *scopes: Any, requests_per_minute: int | None = None) -> ApiKey:
    return ApiKey(
        name=secret.removesuffix("-secret"),
        scopes=scopes,
        sha256=sha256(secret.encode()).hexdigest(),
        requests_per_minute=requests_per_minute,
    )


def ring() -> KeyRing:
    return KeyRing(
        [
            key(USER, "predict"),
            key(ADMIN, "admin"),
            key(LIMITED, "predict", requests_per_minute=2),
            key(SUSPENDED),
        ]
    )


async def answer() -> Classification:
    raise InferenceFailed("It got through.")


def guarded(**options: Any) -> FastAPI:
    app, _ = application(answer, keys=ring(), **options)
    return app


def unguarded(**options: Any) -> FastAPI:
    app, _ = application(answer, **options)
    return app


GUARDED, UNGUARDED = guarded(), unguarded()
"""For all tests that leave nothing behind in it."""


async def ask(app: FastAPI, path: str = "/models", method: str = "GET", **options: Any) -> httpx.Response:
    async with connect(app) as client:
        return await client.request(method, path, **options)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


REQUESTS = [
    ("GET", "/models"),
    ("GET", "/models/x"),
    ("POST", "/predict"),
    ("POST", "/detect?model=finder"),
    ("POST", "/features"),
    ("POST", "/routing"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "wrong"},
        {"X-API-Key": f" {USER[:-1]}"},
        {"X-API-Key": sha256(USER.encode()).hexdigest()},
        {"X-API-Key": "sécret"},
        {"Authorization": USER},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {USER}"},
        {"Cookie": f"X-API-Key={USER}"},
    ],
    ids=str,
)
async def test_nobody_without_a_key(method: str, path: str, headers: dict[str, str]) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    response = await ask(GUARDED, path, method, headers=encoded, content=b"image")
    assert (response.status_code, response.json()["slug"]) == (401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    assert "wrong" not in response.text


async def test_key_in_the_query_does_not_count() -> None:
    assert (await ask(GUARDED, f"/models?X-API-Key={USER}&api_key={USER}")).status_code == 401


@pytest.mark.parametrize("secret", [USER, ADMIN])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "X-API-Key"])
@pytest.mark.parametrize(("method", "path"), REQUESTS)
async def test_key_lets_in_and_admin_implies_predict(method: str, path: str, scheme: str, secret: str) -> None:
    headers = {"X-API-Key": secret} if scheme == "X-API-Key" else {"Authorization": f"{scheme} {secret}"}
    response = await ask(GUARDED, path, method, headers=headers, content=b"image")
    assert response.status_code in (200, 404, 500)
    if method == "POST":
        assert response.json()["detail"] == "It got through."


async def test_own_header_comes_before_one_that_a_proxy_may_want() -> None:
    assert (await ask(GUARDED, headers={"X-API-Key": USER, "Authorization": "Basic eDp5"})).status_code == 200
    assert (await ask(GUARDED, headers={"X-API-Key": "wrong", **bearer(USER)})).status_code == 401


async def test_who_may_not_come_in_learns_nothing_of_what_is_wrong_with_the_request() -> None:
    response = await ask(GUARDED, "/predict?nonsense=1", "POST")
    assert (response.status_code, response.json()["slug"]) == (401, "unauthenticated")
    response = await ask(GUARDED, "/predict?nonsense=1", "POST", headers=bearer(USER))
    assert (response.status_code, response.json()["slug"]) == (422, "invalid_parameter")


@pytest.mark.parametrize(("method", "path"), REQUESTS)
async def test_key_without_scopes_is_suspended(method: str, path: str) -> None:
    response = await ask(GUARDED, path, method, headers=bearer(SUSPENDED))
    assert (response.status_code, response.json()["slug"]) == (403, "forbidden")
    assert "scope predict" in response.json()["detail"]
    assert "www-authenticate" not in response.headers


@pytest.mark.parametrize("path", [*OPEN, "/docs", "/redoc", "/openapi.json", "/static-offline-docs/swagger-ui.css"])
async def test_what_is_for_everybody(path: str) -> None:
    assert (await ask(GUARDED, path)).status_code == 200


async def test_without_keys_everything_is_open() -> None:
    for method, path in REQUESTS:
        response = await ask(UNGUARDED, path, method, content=b"image")
        assert response.status_code in (200, 404, 500)
    document = UNGUARDED.openapi()
    assert "securitySchemes" not in document["components"]
    assert not any("security" in operation for operation in operations(document).values())


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{m} {path}": operation for path, item in document["paths"].items() for m, operation in item.items()}


def test_every_documented_route_is_guarded_or_meant_to_be_open() -> None:
    app = guarded()
    for _ in range(2):  # the document is made once and kept
        document = app.openapi()
    assert document["components"]["securitySchemes"] == {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "From `condconv keys new`."},
        "Bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "The same key in the `Authorization` header.",
        },
    }
    for name, operation in operations(document).items():
        if name.partition(" ")[2] in OPEN:
            assert "security" not in operation
            continue
        guards = operation.get("security")
        assert guards == [{"ApiKey": []}, {"Bearer": []}], f"{name} is for everybody: give its router the guard"
        described = {status: entry["description"] for status, entry in operation["responses"].items()}
        assert (described["401"], described["403"]) == ("unauthenticated", "forbidden")
        assert described["429"].split(", ").count("rate_limited") == 1
    assert (
        operations(document)["post /predict"]["responses"]["429"]["description"]
        == "queue_full, wait_too_long, rate_limited"
    )


async def test_rate_is_limited_over_all_routes_and_answers_when_to_come_back() -> None:
    app = guarded()
    assert (await ask(app, headers=bearer(LIMITED))).status_code == 200
    assert (await ask(app, "/predict", "POST", headers=bearer(LIMITED), content=b"x")).status_code == 500
    response = await ask(app, headers=bearer(LIMITED))
    assert (response.status_code, response.json()["slug"]) == (429, "rate_limited")
    assert 55 < int(response.headers["retry-after"]) <= 60
    assert (await ask(app, headers=bearer(USER))).status_code == 200
    assert (await ask(app, "/livez", headers=bearer(LIMITED))).status_code == 200


def with_admin_route(keys: KeyRing | None, *, behind_guard: bool = True) -> FastAPI:
    routes = APIRouter()

    @routes.post("/reload", dependencies=[security.needs_admin])
    async def reload() -> str:
        return "done"

    app = FastAPI()
    problems.install(app)
    guard = security.guard(Gatekeeper(Readiness(lambda: None), keys=keys))
    app.include_router(routes, dependencies=[guard] if behind_guard else [])
    app.add_middleware(RequestContext, front="native", render=problems.render, metrics=Metrics(CollectorRegistry()))
    return app


@pytest.mark.parametrize(("secret", "status"), [(USER, 403), (LIMITED, 403), (SUSPENDED, 403), (ADMIN, 200)])
async def test_routes_for_admins(secret: str, status: int) -> None:
    response = await ask(with_admin_route(ring()), "/reload", "POST", headers=bearer(secret))
    assert response.status_code == status
    assert (await ask(with_admin_route(ring()), "/reload", "POST")).status_code == 401


CHANGES = [
    ("POST", "/models/x/versions/1/load"),
    ("POST", "/models/x/versions/1/unload"),
    ("PUT", "/models/x/aliases/stable"),
    ("DELETE", "/models/x/aliases/stable"),
    ("POST", "/models/x/aliases/stable/rollback"),
]


@pytest.mark.parametrize(("method", "path"), CHANGES)
async def test_only_admins_change_which_versions_serve(method: str, path: str) -> None:
    body = {"json": {"version": "1"}} if method == "PUT" else {}
    assert (await ask(GUARDED, path, method, headers=bearer(USER), **body)).status_code == 403
    assert (await ask(GUARDED, path, method, headers=bearer(ADMIN), **body)).json()["slug"] == "model_not_found"


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("open_admin", [False, True])
async def test_without_keys_admin_is_for_this_machine(method: str, path: str, open_admin: bool) -> None:
    app = unguarded(open_admin=open_admin)
    body = {"json": {"version": "1"}} if method == "PUT" else {}
    assert (await ask(app, path, method, **body)).status_code == (404 if open_admin else 403)
    assert (await ask(app, "/models", "GET")).status_code == 200


async def test_route_for_admins_that_lacks_the_guard_is_closed() -> None:
    assert (await ask(with_admin_route(None), "/reload", "POST")).status_code == 200
    response = await ask(with_admin_route(None, behind_guard=False), "/reload", "POST", headers=bearer(ADMIN))
    assert response.status_code == 403


async def test_name_of_the_key_is_there_for_the_log() -> None:
    app, scopes = GUARDED, []

    async def spying(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await app(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(spying), base_url="http://test") as client:
        for headers in ({}, bearer("wrong"), bearer(USER), bearer(SUSPENDED)):
            await client.get("/models", headers=headers)
    assert [facts_of(scope).key_name for scope in scopes] == [None, None, "user", "suspended"]


async def test_no_secret_gets_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="condconv_serve"):
        for secret in (USER, SUSPENDED, "wrong-secret"):
            await ask(GUARDED, headers=bearer(secret))
    assert "GET /models" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("method", "path"), [*REQUESTS, ("GET", "/nowhere"), ("PUT", "/predict"), ("GET", "/livez"), ("GET", "/docs")]
)
@pytest.mark.parametrize("secret", ["", USER])
async def test_headers_on_every_answer(method: str, path: str, secret: str) -> None:
    response = await ask(GUARDED, path, method, headers=bearer(secret), content=b"x")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"
    private = path.partition("?")[0] in ("/predict", "/detect", "/features", "/routing")
    assert (response.headers.get("cache-control") == "no-store") is private


@pytest.mark.parametrize(
    ("path", "private"),
    [("/routing/abc", True), ("/routing", True), ("/predictions", False), ("/routings/x", False)],
)
async def test_what_is_about_images_is_not_cached(path: str, private: bool) -> None:
    assert ("cache-control" in (await ask(UNGUARDED, path)).headers) is private


@pytest.mark.parametrize(("path", "private"), [("/serving/routing/abc", True), ("/serving/models", False)])
async def test_what_is_about_images_is_not_cached_under_a_prefix_either(path: str, private: bool) -> None:
    transport = httpx.ASGITransport(UNGUARDED, root_path="/serving")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get(path)
    assert response.json().get("slug") != "not_found"
    assert ("cache-control" in response.headers) is private


async def test_unexpected_errors_have_the_headers_too() -> None:
    async def fail() -> Classification:
        raise RuntimeError("unexpected")

    app, _ = application(fail, cors_origins=["https://a.org"])
    response = await ask(app, "/predict", "POST", content=b"x", headers={"Origin": "https://a.org"})
    assert response.status_code == 500
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["access-control-allow-origin"] == "https://a.org"


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key, content-type"}


async def test_other_origins_are_not_let_in_by_default() -> None:
    for method, headers in (("GET", {}), ("OPTIONS", PREFLIGHT)):
        response = await ask(UNGUARDED, "/models", method, headers={"Origin": "https://a.org", **headers})
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_allowed_origin_may_use_the_service_from_a_browser() -> None:
    app = guarded(cors_origins=["https://a.org"])
    response = await ask(app, "/predict", "OPTIONS", headers={"Origin": "https://a.org", **PREFLIGHT})
    assert response.status_code == 200, "a preflight carries no key"
    assert response.headers["access-control-allow-origin"] == "https://a.org"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-api-key" in response.headers["access-control-allow-headers"].lower()
    response = await ask(app, headers={"Origin": "https://a.org", **bearer(USER)})
    assert response.status_code == 200
    exposed = response.headers["access-control-expose-headers"]
    assert {"X-Request-Id", "X-Features-Shape", "X-Features-Model"} <= {name.strip() for name in exposed.split(",")}
    assert "access-control-allow-credentials" not in response.headers
    refused = await ask(app, headers={"Origin": "https://a.org"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.org", "or the page could not read why"


async def test_other_origins_than_the_allowed_one() -> None:
    app = guarded(cors_origins=["https://a.org"])
    for origin in ("https://b.org", "https://a.org.evil.org", "http://a.org", "null"):
        response = await ask(app, headers={"Origin": origin, **bearer(USER)})
        assert "access-control-allow-origin" not in response.headers
        assert (await ask(app, "/predict", "OPTIONS", headers={"Origin": origin, **PREFLIGHT})).status_code == 400


async def test_metrics_that_are_elsewhere_are_not_here() -> None:
    app = unguarded(serve_metrics=False)
    assert (await ask(app, "/metrics")).status_code == 404
    assert "/metrics" not in app.openapi()["paths"]
    for path in ("/livez", "/readyz", "/healthz"):
        assert (await ask(app, path)).status_code == 200


@pytest.mark.parametrize("path", ["%2e%2e/core.py", "..%2fcore.py", "%2e%2e%2fcore.py", "/%2e%2e/core.py"])
async def test_files_beside_the_documentation_page_can_not_be_had(path: str) -> None:
    response = await ask(UNGUARDED, f"/static-offline-docs/{path}")
    assert (response.status_code, response.json()["slug"]) == (404, "not_found")


PACKAGE = str(Path(condconv_serve.__file__).parent)


def secrets_of(response: httpx.Response) -> Iterator[str]:
    """What an answer tells of the server's inside."""
    told = response.text + str(response.headers)
    inside = [
        PACKAGE,
        str(Path.cwd()),
        str(Path.home()) + "/",
        "Traceback",
        'File "',
        ".py",
        "site-packages",
        "uvicorn",
    ]
    return (text for text in inside if text in told)


NASTY: list[dict[str, Any]] = [
    {"path": "/models/..%2f..%2fetc%2fpasswd"},
    {"path": "/static-offline-docs/../../../etc/passwd"},
    {"path": "/static-offline-docs/%00"},
    {"path": "/static-offline-docs/nowhere"},
    {"path": "/static-offline-docs/"},
    {"path": "/static-offline-docs"},
    {"path": "/models/x", "params": {"version": "\x00"}},
    {"path": "/models/" + "x" * 5000},
    {"path": "/predict?top_k=0", "method": "POST", "content": b"x"},
    {"path": "/predict?top_k=" + "9" * 5000, "method": "POST", "content": b"x"},
    {"path": "/predict", "method": "POST", "content": b"{", "headers": {"Content-Type": "application/json"}},
    {
        "path": "/predict",
        "method": "POST",
        "content": json.dumps({"images": [{"data": 1}]}),
        "headers": {"Content-Type": "application/json"},
    },
    {"path": "/predict", "method": "POST", "content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
    {"path": "/predict", "method": "TRACE"},
    {"path": "/nowhere", "headers": {"Host": "["}},
]


@pytest.mark.parametrize("nasty", NASTY, ids=lambda nasty: nasty["path"][:40])
async def test_refusals_tell_nothing_of_the_inside(nasty: dict[str, Any]) -> None:
    response = await ask(UNGUARDED, **nasty)
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/problem+json"
    assert list(secrets_of(response)) == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{PACKAGE}/classifier.py"),
        FileNotFoundError(2, "No such file", f"{PACKAGE}/weights"),
        MemoryError(PACKAGE),
        QueueFull("Full.", retry_after=1),
        CorruptImage("The image is damaged."),
    ],
)
async def test_failures_tell_nothing_of_the_inside(error: Exception) -> None:
    async def fail() -> Classification:
        try:
            raise OSError(f"{PACKAGE} is the cause")
        except OSError as cause:
            raise error from cause

    app, _ = application(fail)
    response = await ask(app, "/predict", "POST", content=b"x")
    assert response.status_code >= 400
    assert list(secrets_of(response)) == []

"""Builds the FastAPI application from the parts that it is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline

from condconv_serve import __version__
from condconv_serve.fronts.native import ablation, health, models, page, predict, problems, routing, security
from condconv_serve.fronts.native.context import Parts
from condconv_serve.fronts.native.schemas import EncodedImage
from condconv_serve.fronts.native.security import Access
from condconv_serve.http.middleware import RequestContext

DESCRIPTION = """
Classifies images with CondConv-EfficientNets and shows the routing weights: which experts of each block made the
kernels that an image was convolved with.

Errors are [problem details](https://www.rfc-editor.org/rfc/rfc9457) with a `slug` for programs. Every answer carries
`X-Request-Id`, the caller's own if it sent one.
"""


def create_app(
    parts: Parts,
    *,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    access: Access | None = None,
) -> FastAPI:
    """Create the application.

    Args:
        parts: what the routes work with.
        lifespan: runs around the application's life.
        access: who may use it; everybody if None.
    """
    access = access or Access()
    for slug in problems.STATUS:
        parts.metrics.rejected.labels(slug)  # zero from the start, so that the first error counts as an increase
    app = FastAPIOffline(
        title="condconv-serve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_tags=[
            {"name": "predict", "description": "Images in, classes out."},
            {"name": "routing", "description": "Which experts images are routed to, one by one and in live traffic."},
            {"name": "models", "description": "What is served."},
            {"name": "health", "description": "Probes and metrics."},
        ],
    )
    problems.install(app)
    guarded: tuple[APIRouter, ...] = (
        predict.router(parts),
        routing.router(parts),
        ablation.router(parts),
        models.router(parts),
    )
    guard = security.guard(access.keys, open_admin=access.open_admin)  # one for all, since it counts
    for router in guarded:
        app.include_router(router, dependencies=[guard])
    app.include_router(health.router(parts, serve_metrics=access.serve_metrics))
    app.include_router(page.router())
    app.add_middleware(
        RequestContext,
        metrics=parts.metrics,
        tracer=parts.tracer,
        body_timeout=parts.limits.timeout,
        body_total_timeout=parts.limits.total_timeout,
        draining=lambda: parts.readiness.draining,
    )
    security.install(app, cors_origins=access.cors_origins)
    _document_problems(app)
    return app


def create_probes_app(parts: Parts) -> FastAPI:
    """Create the application of the metrics' own port: `/metrics` and the probes, for everybody who can reach it."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    problems.install(app)
    app.include_router(health.router(parts))
    app.add_middleware(RequestContext, metrics=parts.metrics)
    security.install(app, cors_origins=())
    return app


def _document_problems(app: FastAPI) -> None:
    """Put the problem's schema into the OpenAPI document, and the status codes that we answer in place of FastAPI's."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("Problem", problems.Problem.model_json_schema())
        schemas.setdefault("EncodedImage", EncodedImage.model_json_schema())
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        security.document(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]

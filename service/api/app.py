"""Builds the FastAPI application from the parts that it is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline

from service import __version__
from service.api import health, models, predict, problems
from service.api.middleware import RequestContext
from service.api.parts import Parts
from service.api.schemas import EncodedImage

DESCRIPTION = """
Classifies images with CondConv-EfficientNets and shows the routing weights: which experts of each block made the
kernels that an image was convolved with.

Errors are [problem details](https://www.rfc-editor.org/rfc/rfc9457) with a `slug` for programs. Every answer carries
`X-Request-Id`, the caller's own if it sent one.
"""


def create_app(parts: Parts, *, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
    """Create the application.

    Args:
        parts: what the routes work with.
        lifespan: runs around the application's life.
    """
    app = FastAPIOffline(
        title="condconv-serve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_tags=[
            {"name": "predict", "description": "Images in, classes and routing weights out."},
            {"name": "models", "description": "What is served."},
            {"name": "health", "description": "Probes and metrics."},
        ],
    )
    problems.install(app)
    routers: tuple[APIRouter, ...] = (predict.router(parts), models.router(parts), health.router(parts))
    for router in routers:
        app.include_router(router)
    app.add_middleware(RequestContext, metrics=parts.metrics)
    _document_problems(app)
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
        return document

    app.openapi = openapi  # type: ignore[method-assign]

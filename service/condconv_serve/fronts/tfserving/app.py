"""Builds the REST front of TensorFlow Serving: all that is under `/v1`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from condconv_serve import __version__
from condconv_serve.fronts import security
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.tfserving import errors, models, predictions
from condconv_serve.http.middleware import RequestContext

DESCRIPTION = """
The [REST API of TensorFlow Serving](https://www.tensorflow.org/tfx/serving/api_rest). Its clients work with it.

Errors are `{"error": "..."}`. Every answer has an `X-Request-Id`: yours if you sent one.
"""


def create_app(context: AppContext, *, cors_origins: Sequence[str] = (), root_path: str = "") -> FastAPI:
    """Create the application.

    Args:
        context: what the routes work with; its gatekeeper says who may use them.
        cors_origins: origins whose pages may read the answers; `*` is any.
        root_path: the prefix under which it is reached, as the OpenAPI document tells it.
    """
    app = FastAPIOffline(
        title="condconv-serve: TensorFlow Serving",
        version=__version__,
        description=DESCRIPTION,
        redirect_slashes=False,
        servers=[{"url": root_path}] if root_path else None,
        openapi_url="/v1/openapi.json",
        docs_url="/v1/docs",
        redoc_url=None,
        static_url="/v1/static-offline-docs",
        openapi_tags=[
            {"name": "predictions", "description": "Images or pixels in, outputs or classes out."},
            {"name": "models", "description": "What is served."},
        ],
    )
    errors.install(app)
    guard = security.guard(context.gatekeeper)
    for module in (predictions, models):
        app.include_router(module.router(context), dependencies=[guard])
    app.add_middleware(
        RequestContext,
        front="tfserving",
        render=errors.render,
        metrics=context.metrics,
        tracer=context.tracer,
        draining=lambda: context.readiness.draining,
        bodies=context.bodies,
    )
    security.install(app, cors_origins=cors_origins, private=("/v1/models",))
    _document(app)
    return app


def _document(app: FastAPI) -> None:
    """Put into the OpenAPI document what FastAPI can't know."""
    original = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        found = original()
        schemas = found.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        security.document(found, errors.error_entries(*security.REFUSALS))
        return found

    app.openapi = document  # type: ignore[method-assign]

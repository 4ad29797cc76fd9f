"""Builds the REST front of the Open Inference Protocol, version 2: all that is under `/v2`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from condconv_serve import __version__
from condconv_serve.fronts import security
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.oip import errors, health, infer, management, models, openapi
from condconv_serve.fronts.oip.binary import HEADER_LENGTH
from condconv_serve.http.middleware import RequestContext

DESCRIPTION = """
The [Open Inference Protocol](https://github.com/kserve/open-inference-protocol), version 2, with Triton's extensions
for binary tensors, classification, scheduling, statistics and the model repository. Clients for KServe and Triton work
with it.

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
        title="condconv-serve: Open Inference Protocol",
        version=__version__,
        description=DESCRIPTION,
        redirect_slashes=False,
        servers=[{"url": root_path}] if root_path else None,
        openapi_url="/v2/openapi.json",
        docs_url="/v2/docs",
        redoc_url=None,
        static_url="/v2/static-offline-docs",
        openapi_tags=[
            {"name": "inference", "description": "Tensors in, tensors out."},
            {"name": "metadata", "description": "What is served, and what it has done."},
            {"name": "repository", "description": "What is in the store; loading and unloading."},
            {"name": "health", "description": "Probes."},
        ],
    )
    errors.install(app)
    guard = security.guard(context.gatekeeper)
    for router in (
        infer.router(context),
        models.router(context),
        management.router(context),
        management.shared_memory_router(),
    ):
        app.include_router(router, dependencies=[guard])
    app.include_router(health.router(context))
    app.add_middleware(
        RequestContext,
        front="oip",
        render=errors.render,
        metrics=context.metrics,
        tracer=context.tracer,
        draining=lambda: context.readiness.draining,
        bodies=context.bodies,
    )
    security.install(app, cors_origins=cors_origins, private=("/v2/models",), exposed=(HEADER_LENGTH,))
    _document(app)
    return app


def _document(app: FastAPI) -> None:
    """Put into the OpenAPI document what FastAPI can't know."""
    original = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        found = original()
        openapi.complete(found)
        security.document(found, openapi.errors("unauthenticated", "forbidden", "rate_limited"))
        return found

    app.openapi = document  # type: ignore[method-assign]

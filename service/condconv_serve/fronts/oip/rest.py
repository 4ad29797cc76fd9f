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
from condconv_serve.fronts.rest import finish

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
    finish(
        app,
        context,
        front="oip",
        render=errors.render,
        complete=_complete,
        cors_origins=cors_origins,
        private=("/v2/models",),
        exposed=(HEADER_LENGTH,),
    )
    return app


def _complete(document: dict[str, Any]) -> None:
    openapi.complete(document)
    security.document(document, openapi.errors(*security.REFUSALS))

"""Builds the REST front of TensorFlow Serving: all that is under `/v1`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from condconv_serve import __version__
from condconv_serve.fronts import security
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.rest import finish
from condconv_serve.fronts.tfserving import errors, models, predictions

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
    finish(
        app,
        context,
        front="tfserving",
        render=errors.render,
        complete=_complete,
        cors_origins=cors_origins,
        private=("/v1/models",),
    )
    return app


def _complete(document: dict[str, Any]) -> None:
    security.document(document, errors.error_entries(*security.REFUSALS))

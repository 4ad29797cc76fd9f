"""Builds the FastAPI application from the parts of an `AppContext`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from condconv_serve import __version__
from condconv_serve.domain.facts import deadlines_of
from condconv_serve.fronts import security
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.native import ablation, detect, features, health, models, page, predict, problems, routing
from condconv_serve.fronts.native.feature_schemas import MODEL_HEADER, SHAPE_HEADER
from condconv_serve.fronts.native.schemas import EncodedImage
from condconv_serve.fronts.rest import finish
from condconv_serve.http.middleware import RequestContext

PRIVATE = ("/predict", "/detect", "/features", "/routing")
"""Answers about pictures are private, so no cache on the way may keep them."""

DESCRIPTION = """
Classifies images and finds objects in them with CondConv networks, and shows their routing weights: which experts of
each block made the kernels for this image.

Errors are [problem details](https://www.rfc-editor.org/rfc/rfc9457) with a `slug` for programs. Every answer has an
`X-Request-Id`: yours if you sent one.
"""


def create_app(
    context: AppContext,
    *,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    cors_origins: Sequence[str] = (),
    serve_metrics: bool = True,
    root_path: str = "",
) -> FastAPI:
    """Create the application.

    Args:
        context: what the routes work with; its gatekeeper says who may use them.
        lifespan: runs around the application's life.
        cors_origins: origins whose pages may read the answers; `*` is any.
        serve_metrics: whether `/metrics` is here, rather than on a port of its own.
        root_path: the prefix under which it is reached, as page and OpenAPI document tell it; whoever serves the
            application sees to it that requests have it (`condconv_serve.http.prefixes.RootPath`).
    """
    for slug in problems.STATUS:
        # Zero from the start, so that the first error counts as an increase.
        for by in deadlines_of(slug):
            context.metrics.rejected.labels(slug, by)
    app = FastAPIOffline(
        title="condconv-serve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        servers=[{"url": root_path}] if root_path else None,
        openapi_tags=[
            {"name": "predict", "description": "Images in, classes, objects or features out."},
            {"name": "routing", "description": "Which experts images are routed to: one image, and live traffic."},
            {"name": "models", "description": "What is served."},
            {"name": "health", "description": "Probes and metrics."},
        ],
    )
    problems.install(app)
    guard = security.guard(context.gatekeeper)
    for module in (predict, detect, features, routing, ablation, models):
        app.include_router(module.router(context), dependencies=[guard])
    app.include_router(health.router(context, serve_metrics=serve_metrics))
    app.include_router(page.router(root_path))
    finish(
        app,
        context,
        front="native",
        render=problems.render,
        complete=_complete,
        cors_origins=cors_origins,
        private=PRIVATE,
        exposed=(SHAPE_HEADER, MODEL_HEADER),
    )
    return app


def create_probes_app(context: AppContext) -> FastAPI:
    """Create the application of the metrics port: `/metrics` and the probes, for everybody who can reach the port."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    problems.install(app)
    app.include_router(health.router(context))
    app.add_middleware(RequestContext, front="native", render=problems.render, metrics=context.metrics)
    security.install(app, cors_origins=())
    return app


def _complete(document: dict[str, Any]) -> None:
    """Put the problem's schema into the OpenAPI document, and the status codes that we answer in place of FastAPI's."""
    schemas = document["components"]["schemas"]
    schemas.setdefault("Problem", problems.Problem.model_json_schema())
    schemas.setdefault("EncodedImage", EncodedImage.model_json_schema())
    security.document(document, problems.problem_responses(*security.REFUSALS))

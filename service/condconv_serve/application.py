"""All fronts as one ASGI application: each request goes to the front that its path belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.types import ASGIApp

from condconv_serve.fronts import oip, tfserving
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.native import create_app, create_probes_app, problems
from condconv_serve.http.answer import ErrorRenderer, RendererOf
from condconv_serve.http.prefixes import ByPrefix, RenderersByPrefix, RootPath, check_root_path

RENDERERS: Mapping[str, ErrorRenderer] = {"/v2": oip.render, "/v1": tfserving.render}
"""What the fronts beside the native one make of errors, by prefix."""


def create_application(
    context: AppContext,
    *,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    cors_origins: Sequence[str] = (),
    serve_metrics: bool = True,
    root_path: str = "",
) -> ASGIApp:
    """Create the application with all fronts.

    Args:
        context: what the fronts work with.
        lifespan: runs around the application's life.
        cors_origins: origins whose pages may read the answers; `*` is any.
        serve_metrics: whether `/metrics` is here, rather than on a port of its own.
        root_path: the prefix under which a proxy shows all of it; empty if there is none.

    Raises:
        ConfigurationError: the root path begins as a route does.
    """
    main = create_app(
        context, lifespan=lifespan, cors_origins=cors_origins, serve_metrics=serve_metrics, root_path=root_path
    )
    open_inference = oip.create_app(context, cors_origins=cors_origins, root_path=root_path)
    tensorflow_serving = tfserving.create_app(context, cors_origins=cors_origins, root_path=root_path)
    others: Mapping[str, ASGIApp] = {"/v2": open_inference, "/v1": tensorflow_serving}
    if not root_path:
        return ByPrefix(main, others)
    check_root_path(root_path, [*main.routes, *open_inference.routes, *tensorflow_serving.routes])
    return RootPath(ByPrefix(main, others), root_path)


def renderers(*, root_path: str = "") -> RendererOf:
    """What makes the answers that no application can give, such as for malformed headers."""
    return RenderersByPrefix(problems.render, RENDERERS, root_path=root_path)


def create_probes(context: AppContext, *, root_path: str = "") -> ASGIApp:
    """Create the application of the metrics port.

    Raises:
        ConfigurationError: the root path begins as a route does.
    """
    app = create_probes_app(context)
    if not root_path:
        return app
    check_root_path(root_path, app.routes)
    return RootPath(app, root_path)

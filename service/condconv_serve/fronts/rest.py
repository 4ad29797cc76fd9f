"""What is put around the routes of every REST front: what each request gets, headers, and a document that says all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI

from condconv_serve.fronts import security
from condconv_serve.fronts.context import AppContext
from condconv_serve.http.answer import ErrorRenderer
from condconv_serve.http.middleware import RequestContext


def finish(
    app: FastAPI,
    context: AppContext,
    *,
    front: str,
    render: ErrorRenderer,
    complete: Callable[[dict[str, Any]], None],
    cors_origins: Sequence[str] = (),
    private: Sequence[str] = (),
    exposed: Sequence[str] = (),
) -> None:
    """Finish an application whose routes are complete.

    Args:
        app: it.
        context: what all fronts work with.
        front: its name, for metrics.
        render: makes its answer of an error.
        complete: puts into its new OpenAPI document what FastAPI can't know.
        cors_origins: as `security.install`.
        private: as `security.install`.
        exposed: as `security.install`.
    """
    app.add_middleware(
        RequestContext,
        front=front,
        render=render,
        metrics=context.metrics,
        tracer=context.tracer,
        draining=lambda: context.readiness.draining,
        bodies=context.bodies,
    )
    security.install(app, cors_origins=cors_origins, private=private, exposed=exposed)
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = original()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):  # no front answers so
                schemas.pop(name, None)
            complete(document)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

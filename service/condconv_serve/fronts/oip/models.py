"""Metadata, readiness, configuration and statistics of models."""

from __future__ import annotations

import contextlib

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from condconv_serve.domain import ServedModel
from condconv_serve.errors import ServiceError
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.gatekeeper import SPLIT_KEY_HEADER
from condconv_serve.fronts.oip import openapi
from condconv_serve.fronts.oip.asked import named_model
from condconv_serve.fronts.oip.errors import STATUS
from condconv_serve.fronts.oip.metadata import model_config, model_metadata, server_metadata
from condconv_serve.fronts.oip.statistics import model_statistics
from condconv_serve.http.scope import facts_of

STATS = "stats"
"""Ends the paths of statistics; and a model may be called so."""


def router(context: AppContext) -> APIRouter:
    """The routes that describe the server and its models."""
    routes = APIRouter(tags=["metadata"])
    models, gatekeeper = context.models, context.gatekeeper

    def served(request: Request) -> ServedModel:
        name, version = named_model(request)
        key = gatekeeper.split_key(facts_of(request.scope), request.headers.get(SPLIT_KEY_HEADER))
        return models.get(name, version, key=key)

    async def server(request: Request) -> Response:
        """Name, version and extensions of the server."""
        return JSONResponse(server_metadata())

    async def names(request: Request) -> Response:
        """Names of the models that are served, as KServe lists them."""
        return JSONResponse({"models": sorted(models.models())})

    async def all_statistics(request: Request) -> Response:
        """What each served version has done since the process began, in Triton's shape.

        If a model is called `stats`, the answer describes it, too.
        """
        found = await model_statistics(context.tallies, models)
        with contextlib.suppress(ServiceError):  # there is no such model, as nearly always
            found |= model_metadata(models.get(STATS), models)
        return JSONResponse(found)

    async def metadata(request: Request) -> Response:
        """A model's versions, inputs and outputs; its CondConv blocks with their experts are in `parameters`."""
        return JSONResponse(model_metadata(served(request), models))

    async def config(request: Request) -> Response:
        """A model's configuration in Triton's shape."""
        return JSONResponse(model_config(served(request)))

    async def statistics(request: Request) -> Response:
        """What a model's versions have done since the process began, in Triton's shape."""
        name, version = named_model(request)
        return JSONResponse(await model_statistics(context.tallies, models, name=name, version=version))

    async def ready(request: Request) -> Response:
        """200 if the model takes requests; otherwise a status from 400 to 499, as the protocol asks for."""
        name, _ = named_model(request)
        trouble: ServiceError | None = context.readiness.unready()
        try:
            served(request)
        except ServiceError as error:
            trouble = error
        if trouble is None:
            return JSONResponse({"name": name, "ready": True})
        facts_of(request.scope).slug = trouble.slug
        status = STATUS[trouble.slug]
        return JSONResponse(
            {"name": name, "ready": False, "error": str(trouble)}, status_code=status if status < 500 else 400
        )

    routes.add_api_route("/v2", server, methods=["GET"], **openapi.SERVER)
    routes.add_api_route("/v2/", server, methods=["GET"], include_in_schema=False)
    routes.add_api_route("/v2/models", names, methods=["GET"], **openapi.NAMES)
    # Before the routes of models, as in Triton.
    routes.add_api_route(f"/v2/models/{STATS}", all_statistics, methods=["GET"], **openapi.STATISTICS)
    for suffix, endpoint, described in (
        ("", metadata, openapi.METADATA),
        ("/ready", ready, openapi.MODEL_READY),
        ("/config", config, openapi.CONFIG),
        ("/stats", statistics, openapi.STATISTICS),
    ):
        for path in openapi.paths("/v2/models/{model}", suffix):
            routes.add_api_route(path, endpoint, methods=["GET"], **described)
    return routes

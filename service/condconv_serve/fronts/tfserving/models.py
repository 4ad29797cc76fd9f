"""A model's status and metadata."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.gatekeeper import SPLIT_KEY_HEADER
from condconv_serve.fronts.tfserving import schemas
from condconv_serve.fronts.tfserving.errors import error_entries
from condconv_serve.fronts.tfserving.metadata import metadata_body
from condconv_serve.fronts.tfserving.model_spec import spec_of
from condconv_serve.fronts.tfserving.model_status import status_entry, wanted_statuses
from condconv_serve.http.scope import facts_of

SLUGS = ("invalid_parameter", "model_not_found", "version_not_found", "model_unavailable")
"""What can go wrong."""


def router(context: AppContext) -> APIRouter:
    """The routes that tell of models."""
    routes = APIRouter(tags=["models"])

    async def status(request: Request) -> JSONResponse:
        """Return the state of a model's versions, served or not; the newest first."""
        spec = spec_of(context.models, **request.path_params)
        if ":" in spec.name:  # GET can do nothing with a verb
            raise HTTPException(404)
        statuses = await asyncio.to_thread(context.versions.status)
        found = wanted_statuses(statuses, context.models.aliases(spec.name), spec)
        return JSONResponse({"model_version_status": [status_entry(each) for each in found]})

    async def metadata(request: Request) -> JSONResponse:
        """Return the signatures of a version: its inputs and outputs, with their shapes and data types."""
        spec = spec_of(context.models, **request.path_params)
        split_key = context.gatekeeper.split_key(facts_of(request.scope), request.headers.get(SPLIT_KEY_HEADER))
        with spec.told_when_missing():
            return JSONResponse(metadata_body(context.models.get(spec.name, spec.version, key=split_key).info))

    @routes.get("/v1/models", summary="Refused: name a model", responses=error_entries("invalid_parameter"))
    async def nameless() -> JSONResponse:
        """Refuse: the status of all models at once isn't told; native `GET /models` lists them."""
        raise InvalidParameter("Missing model name in request.")

    for path, parameters in schemas.MODEL_PATHS.items():
        extra = {"parameters": list(parameters)}
        routes.add_api_route(
            path,
            status,
            methods=["GET"],
            summary="The state of versions",
            response_model=schemas.StatusResponse,
            responses=error_entries(*SLUGS),
            openapi_extra=extra,
        )
        routes.add_api_route(
            f"{path}/metadata",
            metadata,
            methods=["GET"],
            summary="The signatures of a version",
            response_model=schemas.MetadataResponse,
            responses=error_entries(*SLUGS),
            openapi_extra=extra,
        )
    return routes

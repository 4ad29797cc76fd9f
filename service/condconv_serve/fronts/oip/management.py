"""Triton's model repository extension, and its shared memory extension, which is refused."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from condconv_serve.errors import InvalidParameter, NotSupported
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.oip import openapi
from condconv_serve.fronts.oip.asked import named_model, read_small
from condconv_serve.fronts.oip.parameters import NO_SHARED_MEMORY, Parameters, parameters_of
from condconv_serve.fronts.oip.repository import Repository, as_json
from condconv_serve.fronts.oip.shown import shown
from condconv_serve.fronts.security import needs_admin


def router(context: AppContext) -> APIRouter:
    """The routes of the repository."""
    routes = APIRouter(tags=["repository"])
    repository = Repository(context.versions, context.models)

    async def index(request: Request) -> Response:
        """All versions of all models in the store, with their state."""
        ready = (await read_small(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidParameter(f"ready must be true or false, not {shown(ready)}.")
        return JSONResponse(as_json(await repository.index(ready=ready)))

    async def load(request: Request) -> Response:
        """Load the newest version of a model, or the one that the parameter `version` names, and serve it.

        The answer comes when it serves, or has failed. Only this replica loads it.
        """
        name, _ = named_model(request)
        await repository.load(name, await _parameters(request))
        return JSONResponse({})

    async def unload(request: Request) -> Response:
        """Stop serving a model, or the version that the parameter `version` names. Only this replica unloads it."""
        name, _ = named_model(request)
        await repository.unload(name, await _parameters(request))
        return JSONResponse({})

    routes.add_api_route("/v2/repository/index", index, methods=["POST"], **openapi.INDEX)
    for verb, endpoint, described in (("load", load, openapi.LOAD), ("unload", unload, openapi.UNLOAD)):
        path = f"/v2/repository/models/{{model}}/{verb}"
        routes.add_api_route(path, endpoint, methods=["POST"], dependencies=[needs_admin], **described)
    return routes


def shared_memory_router() -> APIRouter:
    """The routes of shared memory: there are no regions, and there can be none."""
    routes = APIRouter(tags=["shared memory"], include_in_schema=False)

    async def status(request: Request) -> Response:
        return JSONResponse([])

    async def refuse(request: Request) -> Response:
        raise NotSupported(NO_SHARED_MEMORY)

    for kind in ("systemsharedmemory", "cudasharedmemory"):
        for prefix in (f"/v2/{kind}", f"/v2/{kind}/region/{{region}}"):
            routes.add_api_route(f"{prefix}/status", status, methods=["GET"])
            routes.add_api_route(f"{prefix}/unregister", refuse, methods=["POST"])
        routes.add_api_route(f"/v2/{kind}/region/{{region}}/register", refuse, methods=["POST"])
    return routes


async def _parameters(request: Request) -> Parameters:
    return parameters_of((await read_small(request)).get("parameters"), of="the request")

"""Probes: is the server alive, does it take requests? They are for everybody, with a key or without."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.oip import openapi
from condconv_serve.http.scope import facts_of


def router(context: AppContext) -> APIRouter:
    """The routes of probes."""
    routes = APIRouter(tags=["health"])

    async def live(request: Request) -> Response:
        """200 as long as the process can answer."""
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        """200 while the server takes requests; otherwise 400, as the protocol asks for a status from 400 to 499."""
        if reason := context.readiness.unready():
            facts_of(request.scope).slug = reason.slug
            return JSONResponse({"live": True, "ready": False, "error": str(reason)}, status_code=400)
        return JSONResponse({"live": True, "ready": True})

    for path, endpoint, described in (
        ("/v2/health/live", live, openapi.LIVE),
        ("/v2/health/ready", ready, openapi.READY),
    ):
        routes.add_api_route(path, endpoint, methods=["GET"], **described)
        # Some load balancers probe with HEAD.
        routes.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    return routes

"""Probes for orchestrators, and the metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from starlette.requests import Request

from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.native.problems import Problem, problem_response, problem_responses
from condconv_serve.fronts.native.schemas import HealthResponse, ModelReference


def router(context: AppContext, *, serve_metrics: bool = True) -> APIRouter:
    """The routes of probes, and of metrics unless they have a port of their own."""
    routes = APIRouter(tags=["health"])

    @routes.get(
        "/livez", summary="Is the process alive?", response_model=HealthResponse, response_model_exclude_none=True
    )
    async def livez() -> HealthResponse:
        """Ok as long as the process can answer. If there is no answer, restart it."""
        return HealthResponse(status="ok")

    @routes.get(
        "/readyz",
        summary="Does the service take requests?",
        response_model=HealthResponse,
        response_model_exclude_none=True,
        responses=problem_responses("not_ready", "draining"),
    )
    async def readyz() -> HealthResponse | Response:
        """Ok from when the models that readiness needs are loaded and warmed up until the service shuts down.

        `problems` lists what is wrong all the same, such as a model that readiness doesn't need.
        """
        return _health()

    @routes.get(
        "/healthz",
        summary="Is all well?",
        response_model=HealthResponse,
        response_model_exclude_none=True,
        responses=problem_responses("not_ready", "draining"),
    )
    async def healthz() -> HealthResponse | Response:
        """The same as `/readyz`, for a container's health check."""
        return _health()

    # Some load balancers probe with HEAD.
    for path, probe in (("/livez", livez), ("/readyz", readyz), ("/healthz", healthz)):
        routes.add_api_route(
            path,
            probe,
            methods=["HEAD"],
            response_model=HealthResponse,
            response_model_exclude_none=True,
            include_in_schema=False,
        )

    def _health() -> HealthResponse | Response:
        if reason := context.readiness.unready():
            return problem_response(Problem.of(reason))
        served = context.models.models()
        return HealthResponse(
            status="ok",
            models=[ModelReference(name=n, version=v) for n, versions in served.items() for v in versions],
            problems=context.readiness.problems() or None,
        )

    if not serve_metrics:
        return routes

    @routes.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics(request: Request) -> Response:
        """In the Prometheus text format, or OpenMetrics if the scraper accepts it."""
        found = await context.exposition.expose(request.headers.get("accept", ""))
        return Response(found.content, headers={"Content-Type": found.content_type})

    return routes

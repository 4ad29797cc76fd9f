"""Errors over HTTP: one table of status codes, one shape of body (RFC 9457, `application/problem+json`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from condconv_serve.errors import InvalidParameter, ServiceError
from condconv_serve.fronts.http_errors import documented, headers_of, note_error, unrouted
from condconv_serve.http.answer import Answer
from condconv_serve.http.scope import facts_of
from condconv_serve.validation import Place, describe_errors, dotted

STATUS = {
    "internal_error": 500,
    "invalid_parameter": 422,
    "malformed_request": 400,
    "headers_too_large": 431,
    "request_timeout": 408,
    "malformed_body": 400,
    "missing_image": 400,
    "body_too_large": 413,
    "too_many_images": 413,
    "unsupported_body": 415,
    "unsupported_encoding": 415,
    "not_supported": 501,
    "not_found": 404,
    "model_not_found": 404,
    "version_not_found": 404,
    "alias_not_found": 404,
    "version_in_use": 409,
    "store_not_writable": 409,
    "routing_not_found": 404,
    "not_cached": 504,
    "unauthenticated": 401,
    "forbidden": 403,
    "unsupported_image": 415,
    "image_too_large": 413,
    "corrupt_image": 422,
    "rate_limited": 429,
    "too_many_connections": 503,
    "queue_full": 429,
    "ablation_busy": 429,
    "wait_too_long": 429,
    "not_ready": 503,
    "model_unavailable": 503,
    "no_default_model": 503,
    "store_unavailable": 503,
    "draining": 503,
    "engine_stalled": 503,
    "out_of_memory": 503,
    "too_little_memory": 503,
    "deadline_exceeded": 504,
    "inference_failed": 500,
    "invalid_bundle": 422,
    "import_failed": 500,
    "invalid_data_set": 500,
    "remote_failed": 502,
    "download_failed": 502,
    "invalid_configuration": 500,
}
"""Status code of every error's slug."""

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """What went wrong, as RFC 9457 problem details."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:condconv-serve:problem:unsupported_image",
                "title": "Unsupported image format",
                "status": 415,
                "detail": "These bytes are no image of an accepted format; JPEG, PNG, WebP, GIF, TIFF, BMP, "
                "AVIF and HEIC are accepted.",
                "slug": "unsupported_image",
            }
        }
    )

    type: str = Field(description="A URN that names the kind of problem.")
    title: str = Field(description="The kind of problem, in words.")
    status: int = Field(description="The HTTP status code of the answer.")
    detail: str = Field(description="What was wrong this time, and what is allowed.")
    slug: str = Field(description="The kind of problem, for programs.")
    retry_after: float | None = Field(None, description="Seconds after which a new try makes sense.")

    @classmethod
    def of(cls, error: ServiceError) -> Problem:
        """Describe an error."""
        return cls(
            type=f"urn:condconv-serve:problem:{error.slug}",
            title=error.title,
            status=STATUS[error.slug],
            detail=str(error),
            slug=error.slug,
            retry_after=error.retry_after,
        )


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return a problem as a response."""
    return JSONResponse(
        problem.model_dump(exclude_none=True),
        status_code=problem.status,
        headers=headers_of(problem.slug, problem.retry_after) | (headers or {}),
        media_type=MEDIA_TYPE,
    )


def render(error: ServiceError) -> Answer:
    """The whole answer for an error, for `condconv_serve.http`, which answers where no route can."""
    response = problem_response(Problem.of(error))
    return Answer(response.status_code, response.raw_headers, bytes(response.body))


def problem_responses(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the problems that a route may answer with."""
    return documented(slugs, STATUS, content={MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}})


def install(app: FastAPI) -> None:
    """Make an app answer every error as a problem."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> JSONResponse:
        note_error(request, error, status=STATUS[error.slug])
        return problem_response(Problem.of(error))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        facts_of(request.scope).slug = InvalidParameter.slug
        detail = describe_validation(error.errors()) + _query_parameters(request)
        return problem_response(Problem.of(InvalidParameter(detail)))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        found = unrouted(request, error, docs="/docs")
        problem = Problem(
            type=f"urn:condconv-serve:problem:{found.slug}",
            title=found.title,
            status=found.status,
            detail=found.detail,
            slug=found.slug,
            retry_after=None,
        )
        return problem_response(problem, dict(found.headers))


def _query_parameters(request: Request) -> str:
    """A sentence with the query parameters of the request's route."""
    path = getattr(request.scope.get("route"), "path", "")
    operation = request.app.openapi()["paths"].get(path, {}).get(request.method.lower(), {})
    names = [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
    return f" Parameters are {', '.join(names)}." if names else ""


NAMED = 5
"""How many errors of a validation are described; the rest are counted."""


def describe_validation(errors: Sequence[Any], count: int | None = None) -> str:
    """Put pydantic's list of errors, or the first of `count` errors, into a sentence."""
    return (
        describe_errors(errors, most=NAMED, total=count, write_place=_place, whole="value", unknown="no such parameter")
        + "."
    )


def _place(place: Place) -> str:
    """Where an error is, by the names of the fields alone, without `query` or `body`."""
    return dotted([part for part in place if part not in ("query", "body", "path")])[:100]

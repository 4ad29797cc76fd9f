"""Errors as TensorFlow Serving tells them over HTTP: a status code, and `{"error": "..."}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from condconv_serve.errors import ServiceError
from condconv_serve.fronts.http_errors import documented, headers_of, note_error, unrouted
from condconv_serve.http.answer import Answer
from condconv_serve.http.scope import path_of

STATUS = {
    "internal_error": 500,
    "invalid_parameter": 400,
    "malformed_request": 400,
    "headers_too_large": 431,
    "request_timeout": 408,
    "malformed_body": 400,
    "missing_image": 400,
    "body_too_large": 413,
    "too_many_images": 400,
    "unsupported_body": 400,
    "unsupported_encoding": 415,
    "not_supported": 501,
    "not_found": 400,
    "model_not_found": 404,
    "version_not_found": 404,
    "alias_not_found": 404,
    "version_in_use": 409,
    "store_not_writable": 409,
    "routing_not_found": 404,
    "not_cached": 504,
    "unauthenticated": 401,
    "forbidden": 403,
    "unsupported_image": 400,
    "image_too_large": 400,
    "corrupt_image": 400,
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
    "invalid_bundle": 400,
    "import_failed": 500,
    "invalid_data_set": 500,
    "remote_failed": 503,
    "download_failed": 503,
    "invalid_configuration": 500,
}
"""Status code of every error's slug: that of the code which TensorFlow Serving would give it."""

ERROR_SCHEMA = {
    "title": "Error",
    "type": "object",
    "properties": {"error": {"type": "string", "description": "What was wrong, and what is allowed."}},
    "required": ["error"],
}
"""Of the body of every error."""


def render(error: ServiceError) -> Answer:
    """The whole answer for an error."""
    response = _response_of(error)
    return Answer(response.status_code, response.raw_headers, bytes(response.body))


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as a response."""
    body = json.dumps({"error": message})  # ASCII, so it may quote what no encoding can spell
    return Response(body, status, headers=dict(headers or {}), media_type="application/json")


def error_entries(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors that a route may answer with."""
    return documented(slugs, STATUS, content={"application/json": {"schema": ERROR_SCHEMA}})


def install(app: FastAPI) -> None:
    """Make an app answer every error in this shape."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        note_error(request, error, status=STATUS[error.slug])
        return _response_of(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        found = unrouted(request, error, docs="/v1/docs")
        # TensorFlow Serving answers neither 404 nor 405 here: what it doesn't know is malformed.
        asked = f"{request.method} {path_of(request.scope)}"
        return error_response(400, f"Malformed request: {asked[:500]}", found.headers)


def _response_of(error: ServiceError) -> Response:
    return error_response(STATUS[error.slug], str(error), headers_of(error.slug, error.retry_after))

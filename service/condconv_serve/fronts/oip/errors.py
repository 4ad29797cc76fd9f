"""Errors over REST: one table of status codes, and the protocol's shape of body, `{"error": "..."}`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException

from condconv_serve.errors import ServiceError
from condconv_serve.fronts.http_errors import headers_of, note_error, unrouted
from condconv_serve.http.answer import Answer

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
    "unsupported_body": 415,
    "unsupported_encoding": 415,
    "not_supported": 400,
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
    "remote_failed": 502,
    "download_failed": 502,
    "invalid_configuration": 500,
}
"""Status code of every error's slug. What is wrong with a request or its images is 400, as the protocol says."""


def render(error: ServiceError) -> Answer:
    """The whole answer for an error."""
    return error_answer(str(error), STATUS[error.slug], headers_of(error.slug, error.retry_after))


def error_answer(message: str, status: int, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with a message, in the protocol's shape."""
    body = json.dumps({"error": message}).encode()  # ASCII, so it may quote what no encoding can spell
    fields = MutableHeaders({"content-type": "application/json", "content-length": str(len(body)), **(headers or {})})
    return Answer(status, fields.raw, body)


def install(app: FastAPI) -> None:
    """Make an app answer every error in the protocol's shape."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        note_error(request, error, status=STATUS[error.slug])
        return as_response(render(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        found = unrouted(request, error, docs="/v2/openapi.json")
        return as_response(error_answer(found.detail, found.status, found.headers))


def as_response(answer: Answer) -> Response:
    """An answer as FastAPI's routes return it."""
    response = Response(answer.body, answer.status)
    response.raw_headers = list(answer.headers)
    return response

"""`POST /predict` and `POST /routing`: images in, classes and routing weights out."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from service.api.body import read_request
from service.api.disconnect import unless_disconnected
from service.api.examples import EXAMPLE_JPEG_BASE64
from service.api.middleware import note_classification
from service.api.parts import Parts
from service.api.problems import problem_responses
from service.api.schemas import (
    ImagesBody,
    PredictParameters,
    PredictResponse,
    RoutingParameters,
    predict_response,
)
from service.batching import Priority
from service.errors import InvalidParameter

_PROBLEMS = problem_responses(
    "malformed_body",
    "missing_image",
    "model_not_found",
    "version_not_found",
    "body_too_large",
    "request_timeout",
    "image_too_large",
    "too_many_images",
    "unsupported_body",
    "unsupported_image",
    "corrupt_image",
    "invalid_parameter",
    "queue_full",
    "wait_too_long",
    "inference_failed",
    "not_ready",
    "draining",
    "engine_stalled",
    "out_of_memory",
    "deadline_exceeded",
)

SPLIT_KEY_HEADER = "X-Split-Key"
"""Equal values get equal versions, so that a user stays with one of them."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}


def _request_body(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "description": "One raw image; a form with one or many files; or JSON with one or many images in base64.",
            "content": {
                "application/json": {
                    "schema": ImagesBody.model_json_schema(ref_template="#/components/schemas/{model}"),
                    "example": {"images": [{"id": "a", "data": EXAMPLE_JPEG_BASE64}], **parameters},
                },
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        },
                        "required": ["image"],
                    }
                },
                "application/octet-stream": _BINARY,
                "image/*": _BINARY,
            },
        }
    }


def router(parts: Parts) -> APIRouter:
    """The routes of predictions."""
    routes = APIRouter(tags=["predict"])

    @routes.post(
        "/predict",
        summary="Classify images",
        response_model=PredictResponse,
        response_model_exclude_none=True,
        responses=_PROBLEMS,
        openapi_extra=_request_body({"top_k": 3, "routing": True}),
    )
    async def predict(request: Request, query: Annotated[PredictParameters, Query()]) -> PredictResponse:
        """Return the most probable classes of each image, and its routing weights if asked for.

        One entry per image, in order. If one of several images can't be used, its entry holds an `error` and the
        others are answered all the same; if a lone image can't be used, that is the response's own error.

        Parameters may also stand in a JSON or form body. A raw image: `curl --data-binary @photo.jpg`; files:
        `curl -F image=@a.jpg -F image=@b.png`.
        """
        return await _classify(request, query)

    @routes.post(
        "/routing",
        summary="Show images' routing weights",
        response_model=PredictResponse,
        response_model_exclude_none=True,
        responses=_PROBLEMS,
        openapi_extra=_request_body({"top_k": 1}),
    )
    async def routing(request: Request, query: Annotated[RoutingParameters, Query()]) -> PredictResponse:
        """Like `/predict`, but the routing weights are always there: one per CondConv block and expert, 0 to 1."""
        return await _classify(request, query)

    async def _classify(request: Request, query: RoutingParameters) -> PredictResponse:
        if reason := parts.readiness.refusal():
            raise reason
        # What can't be taken at its most urgent need not be read.
        parts.classifier.check_capacity(
            query.model,
            query.version,
            priority=Priority.HIGH,
            deadline=time.monotonic() + parts.request_timeout,
            split_key=split_key(request),
        )
        parameters, images = await read_request(request, query, parts.limits)
        classification = await unless_disconnected(
            request,
            parts.classifier.classify(
                images,
                model=parameters.model,
                version=parameters.version,
                top_k=parameters.top_k,
                priority=Priority[parameters.priority.upper()],
                deadline=time.monotonic() + _timeout(parameters, parts.request_timeout),
                split_key=split_key(request),
            ),
        )
        note_classification(request.scope, classification)
        only = classification.results[0] if len(images) == 1 else None
        if only is not None and only.error is not None:
            raise only.error
        return predict_response(
            classification, routing=not isinstance(parameters, PredictParameters) or parameters.routing
        )

    return routes


def split_key(request: Request) -> str:
    """What decides which version a request gets where an alias splits traffic: its own header, or else its id."""
    return request.headers.get(SPLIT_KEY_HEADER) or str(request.scope["condconv.request_id"])


def _timeout(parameters: RoutingParameters, longest: float) -> float:
    """Seconds that the caller waits."""
    if parameters.timeout_ms is None:
        return longest
    if parameters.timeout_ms > longest * 1e3:
        raise InvalidParameter(f"timeout_ms may be at most {longest * 1e3:.0f}, not {parameters.timeout_ms}.")
    return parameters.timeout_ms / 1e3

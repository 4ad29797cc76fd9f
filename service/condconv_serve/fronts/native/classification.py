"""What all routes that classify images share: reading the request, refusing it, waiting for the answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel

from condconv_serve.deadline import ending_at
from condconv_serve.domain import Classification
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.gatekeeper import SPLIT_KEY_HEADER
from condconv_serve.fronts.native.examples import EXAMPLE_JPEG_BASE64, EXAMPLE_REQUEST_ID
from condconv_serve.fronts.native.images import read_query, read_request
from condconv_serve.fronts.native.problems import problem_responses
from condconv_serve.fronts.native.schemas import ImagesBody, RoutingParameters
from condconv_serve.http.disconnect import unless_disconnected
from condconv_serve.http.scope import REQUEST_ID_HEADER, facts_of
from condconv_serve.inference.batching import Priority
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.tasks.classification import Classify

Parameters = TypeVar("Parameters", bound=RoutingParameters)
Result = TypeVar("Result")
SLUGS = (
    "malformed_body",
    "missing_image",
    "model_unavailable",
    "no_default_model",
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
"""What can go wrong."""
PROBLEMS = problem_responses(*SLUGS)
"""The same as OpenAPI entries."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}


def request_body(example: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI entry for a body with images, and for parameters in the query.

    Args:
        example: parameters that stand in the JSON example.
        kind: the query's parameters. FastAPI doesn't know them, since `read_query` reads them.
    """
    return {
        "parameters": [
            *(
                {"name": name, "in": "query", "required": False, "description": schema["description"], "schema": schema}
                for name, schema in kind.model_json_schema()["properties"].items()
            ),
            {
                "name": REQUEST_ID_HEADER,
                "in": "header",
                "description": "Returned with the answer, and the name of `GET /routing/{request_id}`.",
                "schema": {"type": "string", "maxLength": 128, "examples": [EXAMPLE_REQUEST_ID]},
            },
        ],
        "requestBody": {
            "required": True,
            "description": "One raw image, a form with one or more files, or JSON with one or more images in base64.",
            "content": {
                "application/json": {
                    "schema": ImagesBody.model_json_schema(ref_template="#/components/schemas/{model}"),
                    "example": {"images": [{"id": "a", "data": EXAMPLE_JPEG_BASE64}], **example},
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
        },
    }


async def classify(request: Request, kind: type[Parameters], context: AppContext) -> tuple[Parameters, Classification]:
    """Read a request, classify its images, and remember the answer for its sender.

    Args:
        request: the images, and parameters in its query or body.
        kind: which parameters it may have.
        context: what to work with.

    Returns:
        The parameters, those of the body included, and the answer.

    Raises:
        ServiceError: the request is refused, or its only image can't be used.
    """
    facts, gatekeeper = facts_of(request.scope), context.gatekeeper
    gatekeeper.check_ready()
    split_key = gatekeeper.split_key(facts, request.headers.get(SPLIT_KEY_HEADER))
    query = read_query(request, kind)
    # Refused even at the highest priority? Then the body need not be read.
    context.images.plane.check(
        query.model,
        query.version,
        priority=Priority.HIGH,
        deadline=gatekeeper.deadline(),
        split_key=split_key,
    )
    parameters, images = await read_request(request, query, context.limits)
    facts.deadline = gatekeeper.deadline(parameters.timeout_ms)
    classification = await unless_disconnected(
        request,
        context.images.run(
            images,
            Classify(parameters.top_k, parameters.threshold),
            model=parameters.model,
            version=parameters.version,
            priority=gatekeeper.priority(parameters.priority),
            deadline=facts.deadline,
            split_key=split_key,
        ),
    )
    model = classification.model
    facts.model, facts.rows = f"{model.name}/{model.version}", len(classification.results)
    facts.note_answer([result.prediction.timings for result in classification.results if result.prediction])
    only = classification.results[0] if len(images) == 1 else None
    if only is not None and only.error is not None:
        raise only.error
    if context.recent is not None:
        context.recent.remember(
            RecentRequest(
                request_id=facts.request_id,
                model=model.name,
                version=model.version,
                at=time.time(),
                results=classification.results,
            ),
            owner=facts.key_name,
        )
    return parameters, classification


async def in_time(work: Awaitable[Result], request: Request) -> Result:
    """Await what comes after `classify`, at most until the request's deadline.

    Raises:
        DeadlineExceeded: it was given up.
    """
    async with ending_at(facts_of(request.scope).deadline):
        return await work

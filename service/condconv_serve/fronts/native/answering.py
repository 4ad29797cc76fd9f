"""What all routes that answer images share: reading the request, refusing it, waiting for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel

from condconv_serve.deadline import ending_at
from condconv_serve.domain import Answered, TaskName, Timings
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.examples import EXAMPLE_JPEG_BASE64, EXAMPLE_REQUEST_ID
from condconv_serve.fronts.gatekeeper import SPLIT_KEY_HEADER
from condconv_serve.fronts.native.images import read_query, read_request
from condconv_serve.fronts.native.problems import problem_responses
from condconv_serve.fronts.native.schemas import ImageParameters, ImagesBody
from condconv_serve.fronts.native.task_of_route import demand_task
from condconv_serve.http.cache_control import CACHE_CONTROL_HEADER
from condconv_serve.http.disconnect import unless_disconnected
from condconv_serve.http.scope import REQUEST_ID_HEADER, facts_of
from condconv_serve.inference.batching import Priority
from condconv_serve.tasks.task import Task


class Timed(Protocol):
    """An answer that tells where its time went."""

    @property
    def timings(self) -> Timings:
        """In seconds."""
        ...


Parameters = TypeVar("Parameters", bound=ImageParameters)
Answer = TypeVar("Answer", bound=Timed)
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
    "unsupported_encoding",
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
PROBLEMS = problem_responses(*SLUGS, "not_cached")
"""What can go wrong where the response cache is asked, as OpenAPI entries."""

_CACHE_CONTROL = {
    "name": CACHE_CONTROL_HEADER,
    "in": "header",
    "description": "How the response cache is used, if there is one. `no-cache`: the images are computed; "
    "`max-age=60`: no answer is older than a minute; `no-store`: the answers aren't kept; `only-if-cached`: nothing is "
    "computed, and images without an answer in the cache get 504.",
    "schema": {"type": "string", "examples": ["no-cache"]},
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def request_body(
    example: dict[str, Any], kind: type[BaseModel], *, kept: bool = True, cached: bool = True
) -> dict[str, Any]:
    """OpenAPI entry for a body with images, and for parameters in the query.

    Args:
        example: parameters that stand in the JSON example.
        kind: the query's parameters. FastAPI doesn't know them, since `read_query` reads them.
        kept: whether the answer can be read later, by the request's id.
        cached: whether it may come from the response cache.
    """
    later = ", and the name of `GET /routing/{request_id}`" if kept else ""
    return {
        "parameters": [
            *(
                {"name": name, "in": "query", "required": False, "description": schema["description"], "schema": schema}
                for name, schema in kind.model_json_schema()["properties"].items()
            ),
            {
                "name": REQUEST_ID_HEADER,
                "in": "header",
                "description": f"Returned with the answer{later}.",
                "schema": {"type": "string", "maxLength": 128, "examples": [EXAMPLE_REQUEST_ID]},
            },
            *([_CACHE_CONTROL] if cached else []),
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


async def answer_images(
    request: Request,
    kind: type[Parameters],
    context: AppContext,
    *,
    task: Callable[[Parameters], Task[Answer]],
    needs: TaskName | None = None,
) -> tuple[Parameters, Answered[Answer]]:
    """Read a request, and answer its images.

    Args:
        request: the images, and parameters in its query or body.
        kind: which parameters it may have.
        context: what to work with.
        task: what to answer, by the parameters.
        needs: what the model must be for; None if the task itself says so.

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
    await context.images.plane.check(
        query.model,
        query.version,
        priority=Priority.HIGH,
        deadline=gatekeeper.deadline(),
        split_key=split_key,
        cache=facts.cache,
    )
    if needs is not None and query.model is not None:
        demand_task(needs, context.models, model=query.model, version=query.version, split_key=split_key)
    parameters, images = await read_request(request, query, context.limits)
    if needs is not None and query.model is None:
        demand_task(needs, context.models, model=parameters.model, version=parameters.version, split_key=split_key)
    facts.deadline = gatekeeper.deadline(parameters.timeout_ms)
    answered = await unless_disconnected(
        request,
        context.images.run(
            images,
            task(parameters),
            model=parameters.model,
            version=parameters.version,
            priority=gatekeeper.priority(parameters.priority),
            deadline=facts.deadline,
            split_key=split_key,
            cache=facts.cache,
        ),
    )
    facts.model, facts.rows = f"{answered.model.name}/{answered.model.version}", len(answered.results)
    facts.note_answer([result.prediction.timings for result in answered.results if result.prediction])
    only = answered.results[0] if len(images) == 1 else None
    if only is not None and only.error is not None:
        raise only.error
    return parameters, answered


async def written(request: Request, make: Callable[[], BaseModel]) -> Response:
    """Make a body and write it as JSON, without fields that are None, on a thread: large ones would hold up the loop.

    Raises:
        DeadlineExceeded: it wasn't done by the request's deadline.
    """
    work = asyncio.to_thread(lambda: make().model_dump_json(exclude_none=True).encode())
    content = await unless_disconnected(request, in_time(work, request))
    return Response(content, media_type="application/json")


async def in_time(work: Awaitable[Result], request: Request) -> Result:
    """Await what comes after `answer_images`, at most until the request's deadline.

    Raises:
        DeadlineExceeded: it was given up.
    """
    async with ending_at(facts_of(request.scope).deadline):
        return await work

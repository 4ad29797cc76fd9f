"""`:predict`, `:classify` and `:regress`: images or pixels in, named outputs or classes out."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from fastapi import APIRouter, Request, Response

from condconv_serve.domain import PROBABILITIES, ImageSource
from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.gatekeeper import SPLIT_KEY_HEADER
from condconv_serve.fronts.json_answers import ELEMENTS_AT_ONCE
from condconv_serve.fronts.json_documents import Document, with_document
from condconv_serve.fronts.tfserving import schemas
from condconv_serve.fronts.tfserving.errors import error_entries
from condconv_serve.fronts.tfserving.inputs import read_examples, read_predict, signature_name
from condconv_serve.fronts.tfserving.model_spec import spec_of
from condconv_serve.fronts.tfserving.outputs import classify_json, elements_of, predict_json
from condconv_serve.fronts.tfserving.question import Options, Question, Questions
from condconv_serve.fronts.tfserving.signatures import check_classify_signature, regress_refusal
from condconv_serve.fronts.thresholds import thresholds_of
from condconv_serve.http.body import read_body
from condconv_serve.http.disconnect import unless_disconnected
from condconv_serve.http.scope import facts_of

Result = TypeVar("Result")
SLUGS = (
    "malformed_body",
    "missing_image",
    "too_many_images",
    "unsupported_image",
    "corrupt_image",
    "image_too_large",
    "invalid_parameter",
    "body_too_large",
    "unsupported_encoding",
    "request_timeout",
    "model_not_found",
    "version_not_found",
    "model_unavailable",
    "queue_full",
    "wait_too_long",
    "not_ready",
    "draining",
    "engine_stalled",
    "out_of_memory",
    "inference_failed",
    "deadline_exceeded",
    "not_cached",
)
"""What can go wrong."""


def router(context: AppContext) -> APIRouter:
    """The routes that compute."""
    routes = APIRouter(tags=["predictions"])
    questions, max_images = Questions(context), context.limits.max_images

    async def ask(request: Request) -> Question:
        spec = spec_of(context.models, **request.path_params)
        return await questions.ask(facts_of(request.scope), spec, split_key=request.headers.get(SPLIT_KEY_HEADER))

    async def read(request: Request, make: Callable[[Document], Result]) -> Result:
        body = await read_body(request, context.limits.max_body_bytes)
        return await with_document(body, make, long_reads=context.long_reads)

    async def predict(request: Request) -> Response:
        """Return a model's outputs for images (signature `serving_default`) or for pixels (signature `pixels`).

        Rows come as `instances` and are answered as `predictions`; columns come as `inputs` and are answered as
        `outputs`. If one image can't be used, the whole request is refused, and the message says which image it was.
        """
        options, question = _options(request), await ask(request)
        body = await read(request, partial(read_predict, model=question.model, max_images=max_images))
        outputs = tuple(output.name for output in body.signature.outputs)
        answer = await unless_disconnected(request, question.infer(body.sources, outputs, options=options))
        write = partial(predict_json, answer.tensors, by_row=body.by_row)
        is_long = elements_of(answer.tensors) > ELEMENTS_AT_ONCE
        return Response(await context.long_reads.run(write) if is_long else write(), media_type="application/json")

    async def classify(request: Request) -> Response:
        """Return the most probable classes of each example's image, as pairs of label and score, the best first."""
        options, question = _options(request), await ask(request)

        def read_images(document: Document) -> list[ImageSource]:
            check_classify_signature(question.model, signature_name(document))
            return read_examples(document, max_images=max_images)

        sources = await read(request, read_images)
        answer = await unless_disconnected(request, question.infer(sources, (PROBABILITIES,), options=options))
        return Response(classify_json(answer), media_type="application/json")

    async def regress(request: Request) -> Response:
        """Refuse: no model here has a signature for regression."""
        raise regress_refusal((await ask(request)).model, None)

    for path, parameters in schemas.MODEL_PATHS.items():
        for handler, document in (
            (predict, schemas.PREDICT),
            (classify, schemas.CLASSIFY),
            (regress, schemas.REGRESS),
        ):
            routes.add_api_route(
                f"{path}:{handler.__name__}",
                handler,
                methods=["POST"],
                summary=document.summary,
                responses={**error_entries(*SLUGS), **document.responses},
                openapi_extra={
                    "parameters": [*parameters, *schemas.QUERY_PARAMETERS, *document.query],
                    "requestBody": document.request_body,
                },
            )
    return routes


def _options(request: Request) -> Options:
    """What the query says beyond TensorFlow Serving's own API; other parameters are passed over, as there."""
    query = request.query_params
    timeout = query.get("timeout_ms")
    if timeout is not None and not re.fullmatch("0{0,100}[1-9][0-9]{0,8}", timeout):
        raise InvalidParameter(f"timeout_ms must be a whole number of milliseconds from 1, not {timeout[:100]!r}.")
    return Options(
        timeout_ms=None if timeout is None else int(timeout),
        priority=query.get("priority", "normal"),
        detect=thresholds_of(query),
    )

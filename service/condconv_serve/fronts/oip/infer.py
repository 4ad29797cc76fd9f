"""`POST .../infer`: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter, Request, Response

from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.gatekeeper import SPLIT_KEY_HEADER
from condconv_serve.fronts.json_answers import ELEMENTS_AT_ONCE
from condconv_serve.fronts.long_reads import LongReads
from condconv_serve.fronts.oip import openapi
from condconv_serve.fronts.oip.asked import named_model
from condconv_serve.fronts.oip.binary import HEADER_LENGTH, infer_response, json_size, read_infer_request
from condconv_serve.fronts.oip.infer_request import InferRequest
from condconv_serve.fronts.oip.outputs import output_tensors
from condconv_serve.fronts.tensor_inference import TensorAnswer, TensorInference
from condconv_serve.http.body import read_body
from condconv_serve.http.disconnect import unless_disconnected
from condconv_serve.http.encodings import compressed, encoding_for
from condconv_serve.http.scope import facts_of

_JSON_AT_ONCE = 128 * 1024
"""JSON of more bytes is read on another thread, so that others get their turn in between."""
Result = TypeVar("Result")


def router(context: AppContext) -> APIRouter:
    """The routes of inference."""
    routes = APIRouter(tags=["inference"])
    gatekeeper, limits = context.gatekeeper, context.limits
    inference = TensorInference(context.images, gatekeeper, max_images=limits.max_images)

    async def infer(request: Request) -> Response:
        """Compute a model's outputs for images or pixels.

        Send one input: `image`, encoded images (`BYTES [N]`), or `pixels`, rows that are already cropped and resized
        (`UINT8` or `FP32` `[N, S, S, 3]`, RGB from 0 to 255). Name the outputs that you want; without `outputs` you
        get all. One bad image fails the whole request, and the error says which one it is.

        In JSON an encoded image is base64 text. Raw bytes stand behind the JSON: then `binary_data_size` says how many
        they are, and the header `Inference-Header-Content-Length` where the JSON ends.
        """
        facts, (name, version) = facts_of(request.scope), named_model(request)
        split_key = gatekeeper.split_key(facts, request.headers.get(SPLIT_KEY_HEADER))
        await inference.check(facts, model=name, version=version, split_key=split_key)
        body = await read_body(request, limits.max_body_bytes)
        # Given twice, it isn't clear where the JSON ends, so both are refused together.
        header_length = ", ".join(lengths) if (lengths := request.headers.getlist(HEADER_LENGTH)) else None
        model = context.models.get(name, version, key=split_key).info
        asked = await _in_turn(
            lambda: read_infer_request(body, header_length=header_length, model=model, max_rows=limits.max_images),
            None if json_size(body, header_length) <= _JSON_AT_ONCE else context.long_reads,
        )
        answer = await unless_disconnected(
            request,
            inference.infer(
                facts,
                asked.of_model(name, version, split_key=split_key),
                deadline=asked.parameters.deadline(gatekeeper),
            ),
        )
        accepted = request.headers.get("accept-encoding", "")
        return await _respond(answer, asked, accepted=accepted, long_reads=context.long_reads)

    for path in openapi.paths("/v2/models/{model}", "/infer"):
        routes.add_api_route(path, infer, methods=["POST"], **openapi.INFER)
    return routes


async def _in_turn(work: Callable[[], Result], long_reads: LongReads | None) -> Result:
    """Do what takes long on another thread, in turn, and anything else here."""
    return work() if long_reads is None else await long_reads.run(work)


async def _respond(answer: TensorAnswer, asked: InferRequest, *, accepted: str, long_reads: LongReads) -> Response:
    tensors = output_tensors(asked.outputs, answer.tensors, answer.model)
    elements = sum(t.values.size for t, output in zip(tensors, asked.outputs, strict=True) if not output.binary)
    body, header_length = await _in_turn(
        lambda: infer_response(tensors, asked.outputs, model=answer.model, id=asked.id),
        None if elements <= ELEMENTS_AT_ONCE else long_reads,
    )
    headers = {"Vary": "Accept-Encoding"}
    if header_length is not None:
        headers[HEADER_LENGTH] = str(header_length)
    if encoding := encoding_for(accepted, len(body)):
        body = await compressed(body, encoding)
        headers["Content-Encoding"] = encoding
    media_type = "application/json" if header_length is None else "application/octet-stream"
    return Response(body, headers=headers, media_type=media_type)

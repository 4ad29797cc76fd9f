"""The Open Inference Protocol over gRPC, asked in its own words and heard in those of all fronts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.oip.datatypes import joined
from condconv_serve.fronts.oip.grpc import NAME, service
from condconv_serve.fronts.oip.grpc_messages import REQUEST, RESPONSE
from tests.contract.grpc_calls import call, grpc_served
from tests.contract.heard import Heard
from tests.pictures import encode

PATH = f"/{NAME}/ModelInfer"


def infer_request(shades: Sequence[int], **params: Any) -> Any:
    """A request for the logits of pictures, one of each shade."""
    pictures = [encode(Image.new("RGB", (32, 32), (shade,) * 3), "PNG") for shade in shades]
    request = REQUEST(model_name=params.get("model", "fake"), raw_input_contents=[joined(pictures)])
    request.inputs.add(name="image", datatype="BYTES", shape=[len(pictures)])
    request.outputs.add(name="logits")
    if "timeout_ms" in params:
        request.parameters["timeout"].int64_param = params["timeout_ms"] * 1000
    if "priority" in params:
        request.parameters["priority"].string_param = params["priority"]
    return request


def classes_of(response: Any) -> list[int]:
    """The best classes of an answer with logits."""
    logits = np.frombuffer(response.raw_output_contents[0], np.float32)
    return [int(best) for best in logits.reshape(response.outputs[0].shape).argmax(axis=1)]


@contextlib.asynccontextmanager
async def open_inference_grpc(context: AppContext) -> AsyncIterator[Any]:
    """The service over a socket, and what asks it."""
    async with grpc_served([service(context)], context) as served:

        async def ask(*shades: int, headers: Any, **params: Any) -> Heard:
            heard, data = await call(served.channel, PATH, infer_request(shades, **params), headers)
            return heard if data is None else replace(heard, classes=classes_of(RESPONSE.FromString(data)))

        yield ask

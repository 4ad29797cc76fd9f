"""TensorFlow Serving's `Predict` over gRPC, asked in its own words and heard in those of all fronts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from condconv_serve.domain.facts import Deadline
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.grpc import calls
from condconv_serve.fronts.tfserving.grpc import MESSAGES, PREDICTION_SERVICE, PRIORITY, prediction_service
from condconv_serve.fronts.tfserving.tensors import DT_STRING
from tests.contract.grpc_calls import call, grpc_served
from tests.contract.heard import Heard
from tests.pictures import encode

PATH = f"/{PREDICTION_SERVICE}/Predict"
RESPONSE = MESSAGES.message("tensorflow.serving.PredictResponse")
_LONGER = 20.0
"""Seconds that a call's deadline is later than asked for. The server gives up so much sooner than the client, which
then hears why on a busy machine, too."""


def predict_request(shades: Sequence[int], *, model: str = "fake", output: str = "logits") -> Any:
    """A request for an output of pictures, one of each shade."""
    request = MESSAGES.message("tensorflow.serving.PredictRequest")(output_filter=[output])
    request.model_spec.name = model
    tensor = request.inputs["image"]
    tensor.dtype = DT_STRING
    tensor.tensor_shape.dim.add().size = len(shades)
    tensor.string_val.extend(encode(Image.new("RGB", (32, 32), (shade,) * 3), "PNG") for shade in shades)
    return request


@contextlib.asynccontextmanager
async def tensorflow_serving_grpc(context: AppContext) -> AsyncIterator[Any]:
    """The service over a socket, and what asks it. `timeout_ms` is the deadline of the call."""
    client_ends = calls._ends

    def ends(of: Any) -> Deadline | None:
        end = client_ends(of)
        return None if end is None else Deadline(end - _LONGER, by=end.by)

    with mock.patch.object(calls, "_ends", ends):
        async with grpc_served([prediction_service(context)], context) as served:

            async def ask(*shades: int, headers: Any, **params: Any) -> Heard:
                given = {PRIORITY: params["priority"]} if "priority" in params else {}
                options = {"timeout": params["timeout_ms"] / 1e3 + _LONGER} if "timeout_ms" in params else {}
                request = predict_request(shades, model=params.get("model", "fake"))
                heard, data = await call(served.channel, PATH, request, {**headers, **given}, **options)
                if data is None:
                    return heard
                logits = RESPONSE.FromString(data).outputs["logits"].float_val
                return replace(heard, classes=np.reshape(logits, (len(shades), -1)).argmax(axis=1).tolist())

            yield ask

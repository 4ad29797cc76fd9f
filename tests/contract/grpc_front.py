"""A whole protocol over gRPC in fifty lines: rows of pixels in, logits out. What all share comes from outside."""

from __future__ import annotations

from typing import Any

import numpy as np

from condconv_serve.errors import MalformedBody
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.grpc.messages import MessageSet
from condconv_serve.fronts.grpc.metadata import SPLIT_KEY
from condconv_serve.fronts.grpc.service import Call, Method, Service, StreamMethod

MESSAGES = MessageSet("open_inference")
REQUEST = MESSAGES.message("inference.ModelInferRequest")
RESPONSE = MESSAGES.message("inference.ModelInferResponse")
NAME = "inference.GRPCInferenceService"
PATH = f"/{NAME}/ModelInfer"
STREAM_PATH = f"/{NAME}/ModelStreamInfer"


def rows_service(context: AppContext) -> Service:
    gatekeeper, plane = context.gatekeeper, context.images.plane

    async def infer(request: Any, call: Call) -> Any:
        facts, given = call.facts, request.parameters
        gatekeeper.check_ready()
        facts.deadline = call.deadline(
            gatekeeper.deadline(given["timeout"].int64_param if "timeout" in given else None)
        )
        priority = gatekeeper.priority(given["priority"].string_param if "priority" in given else "normal")
        split_key = gatekeeper.split_key(facts, call.metadata.get(SPLIT_KEY))
        try:
            rows = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(request.inputs[0].shape)
        except (ValueError, IndexError) as error:
            raise MalformedBody("The message holds no rows.") from error
        with plane.lease(request.model_name or None, split_key=split_key) as model:
            facts.model, facts.rows = f"{model.name}/{model.version}", len(rows)
            tensors = await plane.infer(model, rows, priority=priority, deadline=facts.deadline)
        return RESPONSE(id=request.id, raw_output_contents=[tensors["logits"].tobytes()])

    async def before_body(_: Call) -> None:
        gatekeeper.check_ready()

    return Service(
        name=NAME,
        front="grpc",
        methods={
            "ModelInfer": Method(request=REQUEST, answer=infer, before_body=before_body),
            "ModelStreamInfer": StreamMethod(
                request=REQUEST,
                answer=infer,
                failed=lambda error, request, call: None if "strict" in call.metadata else RESPONSE(id=error.slug),
            ),
        },
        files=MESSAGES.files,
    )

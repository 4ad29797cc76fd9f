"""Messages of the Open Inference Protocol over gRPC: requests into what is asked for, answers into messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from condconv_serve.domain import ModelInfo
from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.grpc.messages import MessageSet
from condconv_serve.fronts.oip.datatypes import BYTES, bytes_of, encoded
from condconv_serve.fronts.oip.infer_request import InferRequest
from condconv_serve.fronts.oip.inputs import (
    DeclaredInput,
    Sources,
    declared,
    demand_one,
    sources_of_images,
    sources_of_pixels,
    sources_of_raw,
)
from condconv_serve.fronts.oip.outputs import OutputTensor, all_outputs, wanted
from condconv_serve.fronts.oip.packed import floats_of, small_numbers_of
from condconv_serve.fronts.oip.parameters import (
    input_parameters,
    output_parameters,
    request_parameters,
)

MESSAGES = MessageSet("open_inference")
REQUEST = MESSAGES.message("inference.ModelInferRequest")
RESPONSE = MESSAGES.message("inference.ModelInferResponse")
STREAM_RESPONSE = MESSAGES.message("inference.ModelStreamInferResponse")

CONTENTS = {BYTES: "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}
"""The field of `contents` that holds the elements of a data type."""
_PIECE = 32 * 1024
"""Most elements that are put into `contents` at once."""


def values_of(parameters: Any) -> dict[str, Any]:
    """Parameters of a message as values; those without one are left out."""
    found = {}
    for name, parameter in parameters.items():
        if kind := parameter.WhichOneof("parameter_choice"):
            found[name] = getattr(parameter, kind)
    return found


def read_infer_request(request: Any, *, model: ModelInfo, max_rows: int) -> InferRequest:
    """Read a `ModelInferRequest`. It may take a while if the elements of `contents` are many.

    Outputs are returned as raw bytes, as Triton does. With the request's parameter `binary_data_output` false they are
    in `contents`.

    Args:
        request: the message.
        model: is asked.
        max_rows: most rows of a request.

    Raises:
        InvalidParameter: something in it is wrong; says what is allowed.
        MissingImage, TooManyImages: no rows, or more than allowed.
    """
    given = values_of(request.parameters)
    parameters = request_parameters(given)
    named = (
        (output.name, output_parameters(values_of(output.parameters), name=output.name[:100]))
        for output in request.outputs
    )
    return InferRequest(
        sources=_sources(request, model=model, max_rows=max_rows),
        outputs=wanted(named, model=model) if request.outputs else all_outputs(model, binary=True),
        parameters=parameters,
        raw_output=parameters.binary_data_output if "binary_data_output" in given else True,
    )


def infer_response(
    tensors: Sequence[OutputTensor], *, model: ModelInfo, request_id: str, raw: bool, parameters: Mapping[str, bool]
) -> Any:
    """A `ModelInferResponse`.

    Args:
        tensors: the outputs.
        model: gave them.
        request_id: the request's own, returned.
        raw: whether the elements are raw bytes, or in `contents`.
        parameters: of the response.
    """
    response = RESPONSE(model_name=model.name, model_version=model.version, id=request_id)
    for name, value in parameters.items():
        response.parameters[name].bool_param = value
    for tensor in tensors:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.values.shape)
        if raw:
            response.raw_output_contents.append(bytes_of(tensor.values, tensor.datatype))
        elif tensor.datatype == BYTES:
            output.contents.bytes_contents.extend(map(encoded, tensor.values.ravel().tolist()))
        else:
            flat = tensor.values.astype(np.float32, copy=False).ravel()
            for start in range(0, len(flat), _PIECE):
                output.contents.fp32_contents.extend(flat[start : start + _PIECE].tolist())
    return response


def _sources(request: Any, *, model: ModelInfo, max_rows: int) -> Sources:
    demand_one(request.inputs)
    only, raw = request.inputs[0], request.raw_input_contents
    of = declared(only.name, only.datatype, only.shape, model=model, max_rows=max_rows)
    input_parameters(values_of(only.parameters), name=of.name)
    filled = [field.name for field, _ in only.contents.ListFields()]
    if not raw:
        return _sources_of_contents(of, only.contents, filled)
    if filled:
        raise InvalidParameter(f"Input {of.name} has both raw_input_contents and contents; give one of them.")
    if len(raw) != 1:
        raise InvalidParameter(f"raw_input_contents has {len(raw)} entries; it must have one, as there is one input.")
    return sources_of_raw(of, raw[0])


def _sources_of_contents(of: DeclaredInput, contents: Any, filled: Sequence[str]) -> Sources:
    field = CONTENTS[of.datatype]
    if any(name != field for name in filled):
        raise InvalidParameter(
            f"The elements of input {of.name}, which is {of.datatype}, are in {field} or in raw_input_contents, not in "
            f"{', '.join(name for name in filled if name != field)}."
        )
    if of.datatype == BYTES:
        return sources_of_images(of, contents.bytes_contents)
    count = len(getattr(contents, field))
    if count != of.elements:
        raise InvalidParameter(f"Input {of.name} has {count} elements; {list(of.shape)} has {of.elements}.")
    if of.datatype == "FP32":
        return sources_of_pixels(of, floats_of(contents, field))
    return sources_of_pixels(of, small_numbers_of(contents, field, name=of.name))

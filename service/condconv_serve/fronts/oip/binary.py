"""Bodies of REST with Triton's binary tensor data extension: JSON, and behind it the raw bytes of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from condconv_serve.domain import ModelInfo
from condconv_serve.errors import InvalidParameter, MalformedBody, MissingImage
from condconv_serve.fronts.json_answers import list_json, object_json
from condconv_serve.fronts.json_documents import Numbers, parse
from condconv_serve.fronts.oip.datatypes import BYTES, bytes_of
from condconv_serve.fronts.oip.infer_request import InferRequest
from condconv_serve.fronts.oip.inputs import Sources, declared, demand_one, sources_of_images, sources_of_raw
from condconv_serve.fronts.oip.json_data import sources_of_json
from condconv_serve.fronts.oip.outputs import OutputTensor, WantedOutput, all_outputs, wanted
from condconv_serve.fronts.oip.parameters import (
    RequestParameters,
    binary_data_size,
    input_parameters,
    output_parameters,
    request_parameters,
)
from condconv_serve.fronts.oip.shown import shown
from condconv_serve.fronts.tensor_inference import IMAGE

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header with the number of bytes of the JSON, where raw bytes stand behind it."""
_LONGEST_SHAPE = 1000
"""Most bytes of a shape that is looked at."""


def read_infer_request(body: bytes, *, header_length: str | None, model: ModelInfo, max_rows: int) -> InferRequest:
    """Read the body of a request.

    With a header length of 0 the whole body is one encoded image, and all outputs are returned as raw bytes; Triton
    calls this a raw binary request.

    Args:
        body: decompressed.
        header_length: the header `Inference-Header-Content-Length`, if there is one.
        model: is asked.
        max_rows: most rows of a request.

    Raises:
        MalformedBody: it is no JSON. BodyTooLarge: its JSON has too many entries.
        InvalidParameter: something in it is wrong; says what is allowed.
        MissingImage, TooManyImages: no rows, or more than allowed.
    """
    size = json_size(body, header_length)
    head, raw = body[:size], memoryview(body)[size:]
    if header_length is not None and not head:
        return _raw_binary_request(raw, model, max_rows)
    document = parse(head)
    parameters = request_parameters(document.get("parameters"))
    sources = _read_inputs(_objects(document, "inputs"), raw, model=model, max_rows=max_rows)
    return InferRequest(
        sources=sources,
        outputs=_read_outputs(document, model, binary=parameters.binary_data_output),
        parameters=parameters,
        id=_id(document),
    )


def infer_response(
    tensors: Sequence[OutputTensor], outputs: Sequence[WantedOutput], *, model: ModelInfo, id: str | None
) -> tuple[bytes, int | None]:
    """Write the body of an answer.

    Args:
        tensors: the outputs.
        outputs: which of them are binary, in the same order.
        model: gave them.
        id: of the request.

    Returns:
        The body, and how many bytes of it are JSON if raw bytes stand behind it.
    """
    raws: list[bytes] = []
    entries: list[bytes] = []
    for tensor, output in zip(tensors, outputs, strict=True):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.values.shape),
        }
        if output.binary:
            raws.append(bytes_of(tensor.values, tensor.datatype))
            entry["parameters"] = {"binary_data_size": len(raws[-1])}
        else:
            entry["data"] = list_json(tensor.values.ravel())
        entries.append(object_json(entry))
    known = {"model_name": model.name, "model_version": model.version, **({} if id is None else {"id": id})}
    head = object_json({**known, "outputs": b"[" + b",".join(entries) + b"]"})
    return b"".join([head, *raws]), len(head) if raws else None


def json_size(body: bytes, header_length: str | None) -> int:
    """How many bytes of a body are JSON.

    Raises:
        InvalidParameter: the header says something else than a number of its bytes.
    """
    if header_length is None:
        return len(body)
    text = header_length.strip()
    # More digits than any body has bytes, and more than int() takes.
    if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) > len(body):
        raise InvalidParameter(
            f"{HEADER_LENGTH} is the number of bytes of the JSON, from 0 to {len(body)}, the length of the body; not "
            f"{header_length[:100]!r}."
        )
    return int(text)


def _raw_binary_request(image: memoryview, model: ModelInfo, max_rows: int) -> InferRequest:
    if not image:
        raise MissingImage(f"The body is empty; with {HEADER_LENGTH}: 0 it is one encoded image.")
    only = declared(IMAGE, BYTES, [1], model=model, max_rows=max_rows)
    return InferRequest(
        sources=sources_of_images(only, [bytes(image)]),
        outputs=all_outputs(model, binary=True),
        parameters=RequestParameters(binary_data_output=True),
    )


def _objects(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = document.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InvalidParameter(f'{name} must be a list of objects, such as [{{"name": "{_EXAMPLES[name]}"}}].')
    return value


_EXAMPLES = {"inputs": "image", "outputs": "probabilities"}


def _read_inputs(inputs: Sequence[Mapping[str, Any]], raw: memoryview, *, model: ModelInfo, max_rows: int) -> Sources:
    demand_one(inputs)
    only = inputs[0]
    of = declared(only.get("name"), only.get("datatype"), _shape(only), model=model, max_rows=max_rows)
    parameters = input_parameters(only.get("parameters"), name=of.name)
    size = binary_data_size(parameters, name=of.name)
    if size is None:
        if raw:
            raise InvalidParameter(
                f"{len(raw)} bytes follow the JSON, but input {of.name} has no parameter binary_data_size that says so."
            )
        return sources_of_json(of, only.get("data"), content_type=parameters.get("content_type"))
    if only.get("data") is not None:
        raise InvalidParameter(f"Input {of.name} has both data and binary_data_size; give one of them.")
    if size != len(raw):
        raise InvalidParameter(
            f"Input {of.name} says that it has {size} bytes of binary data, but {len(raw)} follow the JSON; "
            f"{HEADER_LENGTH} says where the JSON ends."
        )
    return sources_of_raw(of, raw)


def _shape(of: Mapping[str, Any]) -> Any:
    """A shape; the document keeps its numbers as text, as it does with all lists of numbers."""
    shape = of.get("shape")
    if not isinstance(shape, Numbers):
        return shape
    if len(shape.text) > _LONGEST_SHAPE:
        return shape
    try:
        return json.loads(shape.text)
    except ValueError as error:
        raise MalformedBody(f"A shape is not valid JSON: {error}.") from error


def _read_outputs(document: Mapping[str, Any], model: ModelInfo, *, binary: bool) -> tuple[WantedOutput, ...]:
    if document.get("outputs") in (None, []):
        return all_outputs(model, binary=binary)
    named = (
        (
            output.get("name"),
            output_parameters(output.get("parameters"), name=str(output.get("name"))[:100], binary=binary),
        )
        for output in _objects(document, "outputs")
    )
    return wanted(named, model=model)


def _id(document: Mapping[str, Any]) -> str | None:
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidParameter(f"id must be text, not {shown(identity)}.")
    return identity

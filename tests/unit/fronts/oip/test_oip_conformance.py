"""Answers and messages are what the Open Inference Protocol publishes: its OpenAPI document and its `.proto` file.

Both stand here in a small form: https://github.com/kserve/open-inference-protocol, `specification/protocol`.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any, NotRequired

import httpx
import pytest
import pytest_asyncio
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from condconv_serve.fronts.oip.grpc import NAME
from condconv_serve.fronts.oip.grpc_messages import MESSAGES
from tests.unit.fronts.oip.application import INFER, SIZE, image_input, opened, picture, pixel_input, pixels

pytestmark = pytest.mark.asyncio(loop_scope="module")

# --- REST, as its OpenAPI document has it

Data = list[Any]


class Strict(TypedDict):
    """Fields of the published type, and others beside them."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]


class ErrorResponse(Strict):
    error: str


class ServerMetadata(Strict):
    name: str
    version: str
    extensions: list[str]


class MetadataTensor(Strict):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Strict):
    name: str
    versions: NotRequired[list[str]]
    platform: str
    inputs: NotRequired[list[MetadataTensor]]
    outputs: NotRequired[list[MetadataTensor]]


class ResponseOutput(Strict):
    name: str
    shape: list[int]
    datatype: str
    parameters: NotRequired[dict[str, Any]]
    data: Data


class InferenceResponse(Strict):
    model_name: str
    model_version: NotRequired[str]
    id: NotRequired[str]
    parameters: NotRequired[dict[str, Any]]
    outputs: list[ResponseOutput]


VERSIONED = "/v2/models/fake/versions/1"
ROW = pixel_input(pixels(3), data=[3] * (SIZE * SIZE * 3))
REQUEST: dict[str, Any] = {"id": "42", "inputs": [ROW], "outputs": [{"name": "logits"}, {"name": "label"}]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with opened() as found:
        yield found


def as_published(kind: Any, response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return TypeAdapter(kind).validate_json(response.content)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v2/", ServerMetadata),
        ("/v2", ServerMetadata),
        (VERSIONED, ModelMetadata),
        ("/v2/models/fake", ModelMetadata),
    ],
)
async def test_what_is_described(client: httpx.AsyncClient, path: str, kind: Any) -> None:
    as_published(kind, await client.get(path))


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", f"{VERSIONED}/ready", "/v2/models/fake/ready"])
async def test_probes(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("path", [INFER, f"{VERSIONED}/infer"])
async def test_inference(client: httpx.AsyncClient, path: str) -> None:
    found = as_published(InferenceResponse, await client.post(path, json=REQUEST))
    assert (found["id"], [output["name"] for output in found["outputs"]]) == ("42", ["logits", "label"])
    for optional in ("id", "outputs"):
        fewer = {name: value for name, value in REQUEST.items() if name != optional}
        as_published(InferenceResponse, await client.post(path, json=fewer))
    more = {**REQUEST, "parameters": {}, "other": 1}
    as_published(InferenceResponse, await client.post(path, json=more))


@pytest.mark.parametrize(
    ("where", "field", "said"),
    [
        ("", "inputs", "inputs"),
        ("inputs", "name", "no input null; it takes"),
        ("inputs", "shape", "shape of input pixels"),
        ("inputs", "datatype", "is UINT8 or FP32"),
        ("inputs", "data", "data of input pixels"),
        ("outputs", "name", "no output null; it has"),
    ],
)
async def test_every_field_that_is_required(client: httpx.AsyncClient, where: str, field: str, said: str) -> None:
    request = copy.deepcopy(REQUEST)
    (request[where][0] if where else request).pop(field)
    assert said in as_published(ErrorResponse, await client.post(INFER, json=request), 400)["error"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"inputs": [{**ROW, "name": "other"}]}, "other"),
        ({"inputs": [{**ROW, "datatype": "FP64"}]}, "FP64"),
        ({"inputs": [{**ROW, "shape": [2, SIZE, SIZE, 3]}]}, "shape"),
        ({"inputs": [{**ROW, "data": ROW["data"][1:]}]}, "got 3071 numbers"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [ROW, image_input(1, data=[picture(1).hex()])]}, "one"),
        ({"outputs": [{"name": "other"}]}, "other"),
        ({"id": 42}, "id"),
    ],
)
async def test_errors_of_inference(client: httpx.AsyncClient, changed: dict[str, Any], said: str) -> None:
    found = as_published(ErrorResponse, await client.post(INFER, json={**REQUEST, **changed}), 400)
    assert said in found["error"]


@pytest.mark.parametrize("suffix", ["", "/ready", "/infer"])
async def test_errors_about_models(client: httpx.AsyncClient, suffix: str) -> None:
    for model in ("/v2/models/other", "/v2/models/fake/versions/7"):
        ask = client.post(model + suffix, json=REQUEST) if suffix == "/infer" else client.get(model + suffix)
        as_published(ErrorResponse, await ask, 404)


# --- gRPC, as its .proto file has it: fields by number, `*` for repeated ones and `{}` for maps

TENSOR = "name 1 string, datatype 2 string, shape 3 int64*"
PARAMETERS = "parameters {} {{InferParameter}}"
PUBLISHED = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live 1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready 1 bool",
    "ModelReadyRequest": "name 1 string, version 2 string",
    "ModelReadyResponse": "ready 1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name 1 string, version 2 string, extensions 3 string*",
    "ModelMetadataRequest": "name 1 string, version 2 string",
    "ModelMetadataResponse": "name 1 string, versions 2 string*, platform 3 string, "
    "inputs 4 ModelMetadataResponse.TensorMetadata*, outputs 5 ModelMetadataResponse.TensorMetadata*",
    "ModelMetadataResponse.TensorMetadata": TENSOR,
    "ModelInferRequest": "model_name 1 string, model_version 2 string, id 3 string, "
    f"{PARAMETERS.format(4)}, inputs 5 ModelInferRequest.InferInputTensor*, "
    "outputs 6 ModelInferRequest.InferRequestedOutputTensor*, raw_input_contents 7 bytes*",
    "ModelInferRequest.InferInputTensor": f"{TENSOR}, {PARAMETERS.format(4)}, contents 5 InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": f"name 1 string, {PARAMETERS.format(2)}",
    "ModelInferResponse": "model_name 1 string, model_version 2 string, id 3 string, "
    f"{PARAMETERS.format(4)}, outputs 5 ModelInferResponse.InferOutputTensor*, raw_output_contents 6 bytes*",
    "ModelInferResponse.InferOutputTensor": f"{TENSOR}, {PARAMETERS.format(4)}, contents 5 InferTensorContents",
    "InferParameter": "bool_param 1 bool, int64_param 2 int64, string_param 3 string, double_param 4 double, "
    "uint64_param 5 uint64",
    "InferTensorContents": "bool_contents 1 bool*, int_contents 2 int32*, int64_contents 3 int64*, "
    "uint_contents 4 uint32*, uint64_contents 5 uint64*, fp32_contents 6 float*, fp64_contents 7 double*, "
    "bytes_contents 8 bytes*",
}
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")


def described(message: Descriptor) -> set[str]:
    """The fields of a message, written as above."""
    message.CopyToProto(written := DescriptorProto())
    maps = {entry.name: _kind(entry.field[1]) for entry in written.nested_type if entry.options.map_entry}
    fields = set()
    for field in written.field:
        kind, repeated = _kind(field), "*" if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
        entry = kind.rpartition(".")[2]
        fields.add(f"{field.name} {field.number} {f'{{{maps[entry]}}}' if entry in maps else kind + repeated}")
    return fields


def _kind(field: FieldDescriptorProto) -> str:
    name = field.type_name.removeprefix(".inference.")
    return name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


@pytest.mark.parametrize("name", PUBLISHED)
async def test_every_published_field(name: str) -> None:
    assert {*PUBLISHED[name].split(", ")} - {""} <= described(MESSAGES.message(f"inference.{name}").DESCRIPTOR)


async def test_every_published_method() -> None:
    found = MESSAGES.methods(NAME)
    for method in METHODS:
        for way, end in (("input", "Request"), ("output", "Response")):
            assert getattr(found[method], f"{way}_type").full_name == f"inference.{method}{end}"
    choice = MESSAGES.message("inference.InferParameter").DESCRIPTOR.oneofs
    assert [oneof.name for oneof in choice] == ["parameter_choice"]

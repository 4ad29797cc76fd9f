"""The protocol's own generated clients: `open_inference.openapi` and `open_inference.grpc`, and gRPC's health."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from open_inference.grpc import protocol
from open_inference.grpc.service import GRPCInferenceServiceStub
from open_inference.openapi.client import AsyncOpenInferenceClient, OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.types import InferenceRequest, RequestInput, RequestOutput, TensorData

from tests.clients.given import Given

Agrees = Callable[[Callable[[bytes], Any]], None]


@pytest.fixture(scope="module")
def client(given: Given) -> OpenInferenceClient:
    return OpenInferenceClient(base_url=f"http://{given.http}", httpx_client=httpx.Client(timeout=60))


@pytest.fixture(scope="module")
def channel(given: Given) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(given.grpc) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(channel)


def asked(*photos: bytes, **more: Any) -> InferenceRequest:
    data = TensorData(__root__=[base64.b64encode(photo).decode() for photo in photos])
    image = RequestInput(name="image", shape=[len(photos)], datatype="BYTES", data=data)
    return InferenceRequest(inputs=[image], outputs=[RequestOutput(name="probabilities")], **more)


def message(given: Given, *photos: bytes, raw: bool = True) -> Any:
    found = protocol.ModelInferRequest(
        model_name=given.model,
        id="mine",
        inputs=[protocol.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[len(photos)])],
        outputs=[protocol.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")],
    )
    if raw:
        found.raw_input_contents.append(b"".join(len(photo).to_bytes(4, "little") + photo for photo in photos))
    else:
        found.inputs[0].contents.bytes_contents.extend(photos)
    return found


def values(answer: Any) -> np.ndarray:
    """The only output of an answer, whichever way its values come."""
    (output,) = answer.outputs
    if answer.raw_output_contents:
        (raw,) = answer.raw_output_contents
        flat = np.frombuffer(raw, "<f4")
    else:
        flat = np.array(output.contents.fp32_contents, np.float32)
    return flat.reshape(list(output.shape))


def test_a_hundred_photos_by_rest(given: Given, client: OpenInferenceClient, agrees: Agrees) -> None:
    agrees(lambda photo: client.model_infer(given.model, request=asked(photo)).outputs[0].data.__root__)


async def test_a_hundred_photos_by_rest_and_asyncio(given: Given) -> None:
    client = AsyncOpenInferenceClient(base_url=f"http://{given.http}", httpx_client=httpx.AsyncClient(timeout=60))
    answers = [
        await client.model_version_infer(given.model, "1", request=asked(photo)) for photo in given.photos
    ]  # fmt: skip
    given.check(np.array([answer.outputs[0].data.__root__ for answer in answers]))


@pytest.mark.parametrize("raw", [True, False])
def test_a_hundred_photos_by_grpc(given: Given, stub: Any, raw: bool) -> None:
    answers = [values(stub.ModelInfer(message(given, photo, raw=raw))) for photo in given.photos]
    given.check(np.concatenate(answers))


def test_what_there_is(given: Given, client: OpenInferenceClient) -> None:
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness(given.model)
    client.check_model_version_readiness(given.model, "1")
    assert client.read_server_metadata().name == "condconv-serve"
    for model in (client.read_model_metadata(given.model), client.read_model_version_metadata(given.model, "1")):
        assert (model.name, model.versions) == (given.model, ["1"])
        assert [tensor.name for tensor in model.inputs or ()] == ["image", "pixels"]
        assert [tensor.shape for tensor in model.outputs or () if tensor.name == "probabilities"] == [[-1, 1000]]


def test_what_there_is_by_grpc(given: Given, stub: Any) -> None:
    assert stub.ServerLive(protocol.ServerLiveRequest()).live
    assert stub.ServerReady(protocol.ServerReadyRequest()).ready
    assert stub.ModelReady(protocol.ModelReadyRequest(name=given.model, version="1")).ready
    assert stub.ServerMetadata(protocol.ServerMetadataRequest()).name == "condconv-serve"
    model = stub.ModelMetadata(protocol.ModelMetadataRequest(name=given.model))
    assert (model.name, list(model.versions)) == (given.model, ["1"])
    assert [tensor.name for tensor in model.inputs] == ["image", "pixels"]


def test_an_id_and_a_bad_image(given: Given, client: OpenInferenceClient, stub: Any) -> None:
    answer = client.model_infer(given.model, request=asked(given.photos[0], id="mine"))
    assert (answer.id, answer.model_name, answer.model_version) == ("mine", given.model, "1")
    assert stub.ModelInfer(message(given, given.photos[0])).id == "mine"
    with pytest.raises(ApiError) as by_rest:
        client.model_infer(given.model, request=asked(given.photos[0], b"no photo"))
    assert by_rest.value.status_code == 400
    assert "Image 1 of 2: " in str(by_rest.value.body)
    with pytest.raises(grpc.RpcError) as by_grpc:
        stub.ModelInfer(message(given, given.photos[0], b"no photo"))
    assert by_grpc.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Image 1 of 2: " in str(by_grpc.value.details())


def test_nobody(given: Given, client: OpenInferenceClient, stub: Any) -> None:
    for ask in (
        lambda: client.check_model_readiness("nobody"),
        lambda: client.read_model_metadata("nobody"),
        lambda: client.read_model_version_metadata(given.model, "9"),
        lambda: client.model_infer("nobody", request=asked(given.photos[0])),
    ):
        with pytest.raises(ApiError) as caught:
            ask()
        assert caught.value.status_code == 404
    with pytest.raises(grpc.RpcError) as by_grpc:
        stub.ModelMetadata(protocol.ModelMetadataRequest(name="nobody"))
    assert by_grpc.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_as_load_balancers_ask(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "inference.GRPCInferenceService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == serving
    watched = health.Watch(health_pb2.HealthCheckRequest())
    assert next(watched).status == serving
    watched.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND

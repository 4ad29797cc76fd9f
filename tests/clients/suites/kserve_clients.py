"""KServe's inference clients: REST with its second and its first protocol, and gRPC."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

from tests.clients.given import TOLERANCE, Given

PROBABILITIES = [RequestedOutput("probabilities")]
BINARY = [RequestedOutput("probabilities", {"binary_data": True})]


def images(given: Given, *photos: bytes, binary: bool = True, outputs: Any = None) -> InferRequest:
    values = photos if binary else [base64.b64encode(photo).decode() for photo in photos]
    tensor = InferInput("image", [len(photos)], "BYTES")
    tensor.set_data_from_numpy(np.array(values, np.object_), binary_data=binary)
    return InferRequest(given.model, [tensor], request_id="mine", request_outputs=outputs or PROBABILITIES)


def pixels(given: Given, rows: np.ndarray, datatype: str = "UINT8", *, outputs: Any = None) -> InferRequest:
    tensor = InferInput("pixels", list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows)
    return InferRequest(given.model, [tensor], request_outputs=outputs or PROBABILITIES)


def rest(protocol: str = "v2") -> InferenceRESTClient:
    return InferenceRESTClient(RESTConfig(protocol=protocol, timeout=120))


def over_grpc(given: Given) -> InferenceGRPCClient:
    return InferenceGRPCClient(given.grpc, retries=0)


Ask = Callable[[bytes, np.ndarray], Any]


async def check(given: Given, ask: Ask) -> None:
    """Ask for all photos, a few at a time, and compare."""
    few = asyncio.Semaphore(4)

    async def one(photo: bytes, row: np.ndarray) -> Any:
        async with few:
            return await ask(photo, row)

    answers = await asyncio.gather(*map(one, given.photos, given.pixels))
    given.check(np.concatenate([answer.outputs[0].as_numpy() for answer in answers]))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("binary", [True, False])
async def test_a_hundred_photos_by_rest(given: Given, binary: bool) -> None:
    async with rest() as client:
        await check(
            given,
            lambda photo, _: client.infer(
                f"http://{given.http}",
                images(given, photo, binary=binary, outputs=BINARY if binary else None),
                model_name=given.model,
            ),
        )


async def test_a_hundred_photos_by_rest_as_pixels(given: Given) -> None:
    async with rest() as client:
        await check(
            given,
            lambda _, row: client.infer(f"http://{given.http}", pixels(given, row[None]), model_name=given.model),
        )


async def test_a_hundred_photos_by_the_first_protocol(given: Given) -> None:
    async with rest("v1") as client:
        answers = [
            await client.infer(
                f"http://{given.http}",
                {"instances": [{"b64": base64.b64encode(photo).decode()} for photo in given.photos[place : place + 5]]},
                model_name=given.model,
            )
            for place in range(0, 100, 5)
        ]
    rows = [row for answer in answers for row in answer["predictions"]]
    given.check(np.array([row["probabilities"] for row in rows]))


async def test_a_hundred_photos_by_grpc(given: Given) -> None:
    async with over_grpc(given) as client:
        await check(given, lambda photo, _: client.infer(images(given, photo)))


async def test_a_hundred_photos_by_grpc_as_pixels(given: Given) -> None:
    async with over_grpc(given) as client:
        await check(given, lambda _, row: client.infer(pixels(given, row[None].astype(np.float32), "FP32")))


async def test_typed_contents_by_grpc(given: Given) -> None:
    """Tensors as lists of numbers or bytes rather than raw."""
    tensor = InferInput("image", [2], "BYTES", data=list(given.photos[:2]))
    async with over_grpc(given) as client:
        answer = await client.infer(InferRequest(given.model, [tensor], request_outputs=PROBABILITIES))
    found = answer.outputs[0].as_numpy().reshape(2, -1)
    assert np.abs(found - given.expected[:2]).max() <= TOLERANCE


async def test_what_an_answer_holds(given: Given) -> None:
    async with rest() as client, over_grpc(given) as other:
        asked = images(given, given.photos[0], outputs=[RequestedOutput("label"), RequestedOutput("routing")])
        answers = [
            await client.infer(f"http://{given.http}", asked, model_name=given.model),
            await other.infer(asked),
        ]
    for answer in answers:
        assert (answer.id, answer.model_name) == ("mine", given.model)
        label, routing = answer.outputs
        assert label.as_numpy().tolist() in (
            [given.labels[given.expected[0].argmax()]],
            [given.labels[given.expected[0].argmax()].encode()],
        )
        assert routing.as_numpy().shape[0] == 1


async def test_health(given: Given) -> None:
    url = f"http://{given.http}"
    async with rest() as client, over_grpc(given) as other:
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, given.model)
        assert not await client.is_model_ready(url, "nobody")
        assert await other.is_server_live()
        assert await other.is_server_ready()
        assert await other.is_model_ready(given.model)
        assert not await other.is_model_ready("nobody")


async def test_errors(given: Given) -> None:
    url, broken = f"http://{given.http}", images(given, *given.photos[:2], b"no photo")
    async with rest() as client, over_grpc(given) as other:
        with pytest.raises(httpx.HTTPStatusError, match="Image 2 of 3: ") as by_rest:
            await client.infer(url, broken, model_name=given.model)
        assert by_rest.value.response.status_code == 400
        with pytest.raises(httpx.HTTPStatusError, match="nobody") as by_rest:
            await client.infer(url, broken, model_name="nobody")
        assert by_rest.value.response.status_code == 404
        with pytest.raises(grpc.aio.AioRpcError, match="Image 2 of 3: ") as by_grpc:
            await other.infer(broken)
        assert by_grpc.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        nobody = InferRequest("nobody", broken.inputs, request_outputs=PROBABILITIES)
        with pytest.raises(grpc.aio.AioRpcError, match="nobody") as by_grpc:
            await other.infer(nobody)
        assert by_grpc.value.code() is grpc.StatusCode.NOT_FOUND

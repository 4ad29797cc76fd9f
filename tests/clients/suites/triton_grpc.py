"""Triton's client over gRPC: `tritonclient.grpc`."""

from __future__ import annotations

import asyncio
import base64
import queue
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.clients.given import DETECTIONS, DETECTOR, TOLERANCE, Given, check_objects, coloured

Agrees = Callable[[Callable[[bytes], Any]], None]
PROBABILITIES = [triton.InferRequestedOutput("probabilities")]


@pytest.fixture(scope="module")
def client(given: Given) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(given.grpc) as made:
        yield made


def images(*photos: bytes) -> list[triton.InferInput]:
    tensor = triton.InferInput("image", [len(photos)], "BYTES")
    return [tensor.set_data_from_numpy(np.array(photos, np.object_))]


def pixels(rows: np.ndarray, datatype: str = "UINT8") -> list[triton.InferInput]:
    return [triton.InferInput("pixels", list(rows.shape), datatype).set_data_from_numpy(rows)]


# --- a hundred photos


def test_a_hundred_photos(given: Given, client: Any, agrees: Agrees) -> None:
    agrees(lambda photo: client.infer(given.model, images(photo), outputs=PROBABILITIES).as_numpy("probabilities")[0])


def test_a_hundred_photos_as_pixels(given: Given, client: Any) -> None:
    answers = [client.infer(given.model, pixels(row[None]), outputs=PROBABILITIES) for row in given.pixels]
    given.check(np.concatenate([answer.as_numpy("probabilities") for answer in answers]))


async def test_a_hundred_photos_by_asyncio(given: Given) -> None:
    async with triton_aio.InferenceServerClient(given.grpc) as client:
        answers = await asyncio.gather(
            *(client.infer(given.model, images(photo), outputs=PROBABILITIES) for photo in given.photos)
        )
    given.check(np.concatenate([answer.as_numpy("probabilities") for answer in answers]))


def test_a_hundred_photos_in_a_stream(given: Given, client: Any) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    try:
        for place, photo in enumerate(given.photos):
            client.async_stream_infer(given.model, images(photo), outputs=PROBABILITIES, request_id=f"photo-{place}")
        found = [answers.get(timeout=60) for _ in given.photos]
    finally:
        client.stop_stream()
    assert [error for _, error in found if error is not None] == []
    assert [result.get_response().id for result, _ in found] == [f"photo-{place}" for place in range(len(found))]
    given.check(np.concatenate([result.as_numpy("probabilities") for result, _ in found]))


async def test_a_hundred_photos_in_a_stream_by_asyncio(given: Given) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for photo in given.photos:
            yield {"model_name": given.model, "inputs": images(photo), "outputs": PROBABILITIES}

    async with triton_aio.InferenceServerClient(given.grpc) as client:
        found = [answer async for answer in client.stream_infer(requests())]
    assert [error for _, error in found if error is not None] == []
    given.check(np.concatenate([result.as_numpy("probabilities") for result, _ in found]))


def test_a_hundred_photos_with_callbacks(given: Given, client: Any) -> None:
    answers: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
    for place in range(0, 100, 10):
        client.async_infer(
            given.model,
            images(*given.photos[place : place + 10]),
            outputs=PROBABILITIES,
            callback=lambda result, error, place=place: answers.put((place, result, error)),
        )
    found = sorted((answers.get(timeout=60) for _ in range(10)), key=lambda answer: answer[0])
    assert [error for _, _, error in found if error is not None] == []
    given.check(np.concatenate([result.as_numpy("probabilities") for _, result, _ in found]))


def test_objects(given: Given) -> None:
    outputs = [triton.InferRequestedOutput(name) for name in DETECTIONS]
    parameters = {"score_threshold": "0.4", "max_detections": 7}
    with triton.InferenceServerClient(given.detectors_grpc) as client:
        found = client.infer(DETECTOR, images(coloured()), outputs=outputs, parameters=parameters)
        check_objects({name: found.as_numpy(name) for name in DETECTIONS}, most=7)


# --- what an answer holds


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed(given: Given, client: Any, algorithm: str) -> None:
    found = client.infer(
        given.model, pixels(given.pixels[:4]), outputs=PROBABILITIES, compression_algorithm=algorithm
    ).as_numpy("probabilities")
    assert np.abs(found - given.expected[:4]).max() <= TOLERANCE


def test_all_outputs(given: Given, client: Any) -> None:
    found = client.infer(given.model, images(*given.photos[:3]), request_id="mine")
    answer = found.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == (given.model, "1", "mine")
    metadata = client.get_model_metadata(given.model)
    assert [output.name for output in answer.outputs] == [output.name for output in metadata.outputs]
    for output in metadata.outputs:
        values = found.as_numpy(output.name)
        assert list(values.shape) == [3, *output.shape[1:]]
        assert values.dtype == (np.object_ if output.datatype == "BYTES" else np.float32)
    best = given.expected[:3].argmax(axis=1)
    assert [label.decode() for label in found.as_numpy("label")] == [given.labels[place] for place in best]


def test_classes_as_text(given: Given, client: Any) -> None:
    outputs = [triton.InferRequestedOutput("probabilities", class_count=3)]
    (texts,) = client.infer(given.model, images(given.photos[0]), outputs=outputs).as_numpy("probabilities")
    best = np.argsort(-given.expected[0])[:3]
    for text, place in zip(texts, best, strict=True):
        score, index, label = text.decode().split(":", 2)
        assert (int(index), label) == (place, given.labels[place])
        assert float(score) == pytest.approx(given.expected[0][place], abs=1e-5)


def test_pixels_as_floats(given: Given, client: Any) -> None:
    found = client.infer(given.model, pixels(given.pixels[:2].astype(np.float32), "FP32"), outputs=PROBABILITIES)
    assert np.abs(found.as_numpy("probabilities") - given.expected[:2]).max() <= TOLERANCE


def test_priority_timeouts_and_version(given: Given, client: Any) -> None:
    found = client.infer(
        given.model,
        images(given.photos[0]),
        model_version="1",
        priority=1,
        timeout=20_000_000,
        client_timeout=60,
        outputs=PROBABILITIES,
        headers={"x-request-id": "of-the-header"},
    )
    assert found.as_numpy("probabilities").argmax() == given.expected[0].argmax()


# --- health, metadata, repository, statistics


def test_health_and_metadata(given: Given, client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(given.model)
    assert client.is_model_ready(given.model, "1")
    assert not client.is_model_ready(given.model, "9")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server.name == "condconv-serve"
    assert {"classification", "statistics", "model_repository"} <= set(server.extensions)
    model = client.get_model_metadata(given.model, as_json=True)
    assert [(tensor["name"], tensor["datatype"]) for tensor in model["inputs"]] == [
        ("image", "BYTES"), ("pixels", "UINT8"),
    ]  # fmt: skip
    config = client.get_model_config(given.model).config
    assert config.name == given.model
    assert [list(tensor.dims) for tensor in config.input] == [[-1], [-1, *given.pixels.shape[1:]]]


def test_statistics_count_what_was_asked(given: Given, client: Any) -> None:
    def counted() -> int:
        (entry,) = client.get_inference_statistics(given.model, "1").model_stats
        return int(entry.inference_count)

    before = counted()
    client.infer(given.model, images(*given.photos[:3]), outputs=PROBABILITIES)
    assert counted() - before >= 3, "others ask, too"


def test_the_repository_is_listed(given: Given, client: Any) -> None:
    states = {model.name: model.state for model in client.get_model_repository_index().models}
    assert states[given.model] == "READY"
    assert "other" in states
    with pytest.raises(InferenceServerException, match="nobody") as caught:
        client.load_model("nobody")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


# --- errors, in the client's own words


def test_shared_memory_is_refused(given: Given, client: Any) -> None:
    for register in (
        lambda: client.register_system_shared_memory("region", "/region", 100),
        lambda: client.register_cuda_shared_memory("region", base64.b64encode(b"handle"), 0, 100),
        client.unregister_system_shared_memory,
        client.unregister_cuda_shared_memory,
    ):
        with pytest.raises(InferenceServerException, match="shared memory"):
            register()
    (in_memory,) = images(given.photos[0])
    in_memory.set_shared_memory("region", 100)
    with pytest.raises(InferenceServerException, match="shared memory") as caught:
        client.infer(given.model, [in_memory])
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    output = triton.InferRequestedOutput("probabilities")
    output.set_shared_memory("region", 4000)
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.infer(given.model, images(given.photos[0]), outputs=[output])


def test_one_bad_image_among_several(given: Given, client: Any) -> None:
    broken = images(*given.photos[:2], given.photos[2][:500], given.photos[3])
    with pytest.raises(InferenceServerException, match="Image 2 of 4: ") as caught:
        client.infer(given.model, broken)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_one_bad_request_in_a_stream(given: Given, client: Any) -> None:
    """It fails alone: those before and after it are answered."""
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    try:
        for photo in (given.photos[0], b"no photo", given.photos[1]):
            client.async_stream_infer(given.model, images(photo), outputs=PROBABILITIES)
        found = [answers.get(timeout=60) for _ in range(3)]
    finally:
        client.stop_stream()
    assert [error is None for _, error in found] == [True, False, True]
    assert "image" in found[1][1].message()
    assert found[2][0].as_numpy("probabilities").argmax() == given.expected[1].argmax()


def test_wrong_requests(given: Given, client: Any) -> None:
    photo, row = images(given.photos[0]), given.pixels[:1]
    shape = re.escape(f"[N, {row.shape[1]}, {row.shape[2]}, 3]")
    for status, says, ask in (
        ("NOT_FOUND", "nobody", lambda: client.infer("nobody", photo)),
        ("NOT_FOUND", "9", lambda: client.infer(given.model, photo, model_version="9")),
        ("INVALID_ARGUMENT", "no input 'x'", lambda: client.infer(given.model, [_named("x")])),
        ("INVALID_ARGUMENT", "no output 'x'", lambda: client.infer(
            given.model, photo, outputs=[triton.InferRequestedOutput("x")]
        )),
        ("INVALID_ARGUMENT", shape, lambda: client.infer(given.model, pixels(row[:, 1:]))),
        ("INVALID_ARGUMENT", "UINT8 or FP32", lambda: client.infer(
            given.model, pixels(row.astype(np.int32), "INT32")
        )),
        ("INVALID_ARGUMENT", "priority", lambda: client.infer(given.model, photo, priority=9)),
    ):  # fmt: skip
        with pytest.raises(InferenceServerException, match=says) as caught:
            ask()
        assert caught.value.status() == f"StatusCode.{status}", says


@pytest.mark.parametrize("limits", [{"timeout": 1}, {"client_timeout": 0.001}])
def test_a_timeout_that_cannot_be_kept(given: Given, client: Any, limits: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(given.model, images(*given.photos[:8]), **limits)
    assert caught.value.status() in ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.RESOURCE_EXHAUSTED")


def test_a_call_that_is_cancelled(given: Given, client: Any) -> None:
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    call = client.async_infer(given.model, images(*given.photos[:8]), callback=lambda result, error: done.put(error))
    call.cancel()
    assert done.get(timeout=60).status() == "StatusCode.CANCELLED"


def _named(name: str) -> triton.InferInput:
    return triton.InferInput(name, [1], "BYTES").set_data_from_numpy(np.array([b"x"], np.object_))

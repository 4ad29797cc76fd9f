"""Triton's client over HTTP: `tritonclient.http`."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.clients.given import DETECTIONS, DETECTOR, TOLERANCE, Given, check_objects, coloured
from tests.e2e.server import wait_for

Agrees = Callable[[Callable[[bytes], Any]], None]
PROBABILITIES = [triton.InferRequestedOutput("probabilities")]


@pytest.fixture(scope="module")
def client(given: Given) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(given.http, concurrency=4, network_timeout=60) as made:
        yield made


def images(*photos: bytes, binary: bool = True) -> list[triton.InferInput]:
    """Encoded images as an input; in JSON they are base64."""
    values = photos if binary else [base64.b64encode(photo).decode() for photo in photos]
    tensor = triton.InferInput("image", [len(photos)], "BYTES")
    return [tensor.set_data_from_numpy(np.array(values, np.object_), binary_data=binary)]


def pixels(rows: np.ndarray, datatype: str = "UINT8", *, binary: bool = True) -> list[triton.InferInput]:
    tensor = triton.InferInput("pixels", list(rows.shape), datatype)
    return [tensor.set_data_from_numpy(rows, binary_data=binary)]


# --- a hundred photos, before all else, so that all suites ask together


def test_a_hundred_photos(given: Given, client: Any, agrees: Agrees) -> None:
    agrees(lambda photo: client.infer(given.model, images(photo), outputs=PROBABILITIES).as_numpy("probabilities")[0])


def test_a_hundred_photos_in_json(given: Given, client: Any, agrees: Agrees) -> None:
    outputs = [triton.InferRequestedOutput("probabilities", binary_data=False)]
    agrees(
        lambda photo: client.infer(
            given.model, images(photo, binary=False), outputs=outputs
        ).as_numpy("probabilities")[0]
    )  # fmt: skip


def test_a_hundred_photos_as_pixels(given: Given, client: Any) -> None:
    answers = [client.infer(given.model, pixels(row[None]), outputs=PROBABILITIES) for row in given.pixels]
    given.check(np.concatenate([answer.as_numpy("probabilities") for answer in answers]))


async def test_a_hundred_photos_by_asyncio(given: Given) -> None:
    async with triton_aio.InferenceServerClient(given.http) as client:
        answers = [
            await client.infer(given.model, images(photo), outputs=PROBABILITIES) for photo in given.photos
        ]  # fmt: skip
    given.check(np.concatenate([answer.as_numpy("probabilities") for answer in answers]))


def test_a_hundred_photos_ten_at_a_time(given: Given, client: Any) -> None:
    asked = [
        client.async_infer(given.model, images(*given.photos[place : place + 10]), outputs=PROBABILITIES)
        for place in range(0, 100, 10)
    ]
    given.check(np.concatenate([request.get_result().as_numpy("probabilities") for request in asked]))


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_compressed_both_ways(given: Given, client: Any, name: str) -> None:
    found = client.infer(
        given.model,
        pixels(given.pixels[:8]),
        outputs=PROBABILITIES,
        request_compression_algorithm=name,
        response_compression_algorithm=name,
    )
    assert np.abs(found.as_numpy("probabilities") - given.expected[:8]).max() <= TOLERANCE


# --- what an answer holds


def test_all_outputs(given: Given, client: Any) -> None:
    found = client.infer(given.model, images(*given.photos[:3]), request_id="mine")
    answer = found.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (given.model, "1", "mine")
    metadata = client.get_model_metadata(given.model)
    assert [output["name"] for output in answer["outputs"]] == [output["name"] for output in metadata["outputs"]]
    for output in metadata["outputs"]:
        values = found.as_numpy(output["name"])
        assert list(values.shape) == [3, *output["shape"][1:]]
        assert values.dtype == (np.object_ if output["datatype"] == "BYTES" else np.float32)
    logits = np.exp(found.as_numpy("logits").astype(float))
    assert np.allclose(logits / logits.sum(axis=1, keepdims=True), found.as_numpy("probabilities"), atol=1e-6)
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
    rows = given.pixels[:2].astype(np.float32)
    for binary in (True, False):
        found = client.infer(given.model, pixels(rows, "FP32", binary=binary), outputs=PROBABILITIES)
        assert np.abs(found.as_numpy("probabilities") - given.expected[:2]).max() <= TOLERANCE


def test_priority_timeout_and_version(given: Given, client: Any) -> None:
    found = client.infer(
        given.model, images(given.photos[0]), model_version="1", priority=1, timeout=20_000_000, outputs=PROBABILITIES
    )
    assert found.as_numpy("probabilities").argmax() == given.expected[0].argmax()


def test_a_raw_body(given: Given, client: Any) -> None:
    """The client can make bodies for other ways to send them, and read their answers."""
    body, length = triton.InferenceServerClient.generate_request_body(images(given.photos[0]), outputs=PROBABILITIES)
    answer = client._post(
        f"v2/models/{given.model}/infer", body, headers={"Inference-Header-Content-Length": length}, query_params=None
    )
    found = triton.InferenceServerClient.parse_response_body(
        answer.read(), header_length=int(answer.get("Inference-Header-Content-Length"))
    )
    assert found.as_numpy("probabilities").argmax() == given.expected[0].argmax()


def test_objects(given: Given) -> None:
    with triton.InferenceServerClient(given.detectors_http) as client:
        outputs = [triton.InferRequestedOutput(name, binary_data=name != "num_detections") for name in DETECTIONS]
        parameters = {"score_threshold": 0.4, "max_detections": 7}
        found = client.infer(DETECTOR, images(coloured()), outputs=outputs, parameters=parameters)
        check_objects({name: found.as_numpy(name) for name in DETECTIONS}, most=7)
        everything = client.infer(DETECTOR, images(coloured()))
        for output in client.get_model_metadata(DETECTOR)["outputs"]:
            assert everything.as_numpy(output["name"]).ndim == len(output["shape"])
        assert everything.as_numpy("detection_boxes").shape == (1, 100, 4)


# --- health, metadata, repository, statistics


def test_health_and_metadata(given: Given, client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(given.model)
    assert client.is_model_ready(given.model, "1")
    assert not client.is_model_ready(given.model, "9")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "condconv-serve"
    assert {"binary_tensor_data", "classification", "statistics", "model_repository"} <= set(server["extensions"])
    model = client.get_model_metadata(given.model)
    assert [(tensor["name"], tensor["datatype"]) for tensor in model["inputs"]] == [
        ("image", "BYTES"), ("pixels", "UINT8"),
    ]  # fmt: skip
    config = client.get_model_config(given.model)
    assert config["name"] == given.model
    assert [tensor["dims"] for tensor in config["input"]] == [tensor["shape"] for tensor in model["inputs"]]


def test_statistics_count_what_was_asked(given: Given, client: Any) -> None:
    def counted() -> tuple[int, int]:
        (entry,) = client.get_inference_statistics(given.model, "1")["model_stats"]
        return entry["inference_count"], entry["inference_stats"]["success"]["count"]

    before = counted()
    client.infer(given.model, images(*given.photos[:3]), outputs=PROBABILITIES)
    after = counted()
    assert after[0] - before[0] >= 3, "others ask, too"
    assert after[1] - before[1] >= 1


def test_the_repository(client: Any) -> None:
    def state() -> str:
        return next(entry["state"] for entry in client.get_model_repository_index() if entry["name"] == "other")

    assert state() == "READY"
    client.unload_model("other")
    assert not client.is_model_ready("other")
    wait_for(lambda: state() == "UNAVAILABLE")
    client.load_model("other")
    assert client.is_model_ready("other")
    with pytest.raises(InferenceServerException, match="nobody"):
        client.load_model("nobody")
    with pytest.raises(InferenceServerException, match="config"):
        client.load_model("other", config="{}")


# --- errors, in the client's own words


def test_shared_memory_is_refused(given: Given, client: Any) -> None:
    for register in (
        lambda: client.register_system_shared_memory("region", "/region", 100),
        lambda: client.register_cuda_shared_memory("region", b"handle", 0, 100),
        client.unregister_system_shared_memory,
        client.unregister_cuda_shared_memory,
    ):
        with pytest.raises(InferenceServerException, match="shared memory"):
            register()
    assert client.get_system_shared_memory_status() == client.get_cuda_shared_memory_status() == []
    (in_memory,) = images(given.photos[0])
    in_memory.set_shared_memory("region", 100)
    with pytest.raises(InferenceServerException, match="shared memory") as caught:
        client.infer(given.model, [in_memory])
    assert caught.value.status() == "400"
    output = triton.InferRequestedOutput("probabilities")
    output.set_shared_memory("region", 4000)
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.infer(given.model, images(given.photos[0]), outputs=[output])


@pytest.mark.parametrize("binary", [True, False])
def test_one_bad_image_among_several(given: Given, client: Any, binary: bool) -> None:
    broken = [*given.photos[:2], given.photos[2][:500], given.photos[3]]
    with pytest.raises(InferenceServerException, match="Image 2 of 4: ") as caught:
        client.infer(given.model, images(*broken, binary=binary))
    assert caught.value.status() == "400"


def test_wrong_requests(given: Given, client: Any) -> None:
    photo, row = images(given.photos[0]), given.pixels[:1]
    shape = re.escape(f"[N, {row.shape[1]}, {row.shape[2]}, 3]")
    for status, says, ask in (
        ("404", "nobody", lambda: client.infer("nobody", photo)),
        ("404", "9", lambda: client.infer(given.model, photo, model_version="9")),
        ("400", "no input 'x'", lambda: client.infer(given.model, [_named("x")])),
        ("400", "no output 'x'", lambda: client.infer(given.model, photo, outputs=[triton.InferRequestedOutput("x")])),
        ("400", shape, lambda: client.infer(given.model, pixels(row[:, 1:]))),
        ("400", "UINT8 or FP32", lambda: client.infer(given.model, pixels(row.astype(np.int32), "INT32"))),
        ("400", "priority", lambda: client.infer(given.model, photo, priority=9)),
        ("400", "classification", lambda: client.infer(
            given.model, photo, outputs=[triton.InferRequestedOutput("label", class_count=2)]
        )),
        ("400", "image.*pixels|pixels.*image", lambda: client.infer(given.model, [*photo, *pixels(row)])),
    ):  # fmt: skip
        with pytest.raises(InferenceServerException, match=says) as caught:
            ask()
        assert caught.value.status() == status, says


def test_a_timeout_that_cannot_be_kept(given: Given, client: Any) -> None:
    with pytest.raises(InferenceServerException, match="deadline") as caught:
        client.infer(given.model, images(*given.photos[:8]), timeout=1)
    assert caught.value.status() in ("429", "504")


def _named(name: str) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BYTES")
    return tensor.set_data_from_numpy(np.array([b"x"], np.object_))

"""TensorFlow Serving's own client over gRPC, `tensorflow-serving-api`, and its REST API as its users write it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.clients.given import DETECTOR, TOLERANCE, Given, check_objects, coloured

Agrees = Callable[[Callable[[bytes], Any]], None]
PATIENCE = 120.0


@pytest.fixture(scope="module")
def channel(given: Given) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(given.grpc) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel: grpc.Channel) -> Any:
    return model_service_pb2_grpc.ModelServiceStub(channel)


def request(kind: Any, given: Given, *, signature: str = "", version: int | None = None, label: str = "") -> Any:
    found = kind()
    found.model_spec.name, found.model_spec.signature_name = given.model, signature
    if version is not None:
        found.model_spec.version.value = version
    if label:
        found.model_spec.version_label = label
    return found


def predict(stub: Any, given: Given, values: Any, *, name: str = "image", **spec: Any) -> dict[str, np.ndarray]:
    asked = request(predict_pb2.PredictRequest, given, **spec)
    asked.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    answer = stub.Predict(asked, timeout=PATIENCE)
    assert answer.model_spec.name == given.model
    return {output: tf.make_ndarray(tensor) for output, tensor in answer.outputs.items()}


def b64(photo: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(photo).decode()}


def post(given: Given, verb: str, body: dict[str, Any], *, where: str = "") -> requests.Response:
    return requests.post(f"http://{given.http}/v1/models/{given.model}{where}:{verb}", json=body, timeout=PATIENCE)


# --- a hundred photos


def test_a_hundred_photos_by_grpc(given: Given, stub: Any, agrees: Agrees) -> None:
    agrees(lambda photo: predict(stub, given, [photo])["probabilities"][0])


def test_a_hundred_photos_by_grpc_as_pixels(given: Given, stub: Any) -> None:
    answers = [
        predict(stub, given, given.pixels[place : place + 4], name="pixels", signature="pixels")["probabilities"]
        for place in range(0, 100, 4)
    ]
    given.check(np.concatenate(answers))


def test_a_hundred_photos_by_row(given: Given, agrees: Agrees) -> None:
    def ask(photo: bytes) -> list[float]:
        (row,) = post(given, "predict", {"instances": [b64(photo)]}).json()["predictions"]
        return row["probabilities"]

    agrees(ask)


def test_a_hundred_photos_by_column(given: Given) -> None:
    answers = [
        post(given, "predict", {"inputs": {"image": list(map(b64, given.photos[place : place + 10]))}}).json()[
            "outputs"
        ]
        for place in range(0, 100, 10)
    ]
    given.check(np.concatenate([answer["probabilities"] for answer in answers]))


# --- signatures, versions, labels


def test_pixels_in_json(given: Given) -> None:
    answer = post(given, "predict", {"signature_name": "pixels", "instances": given.pixels[:2].tolist()}).json()
    found = np.array([row["probabilities"] for row in answer["predictions"]])
    assert np.abs(found - given.expected[:2]).max() <= TOLERANCE


def test_floats_by_grpc(given: Given, stub: Any) -> None:
    rows = given.pixels[:2].astype(np.float32)
    found = predict(stub, given, rows, name="pixels", signature="pixels")["probabilities"]
    assert np.abs(found - given.expected[:2]).max() <= TOLERANCE


def test_an_output_filter(given: Given, stub: Any) -> None:
    asked = request(predict_pb2.PredictRequest, given)
    asked.inputs["image"].CopyFrom(tf.make_tensor_proto([given.photos[0]]))
    asked.output_filter.append("label")
    answer = stub.Predict(asked, timeout=PATIENCE)
    assert list(answer.outputs) == ["label"]
    assert tf.make_ndarray(answer.outputs["label"])[0].decode() == given.labels[given.expected[0].argmax()]


def test_a_version(given: Given, stub: Any) -> None:
    found = predict(stub, given, [given.photos[0]], version=1)
    assert found["probabilities"].argmax() == given.expected[0].argmax()
    assert post(given, "predict", {"instances": [b64(given.photos[0])]}, where="/versions/1").ok
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, given, [given.photos[0]], version=9)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, given, [given.photos[0]], label="nobody")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert post(given, "predict", {"instances": [b64(given.photos[0])]}, where="/versions/9").status_code == 404
    assert post(given, "predict", {"instances": [b64(given.photos[0])]}, where="/labels/nobody").status_code == 400


def test_classify(given: Given, stub: Any) -> None:
    asked = request(classification_pb2.ClassificationRequest, given)
    for photo in given.photos[:2]:
        example = asked.input.example_list.examples.add()
        example.features.feature["image/encoded"].bytes_list.value.append(photo)
    answer = stub.Classify(asked, timeout=PATIENCE)
    body = post(given, "classify", {"examples": [{"image/encoded": b64(photo)} for photo in given.photos[:2]]}).json()
    for place, found in enumerate(answer.result.classifications):
        best = np.argsort(-given.expected[place])[:5]
        assert [scored.label for scored in found.classes] == [given.labels[index] for index in best]
        assert np.abs([scored.score for scored in found.classes] - given.expected[place][best]).max() <= TOLERANCE
        assert [label for label, _ in body["results"][place]] == [given.labels[index] for index in best]


def test_objects(given: Given) -> None:
    asked = predict_pb2.PredictRequest()
    asked.model_spec.name = DETECTOR
    asked.inputs["image"].CopyFrom(tf.make_tensor_proto([coloured()]))
    with grpc.insecure_channel(given.detectors_grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        metadata = (("x-score-threshold", "0.4"), ("x-max-detections", "7"))
        for options, most in (({}, 100), ({"metadata": metadata}, 7)):
            answer = stub.Predict(asked, timeout=PATIENCE, **options)
            check_objects({name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}, most=most)
        classify = classification_pb2.ClassificationRequest()
        classify.model_spec.name = DETECTOR
        with pytest.raises(grpc.RpcError, match="colours is a model for detection"):
            stub.Classify(classify, timeout=PATIENCE)
    rest = f"http://{given.detectors_http}/v1/models/{DETECTOR}:predict?max_detections=7"
    body = requests.post(rest, json={"inputs": [b64(coloured())]}, timeout=PATIENCE).json()
    check_objects({name: np.array(values, np.float32) for name, values in body["outputs"].items()}, most=7)


# --- metadata and status


def test_metadata(given: Given, stub: Any) -> None:
    asked = request(get_model_metadata_pb2.GetModelMetadataRequest, given)
    asked.metadata_field.append("signature_def")
    answer = stub.GetModelMetadata(asked, timeout=PATIENCE)
    packed = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(packed)
    signature = packed.signature_def["serving_default"]
    assert signature.inputs["image"].dtype == tf.string.as_datatype_enum
    assert [axis.size for axis in signature.outputs["probabilities"].tensor_shape.dim] == [-1, 1000]
    body = requests.get(f"http://{given.http}/v1/models/{given.model}/metadata", timeout=PATIENCE).json()
    assert set(body["metadata"]["signature_def"]["signature_def"]) == set(packed.signature_def)


def test_status(given: Given, models: Any) -> None:
    answer = models.GetModelStatus(request(get_model_status_pb2.GetModelStatusRequest, given), timeout=PATIENCE)
    (status,) = answer.model_version_status
    assert status.version == 1
    assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    body = requests.get(f"http://{given.http}/v1/models/{given.model}", timeout=PATIENCE).json()
    assert [entry["state"] for entry in body["model_version_status"]] == ["AVAILABLE"]
    nobody = get_model_status_pb2.GetModelStatusRequest()
    nobody.model_spec.name = "nobody"
    with pytest.raises(grpc.RpcError) as caught:
        models.GetModelStatus(nobody, timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# --- errors


def test_a_bad_image_says_which(given: Given, stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, given, [*given.photos[:2], b"no photo"])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Image 2 of 3: " in str(caught.value.details())
    response = post(given, "predict", {"instances": [b64(given.photos[0]), b64(b"no photo")]})
    assert response.status_code == 400
    assert "Image 1 of 2: " in response.json()["error"]


def test_wrong_requests(given: Given, stub: Any) -> None:
    photo, row = [given.photos[0]], given.pixels[:1]
    for says, ask in (
        ("signature", lambda: predict(stub, given, photo, signature="nobody")),
        ("image", lambda: predict(stub, given, photo, name="x")),
        ("pixels", lambda: predict(stub, given, row[:, 1:], name="pixels", signature="pixels")),
        ("pixels", lambda: predict(stub, given, row.astype(np.int64), name="pixels", signature="pixels")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, says
        assert says in str(caught.value.details())


def test_what_no_model_here_can(given: Given, stub: Any) -> None:
    """They are refused in words, not by a missing method."""
    for call, kind in (
        (stub.Regress, regression_pb2.RegressionRequest),
        (stub.MultiInference, inference_pb2.MultiInferenceRequest),
    ):
        asked = kind() if kind is inference_pb2.MultiInferenceRequest else request(kind, given)
        with pytest.raises(grpc.RpcError) as caught:
            call(asked, timeout=PATIENCE)
        assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
        assert caught.value.details()


def test_a_deadline(given: Given, stub: Any) -> None:
    """It passes, or the server is quick enough to say that it can't be met."""
    asked = request(predict_pb2.PredictRequest, given)
    asked.inputs["image"].CopyFrom(tf.make_tensor_proto(given.photos[:8]))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(asked, timeout=0.001)
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    if caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        assert "must be there in" in (caught.value.details() or "")

"""TensorFlow Serving's gRPC services over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from condconv_serve.fronts.tfserving.grpc import MESSAGES, MODEL_SERVICE, PREDICTION_SERVICE
from condconv_serve.fronts.tfserving.tensors import DT_FLOAT, DT_STRING, DT_UINT8
from tests.contract.fronts import House
from tests.unit.fronts.tfserving.service import CLASSES, SIZE, STATES, opened_over_grpc, photo, probabilities

LABELS = ["grüne Birne", *(f"class {index}" for index in range(1, CLASSES))]


def message(name: str) -> Any:
    return MESSAGES.message(f"tensorflow.serving.{name}")


@pytest.fixture
async def service() -> AsyncIterator[tuple[grpc.aio.Channel, House]]:
    async with asyncio.timeout(60), opened_over_grpc() as found:
        yield found


@pytest.fixture
def channel(service: tuple[grpc.aio.Channel, House]) -> grpc.aio.Channel:
    return service[0]


METHODS = {
    "Predict": ("PredictRequest", "PredictResponse"),
    "Classify": ("ClassificationRequest", "ClassificationResponse"),
    "Regress": ("RegressionRequest", "RegressionResponse"),
    "MultiInference": ("MultiInferenceRequest", "MultiInferenceResponse"),
    "GetModelMetadata": ("GetModelMetadataRequest", "GetModelMetadataResponse"),
    "GetModelStatus": ("GetModelStatusRequest", "GetModelStatusResponse"),
    "HandleReloadConfigRequest": ("ReloadConfigRequest", "ReloadConfigResponse"),
}


async def told(channel: grpc.aio.Channel, method: str, request: Message, **options: Any) -> Any:
    service = PREDICTION_SERVICE if list(METHODS).index(method) < 5 else MODEL_SERVICE
    call = channel.unary_unary(
        f"/{service}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=message(METHODS[method][1]).FromString,
    )
    return await call(request, **options)


async def refused(channel: grpc.aio.Channel, method: str, request: Message, **options: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await told(channel, method, request, **options)
    return caught.value.code().name, str(caught.value.details())


def request_of(method: str, *, model: str = "pear", **spec: Any) -> Any:
    made = message(METHODS[method][0])()
    made.model_spec.name = model
    for name, value in spec.items():
        if name == "version":
            made.model_spec.version.value = value
        else:
            setattr(made.model_spec, name, value)
    return made


def put(tensor: Any, dtype: int, shape: tuple[int, ...], **values: Any) -> None:
    tensor.dtype = dtype
    for size in shape:
        tensor.tensor_shape.dim.add().size = size
    for name, value in values.items():
        if name == "tensor_content":
            tensor.tensor_content = value
        else:
            getattr(tensor, name).extend(value)


def photos(*shades: int, name: str = "image", **spec: Any) -> Any:
    made = request_of("Predict", **spec)
    put(made.inputs[name], DT_STRING, (len(shades),), string_val=[photo(shade) for shade in shades])
    return made


def rows(*shades: float, dtype: int = DT_UINT8, **spec: Any) -> Any:
    made = request_of("Predict", **spec)
    values = np.broadcast_to(np.array(shades)[:, None, None, None], (len(shades), SIZE, SIZE, 3))
    content = values.astype(np.uint8 if dtype == DT_UINT8 else np.float32).tobytes()
    put(made.inputs["pixels"], dtype, values.shape, tensor_content=content)
    return made


def examples(*shades: int, context: int | None = None, feature: str = "image/encoded") -> Any:
    made = request_of("Classify")
    given = made.input.example_list if context is None else made.input.example_list_with_context
    for shade in shades:
        example = given.examples.add()
        example.features.feature["image/class/label"].int64_list.value.append(7)
        if shade >= 0:
            example.features.feature[feature].bytes_list.value.append(photo(shade))
    if context is not None:
        given.context.features.feature["image/encoded"].bytes_list.value.append(photo(context))
    return made


def array(tensor: Any) -> np.ndarray:
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype == DT_STRING:
        return np.array([text.decode() for text in tensor.string_val]).reshape(shape)
    return np.array(tensor.float_val, np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("request_", "signature"),
    [
        (photos(1, 8), "serving_default"),
        (photos(1, 8, name="image_bytes", signature_name="serving_default"), "serving_default"),
        (photos(1, 8, version=1), "serving_default"),
        (photos(1, 8, version=0), "serving_default"),
        (photos(1, 8, version_label="stable"), "serving_default"),
        (rows(1, 8), "pixels"),
        (rows(1, 8, dtype=DT_FLOAT, signature_name="pixels"), "pixels"),
    ],
)
async def test_predict(channel: grpc.aio.Channel, request_: Any, signature: str) -> None:
    answer = await told(channel, "Predict", request_)
    assert (answer.model_spec.name, answer.model_spec.signature_name) == ("pear", signature)
    choice = request_.model_spec.WhichOneof("version_choice")
    fixed = choice == "version_label" or request_.model_spec.version.value
    assert answer.model_spec.version.value == (1 if fixed else 2)
    assert set(answer.outputs) == {"probabilities", "label"}
    assert array(answer.outputs["label"]).tolist() == ["class 1", "class 2"]
    np.testing.assert_allclose(array(answer.outputs["probabilities"]), probabilities([1, 8]), rtol=1e-6)


async def test_one_image_as_a_scalar(channel: grpc.aio.Channel) -> None:
    asked = request_of("Predict")
    put(asked.inputs["image"], DT_STRING, (), string_val=[photo(0)])
    assert array((await told(channel, "Predict", asked)).outputs["label"]).tolist() == ["grüne Birne"]


async def test_the_filter_chooses_from_all_outputs(channel: grpc.aio.Channel) -> None:
    asked = photos(3)
    asked.output_filter.extend(["routing", "logits"])
    answer = await told(channel, "Predict", asked)
    assert set(answer.outputs) == {"routing", "logits"}
    np.testing.assert_array_equal(array(answer.outputs["logits"]), 5 * np.eye(CLASSES)[[3]])
    np.testing.assert_allclose(array(answer.outputs["routing"]), np.full((1, 2, 3), 3 / 255), rtol=1e-6)
    answer = await told(channel, "Predict", photos(3, signature_name="logits"))
    assert set(answer.outputs) == {"logits"}


def wrong(change: Any, *, of: Any = None) -> Any:
    made = of or photos(1)
    change(made)
    return made


@pytest.mark.parametrize(
    ("request_", "code", "message_"),
    [
        (message("PredictRequest")(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (photos(1, model=""), "INVALID_ARGUMENT", "ModelSpec has no name"),
        (photos(1, model="plum"), "NOT_FOUND", "Servable not found for request: Latest(plum)"),
        (photos(1, version=7), "NOT_FOUND", "Servable not found for request: Specific(pear, 7)"),
        (photos(1, version=6), "UNAVAILABLE", "Version 6 of pear can't be served"),
        (photos(1, version=-1), "INVALID_ARGUMENT", "Failed to convert version: -1 to numeric."),
        (photos(1, version_label="x"), "INVALID_ARGUMENT", "Unrecognized servable version label: x."),
        (photos(1, signature_name="x"), "INVALID_ARGUMENT", 'Serving signature name: "x" not found'),
        (photos(1, name="x"), "INVALID_ARGUMENT", "input size does not match signature: 1!=1 len({x}) != len({image})"),
        (request_of("Predict"), "INVALID_ARGUMENT", "input size does not match signature: 0!=1"),
        (wrong(lambda made: made.inputs["x"]), "INVALID_ARGUMENT", "does not match signature: 2!=1 len({image,x})"),
        (wrong(lambda made: made.output_filter.append("x")), "INVALID_ARGUMENT", "alias not found in signature: x "),
        (wrong(lambda made: made.output_filter.extend(["label"] * 2)), "INVALID_ARGUMENT", "duplicate output tensor"),
        (rows(1, signature_name="routing"), "INVALID_ARGUMENT", "len({pixels}) != len({image})"),
        (rows(1, 256, dtype=DT_FLOAT), "INVALID_ARGUMENT", "Image 1 of 2: Pixels are on the scale"),
        (photos(1, 2, 3, 4), "INVALID_ARGUMENT", "4 rows; 3 are allowed"),
        (
            wrong(lambda made: made.inputs["image"].string_val.__setitem__(1, b"x"), of=photos(1, 2)),
            "INVALID_ARGUMENT",
            "Image 1 of 2: ",
        ),
    ],
)
async def test_predictions_that_are_refused(channel: grpc.aio.Channel, request_: Any, code: str, message_: str) -> None:
    found, details = await refused(channel, "Predict", request_)
    assert found == code
    assert message_ in details


@pytest.mark.parametrize("request_", [examples(1, 8), examples(1, -1, context=8), examples(1, 8, feature="image")])
async def test_classify(channel: grpc.aio.Channel, request_: Any) -> None:
    answer = await told(channel, "Classify", request_)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("pear", 2)
    for result, shade in zip(answer.result.classifications, (1, 8), strict=True):
        best = LABELS[shade % CLASSES]
        assert [entry.label for entry in result.classes] == [best, *[name for name in LABELS if name != best]][:5]
        scores = np.sort(probabilities([shade])[0])[::-1][:5]
        np.testing.assert_allclose([entry.score for entry in result.classes], scores, rtol=1e-6)


@pytest.mark.parametrize(
    ("request_", "message_"),
    [
        (request_of("Classify"), "Input is empty"),
        (examples(), "Input is empty"),
        (examples(1, -1), "Example 1 has no image"),
        (examples(1, feature="x"), "Example 0 has no image"),
        (examples(1, 2, 3, 4), "4 rows; 3 are allowed"),
        (
            wrong(lambda made: setattr(made.model_spec, "signature_name", "pixels"), of=examples(1)),
            "Expected classification",
        ),
    ],
)
async def test_classify_refuses(channel: grpc.aio.Channel, request_: Any, message_: str) -> None:
    code, details = await refused(channel, "Classify", request_)
    assert code == "INVALID_ARGUMENT"
    assert message_ in details


async def test_what_is_not_offered(channel: grpc.aio.Channel) -> None:
    code, details = await refused(channel, "Regress", request_of("Regress"))
    assert (code, "Expected regression signature" in details) == ("INVALID_ARGUMENT", True)
    assert (await refused(channel, "MultiInference", message("MultiInferenceRequest")()))[0] == "UNIMPLEMENTED"
    code, details = await refused(channel, "HandleReloadConfigRequest", message("ReloadConfigRequest")())
    assert (code, "follows its model store" in details) == ("UNIMPLEMENTED", True)


async def test_status(channel: grpc.aio.Channel) -> None:
    def states(answer: Any) -> list[tuple[int, int, int]]:
        return [(each.version, each.state, each.status.error_code) for each in answer.model_version_status]

    every = [(10, 10, 0), (6, 50, 9), (5, 10, 14), (4, 40, 0), (3, 20, 0), (2, 30, 0), (1, 30, 0)]
    assert len(every) == len(STATES)
    answer = await told(channel, "GetModelStatus", request_of("GetModelStatus"))
    assert states(answer) == every
    assert answer.model_version_status[1].status.error_message == "weights.safetensors is damaged"
    assert states(await told(channel, "GetModelStatus", request_of("GetModelStatus", version=3))) == every[4:5]
    assert (
        states(await told(channel, "GetModelStatus", request_of("GetModelStatus", version_label="stable"))) == every[6:]
    )
    assert await refused(channel, "GetModelStatus", request_of("GetModelStatus", model="plum")) == (
        "NOT_FOUND",
        "Could not find any versions of model plum",
    )
    assert (await refused(channel, "GetModelStatus", message("GetModelStatusRequest")()))[1] == "Missing ModelSpec"


async def test_metadata(channel: grpc.aio.Channel) -> None:
    asked = request_of("GetModelMetadata", version_label="stable")
    asked.metadata_field.append("signature_def")
    answer = await told(channel, "GetModelMetadata", asked)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("pear", 1)
    packed = answer.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signatures = message("SignatureDefMap").FromString(packed.value).signature_def
    default = signatures["serving_default"]
    assert default.method_name == "tensorflow/serving/predict"
    assert default.inputs["image"].dtype == DT_STRING
    assert [dim.size for dim in default.outputs["probabilities"].tensor_shape.dim] == [-1, CLASSES]
    assert [dim.size for dim in signatures["pixels"].inputs["pixels"].tensor_shape.dim] == [-1, SIZE, SIZE, 3]
    for fields, found in (
        (["x"], "Metadata field x is not supported"),
        ([], "must specify at least one metadata_field"),
    ):
        asked = request_of("GetModelMetadata")
        asked.metadata_field.extend(fields)
        code, details = await refused(channel, "GetModelMetadata", asked)
        assert (code, found in details) == ("INVALID_ARGUMENT", True)


async def test_deadlines_and_priorities(service: tuple[grpc.aio.Channel, House]) -> None:
    channel, house = service
    await told(channel, "Predict", photos(1), metadata=[("x-priority", "low")], timeout=40)
    assert (await refused(channel, "Predict", photos(1), metadata=[("x-priority", "urgent")]))[0] == "INVALID_ARGUMENT"
    house.free.clear()
    assert (await refused(channel, "Predict", photos(1), timeout=0.05))[0] == "DEADLINE_EXCEEDED"
    house.free.set()


async def test_large_requests_are_read_in_a_thread(channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    from condconv_serve.fronts.tfserving import grpc as services

    monkeypatch.setattr(services, "INLINE_BYTES", 100)
    asked = request_of("Predict")
    put(asked.inputs["pixels"], DT_UINT8, (2, SIZE, SIZE, 3), int_val=[8])
    assert array((await told(channel, "Predict", asked)).outputs["label"]).tolist() == ["class 2", "class 2"]
    assert array((await told(channel, "Predict", photos(1))).outputs["label"]).tolist() == ["class 1"]


async def test_damaged_messages_are_answered_or_refused(channel: grpc.aio.Channel) -> None:
    random = np.random.default_rng(0)
    whole = [("Predict", photos(1)), ("Predict", rows(1, dtype=DT_FLOAT)), ("Classify", examples(1, -1, context=2))]
    found = set()
    for round_ in range(150):
        method, request = whole[round_ % 3]
        damaged = bytearray(request.SerializeToString())
        # Names and lengths stand at the beginning; further behind there are only pixels.
        for place in random.integers(0, min(len(damaged), 90), random.integers(1, 4)):
            damaged[place] ^= 1 << random.integers(8)
        call: Any = channel.unary_unary(f"/{PREDICTION_SERVICE}/{method}")
        try:
            await call(bytes(damaged))
            found.add("OK")
        except grpc.aio.AioRpcError as error:
            found.add(error.code().name)
    assert found <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert "INVALID_ARGUMENT" in found

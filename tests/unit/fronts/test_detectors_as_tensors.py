"""A detector in every front whose requests are tensors: the same objects, in the words of each protocol."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from condconv_serve.domain import Preprocessing
from condconv_serve.fronts import oip, tfserving
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.long_reads import LongReads
from condconv_serve.fronts.oip.datatypes import joined
from condconv_serve.fronts.oip.grpc import NAME
from condconv_serve.fronts.oip.grpc import service as open_inference_service
from condconv_serve.fronts.oip.grpc_messages import REQUEST, RESPONSE
from condconv_serve.fronts.tfserving.grpc import MESSAGES, PREDICTION_SERVICE, model_service, prediction_service
from condconv_serve.fronts.tfserving.tensors import DT_FLOAT, DT_STRING, DT_UINT8
from condconv_serve.tasks.detection import Detect
from condconv_serve.tasks.named_outputs import DETECTIONS
from tests.contract.fakes import ColourDetector, detector_info, model_info, served_model
from tests.contract.fronts import house_with_keys
from tests.contract.grpc_calls import grpc_served
from tests.pictures import encode

SIDE = 32
ALL = {"boxes", "scores", "routing", *DETECTIONS}
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Ask(Protocol):
    """Asks a front for outputs of images or pixels; returns them by name, or what it says is wrong."""

    async def __call__(
        self,
        given: bytes | np.ndarray,
        outputs: tuple[str, ...] | None = DETECTIONS,
        *,
        model: str = "wide",
        **thresholds: Any,
    ) -> Any: ...


def over_rest(client: httpx.AsyncClient) -> Ask:
    async def ask(
        given: Any, outputs: Any = DETECTIONS, *, model: str = "wide", classes: int = 0, **thresholds: Any
    ) -> Any:
        parameters = {"classification": classes} if classes else {}
        if isinstance(given, bytes):
            entry = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(given).decode()]}
        else:
            entry = {"name": "pixels", "datatype": "UINT8", "shape": [1, *given.shape], "data": given.ravel().tolist()}
        body = {"inputs": [entry], "parameters": thresholds}
        if outputs is not None:
            body["outputs"] = [{"name": name, "parameters": parameters} for name in outputs]
        answer = (await client.post(f"/v2/models/{model}/infer", json=body)).json()
        if "error" in answer:
            return answer["error"]
        assert {output["datatype"] for output in answer["outputs"]} == {"FP32"}
        return {
            output["name"]: np.array(output["data"], np.float32).reshape(output["shape"])[0]
            for output in answer["outputs"]
        }

    return ask


def over_grpc(channel: grpc.aio.Channel) -> Ask:
    async def ask(
        given: Any, outputs: Any = DETECTIONS, *, model: str = "wide", classes: int = 0, **thresholds: Any
    ) -> Any:
        request = REQUEST(model_name=model)
        request.parameters["binary_data_output"].bool_param = False
        if isinstance(given, bytes):
            request.inputs.add(name="image", datatype="BYTES", shape=[1])
            request.raw_input_contents.append(joined([given]))
        else:
            request.inputs.add(name="pixels", datatype="UINT8", shape=[1, *given.shape])
            request.raw_input_contents.append(given.tobytes())
        for name in outputs or ():
            output = request.outputs.add(name=name)
            if classes:
                output.parameters["classification"].int64_param = classes
        kinds = {float: "double_param", int: "int64_param", str: "string_param", bool: "bool_param"}
        for name, value in thresholds.items():
            setattr(request.parameters[name], kinds[type(value)], value)
        call: Any = channel.unary_unary(f"/{NAME}/ModelInfer", REQUEST.SerializeToString, RESPONSE.FromString)
        try:
            answer = await call(request)
        except grpc.aio.AioRpcError as error:
            return error.details()
        return {
            output.name: np.array(output.contents.fp32_contents, np.float32).reshape(output.shape)[0]
            for output in answer.outputs
        }

    return ask


def by_predict(client: httpx.AsyncClient) -> Ask:
    async def ask(given: Any, outputs: Any = DETECTIONS, *, model: str = "wide", **thresholds: Any) -> Any:
        is_image = isinstance(given, bytes)
        signature = _signature(outputs, pixels=not is_image)
        row = {"b64": base64.b64encode(given).decode()} if is_image else given.tolist()
        answer = (
            await client.post(
                f"/v1/models/{model}:predict",
                json={"signature_name": signature, "instances": [row]},
                params=thresholds,
            )
        ).json()
        if "error" in answer:
            return answer["error"]
        (row,) = answer["predictions"]
        named = row if isinstance(row, dict) else {outputs[0]: row}
        return {name: np.array(values, np.float32) for name, values in named.items()}

    return ask


def by_predict_over_grpc(channel: grpc.aio.Channel) -> Ask:
    async def ask(given: Any, outputs: Any = DETECTIONS, *, model: str = "wide", **thresholds: Any) -> Any:
        request = MESSAGES.message("tensorflow.serving.PredictRequest")()
        request.model_spec.name = model
        is_image = isinstance(given, bytes)
        request.model_spec.signature_name = _signature(outputs, pixels=not is_image)
        tensor = request.inputs["image" if is_image else "pixels"]
        tensor.dtype = DT_STRING if is_image else DT_UINT8
        for size in (1,) if is_image else (1, *given.shape):
            tensor.tensor_shape.dim.add().size = size
        if is_image:
            tensor.string_val.append(given)
        else:
            tensor.tensor_content = given.tobytes()
        metadata = [(f"x-{name.replace('_', '-')}", str(value)) for name, value in thresholds.items()]
        response = MESSAGES.message("tensorflow.serving.PredictResponse")
        call: Any = channel.unary_unary(
            f"/{PREDICTION_SERVICE}/Predict", type(request).SerializeToString, response.FromString
        )
        try:
            answer = await call(request, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.details()
        assert {tensor.dtype for tensor in answer.outputs.values()} == {DT_FLOAT}
        return {
            name: np.array(found.float_val, np.float32).reshape([dim.size for dim in found.tensor_shape.dim])[0]
            for name, found in answer.outputs.items()
        }

    return ask


def _signature(outputs: tuple[str, ...] | None, *, pixels: bool) -> str:
    """The signature with these outputs."""
    if outputs == DETECTIONS:
        return "pixels" if pixels else "serving_default"
    return ("pixels_" if pixels else "") + ("all" if outputs is None else outputs[0])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def context() -> AsyncIterator[AppContext]:
    wide = replace(
        detector_info("wide", image_size=SIDE),
        preprocessing=Preprocessing(transform="letterbox", image_size=SIDE, interpolation="nearest"),
    )
    async with house_with_keys(keys=None) as (house, context):
        house.models.replace(served_model(wide, ColourDetector()))
        house.models.replace(served_model(model_info("shades")))
        yield context


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(context: AppContext) -> AsyncIterator[Mapping[str, Any]]:
    services = [open_inference_service(context), prediction_service(context), model_service(context)]
    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(grpc_served(services, context))
        http = {
            name: await stack.enter_async_context(
                httpx.AsyncClient(transport=httpx.ASGITransport(make(context)), base_url="http://test")
            )
            for name, make in (("oip", oip.create_app), ("tfserving", tfserving.create_app))
        }
        yield {**http, "grpc": served.channel}


@pytest.fixture(params=["oip", "oip-grpc", "tfserving", "tfserving-grpc"])
def ask(request: pytest.FixtureRequest, clients: Mapping[str, Any]) -> Ask:
    match request.param:
        case "oip":
            return over_rest(clients["oip"])
        case "oip-grpc":
            return over_grpc(clients["grpc"])
        case "tfserving":
            return by_predict(clients["tfserving"])
    return by_predict_over_grpc(clients["grpc"])


def photo() -> bytes:
    """96 x 48 pixels, black, with a blue patch at the top left, and a red one two patches to the right and one below.

    The row is 32 x 32, of which the lower half is filling; a patch of the row is 12 x 12 pixels of the photo.
    """
    picture = Image.new("RGB", (96, 48))
    picture.paste((0, 0, 200), (0, 0, 12, 12))
    picture.paste((255, 0, 0), (24, 12, 36, 24))
    return encode(picture, "PNG")


RED, BLUE = [12 / 48, 24 / 96, 24 / 48, 36 / 96], [0, 0, 12 / 48, 12 / 96]


async def test_objects_in_shares_of_the_photo(ask: Ask) -> None:
    found = await ask(photo())
    assert found.keys() == set(DETECTIONS)
    assert found["num_detections"] == 2
    np.testing.assert_allclose(found["detection_boxes"][:2], [RED, BLUE], rtol=1e-6)
    np.testing.assert_allclose(found["detection_scores"][:2], [1, 200 / 255], rtol=1e-6)
    assert found["detection_classes"][:2].tolist() == [0, 2]
    assert {name: values.shape for name, values in found.items()} == {
        "detection_boxes": (100, 4),
        "detection_scores": (100,),
        "detection_classes": (100,),
        "num_detections": (),
    }
    for name in DETECTIONS[:3]:
        assert not found[name][2:].any(), "the rest is filling"


async def test_pixels_are_their_own_photo(ask: Ask) -> None:
    row = np.zeros((SIDE, SIDE, 3), np.uint8)
    row[4:8, 8:12, 0] = 255
    found = await ask(row)
    assert found["num_detections"] == 1
    np.testing.assert_allclose(found["detection_boxes"][0], [4 / 32, 8 / 32, 8 / 32, 12 / 32], rtol=1e-6)


async def test_what_the_engine_returns(ask: Ask) -> None:
    everything = await ask(photo(), None)
    assert everything.keys() == ALL
    assert (everything["boxes"].shape, everything["scores"].shape) == ((64, 4), (64, 3))
    assert everything["scores"][8 + 2].tolist() == [1, 0, 0]
    np.testing.assert_allclose(everything["boxes"][8 + 2], [1 / 8, 2 / 8, 2 / 8, 3 / 8])
    assert everything["routing"].shape == (2, 3)
    alone = await ask(photo(), ("scores",))
    assert alone.keys() == {"scores"}
    np.testing.assert_array_equal(alone["scores"], everything["scores"])


async def test_long_answers_are_written_on_another_thread(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = await ask(photo(), None)
    for module, name in (
        (oip.infer, "ELEMENTS_AT_ONCE"),
        (oip.grpc, "_ELEMENTS_AT_ONCE"),
        (tfserving.predictions, "ELEMENTS_AT_ONCE"),
        (tfserving.grpc, "INLINE_ELEMENTS"),
    ):
        monkeypatch.setattr(module, name, 0)
    run, runs = LongReads.run, list[Any]()

    async def counted(self: LongReads, work: Any) -> Any:
        runs.append(work)
        return await run(self, work)

    monkeypatch.setattr(LongReads, "run", counted)
    turns = await ask(photo(), None)
    assert len(runs) == 1
    for name in ALL:
        np.testing.assert_array_equal(turns[name], at_once[name])


async def test_thresholds(ask: Ask) -> None:
    strict = await ask(photo(), score_threshold=0.9, max_detections=3)
    assert (strict["num_detections"], strict["detection_boxes"].shape) == (1, (3, 4))
    assert (await ask(photo(), max_detections=1))["detection_classes"].tolist() == [0]
    assert (await ask(photo(), score_threshold="0.9", max_detections="7"))["detection_scores"].shape == (7,)
    assert (await ask(photo(), iou_threshold=0.0, score_threshold=".5"))["num_detections"] == 2
    assert (await ask(photo(), score_threshold=1))["num_detections"] == 0


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold must be from 0 to 1, not 1.5"),
        ({"iou_threshold": -1}, "iou_threshold must be from 0 to 1, not"),
        ({"score_threshold": "much"}, "score_threshold must be from 0 to 1, not 'much'"),
        ({"score_threshold": "nan"}, "score_threshold must be from 0 to 1, not 'nan'"),
        ({"score_threshold": ""}, "score_threshold must be from 0 to 1, not ''"),
        ({"max_detections": 0}, "max_detections must be a whole number from 1 to 1000, not"),
        ({"max_detections": 1001}, "max_detections must be a whole number from 1 to 1000, not"),
        ({"max_detections": 2.5}, "max_detections must be a whole number from 1 to 1000, not"),
    ],
)
async def test_thresholds_that_are_refused(ask: Ask, thresholds: dict[str, Any], message: str) -> None:
    assert message in await ask(photo(), **thresholds)


async def test_a_classifier_has_no_thresholds(ask: Ask) -> None:
    said = await ask(photo(), ("logits",), model="shades", score_threshold=0.5)
    assert said == "shades is a model for classification: it finds no boxes."


@pytest.mark.parametrize("name", ["label", "probabilities", "logits", "features"])
async def test_a_detector_has_no_outputs_of_a_classifier(ask: Ask, name: str) -> None:
    said = await ask(photo(), (name,))
    assert name in said
    assert "detection_boxes" in said, "it says what there is"


async def test_classes_as_text_are_for_classifiers(clients: Mapping[str, Any]) -> None:
    for ask in (over_rest(clients["oip"]), over_grpc(clients["grpc"])):
        said = await ask(photo(), ("detection_scores",), classes=2)
        assert said == "classification is for logits and probabilities, not for detection_scores."


async def test_a_detector_doesnt_classify(clients: Mapping[str, Any]) -> None:
    example = {"image/encoded": {"b64": base64.b64encode(photo()).decode()}}
    client = clients["tfserving"]
    for signature in ({}, {"signature_name": "serving_default"}, {"signature_name": "classify"}):
        answer = await client.post("/v1/models/wide:classify", json={"examples": [example], **signature})
        assert answer.status_code == 400
        assert "wide is a model for detection; send it to predict." in answer.json()["error"]
    answer = await client.post("/v1/models/wide:regress", json={"examples": [example]})
    assert "wide is a model for detection; send it to predict." in answer.json()["error"]
    request = MESSAGES.message("tensorflow.serving.ClassificationRequest")()
    request.model_spec.name = "wide"
    call = clients["grpc"].unary_unary(f"/{PREDICTION_SERVICE}/Classify")
    with pytest.raises(grpc.aio.AioRpcError, match="wide is a model for detection; send it to predict"):
        await call(request.SerializeToString())


async def test_metadata(clients: Mapping[str, Any]) -> None:
    found = (await clients["oip"].get("/v2/models/wide")).json()
    assert {output["name"]: (output["datatype"], output["shape"]) for output in found["outputs"]} == {
        "boxes": ("FP32", [-1, 64, 4]),
        "scores": ("FP32", [-1, 64, 3]),
        "routing": ("FP32", [-1, 2, 3]),
        "detection_boxes": ("FP32", [-1, -1, 4]),
        "detection_scores": ("FP32", [-1, -1]),
        "detection_classes": ("FP32", [-1, -1]),
        "num_detections": ("FP32", [-1]),
    }
    assert (found["parameters"]["task"], found["parameters"]["labels"]) == ("detection", '["red", "green", "blue"]')
    body = (await clients["tfserving"].get("/v1/models/wide/metadata")).json()
    signatures = body["metadata"]["signature_def"]["signature_def"]
    assert signatures.keys() == {
        *("serving_default", "pixels", "all", "pixels_all", *ALL),
        *(f"pixels_{name}" for name in ALL),
    }
    outputs = signatures["serving_default"]["outputs"]
    assert outputs.keys() == set(DETECTIONS)
    assert {output["dtype"] for output in outputs.values()} == {"DT_FLOAT"}
    sizes = [dim["size"] for dim in outputs["detection_boxes"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "-1", "4"]


async def test_the_document_has_the_thresholds_and_outputs(clients: Mapping[str, Any]) -> None:
    schemas = (await clients["oip"].get("/v2/openapi.json")).json()["components"]["schemas"]
    parameters = schemas["inference_request"]["properties"]["parameters"]["properties"]
    assert set(schemas["request_output"]["properties"]["name"]["enum"]) >= ALL
    paths = (await clients["tfserving"].get("/v1/openapi.json")).json()["paths"]
    query = {entry["name"]: entry["schema"] for entry in paths["/v1/models/{name}:predict"]["post"]["parameters"]}
    for field, usual in vars_of(Detect()).items():
        assert parameters[field]["default"] == query[field]["default"] == usual


def vars_of(detect: Detect) -> dict[str, float]:
    return {name: getattr(detect, name) for name in ("score_threshold", "iou_threshold", "max_detections")}

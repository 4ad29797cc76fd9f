"""TensorFlow Serving's REST API: what it takes, what it answers, and its words where it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from condconv_serve.fronts.keys import KeyRing
from tests.contract.fronts import House
from tests.unit.fronts.tfserving.service import CLASSES, STATES, b64, info, opened, photo, pixels, probabilities

PREDICT, CLASSIFY = "/v1/models/pear:predict", "/v1/models/pear:classify"
LABELS = ["grüne Birne", *(f"class {index}" for index in range(1, CLASSES))]


@pytest.fixture
async def service() -> AsyncIterator[tuple[httpx.AsyncClient, House]]:
    async with asyncio.timeout(60), opened() as found:
        yield found


@pytest.fixture
def client(service: tuple[httpx.AsyncClient, House]) -> httpx.AsyncClient:
    return service[0]


async def told(client: httpx.AsyncClient, path: str, body: Any, *, status: int = 200) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await client.post(path, content=content)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def text64(shade: int) -> str:
    return b64(shade)["b64"]


@pytest.mark.parametrize(
    "instances",
    [
        [b64(1), b64(8)],
        [{"image": b64(1)}, {"image": b64(8)}],
        [{"image_bytes": b64(1)}, {"bytes": b64(8)}],
        [text64(1), text64(8)],
        [{"image": text64(1)}, {"image": text64(8)}],
        [{"pixels": each} for each in pixels(1, 8)],
        [{"pixels": each} for each in pixels(1, 8, dtype=float)],
        pixels(1, 8),
    ],
    ids=["b64", "named", "other names", "plain", "named plain", "named pixels", "named floats", "pixels"],
)
async def test_rows(client: httpx.AsyncClient, instances: list[Any]) -> None:
    for extra in ({}, {"signature_name": ""}, {"signature_name": "serving_default"}, {"more": [1, {"a": "[2]"}]}):
        answer = await told(client, PREDICT, {"instances": instances, **extra})
        assert list(answer) == ["predictions"]
        assert [row["label"] for row in answer["predictions"]] == ["class 1", "class 2"]
        found = [row["probabilities"] for row in answer["predictions"]]
        np.testing.assert_allclose(found, probabilities([1, 8]), rtol=1e-6)
        assert all(row.keys() == {"probabilities", "label"} for row in answer["predictions"])


@pytest.mark.parametrize(
    "inputs",
    [
        {"image": [b64(1), b64(8)]},
        {"bytes": [b64(1), b64(8)]},
        [b64(1), b64(8)],
        [text64(1), text64(8)],
        {"pixels": pixels(1, 8)},
        {"pixels": pixels(1, 8), "ignored": [1]},
        pixels(1, 8),
    ],
    ids=["named", "other name", "unnamed", "plain", "named pixels", "one more", "pixels"],
)
async def test_columns(client: httpx.AsyncClient, inputs: Any) -> None:
    answer = await told(client, PREDICT, {"inputs": inputs})
    assert answer["outputs"].keys() == {"probabilities", "label"}
    assert answer["outputs"]["label"] == ["class 1", "class 2"]
    np.testing.assert_allclose(answer["outputs"]["probabilities"], probabilities([1, 8]), rtol=1e-6)


async def test_one_image_alone_is_a_column_of_one(client: httpx.AsyncClient) -> None:
    for inputs in (b64(3), {"image": b64(3)}, text64(3)):
        answer = await told(client, PREDICT, {"inputs": inputs})
        assert answer["outputs"]["label"] == ["class 3"]


@pytest.mark.parametrize(("name", "given"), [("", [b64(3), b64(4)]), ("pixels_", pixels(3, 4))])
async def test_signatures_of_one_output(client: httpx.AsyncClient, name: str, given: list[Any]) -> None:
    logits = await told(client, PREDICT, {"signature_name": f"{name}logits", "instances": given})
    assert logits == {"predictions": (5 * np.eye(CLASSES)[[3, 4]]).tolist()}
    label = await told(client, PREDICT, {"signature_name": f"{name}label", "instances": given})
    assert label == {"predictions": ["class 3", "class 4"]}
    column = await told(client, PREDICT, {"signature_name": f"{name}logits", "inputs": given})
    assert column == {"outputs": logits["predictions"]}
    routing = await told(client, PREDICT, {"signature_name": f"{name}routing", "instances": given})
    np.testing.assert_allclose(routing["predictions"], np.full((2, 2, 3), [[[3]], [[4]]]) / 255, rtol=1e-6)
    everything = await told(client, PREDICT, {"signature_name": f"{name}all", "instances": given})
    assert everything["predictions"][0].keys() == {*("logits", "routing", "features"), "probabilities", "label"}


async def test_numbers_are_as_exact_as_float32_and_no_longer(client: httpx.AsyncClient) -> None:
    response = await client.post(PREDICT, json={"inputs": [b64(2)], "signature_name": "all"})
    outputs = response.json()["outputs"]
    exact = probabilities([2]).astype(np.float32)
    np.testing.assert_array_equal(np.array(outputs["probabilities"], np.float32), exact)
    assert max(len(repr(value)) for value in outputs["probabilities"][0]) <= 13
    np.testing.assert_array_equal(np.array(outputs["routing"], np.float32), np.full((1, 2, 3), 2 / 255, np.float32))


async def test_versions_and_labels(client: httpx.AsyncClient) -> None:
    body = {"instances": [b64(1)]}
    for path in ("versions/0", "versions/1", "versions/0002", "labels/stable", "labels/split"):
        assert await told(client, f"/v1/models/pear/{path}:predict", body)
    for key, version in (("a", None), ("b", None)):
        answers = [
            (await client.get("/v1/models/pear/labels/split/metadata", headers={"X-Split-Key": key})).json()
            for _ in range(3)
        ]
        assert len({answer["model_spec"]["version"] for answer in answers}) == 1, version


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v1/models/plum:predict", 404, "Servable not found for request: Latest(plum)"),
        ("/v1/models/pear/versions/7:predict", 404, "Servable not found for request: Specific(pear, 7)"),
        ("/v1/models/plum/labels/stable:predict", 404, "Servable not found for request: Latest(plum)"),
        ("/v1/models/pear/versions/7/metadata", 404, "Servable not found for request: Specific(pear, 7)"),
        ("/v1/models/plum", 404, "Could not find any versions of model plum"),
        ("/v1/models/pear/versions/7", 404, "Could not find version 7 of model pear"),
        (
            "/v1/models/pear/labels/1:predict",
            400,
            "Unrecognized servable version label: 1. Labels are aliases; pear has: split, stable.",
        ),
        ("/v1/models/pear/versions/x:predict", 400, "Failed to convert version: x to numeric."),
        (f"/v1/models/pear/versions/{2**63}:classify", 400, f"Failed to convert version: {2**63} to numeric."),
        ("/v1/models/pear/versions/-1", 400, "Failed to convert version: -1 to numeric."),
        (
            "/v1/models/pear/versions/6:predict",
            503,
            "Version 6 of pear can't be served: weights.safetensors is damaged.",
        ),
        ("/v1/models", 400, "Missing model name in request."),
        ("/v1/models/pear:reload", 400, "Malformed request: POST /v1/models/pear:reload"),
        ("/v1/nothing/there", 400, "Malformed request: GET /v1/nothing/there"),
        ("/v1", 400, "Malformed request: GET /v1"),
    ],
)
async def test_what_is_not_there(client: httpx.AsyncClient, path: str, status: int, message: str) -> None:
    asking = client.post(path, json={"instances": [b64(1)]}) if ":" in path else client.get(path)
    response = await asking
    assert (response.status_code, response.json()) == (status, {"error": message})


async def test_other_methods(client: httpx.AsyncClient) -> None:
    for method, path in (("GET", PREDICT), ("POST", "/v1/models/pear"), ("DELETE", "/v1/models/pear/metadata")):
        response = await client.request(method, path)
        assert (response.status_code, response.json()) == (400, {"error": f"Malformed request: {method} {path}"})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error"),
        (b"[]", "Is not object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": [], "inputs": []}, "only one of 'inputs' or 'instances' keys"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": {}}, "Expecting 'instances' to be an list/array"),
        ({"instances": "x"}, "Expecting 'instances' to be an list/array"),
        ({"inputs": []}, "Input image is empty"),
        ({"inputs": {}}, "JSON object: keys must be equal to: image, for signature serving_default; not none"),
        ({"inputs": None}, "not null"),
        ({"instances": [b64(1)], "signature_name": 5}, "'signature_name' key must be a string value"),
        (
            {"instances": [b64(1)], "signature_name": "x"},
            'Serving signature name: "x" not found in signature def. pear',
        ),
        ({"instances": [b64(1)], "signature_name": "classify"}, "for requests to classify"),
        ({"instances": [b64(1)] * 4}, "4 rows; 3 are allowed"),
        ({"inputs": [b64(1)] * 4}, "4 rows; 3 are allowed"),
        ({"instances": pixels(1, 2, 3, 4)}, "4 rows; 3 are allowed"),
        ({"instances": [{"img": b64(1)}]}, "element: 0 of 'instances' list. Error: JSON object: keys must be equal to"),
        (
            {"instances": [{"image": b64(1), "x": 1}]},
            "keys must be equal to: image, for signature serving_default; not",
        ),
        ({"instances": [{"image": b64(1), "bytes": b64(1)}]}, "keys must be equal to: image"),
        ({"inputs": {"img": b64(1)}}, "keys must be equal to: image"),
        ({"instances": [b64(1), {"image": b64(1)}]}, "element: 1 of 'instances' list. Error: Expecting either objects"),
        ({"instances": [{"image": b64(1)}, b64(1)]}, "element: 1 of 'instances' list. Error: Expecting either objects"),
        ({"instances": [{"b64": 5}]}, "keys must be equal to"),
        (
            {"instances": [b64(1), {"b64": "x*"}]},
            "element: 1 of 'instances' list. Error: The image is not valid base64",
        ),
        ({"instances": [{"image": {"b64": "", "x": 1}}]}, "not formatted correctly for base64"),
        ({"instances": [None]}, "not null"),
        ({"instances": [True]}, "not true or false"),
        ({"instances": [7.5], "signature_name": "routing"}, "takes encoded images"),
        ({"instances": [{"b64": ""}]}, "The image is empty"),
        ({"instances": [{"b64": "QUJD"}]}, "no image of an accepted format"),
        ({"instances": [b64(1), {"b64": "QUJD"}]}, "Image 1 of 2: "),
        ({"inputs": [b64(1), {"b64": "QUJD"}, b64(2)]}, "Image 1 of 3: "),
        ({"instances": [b64(1)], "signature_name": "pixels"}, "pixels must be numbers in lists, not an object"),
        ({"instances": ["x"], "signature_name": "pixels"}, "pixels must be numbers in lists, not a string"),
        ({"instances": [[[1, "x"]]], "signature_name": "pixels"}, "pixels must be numbers in lists, not a list"),
        ({"instances": [{"pixels": [1]}]}, r"element: 0 .* shape \[32, 32, 3\] but got 1 numbers in lists that are 1"),
        ({"instances": pixels(1)[0]}, r"shape \[N, 32, 32, 3\] but got 3072 numbers in lists that are 3 deep"),
        ({"instances": pixels(1, 256)}, "Image 1 of 2: Pixels are on the scale 0 to 255"),
        ({"instances": pixels(-1)}, "Pixels are on the scale 0 to 255"),
        ({"instances": pixels(1e39, dtype=float)}, "not finite"),
        ({"instances": pixels(1), "signature_name": "logits"}, "Signature logits takes encoded images"),
    ],
)
async def test_bodies_that_are_refused(client: httpx.AsyncClient, body: Any, message: str) -> None:
    answer = await told(client, PREDICT, body, status=400)
    assert list(answer) == ["error"]
    assert re.search(message, answer["error"])


async def test_a_body_that_is_too_large(client: httpx.AsyncClient) -> None:
    assert "more than 1000000 bytes" in (await told(client, PREDICT, b"x" * 1_000_001, status=413))["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"examples": [{"image/encoded": b64(1)}, {"image/encoded": b64(8)}]},
        {"examples": [{"image": b64(1), "image/class/label": 7}, {"image": [b64(8)], "x": [1.5, 2]}]},
        {"examples": [{"image": text64(1)}, {}], "context": {"image/encoded": b64(8), "image": b64(8)}},
        {"examples": [{"image/encoded": b64(1)}, {"image/encoded": b64(8)}], "signature_name": "classify"},
        {"examples": [{"image/encoded": b64(1)}, {"image/encoded": b64(8)}], "signature_name": "serving_default"},
    ],
)
async def test_classify(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    if "context" in body:
        body["context"].pop("image")
        body["examples"][0] = {"image/encoded": b64(1)}
    answer = await told(client, CLASSIFY, body)
    assert list(answer) == ["results"]
    for result, shade in zip(answer["results"], (1, 8), strict=True):
        assert [label for label, _ in result] == [
            LABELS[shade % CLASSES],
            *[x for x in LABELS if x != LABELS[shade % CLASSES]],
        ][:5]
        np.testing.assert_allclose(
            [score for _, score in result], np.sort(probabilities([shade])[0])[::-1][:5], rtol=1e-6
        )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "When method is classify, key 'examples' is expected and was not found"),
        ({"examples": {}}, "Expecting 'examples' value to be an list/array"),
        ({"examples": [1]}, "Example must be JSON object but got numbers"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": ["x"]}, "Example must be JSON object but got a string"),
        ({"examples": [{"image": b64(1)}], "context": 5}, "Example must be JSON object but got a number"),
        ({"examples": [{"image": b64(1)}], "context": [5]}, "Example must be JSON object but got numbers"),
        ({"examples": [{"image": b64(1)}] * 4}, "4 rows; 3 are allowed"),
        ({"examples": [{"image": b64(1)}, {"label": 1}]}, "Example 1 has no image"),
        ({"examples": [{"image": [b64(1), b64(2)]}]}, "Example 0 must have exactly one image"),
        ({"examples": [{"image": []}]}, "Example 0 must have exactly one image"),
        ({"examples": [{"image": b64(1), "image/encoded": b64(1)}]}, "Example 0 must have exactly one image"),
        ({"examples": [{"image": [1, 2]}]}, 'Example 0 must be {"b64": "<base64>"}, not numbers'),
        ({"examples": [{"image": {"b64": ""}}]}, "The image of example 0 is empty"),
        (
            {"examples": [{"image": b64(1)}], "signature_name": "pixels"},
            "Expected classification signature method_name",
        ),
        ({"examples": [{"image": b64(1)}], "signature_name": "x"}, "No signature was found with the name: x"),
        ({"examples": [{"image": {"b64": "QUJD"}}, {"image": b64(1)}]}, "Image 0 of 2: "),
    ],
)
async def test_classify_refuses(client: httpx.AsyncClient, body: Any, message: str) -> None:
    assert message in (await told(client, CLASSIFY, body, status=400))["error"]


async def test_an_encoding_that_is_not_read(client: httpx.AsyncClient) -> None:
    response = await client.post(PREDICT, content=b"x", headers={"Content-Encoding": "br"})
    assert response.status_code == 415
    assert response.json() == {"error": "The content encoding 'br' can't be read; gzip and deflate can."}
    assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    "rest", ["", "/metadata", "/versions/1", ":predict", "/versions/1:predict", "/labels/a:predict"]
)
async def test_a_long_name_is_shortened(client: httpx.AsyncClient, rest: str) -> None:
    response = await client.request("POST" if ":" in rest else "GET", f"/v1/models/{'x' * 8000}{rest}", content=b"{}")
    assert response.status_code == 404
    assert 256 < len(response.json()["error"]) < 400


async def test_regress_is_refused(client: httpx.AsyncClient) -> None:
    message = (
        "Expected regression signature method_name to be tensorflow/serving/regress. Was: tensorflow/serving/predict"
    )
    bodies: tuple[Any, ...] = ({"examples": [{}]}, b"", b"\0")
    for body in bodies:
        assert message in (await told(client, "/v1/models/pear:regress", body, status=400))["error"]
    answer = await told(client, "/v1/models/plum:regress", {}, status=404)
    assert answer == {"error": "Servable not found for request: Latest(plum)"}


def entry(version: str, state: str, code: str = "OK", message: str = "") -> dict[str, Any]:
    return {"version": version, "state": state, "status": {"error_code": code, "error_message": message}}


async def test_status(client: httpx.AsyncClient) -> None:
    every = [
        entry("10", "START"),
        entry("6", "END", "FAILED_PRECONDITION", "weights.safetensors is damaged"),
        entry("5", "START", "UNAVAILABLE", "its files are still changing"),
        entry("4", "UNLOADING"),
        entry("3", "LOADING"),
        entry("2", "AVAILABLE"),
        entry("1", "AVAILABLE"),
    ]
    assert len(every) == len(STATES)
    for path, found in (
        ("", every),
        ("/versions/3", every[4:5]),
        ("/labels/stable", every[6:]),
        ("/labels/split", every[5:]),
    ):
        assert (await client.get(f"/v1/models/pear{path}")).json() == {"model_version_status": found}


async def test_metadata(client: httpx.AsyncClient) -> None:
    for path, version in (("", "2"), ("/versions/0", "2"), ("/versions/1", "1"), ("/labels/stable", "1")):
        body = (await client.get(f"/v1/models/pear{path}/metadata")).json()
        assert body["model_spec"] == {"name": "pear", "signature_name": "", "version": version}
    signatures = body["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {
        *("serving_default", "probabilities", "label", "logits", "routing", "features", "all"),
        *("pixels", "pixels_probabilities", "pixels_label", "pixels_logits", "pixels_routing", "pixels_features"),
        *("pixels_all", "classify"),
    }
    default = signatures["serving_default"]
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["inputs"] == {
        "image": {
            "dtype": "DT_STRING",
            "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
            "name": "serving_default_image:0",
        }
    }
    shapes = {
        (name, side, tensor): ([int(dim["size"]) for dim in entry["tensor_shape"]["dim"]], entry["dtype"])
        for name, signature in signatures.items()
        for side in ("inputs", "outputs")
        for tensor, entry in signature[side].items()
    }
    assert shapes["pixels", "inputs", "pixels"] == ([-1, 32, 32, 3], "DT_UINT8")
    assert shapes["serving_default", "outputs", "probabilities"] == ([-1, CLASSES], "DT_FLOAT")
    assert shapes["serving_default", "outputs", "label"] == ([-1], "DT_STRING")
    assert shapes["routing", "outputs", "routing"] == ([-1, 2, 3], "DT_FLOAT")
    assert shapes["classify", "outputs", "scores"] == ([-1, 5], "DT_FLOAT")
    assert signatures["classify"]["method_name"] == "tensorflow/serving/classify"


async def test_deadline_and_priority_in_the_query(service: tuple[httpx.AsyncClient, House]) -> None:
    client, house = service
    body = {"instances": [b64(1)]}
    assert await told(client, f"{PREDICT}?priority=low&timeout_ms=40000&other=1", body)
    house.free.clear()
    assert "error" in await told(client, f"{PREDICT}?timeout_ms=30", body, status=504)
    house.free.set()
    for query in (
        "timeout_ms=x",
        "timeout_ms=0",
        "timeout_ms=-1",
        "timeout_ms=1.5",
        "timeout_ms=99999999999",
        "timeout_ms=" + "0" * 5000 + "1",
        "priority=urgent",
    ):
        assert query.partition("=")[0] in (await told(client, f"{PREDICT}?{query}", body, status=400))["error"]


async def test_answers_about_pictures_stay_in_no_cache(client: httpx.AsyncClient) -> None:
    response = await client.post(PREDICT, json={"instances": [b64(1)]})
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-request-id"]


async def test_every_route_asks_for_a_key() -> None:
    async with asyncio.timeout(60), opened(keys=KeyRing([])) as (client, _):
        document = (await client.get("/v1/openapi.json")).json()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                response = await client.request(method, re.sub(r"{\w+}", "1", path), content=b"{}")
                assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), path
                assert list(response.json()) == ["error"]
                assert operation["security"]
                assert "401" in operation["responses"]


async def test_the_document_and_its_page(client: httpx.AsyncClient) -> None:
    document = (await client.get("/v1/openapi.json")).json()
    assert len(document["paths"]) == 16
    for path, operations in document["paths"].items():
        for operation in operations.values():
            declared = {entry["name"] for entry in operation.get("parameters", []) if entry["in"] == "path"}
            assert declared == {part[1:].partition("}")[0] for part in path.split("/") if part.startswith("{")}
    for path in ("predict", "classify"):
        example = document["paths"][f"/v1/models/{{name}}:{path}"]["post"]["requestBody"]["content"]["application/json"]
        assert (await client.post(f"/v1/models/pear:{path}", json=example["example"])).status_code == 200
    assert (await client.get("/v1/docs")).status_code == 200


def test_the_picture_is_what_it_should_be() -> None:
    assert base64.b64decode(text64(1)) == photo(1)
    assert info().labels[0].label == LABELS[0]


async def test_damaged_bodies_are_answered_or_refused(client: httpx.AsyncClient) -> None:
    random = np.random.default_rng(0)
    small = {"instances": [{"image": b64(1)}], "signature_name": "routing", "other": [[1, -2.5e3], {"a": ["\\", 0]}]}
    whole = [(PREDICT, json.dumps({"instances": pixels(1)}).encode()[:-2] + b"]}")]
    whole += [(PREDICT, json.dumps(small).encode()), (CLASSIFY, json.dumps({"examples": [{"image": b64(1)}]}).encode())]
    found = set()
    for round_ in range(150):
        path, body = whole[round_ % 3]
        damaged = bytearray(body)
        for place in random.integers(0, len(body), random.integers(1, 4)):
            damaged[place] = random.choice(list(b'[]{}",:0-e.\\ \xff\0b'))
        cut = random.integers(len(body)) if round_ % 5 == 0 else len(body)
        response = await client.post(path, content=bytes(damaged[:cut]))
        found.add(response.status_code)
        if response.status_code != 200:
            assert list(response.json()) == ["error"]
    assert found == {200, 400}

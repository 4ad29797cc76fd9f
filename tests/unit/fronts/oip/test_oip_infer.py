"""Inference over REST: every form of input and output, and what is wrong with others."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from condconv_serve.tasks.classification import softmax
from tests.contract.fronts import House
from tests.unit.fronts.oip.application import (
    INFER,
    MAX_BODY_BYTES,
    MAX_ROWS,
    SIZE,
    binary,
    binary_images,
    image_input,
    opened,
    picture,
    pixel_input,
    pixels,
    raw_images,
    tensors,
)

LOGITS = [{"name": "logits"}]


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with opened() as found:
        yield found


def classes(response: httpx.Response) -> list[int]:
    found = tensors(response)
    assert set(found) == {"logits"}
    return found["logits"].argmax(axis=1).tolist()


def encoded(*shades: int) -> list[str]:
    return [base64.b64encode(picture(shade)).decode() for shade in shades]


# --- inputs


async def test_encoded_images_as_raw_bytes(client: httpx.AsyncClient) -> None:
    images = [picture(shade) for shade in (4, 1, 3)]
    assert classes(await client.post(INFER, **binary_images(*images, outputs=LOGITS))) == [4, 1, 3]


@pytest.mark.parametrize("parameters", [{}, {"content_type": "base64"}, {"headers": "ignored", "own": 1.5}])
async def test_encoded_images_as_base64(client: httpx.AsyncClient, parameters: dict[str, Any]) -> None:
    only = image_input(2, data=encoded(5, 2), parameters=parameters)
    assert classes(await client.post(INFER, json={"inputs": [only], "outputs": LOGITS})) == [5, 2]


@pytest.mark.parametrize(
    "write", [str.strip, lambda text: text.rstrip("="), lambda text: f"data:image/png;base64,{text}"]
)
async def test_base64_as_people_write_it(client: httpx.AsyncClient, write: Any) -> None:
    only = image_input(1, data=[write(encoded(3)[0])])
    assert classes(await client.post(INFER, json={"inputs": [only], "outputs": LOGITS})) == [3]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("form", ["raw", "flat", "nested"])
async def test_pixels(client: httpx.AsyncClient, dtype: Any, form: str) -> None:
    rows = pixels(2, 5, dtype=dtype)
    if form == "raw":
        head = {"inputs": [pixel_input(rows, parameters={"binary_data_size": rows.nbytes})], "outputs": LOGITS}
        response = await client.post(INFER, **binary(head, rows.tobytes()))
    else:
        data = (rows.ravel() if form == "flat" else rows).tolist()
        response = await client.post(INFER, json={"inputs": [pixel_input(rows, data=data)], "outputs": LOGITS})
    assert classes(response) == [2, 5]


async def test_whole_numbers_may_be_written_as_floats(client: httpx.AsyncClient) -> None:
    only = pixel_input(pixels(4), data=pixels(4).ravel().astype(float).tolist())
    assert classes(await client.post(INFER, json={"inputs": [only], "outputs": LOGITS})) == [4]


async def test_a_raw_binary_request_is_one_image(client: httpx.AsyncClient) -> None:
    response = await client.post(INFER, content=picture(2), headers={"Inference-Header-Content-Length": "0"})
    assert response.headers["content-type"] == "application/octet-stream"
    assert tensors(response)["label"].tolist() == ["class 2"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "x-gzip", "identity", ""])
async def test_compressed_requests(client: httpx.AsyncClient, encoding: str) -> None:
    request = binary_images(picture(3), outputs=LOGITS)
    compress = gzip.compress if "gzip" in encoding.lower() else zlib.compress if encoding == "deflate" else bytes
    headers = {**request["headers"], "Content-Encoding": encoding}
    assert classes(await client.post(INFER, content=compress(request["content"]), headers=headers)) == [3]


async def test_aliases_and_versions_in_the_path(client: httpx.AsyncClient) -> None:
    request = binary_images(picture(3), outputs=LOGITS)
    assert classes(await client.post("/v2/models/fake/versions/1/infer", **request)) == [3]
    response = await client.post("/v2/models/fake/versions/2/infer", **request)
    assert (response.status_code, response.json()) == (
        404,
        {"error": "Model fake is not served in version '2'; served are: 1."},
    )


# --- outputs


async def test_without_outputs_there_are_all(client: httpx.AsyncClient) -> None:
    nothing: list[dict[str, Any]] = [{}, {"outputs": []}, {"outputs": None}]
    for asked in nothing:
        response = await client.post(INFER, json={"inputs": [image_input(2, data=encoded(1, 4))], **asked})
        found = tensors(response)
        assert list(found) == ["logits", "routing", "features", "probabilities", "label"]
        np.testing.assert_allclose(found["probabilities"], softmax(found["logits"]), rtol=1e-6)
        np.testing.assert_allclose(found["routing"], np.array([1, 4])[:, None, None] / 255 * np.ones((2, 3)), rtol=1e-6)
        assert found["features"].tolist() == [[1, 254, 1], [4, 251, 1]]
        assert found["label"].tolist() == ["class 1", "class 4"]
        assert "inference-header-content-length" not in response.headers
        assert response.json().items() >= {"model_name": "fake", "model_version": "1"}.items()
        assert "id" not in response.json()


@pytest.mark.parametrize("default", [None, False, True])
@pytest.mark.parametrize("own", [None, False, True])
async def test_which_outputs_are_binary(client: httpx.AsyncClient, default: bool | None, own: bool | None) -> None:
    parameters = {} if default is None else {"binary_data_output": default}
    output: dict[str, Any] = {"name": "label"}
    if own is not None:
        output["parameters"] = {"binary_data": own}
    outputs = [{"name": "routing"}, output, {"name": "probabilities", "parameters": {"binary_data": False}}]
    request = {"parameters": parameters, "inputs": [image_input(1, data=encoded(2))], "outputs": outputs}
    response = await client.post(INFER, json=request)
    found = tensors(response)
    assert list(found) == ["routing", "label", "probabilities"]
    assert found["label"].tolist() == ["class 2"]
    length = response.headers.get("inference-header-content-length")
    head = json.loads(response.content[: int(length)] if length else response.content)
    in_json = ["data" in entry for entry in head["outputs"]]
    assert in_json == [not default, not (default if own is None else own), True]
    assert (length is None) is all(in_json)


@pytest.mark.parametrize("is_binary", [False, True])
async def test_classification(client: httpx.AsyncClient, is_binary: bool) -> None:
    parameters = {"classification": 2, "binary_data": is_binary}
    outputs = [{"name": name, "parameters": parameters} for name in ("probabilities", "logits")]
    request = {"inputs": [image_input(2, data=encoded(3, 0))], "outputs": outputs}
    found = tensors(await client.post(INFER, json=request))
    assert found["logits"].tolist() == [
        ["5.000000:3:class 3", "0.000000:0:class 0"],
        ["5.000000:0:class 0", "0.000000:1:class 1"],
    ]
    assert found["probabilities"][0, 0] == f"{np.exp(5) / (np.exp(5) + 5):f}:3:class 3"


async def test_the_id_comes_back(client: httpx.AsyncClient) -> None:
    for identity in ("42", "", "é\u2028"):
        request = {"id": identity, "inputs": [image_input(1, data=encoded(1))], "outputs": [{"name": "label"}]}
        response = await client.post(INFER, content=json.dumps(request))
        assert response.json()["id"] == identity


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip", "gzip"), ("deflate", "deflate"), ("br, deflate;q=0.5, gzip;q=0.9", "gzip"), ("br", None), ("*", None)],
)
async def test_compressed_answers(client: httpx.AsyncClient, accepted: str, encoding: str | None) -> None:
    outputs = [
        {"name": "label", "parameters": {"binary_data": True}},
        *LOGITS,
        {"name": "probabilities"},
        {"name": "routing"},
    ]
    request = {"inputs": [image_input(5, data=encoded(*range(5)))], "outputs": outputs}
    response = await client.post(INFER, json=request, headers={"Accept-Encoding": accepted})
    assert response.headers.get("content-encoding") == encoding
    assert response.headers["vary"] == "Accept-Encoding"
    assert tensors(response)["label"].tolist() == [f"class {shade}" for shade in range(5)]


# --- what is wrong

ROW = pixels(1)
ONE = image_input(1, data=encoded(1))
WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "inputs must be a list of objects"),
    ({"inputs": {}}, "inputs must be a list of objects"),
    ({"inputs": [1]}, "inputs must be a list of objects"),
    ({"inputs": []}, "no inputs; send image or pixels"),
    ({"inputs": [ONE, pixel_input(ROW, data=ROW.ravel().tolist())]}, "exactly one input, image or pixels, not 2"),
    ({"inputs": [{**ONE, "name": "input0"}]}, "fake has no input 'input0'; it takes image or pixels"),
    ({"inputs": [{**ONE, "name": ["image"]}]}, "fake has no input"),
    ({"inputs": [{**ONE, "datatype": "UINT8"}]}, "Input image is BYTES, not 'UINT8'"),
    ({"inputs": [pixel_input(ROW, data=[1], datatype="FP64")]}, "Input pixels is UINT8 or FP32, not 'FP64'"),
    ({"inputs": [{"name": "image", "data": [""]}]}, "Input image is BYTES, not null"),
    ({"inputs": [{**ONE, "shape": 1}]}, "a list of whole numbers from 0 on, not 1"),
    ({"inputs": [{**ONE, "shape": "1"}]}, "a list of whole numbers|has the shape"),
    ({"inputs": [{**ONE, "shape": [True]}]}, "a list of whole numbers"),
    ({"inputs": [{**ONE, "shape": [-1]}]}, "a list of whole numbers"),
    ({"inputs": [{**ONE, "shape": [1.0]}]}, "a list of whole numbers"),
    ({"inputs": [{**ONE, "shape": []}]}, r"has the shape \[N\], with a row per image, not \[\]"),
    ({"inputs": [{**ONE, "shape": [1, 1]}]}, r"has the shape \[N\]"),
    ({"inputs": [pixel_input(ROW, data=[], shape=[1, 3, SIZE, SIZE])]}, r"has the shape \[N, 32, 32, 3\]"),
    ({"inputs": [{**ONE, "shape": [0], "data": []}]}, "Input image has no rows"),
    ({"inputs": [{**ONE, "shape": [MAX_ROWS + 1]}]}, "has 6 rows; 5 are allowed"),
    ({"inputs": [{**ONE, "shape": [10**30]}]}, "5 are allowed"),
    ({"inputs": [{**ONE, "shape": [2]}]}, r"has 1 elements; its shape \[2\] says otherwise"),
    ({"inputs": [{**ONE, "data": None}]}, "must be a list in JSON"),
    ({"inputs": [{**ONE, "data": "text"}]}, "must be a list in JSON"),
    ({"inputs": [{**ONE, "data": [1]}]}, "elements of input image must be base64 text, not numbers"),
    ({"inputs": [{**ONE, "data": [{"b64": "QQ=="}]}]}, "must be base64 text, not an object"),
    ({"inputs": [{**ONE, "data": ["*"]}]}, "Element 0 of input image is not valid base64"),
    ({"inputs": [{**ONE, "data": [""]}]}, "The image is empty"),
    ({"inputs": [{**ONE, "data": ["QUJD"]}]}, "no image of an accepted format"),
    ({"inputs": [{**ONE, "parameters": {"content_type": "str"}}]}, "content_type of input image may be base64"),
    ({"inputs": [{**ONE, "parameters": []}]}, "parameters of input image must be an object"),
    ({"inputs": [{**ONE, "parameters": {"own": {}}}]}, "'own' of input image must be text, a number"),
    ({"inputs": [{**ONE, "parameters": {"shared_memory_region": "a"}}]}, "asks for shared memory"),
    ({"inputs": [{**ONE, "parameters": {"binary_data_size": 0}}]}, "both data and binary_data_size"),
    ({"inputs": [image_input(1, parameters={"binary_data_size": 9})]}, "9 bytes of binary data, but 0 follow the JSON"),
    ({"inputs": [image_input(1, parameters={"binary_data_size": -1})]}, "a whole number of at least 0, not -1"),
    ({"inputs": [image_input(1, parameters={"binary_data_size": True})]}, "a whole number of at least 0"),
    ({"inputs": [pixel_input(ROW, data=[1, 2])]}, r"of the shape \[3072\] but got 2 numbers in lists that are 1 deep"),
    ({"inputs": [pixel_input(ROW, data=[[1, 2], [3]])]}, r"of the shape \[1, 32, 32, 3\] but got 3 numbers"),
    ({"inputs": [pixel_input(ROW, data=ROW.reshape(64, 48).tolist())]}, r"of the shape \[1, 32, 32, 3\] but got 3072"),
    ({"inputs": [pixel_input(ROW, data=[])]}, "a flat list of numbers from 0 to 255, or lists nested"),
    ({"inputs": [{**ONE, "shape": [1] * 2000}]}, "a list of whole numbers from 0 on, not \\[1, 1"),
    ({"inputs": [{**ONE, "data": [[1]]}]}, "must be base64 text, not numbers"),
    ({"inputs": [pixel_input(ROW, data=["1"] * ROW.size)]}, "numbers from 0 to 255"),
    ({"inputs": [pixel_input(ROW, data=[True] * ROW.size)]}, "numbers from 0 to 255"),
    ({"inputs": [pixel_input(ROW, data=[None] * ROW.size)]}, "numbers from 0 to 255"),
    ({"inputs": [pixel_input(ROW, data=[256] * ROW.size)]}, "whole numbers from 0 to 255, as it is UINT8"),
    ({"inputs": [pixel_input(ROW, data=[0.5] * ROW.size)]}, "whole numbers from 0 to 255, as it is UINT8"),
    ({"inputs": [pixel_input(ROW, data=[10**400, *[1] * (ROW.size - 1)])]}, "in a list of numbers, int too large"),
    ({"inputs": [pixel_input(ROW, data=[256] * ROW.size, datatype="FP32")]}, "on the scale 0 to 255"),
    ({"inputs": [ONE], "outputs": [{"name": "boxes"}]}, "fake has no output 'boxes'; it has logits, routing"),
    ({"inputs": [ONE], "outputs": [{}]}, "fake has no output null"),
    ({"inputs": [ONE], "outputs": "logits"}, "outputs must be a list of objects"),
    ({"inputs": [ONE], "outputs": False}, "outputs must be a list of objects"),
    ({"inputs": [ONE], "outputs": LOGITS * 2}, "logits is asked for more than once"),
    ({"inputs": [ONE], "outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, "must be true or false"),
    ({"inputs": [ONE], "outputs": [{"name": "label", "parameters": {"classification": 1}}]}, "not for label"),
    ({"inputs": [ONE], "outputs": [{"name": "logits", "parameters": {"classification": 7}}]}, "from 1 to 6"),
    ({"inputs": [ONE], "outputs": [{"name": "logits", "parameters": {"classification": "2"}}]}, "a whole number"),
    (
        {"inputs": [ONE], "outputs": [{"name": "logits", "parameters": {"shared_memory_region": "a"}}]},
        "Output logits asks for shared memory",
    ),
    ({"inputs": [{**ONE, "datatype": [3]}]}, r"Input image is BYTES, not \[3\]"),
    ({"inputs": [{**ONE, "shape": [True]}]}, r"from 0 on, not \[true\]"),
    ({"inputs": [{**ONE, "shape": [-1]}]}, r"from 0 on, not \[-1\]"),
    ({"inputs": [ONE], "outputs": [{"name": {"a": [1]}}]}, "fake has no output {"),
    ({"inputs": [ONE], "id": 5}, "id must be text, not 5"),
    ({"inputs": [ONE], "id": "\ud800"}, "JSON Parse error"),
    ({"inputs": [ONE], "parameters": [1]}, "parameters of the request must be an object"),
    ({"inputs": [ONE], "parameters": {"priority": 4}}, r"1 \(high\), 2 \(normal\), 3 \(low\)"),
    ({"inputs": [ONE], "parameters": {"priority": True}}, r"1 \(high\)"),
    ({"inputs": [ONE], "parameters": {"timeout": -1}}, "in microseconds, must be a whole number"),
    ({"inputs": [ONE], "parameters": {"timeout": 0.5}}, "in microseconds, must be a whole number"),
    ({"inputs": [ONE], "parameters": {"timeout": 60_000_001}}, "at most 60000000 microseconds, not 60000001"),
    ({"inputs": [ONE], "parameters": {"binary_data_output": "yes"}}, "binary_data_output of the request must be true"),
]


@pytest.mark.parametrize(("request_", "message"), WRONG)
async def test_what_is_wrong_is_400_and_says_what_is_allowed(
    client: httpx.AsyncClient, request_: dict[str, Any], message: str
) -> None:
    response = await client.post(INFER, content=json.dumps(request_))
    assert response.status_code == 400, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    with pytest.raises(ValueError, match=message):
        raise ValueError(body["error"])


RAW = raw_images(picture(1))
GOOD = {"inputs": [image_input(1, parameters={"binary_data_size": len(RAW)})]}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (binary(GOOD, RAW + b"#"), "but 9[0-9] follow the JSON|bytes of binary data, but"),
        (binary(GOOD, RAW[:-1]), "bytes of binary data, but"),
        (binary(GOOD, b"\xff" * len(RAW)), "says that it has 4294967295 bytes"),
        (binary({"inputs": [ONE]}, RAW), "bytes follow the JSON, but input image has no parameter binary_data_size"),
        (binary({"inputs": [image_input(2, parameters=GOOD["inputs"][0]["parameters"])]}, RAW), "1 elements, not 2"),
        (binary_images(picture(1), b""), "Image 1 of 2 is empty"),
        (
            {"content": b"{}", "headers": {"Inference-Header-Content-Length": "3"}},
            "from 0 to 2, the length of the body",
        ),
        ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "-1"}}, "from 0 to 2"),
        ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "two"}}, "not 'two'"),
        ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "1"}}, "JSON Parse error"),
        ({"content": b"{}", "headers": [("Inference-Header-Content-Length", size) for size in "20"]}, "not '2, 0'"),
        ({"content": b"", "headers": {"Inference-Header-Content-Length": "0"}}, "The body is empty"),
        ({"content": b""}, "JSON Parse error"),
        ({"content": b"[]"}, "Is not object"),
        ({"content": b"\xff{}"}, "JSON Parse error"),
        ({"content": b"not gzip", "headers": {"Content-Encoding": "gzip"}}, "can't be decompressed as gzip"),
        ({"content": gzip.compress(b"{}")[:-3], "headers": {"Content-Encoding": "gzip"}}, "it ends early"),
        ({"content": gzip.compress(b"{}") + b"#", "headers": {"Content-Encoding": "gzip"}}, "it ends late"),
    ],
)
async def test_bodies_that_lie(client: httpx.AsyncClient, request_: dict[str, Any], message: str) -> None:
    response = await client.post(INFER, **request_)
    assert (response.status_code, list(response.json())) == (400, ["error"])
    with pytest.raises(ValueError, match=message):
        raise ValueError(response.json()["error"])


async def test_one_bad_image_fails_the_request_and_is_named(client: httpx.AsyncClient) -> None:
    response = await client.post(INFER, **binary_images(picture(1), picture(2), b"no image", picture(3)))
    assert response.status_code == 400
    assert response.json()["error"].startswith("Image 2 of 4: These bytes are no image")


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (b"{" + b" " * MAX_BODY_BYTES + b"}", ""),
        (gzip.compress(bytes(50 * MAX_BODY_BYTES)), "gzip"),
        (zlib.compress(bytes(50 * MAX_BODY_BYTES)), "deflate"),
    ],
)
async def test_bodies_that_are_too_large(client: httpx.AsyncClient, content: bytes, encoding: str) -> None:
    response = await client.post(INFER, content=content, headers={"Content-Encoding": encoding})
    assert response.status_code == 413
    assert f"more than {MAX_BODY_BYTES} bytes" in response.json()["error"]


async def test_other_encodings(client: httpx.AsyncClient) -> None:
    response = await client.post(INFER, content=b"{}", headers={"Content-Encoding": "br"})
    assert response.status_code == 415
    assert response.json() == {"error": "The content encoding 'br' can't be read; gzip and deflate can."}
    assert response.headers["accept-encoding"] == "gzip, deflate"


async def test_an_unknown_model_is_refused_before_its_body_is_read(client: httpx.AsyncClient) -> None:
    response = await client.post("/v2/models/pear/infer", content=b"no JSON")
    assert (response.status_code, response.json()) == (
        404,
        {"error": "Model 'pear' is not served; served are: fake."},
    )


async def test_refusals_say_when_to_try_again() -> None:
    house = House(max_queue_rows=2)
    async with opened(house) as client:
        response = await client.post(INFER, **binary_images(*[picture(1)] * 3))
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert response.json().keys() == {"error"}

"""The Open Inference Protocol over sockets: the same answers as the native interface, compressed or not."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests import pictures
from tests.e2e.server import MODEL, Server, new_client, wait_for

INFER = f"/v2/models/{MODEL}/infer"
PHOTOS = [
    pictures.jpeg(pictures.photo(name, (60 + 5 * step, 90 - 5 * step)))
    for name in ("coffee", "cat")
    for step in range(4)
]


@pytest.fixture
def client(fake_server: Server) -> Iterator[httpx.Client]:
    with new_client(fake_server.url, connections=len(PHOTOS)) as found:
        found.headers["Accept-Encoding"] = "identity"
        yield found


def in_binary(photo: bytes) -> dict[str, Any]:
    raw = len(photo).to_bytes(4, "little") + photo
    only = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [only], "outputs": outputs}).encode()
    return {"content": head + raw, "headers": {"Inference-Header-Content-Length": str(len(head))}}


def in_json(photo: bytes) -> dict[str, Any]:
    data = [base64.b64encode(photo).decode()]
    only = {"name": "image", "shape": [1], "datatype": "BYTES", "data": data}
    return {"json": {"inputs": [only], "outputs": [{"name": "probabilities"}]}}


def compressed(photo: bytes) -> dict[str, Any]:
    request = in_binary(photo)
    headers = {**request["headers"], "Content-Encoding": "gzip", "Accept-Encoding": "deflate"}
    return {"content": gzip.compress(request["content"]), "headers": headers}


def probabilities(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    length = int(response.headers.get("inference-header-content-length", len(response.content)))
    (output,) = json.loads(response.content[:length])["outputs"]
    values = output["data"] if "data" in output else np.frombuffer(response.content[length:], "<f4")
    return np.reshape(values, output["shape"])


@pytest.mark.parametrize("write", [in_binary, in_json, compressed])
def test_the_same_answers_as_predict_all_at_once(client: httpx.Client, write: Any) -> None:
    with ThreadPoolExecutor(len(PHOTOS)) as pool:
        found = list(pool.map(lambda photo: client.post(INFER, **write(photo)), PHOTOS))
        expected = list(pool.map(lambda photo: client.post("/predict?top_k=5", content=photo), PHOTOS))
    for response, predicted in zip(found, expected, strict=True):
        # The fake rounds differently in batches of different sizes, and these are of any.
        assert_same(response, predicted, within=1e-5)
        assert response.headers.get("content-encoding") == ("deflate" if write is compressed else None)


def test_the_same_answers_as_predict_one_by_one(client: httpx.Client) -> None:
    for photo in PHOTOS[:3]:
        predicted = client.post("/predict?top_k=5", content=photo)
        assert_same(client.post(INFER, **in_binary(photo)), predicted, within=1e-7)


def assert_same(response: httpx.Response, predicted: httpx.Response, *, within: float) -> None:
    (row,) = probabilities(response)
    classes = predicted.json()["predictions"][0]["classes"]
    indexes = [each["index"] for each in classes]
    assert indexes == np.argsort(-row, kind="stable")[:5].tolist()
    np.testing.assert_allclose(row[indexes], [each["probability"] for each in classes], rtol=0, atol=within)


def test_pixels_are_what_the_network_gets(client: httpx.Client) -> None:
    size = client.get(f"/v2/models/{MODEL}").json()["inputs"][1]["shape"][1]
    colours = np.array([(200, 30, 90), (10, 120, 250)], np.uint8)
    rows = np.broadcast_to(colours[:, None, None], (2, size, size, 3))
    answers = []
    for array, datatype in ((rows, "UINT8"), (rows.astype("<f4"), "FP32")):
        only = {
            "name": "pixels",
            "shape": list(rows.shape),
            "datatype": datatype,
            "parameters": {"binary_data_size": array.nbytes},
        }
        head = json.dumps({"inputs": [only], "outputs": [{"name": "probabilities"}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        answers.append(probabilities(client.post(INFER, content=head + array.tobytes(), headers=headers)))
    np.testing.assert_array_equal(answers[0], answers[1])
    for row, colour in zip(answers[0], colours, strict=True):
        picture = pictures.png(np.broadcast_to(colour, (50, 70, 3)))
        best = client.post("/predict", content=picture).json()["predictions"][0]["classes"][0]
        assert row[best["index"]] == pytest.approx(best["probability"], abs=1e-6)


def test_what_happened_can_be_seen(client: httpx.Client, fake_server: Server) -> None:
    def stats() -> dict[str, Any]:
        (found,) = client.get(f"/v2/models/{MODEL}/stats").json()["model_stats"]
        return dict(found)

    before, traced = stats(), "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{traced}-b7ad6b7169203331-00", "X-Request-Id": "by-oip"}
    request = in_json(PHOTOS[0])
    answer = client.post(INFER, headers=headers, **request)
    assert (answer.headers["x-request-id"], traced in answer.headers["traceresponse"]) == ("by-oip", True)
    after = stats()
    assert after["inference_count"] >= before["inference_count"] + 1
    assert after["execution_count"] >= before["execution_count"] + 1
    assert sum(batch["compute_infer"]["count"] for batch in after["batch_stats"]) == after["execution_count"]
    labels = 'front="oip",method="POST",route="/v2/models/{model}/infer"'

    def counted() -> float:
        return sum(
            value
            for name, value in fake_server.metrics().items()
            if name.startswith("condconv_requests_total{") and labels in name
        )

    wait_for(lambda: counted() > 0)  # with workers another front may be asked, before this one has counted
    wait_for(lambda: "by-oip" in fake_server.log)


def test_the_index_and_readiness(client: httpx.Client) -> None:
    assert client.post("/v2/repository/index").json() == [
        {"name": MODEL, "version": "1", "state": "READY", "reason": ""}
    ]
    for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready"):
        assert client.get(path).status_code == 200

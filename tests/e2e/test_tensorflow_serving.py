"""TensorFlow Serving's protocol over sockets: the same answers as by our own interface; labels are aliases."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from condconv_serve.fronts.tfserving.grpc import MESSAGES, PREDICTION_SERVICE
from condconv_serve.fronts.tfserving.tensors import DT_STRING
from condconv_serve.samples import SAMPLES
from condconv_serve.store.aliases import set_alias
from tests.e2e.server import MODEL, Server, new_client, sample_name, wait_for
from tests.e2e.tiny_models import write_fake

PREDICT = f"/v1/models/{MODEL}:predict"
PHOTOS = [path.read_bytes() for path in SAMPLES]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    for version in (1, 2):
        write_fake(store, MODEL, version)
    set_alias(store, MODEL, "stable", {"1": 1})
    with Server(model_store=store, grpc_port=0) as running:
        wait_for(lambda: len(running.client.get(f"/models/{MODEL}").json().get("versions", [])) == 2)
        yield running


def probabilities_of(client: httpx.Client, photo: bytes) -> Any:
    """By our own interface, by index."""
    (prediction,) = client.post("/predict?top_k=16", content=photo).json()["predictions"]
    return [entry["probability"] for entry in sorted(prediction["classes"], key=lambda entry: entry["index"])]


def test_the_same_answers_all_at_once(server: Server) -> None:
    client = server.client
    expected = np.array([probabilities_of(client, photo) for photo in PHOTOS])

    def ask(photo: bytes) -> Any:
        body = {"instances": [{"b64": base64.b64encode(photo).decode()}]}
        return many.post(PREDICT, json=body).json()["predictions"][0]["probabilities"]

    with new_client(server.url, connections=8) as many, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, PHOTOS * 4))
    np.testing.assert_allclose(found, np.tile(expected, (4, 1)), rtol=1e-6, atol=1e-9)


def test_the_same_answers_over_grpc(server: Server) -> None:
    port = re.search(r"gRPC on 127\.0\.0\.1:(\d+)", server.log)
    assert port, server.log
    request, response = (MESSAGES.message(f"tensorflow.serving.Predict{kind}") for kind in ("Request", "Response"))
    asked = request(output_filter=["probabilities", "label"])
    asked.model_spec.name = MODEL
    asked.inputs["image"].dtype = DT_STRING
    asked.inputs["image"].tensor_shape.dim.add().size = len(PHOTOS)
    asked.inputs["image"].string_val.extend(PHOTOS)
    with grpc.insecure_channel(f"127.0.0.1:{port[1]}") as channel:
        predict = channel.unary_unary(
            f"/{PREDICTION_SERVICE}/Predict",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        answer = predict(asked, timeout=30)
        asked.model_spec.name = "plum"
        with pytest.raises(grpc.RpcError) as refused:
            predict(asked, timeout=30)
    assert (answer.model_spec.name, answer.model_spec.version.value) == (MODEL, 2)
    found = np.array(answer.outputs["probabilities"].float_val).reshape(len(PHOTOS), -1)
    expected = [probabilities_of(server.client, photo) for photo in PHOTOS]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    labels = {"front": "tfserving-grpc", "route": f"/{PREDICTION_SERVICE}/Predict", "method": "POST"}
    for code in (200, 404):  # a call that is refused is counted after its answer
        counted = sample_name("condconv_requests_total", code=code, **labels)
        wait_for(lambda counted=counted: server.metrics().get(counted) == 1)  # type: ignore[misc]


def test_labels_are_aliases(server: Server) -> None:
    photo = base64.b64encode(PHOTOS[0]).decode()
    versions = {}
    for path in ("", "/versions/1", "/labels/stable"):
        metadata = server.client.get(f"/v1/models/{MODEL}{path}/metadata").json()
        body = {"instances": [photo], "signature_name": "logits"}
        (logits,) = server.client.post(f"/v1/models/{MODEL}{path}:predict", json=body).json()["predictions"]
        versions[path] = (metadata["model_spec"]["version"], logits)
    assert versions[""][0] == "2"
    assert versions["/labels/stable"] == versions["/versions/1"]
    assert versions["/labels/stable"][1] != versions[""][1]
    states = server.client.get(f"/v1/models/{MODEL}").json()["model_version_status"]
    assert [(each["version"], each["state"]) for each in states] == [("2", "AVAILABLE"), ("1", "AVAILABLE")]


def test_compressed_bodies(server: Server) -> None:
    body = json.dumps({"instances": [base64.b64encode(PHOTOS[0]).decode()]}).encode()
    packed = server.client.post(PREDICT, content=gzip.compress(body), headers={"Content-Encoding": "gzip"})
    assert packed.json() == server.client.post(PREDICT, content=body).json()
    torn = server.client.post(PREDICT, content=gzip.compress(body)[:-9], headers={"Content-Encoding": "gzip"})
    assert (torn.status_code, list(torn.json())) == (400, ["error"])


def test_many_rows_of_pixels(server: Server) -> None:
    signatures = server.client.get(f"/v1/models/{MODEL}/metadata").json()["metadata"]["signature_def"]["signature_def"]
    size = int(signatures["pixels"]["inputs"]["pixels"]["tensor_shape"]["dim"][1]["size"])
    random = np.random.default_rng(0).integers(0, 256, (20, size, size, 3))
    content = json.dumps({"instances": random.tolist()}).encode()
    answer = server.client.post(PREDICT, content=content)
    assert answer.status_code == 200, answer.text
    found = [row["probabilities"] for row in answer.json()["predictions"]]
    alone = server.client.post(PREDICT, json={"inputs": {"pixels": random[7:8].tolist()}}).json()["outputs"]
    np.testing.assert_allclose(found[7], alone["probabilities"][0], rtol=1e-5)


def test_errors_of_the_server_itself(server: Server) -> None:
    assert server.client.get("/v1").json() == {"error": "Malformed request: GET /v1"}
    assert server.client.get("/v10").json()["slug"] == "not_found", "our own interface has that"
    unknown = server.client.post("/v1/models/plum:predict", content=b"x" * 100)
    assert (unknown.status_code, unknown.json()) == (404, {"error": "Servable not found for request: Latest(plum)"})
    assert unknown.headers["x-request-id"]

"""`POST /features` of the model that is shipped: true features, since its last layer makes its own logits of them."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from condconv_serve.samples import SAMPLES
from condconv_serve.store import open_bundle, read_weights
from condconv_serve.tasks.classification import softmax
from tests.e2e.server import MODEL, ROOT

FILES: list[Any] = [("image", (sample.name, sample.read_bytes())) for sample in SAMPLES]


@pytest.fixture(scope="module")
def arrays(real_server: Any) -> dict[str, NDArray[Any]]:
    response = real_server.client.post(f"/features?model={MODEL}&logits=true&format=npz", files=FILES)
    assert response.status_code == 200, response.text
    with np.load(io.BytesIO(response.content), allow_pickle=False) as found:
        return dict(found)


def test_the_last_layer_makes_the_logits_of_the_features(arrays: dict[str, NDArray[Any]]) -> None:
    weights = read_weights(open_bundle(ROOT / "model_store" / MODEL / "1"))
    kernel, bias = (weights[f"logits/{name}"].astype(np.float64) for name in ("kernel", "bias"))
    assert arrays["features"].shape == (len(SAMPLES), len(kernel))
    expected = arrays["features"].astype(np.float64) @ kernel + bias
    assert np.abs(arrays["logits"] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_logits_are_those_of_the_probabilities(client: httpx.Client, arrays: dict[str, NDArray[Any]]) -> None:
    entries = client.post(f"/predict?model={MODEL}&top_k=1", files=FILES).json()["predictions"]
    best = [(entry["classes"][0]["index"], entry["classes"][0]["probability"]) for entry in entries]
    found = softmax(arrays["logits"])
    assert [index for index, _ in best] == found.argmax(axis=1).tolist()
    np.testing.assert_allclose([probability for _, probability in best], found.max(axis=1), rtol=1e-5)


def test_features_alone_and_in_a_batch(client: httpx.Client, arrays: dict[str, NDArray[Any]]) -> None:
    for place, (_, (_, data)) in enumerate(FILES):
        response = client.post(f"/features?model={MODEL}", content=data, headers={"Accept": "application/octet-stream"})
        assert response.headers["x-features-model"] == f"{MODEL}/1"
        alone = np.frombuffer(response.content, "<f4")
        together = arrays["features"][place]
        assert np.abs(alone - together).max() <= 1e-5 * np.abs(together).max()


def test_a_model_names_its_features(client: httpx.Client) -> None:
    outputs = client.get(f"/models/{MODEL}").json()["outputs"]
    assert {"name": "features", "shape": [1280], "dtype": "float32"} in outputs

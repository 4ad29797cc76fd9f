"""Routing over real HTTP: one image in every form, live traffic, ablation beside it."""

from __future__ import annotations

import csv
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from condconv_serve.samples import SAMPLES
from tests.e2e.server import MODEL, RunningServer, Server, assert_problem, new_client, top, wait_for

BLOCKS = [f"block_{i}" for i in range(8, 16)]


def weights(entry: dict[str, dict[str, list[float]]]) -> np.ndarray:
    return np.array([entry["routing"][block] for block in BLOCKS], np.float32)


def test_every_form_tells_the_same(client: httpx.Client, coffee: bytes, cat: bytes) -> None:
    def files() -> list[tuple[str, tuple[str, bytes]]]:
        return [("image", ("coffee.jpg", coffee)), ("image", ("cat.jpg", cat))]

    entries = client.post("/routing", files=files()).json()["predictions"]
    expected = np.stack([weights(entry) for entry in entries])
    lines = list(csv.DictReader(io.StringIO(client.post("/routing?format=csv", files=files()).text)))
    from_csv = np.array([np.float32(line["weight"]) for line in lines]).reshape(expected.shape)
    from_npz = np.load(io.BytesIO(client.post("/routing?format=npz", files=files()).content))["routing"]
    # Batches may be others each time, and so the last digits.
    np.testing.assert_allclose(from_csv, expected, atol=1e-5)
    np.testing.assert_allclose(from_npz, expected, atol=1e-5)
    picture = Image.open(io.BytesIO(client.post("/routing?format=png", files=files()).content))
    assert picture.width > picture.height > 200
    svg = client.post("/routing", files=files(), headers={"accept": "image/svg+xml"}).text
    assert "<!-- coffee.jpg -->" in svg
    assert "<!-- cat.jpg -->" in svg


def test_the_shipped_model_has_a_reference(client: httpx.Client, coffee: bytes) -> None:
    insight = client.post("/routing", content=coffee).json()["predictions"][0]["insight"]
    assert 0 < insight["reference_distance"] < 1
    assert 0.1 < insight["typical_distance"] < insight["unusual_above"] < 0.4
    assert insight["reference_images"] == 250
    for photo in SAMPLES:  # they are like those that the model was made for
        assert (
            client.post("/routing", content=photo.read_bytes()).json()["predictions"][0]["insight"]["unusual"] is False
        )
    body = client.get("/routing").json()
    assert body["reference"]["images"] == 250
    assert [block["block"] for block in body["reference"]["blocks"]] == BLOCKS


def test_live_traffic_is_counted(fake_server: Server, coffee: bytes, cat: bytes) -> None:
    """From several connections at once; what the answers said is what was counted."""
    server = fake_server
    best, other = (top(server.client.post("/predict", content=photo)) for photo in (coffee, cat))
    assert best != other
    server.client.post("/routing/reset")

    def ask(number: int) -> np.ndarray:
        with new_client(server.url) as client:
            answer = client.post("/predict?routing=true", content=(coffee, cat)[number % 2])
            assert answer.status_code == 200, answer.text
            return weights(answer.json()["predictions"][0])

    with ThreadPoolExecutor(6) as threads:
        answered = np.stack(list(threads.map(ask, range(40)))).astype(np.float64)
    for window in ("1m", "15m", "all"):
        body = server.client.get(f"/routing?window={window}").json()
        assert body["images"] == 40
        mean = np.array([[e["mean"] for e in block["experts"]] for block in body["blocks"]])
        deviation = np.array([[e["deviation"] for e in block["experts"]] for block in body["blocks"]])
        np.testing.assert_allclose(mean, answered.mean(axis=0), rtol=0, atol=1e-6)
        np.testing.assert_allclose(deviation, answered.std(axis=0), rtol=0, atol=1e-6)
    assert sum(c["images"] for c in body["classes"]["most_frequent"]) == 40
    of_class = server.client.get(f"/routing/classes/{best}?window=all").json()
    np.testing.assert_allclose(weights(of_class), answered[::2].mean(axis=0), rtol=0, atol=1e-6)


def test_ablation(client: httpx.Client, coffee: bytes) -> None:
    before = client.post("/routing?top_k=1", content=coffee).json()["predictions"][0]
    body = client.post("/routing/ablation?routing=true", content=coffee).json()
    assert body["model"]["name"] == MODEL
    assert len(body["variants"]) == 8 * 4 + 8
    assert body["top"]["index"] == before["classes"][0]["index"] == 967
    assert body["top"]["probability"] == pytest.approx(before["classes"][0]["probability"], abs=1e-3)
    np.testing.assert_allclose(weights(body), weights(before), atol=1e-3)
    off = [variant for variant in body["variants"] if "off" in variant["changes"][0]]
    for variant in off:
        (change,) = variant["changes"]
        assert variant["routing"][change["block"]][change["off"][0]] == 0
    assert len({round(variant["probability"], 6) for variant in off}) > 20
    as_it_is = [{"block": block, "weights": body["routing"][block]} for block in BLOCKS]
    document = {"images": [{"data": _base64(coffee)}], "variants": [{"changes": as_it_is}]}
    (same,) = client.post("/routing/ablation", json=document).json()["variants"]
    assert same["difference"] == pytest.approx(0, abs=1e-5)


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_many_ablations_are_refused_and_leave_ordinary_traffic_alone(server: RunningServer, coffee: bytes) -> None:
    stop, statuses = threading.Event(), []

    def ablate() -> None:
        with new_client(server.url) as client:
            while not stop.is_set():
                response = client.post("/routing/ablation", content=coffee)
                if response.status_code != 200:
                    assert_problem(response, 429, "ablation_busy", "ablations are waiting")
                    assert float(response.headers["retry-after"]) >= 1
                    time.sleep(0.02)
                statuses.append(response.status_code)

    with ThreadPoolExecutor(8) as threads:
        tasks = [threads.submit(ablate) for _ in range(8)]
        try:
            wait_for(lambda: 429 in statuses)  # as many as are let in are there from now on
            for _ in range(20):
                answer = server.client.post("/predict", content=coffee)
                assert answer.status_code == 200, answer.text
        finally:
            stop.set()
    for task in tasks:
        task.result()
    assert {200, 429} <= set(statuses)

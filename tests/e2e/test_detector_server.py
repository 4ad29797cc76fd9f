"""A server whose default model is a detector, over sockets: what it finds, what it says of itself, its examples."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from condconv_serve.store.default import set_default
from tests.e2e.documented import example_requests
from tests.e2e.server import MODEL, Server, assert_problem, wait_for
from tests.e2e.tiny_models import write_colour_detector, write_fake
from tests.pictures import encode
from tests.unit.fronts.native.routing_service import patched

PHOTO = encode(patched(("red", (40, 40, 50, 60)), ("blue", (0, 0, 10, 20)), size=(80, 160)), "PNG")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    write_colour_detector(store)
    write_fake(store, MODEL, 1)
    set_default(store, "colours")
    with Server(model_store=store) as running:
        yield running


def test_objects_of_the_default_model(client: httpx.Client) -> None:
    response = client.post("/detect?score_threshold=0.4", content=PHOTO)
    assert response.headers["cache-control"] == "no-store"
    (entry,) = response.json()["predictions"]
    assert {found["label"] for found in entry["detections"]} == {"red", "blue"}
    assert (entry["width"], entry["height"]) == (80, 160)


def test_each_form_of_the_documented_example_runs(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/detect"]["post"]
    path, requests = example_requests("/detect", operation)
    assert len(requests) == 4
    for media_type, request in requests:
        response = client.post(path, **request)
        assert response.is_success, (media_type, response.text)


def test_what_the_detector_is(client: httpx.Client) -> None:
    summaries = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert {name: model["task"] for name, model in summaries.items()} == {
        "colours": "detection",
        MODEL: "classification",
    }
    assert summaries["colours"]["num_classes"] == 3
    model = client.get("/models/colours").json()
    assert (model["task"], model["labels"]) == ("detection", ["red", "green", "blue"])
    assert model["outputs"] == [
        {"name": "boxes", "shape": [64, 4], "dtype": "float32"},
        {"name": "scores", "shape": [64, 3], "dtype": "float32"},
        {"name": "routing", "shape": [2, 3], "dtype": "float32"},
    ]


@pytest.mark.parametrize("path", ["/predict", "/features"])
def test_what_no_detector_does(client: httpx.Client, path: str) -> None:
    says = (
        "You named no model, and the default one, colours, is for detection: use POST /detect, or name a model. Models "
    )
    response = client.post(path, content=PHOTO)
    assert_problem(response, 422, "invalid_parameter", f"{says}for classification here: {MODEL}.")
    assert client.post(path, params={"model": MODEL}, content=PHOTO).is_success


def test_ablation(client: httpx.Client) -> None:
    body = client.post("/routing/ablation?blocks=block_1", content=PHOTO).json()
    assert {found["label"] for found in body["detections"]} == {"red", "blue"}
    lost = {variant["name"]: len(variant["lost"]) for variant in body["variants"]}
    reds = sum(found["label"] == "red" for found in body["detections"])
    assert lost["block_1 without expert 0"] == reds > 0
    assert lost["block_1 without expert 1"] == lost["block_1 uniform"] == 0


def test_metrics_by_route(server: Server) -> None:
    def counted() -> float:
        return server.metrics().get(
            'condconv_requests_total{code="200",front="native",method="POST",route="/detect"}', 0
        )

    before = counted()
    assert server.client.post("/detect", content=PHOTO).is_success
    wait_for(lambda: counted() == before + 1)

"""`POST /detect`, and what the other routes say of a detector."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.native.task_of_route import demand_task
from condconv_serve.routing.drawer import Drawer
from tests import pictures
from tests.contract.fakes import FakeModels, model_info, served_model, shade_detector
from tests.pictures import encode
from tests.unit.fronts.native.routing_service import ANN, BOB, assert_problem, image, patched, running

RED = ("red", (16, 8, 24, 12))
BLUE = ("blue", (0, 16, 8, 20))
PHOTO = encode(patched(RED, BLUE), "PNG")
FINDER: dict[str, Any] = {"model": "finder"}


def boxes(response: httpx.Response) -> list[list[tuple[str, tuple[float, ...]]]]:
    """Labels and boxes in pixels of each image, ordered by label."""
    assert response.status_code == 200, response.text
    return [
        sorted((found["label"], tuple(found["box"].values())) for found in entry["detections"])
        for entry in response.json()["predictions"]
    ]


BOTH = [("blue", (0, 16, 8, 20)), ("red", (16, 8, 24, 12))]


@pytest.mark.asyncio(loop_scope="module")
async def test_objects_in_pixels_and_in_shares_of_the_photo(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.post("/detect", params=FINDER, content=PHOTO)
    assert boxes(response) == [BOTH]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert body["model"] == {"name": "finder", "version": "1"}
    (entry,) = body["predictions"]
    assert list(entry) == ["id", "width", "height", "detections", "timings_ms", "batch_size"]
    assert (entry["id"], entry["width"], entry["height"]) == ("0", 64, 32)
    scores = [found["score"] for found in entry["detections"]]
    assert scores == sorted(scores, reverse=True)
    red = next(found for found in entry["detections"] if found["label"] == "red")
    assert list(red) == ["index", "label", "score", "box", "box_normalized"]
    assert red["box_normalized"] == {"xmin": 16 / 64, "ymin": 8 / 32, "xmax": 24 / 64, "ymax": 12 / 32}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_class_may_have_a_synset(shared_client: httpx.AsyncClient) -> None:
    green = encode(patched(("lime", (0, 0, 8, 4))), "PNG")
    (entry,) = (await shared_client.post("/detect", params=FINDER, content=green)).json()["predictions"]
    assert [(found["label"], found["synset"]) for found in entry["detections"]] == [("green", "n1")]


@pytest.mark.parametrize(
    "given", [{"score_threshold": 0.99}, {"max_detections": 1}, {"iou_threshold": 0, "routing": True}]
)
@pytest.mark.asyncio(loop_scope="module")
async def test_all_forms_say_the_same(shared_client: httpx.AsyncClient, given: dict[str, Any]) -> None:
    asked: list[dict[str, Any]] = [
        {"params": {**FINDER, **given}, "content": PHOTO},
        {"data": {**FINDER, **{k: str(v) for k, v in given.items()}}, "files": [("image", ("a.png", PHOTO))]},
        {"json": {"images": [base64.b64encode(PHOTO).decode()], **FINDER, **given}},
    ]
    count = {"score_threshold": 0, "max_detections": 1, "iou_threshold": 2}[next(iter(given))]
    for options in asked:
        response = await shared_client.post("/detect", **options)
        assert len(boxes(response)[0]) == count
        assert ("routing" in response.json()["predictions"][0]) is ("routing" in given)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 5])
@pytest.mark.asyncio(loop_scope="module")
async def test_boxes_lie_in_the_upright_photo(shared_client: httpx.AsyncClient, orientation: int) -> None:
    stored = pictures.oriented(np.asarray(patched(RED, BLUE)), orientation, "PNG")
    response = await shared_client.post("/detect", params=FINDER, content=stored)
    assert boxes(response) == [BOTH]
    (entry,) = response.json()["predictions"]
    assert (entry["width"], entry["height"]) == (64, 32)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_image_that_fails_among_others(shared_client: httpx.AsyncClient) -> None:
    files = [("image", (name, data)) for name, data in (("a", PHOTO), ("b", b"x"), ("c", image(90)))]
    response = await shared_client.post("/detect?model=finder&routing=1", files=files)
    first, bad, last = response.json()["predictions"]
    assert len(first["detections"]) == 2
    assert first["routing"].keys() == {"block_1", "block_2"}
    assert bad.keys() == {"id", "filename", "error"}
    assert bad["error"]["slug"] == "unsupported_image"
    assert last["detections"] == []
    assert_problem(await shared_client.post("/detect?model=finder", content=b"x"), 415, "unsupported_image")


BAD_VALUES = [
    ("score_threshold", ["-0.1", "1.1", "nan", "inf", "-inf", "half", "", "1e400", "[0.5]"]),
    ("iou_threshold", ["-0.1", "2", "NaN", "infinity", "x"]),
    ("max_detections", ["0", "-1", "1001", "1e30", "9" * 5000, "2.5", "nan", "inf", "x", ""]),
    ("routing", ["maybe"]),
    ("top_k", ["1"]),
    ("threshold", ["0.5"]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_VALUES for value in values])
@pytest.mark.asyncio(loop_scope="module")
async def test_impossible_values(shared_client: httpx.AsyncClient, name: str, value: str) -> None:
    response = await shared_client.post("/detect", params={**FINDER, name: value}, content=PHOTO)
    assert_problem(response, 422, "invalid_parameter", f"{name}: ")
    assert len(response.json()["detail"]) < 500


@pytest.mark.parametrize("name", ["score_threshold", "iou_threshold", "max_detections"])
@pytest.mark.parametrize("value", ["true", "NaN", "-Infinity", "null", "[1]", '"half"', "1e999", "{}"])
@pytest.mark.asyncio(loop_scope="module")
async def test_impossible_values_in_json(shared_client: httpx.AsyncClient, name: str, value: str) -> None:
    body = f'{{"images": ["{base64.b64encode(PHOTO).decode()}"], "model": "finder", "{name}": {value}}}'
    response = await shared_client.post("/detect", content=body, headers={"content-type": "application/json"})
    assert_problem(response, 422, "invalid_parameter", f"{name}: ")


@pytest.mark.asyncio(loop_scope="module")
async def test_more_boxes_than_there_are(shared_client: httpx.AsyncClient) -> None:
    red = encode(Image.new("RGB", (32, 32), "red"), "PNG")
    query = {**FINDER, "max_detections": 1000, "score_threshold": 0, "iou_threshold": 1}
    assert len(boxes(await shared_client.post("/detect", params=query, content=red))[0]) == 64


# --- the other task's model


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/detect?model=m", "m is a model for classification: use POST /predict. Models for detection here: finder, "),
        ("/detect", "You named no model, and the default one, m, is for classification: use POST /predict, or name"),
        (
            "/predict?model=finder",
            "finder is a model for detection: use POST /detect. Models for classification here: ",
        ),
        ("/features?model=finder", "finder is a model for detection: use POST /detect"),
        ("/routing?model=finder&top_k=1", "top_k: not for finder, a model for detection; it takes score_threshold, "),
        ("/routing?score_threshold=0.5", "score_threshold: not for m, a model for classification; it takes top_k, "),
        ("/routing/ablation?iou_threshold=0.5", "iou_threshold: for detectors only, and m is for classification"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_model_for_something_else(shared_client: httpx.AsyncClient, path: str, says: str) -> None:
    assert_problem(await shared_client.post(path, content=PHOTO), 422, "invalid_parameter", says)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_model_that_the_body_names(shared_client: httpx.AsyncClient) -> None:
    document = {"images": [base64.b64encode(PHOTO).decode()]}
    assert (await shared_client.post("/detect", json={**document, **FINDER})).status_code == 200
    response = await shared_client.post("/detect", json={**document, "model": "m"})
    assert_problem(response, 422, "invalid_parameter", "m is a model for classification")


@pytest.mark.asyncio(loop_scope="module")
async def test_it_is_said_before_the_body_is_read(shared_client: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    response = await shared_client.post("/predict?model=finder", content=body())
    assert_problem(response, 422, "invalid_parameter", "use POST /detect")


async def test_models_that_would_do_are_named_but_not_all() -> None:
    detector = shade_detector("colours")
    models = FakeModels(detector, *(served_model(model_info(f"m{number}")) for number in range(7)))
    with pytest.raises(
        InvalidParameter, match=r"default one, colours, .* here: m0, m1, m2, m3, m4 and 2 more"
    ) as refused:
        demand_task("classification", models, model=None, version=None, split_key=None)
    with pytest.raises(InvalidParameter, match="here: none"):
        demand_task("classification", FakeModels(detector), model="colours", version=None, split_key=None)
    assert "named no model" in str(refused.value)
    demand_task("detection", models, model=None, version="1", split_key=None)


# --- routing


async def test_routing_of_a_detector(client: httpx.AsyncClient) -> None:
    files = [("image", ("a.png", PHOTO)), ("image", ("b.png", b"x")), ("image", ("c.png", image(90)))]
    response = await client.post("/routing?model=finder&score_threshold=0.4", files=files)
    assert response.status_code == 200, response.text
    found, bad, nothing = response.json()["predictions"]
    detected = (await client.post("/detect?model=finder&routing=1", files=files[:1])).json()["predictions"][0]
    assert found.keys() == {*detected, "insight"}
    for field in ("filename", "width", "height", "detections", "routing"):
        assert found[field] == detected[field]
    assert [block["block"] for block in found["insight"]["blocks"]] == ["block_1", "block_2"]
    assert bad["error"]["slug"] == "unsupported_image"
    assert nothing["detections"] == []
    assert "insight" in nothing


@pytest.mark.parametrize("path", ["/detect", "/routing"])
async def test_objects_are_counted(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.post(f"{path}?model=finder", content=PHOTO)).is_success
    assert (await client.post(f"{path}?model=m", content=PHOTO)).is_success is (path == "/routing")
    samples = (await client.get("/metrics")).text.splitlines()
    assert 'condconv_detections_count{model="finder"} 1.0' in samples
    assert 'condconv_detections_sum{model="finder"} 2.0' in samples


async def test_the_class_of_an_insight_is_that_of_the_highest_score(client: httpx.AsyncClient) -> None:
    for _ in range(5):
        response = await client.post("/routing?model=finder&score_threshold=1", content=encode(patched(BLUE), "PNG"))
    (entry,) = response.json()["predictions"]
    assert entry["detections"] == []
    assert entry["insight"]["class_profile"] == {"index": 2, "images": 5, "source": "live"}
    live = (await client.get("/routing?model=finder")).json()
    assert [(one["label"], one["images"]) for one in live["classes"]["most_frequent"]] == [("blue", 5)]
    blue = (await client.get("/routing/classes/2?model=finder")).json()
    assert (blue["label"], blue["images"]) == ("blue", 5)
    users = (await client.get("/routing/experts/block_1/0?model=finder")).json()
    assert [one["label"] for one in users["most"]] == ["blue"]
    assert_problem(await client.get("/routing/classes/3?model=finder"), 404, "routing_not_found", "classes 0 to 2")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_static_detector(shared_client: httpx.AsyncClient) -> None:
    (entry,) = (await shared_client.post("/routing?model=static-finder", content=PHOTO)).json()["predictions"]
    assert (entry["routing"], entry["insight"]) == ({}, {"blocks": []})
    assert len(entry["detections"]) == 2
    for path in ("/routing?format=png&", "/routing/ablation?"):
        response = await shared_client.post(f"{path}model=static-finder", content=PHOTO)
        assert_problem(response, 422, "invalid_parameter", "static network")


@pytest.mark.asyncio(loop_scope="module")
async def test_other_forms_of_a_detectors_routing(shared_client: httpx.AsyncClient) -> None:
    files = [("image", ("a.png", PHOTO)), ("image", ("b.png", b"x"))]

    async def asked(form: str) -> httpx.Response:
        return await shared_client.post(f"/routing?model=finder&format={form}", files=files)

    lines = list(csv.DictReader(io.StringIO((await asked("csv")).text)))
    assert {(line["filename"], line["class"], line["error"]) for line in lines} == {
        ("a.png", "2", ""),
        ("b.png", "", "unsupported_image"),
    }
    with np.load(io.BytesIO((await asked("npz")).content), allow_pickle=False) as arrays:
        assert arrays["classes"].tolist() == [2, -1]
        assert 0.9 < arrays["probabilities"][0] <= 1


async def test_a_picture_counts_the_objects() -> None:
    def titles(traces: Any, *_: Any) -> bytes:
        return "; ".join(title for title, _ in traces).encode()

    files = [("image", ("a.png", PHOTO)), ("image", ("b.png", image(90)))]
    with Drawer(titles) as drawer:
        async with running(drawer=drawer) as client:
            response = await client.post("/routing?model=finder&format=svg", files=files)
    assert response.text == "a.png\n1 blue, 1 red; b.png\nnothing found"


@pytest.mark.parametrize("path", ["/detect", "/routing"])
async def test_recent_requests_are_their_senders_alone(client: httpx.AsyncClient, path: str) -> None:
    sent = await client.post(f"{path}?model=finder", content=PHOTO, headers={**ANN, "X-Request-Id": "mine"})
    body = (await client.get("/routing/mine", headers=ANN)).json()
    (entry,) = body["predictions"]
    assert entry["detections"] == sent.json()["predictions"][0]["detections"]
    assert entry["insight"]["blocks"][0]["block"] == "block_1"
    assert body["model"]["name"] == "finder"
    assert_problem(await client.get("/routing/mine", headers=BOB), 404, "routing_not_found")


# --- ablation


@pytest.mark.asyncio(loop_scope="module")
async def test_objects_that_an_expert_takes_away(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.post("/routing/ablation?model=finder&blocks=block_1&routing=1", content=PHOTO)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    detected = (await shared_client.post("/detect?model=finder", content=PHOTO)).json()["predictions"][0]
    assert body["detections"] == detected["detections"]
    assert (body["width"], body["height"], body["id"]) == (64, 32, "0")
    assert body.keys() == {"model", "id", "width", "height", "detections", "routing", "variants", "timings_ms"}
    places = {found["label"]: place for place, found in enumerate(body["detections"])}
    scores = {found["label"]: found["score"] for found in body["detections"]}
    without = {variant["name"]: variant for variant in body["variants"]}
    assert list(without) == [*(f"block_1 without expert {expert}" for expert in range(3)), "block_1 uniform"]

    first = without["block_1 without expert 0"]  # of two blocks' weights for red, one is left
    half = scores["red"] / 2
    assert first["lost"] == [
        {"detection": places["red"], "score": pytest.approx(half), "difference": pytest.approx(-half)}
    ]
    (kept,) = first["kept"]
    assert (kept["detection"], kept["difference"], kept["overlap"]) == (places["blue"], 0, 1)
    assert kept["box"] == body["detections"][places["blue"]]["box"]
    assert first["new"] == []
    assert first["similarity"] == pytest.approx((half + scores["blue"]) / (2 * half + scores["blue"]))
    assert first["routing"]["block_1"][0] == 0
    assert without["block_1 uniform"]["similarity"] == pytest.approx(1)
    assert without["block_1 without expert 1"]["lost"] == []


@pytest.mark.asyncio(loop_scope="module")
async def test_objects_that_are_new(shared_client: httpx.AsyncClient) -> None:
    faint = encode(patched(("red", (0, 0, 8, 4)), ("#965a5a", (32, 16, 40, 20))), "PNG")
    variants = [{"changes": [{"block": "all", "weights": [1, 1, 1]}]}]
    document = {"images": [base64.b64encode(faint).decode()], "variants": variants, "score_threshold": 0.3, **FINDER}
    body = (await shared_client.post("/routing/ablation", json=document)).json()
    assert [found["label"] for found in body["detections"]] == ["red"]
    (variant,) = body["variants"]
    (new,) = variant["new"]
    assert tuple(new["box"].values()) == (32, 16, 40, 20)
    before = new["score"] - new["difference"]
    assert 0.1 < before < 0.3 < new["score"]
    assert variant["similarity"] < 1


@pytest.mark.asyncio(loop_scope="module")
async def test_the_same_options_as_detect(shared_client: httpx.AsyncClient) -> None:
    one = await shared_client.post("/routing/ablation?model=finder&max_detections=1", content=PHOTO)
    assert len(one.json()["detections"]) == 1
    none = await shared_client.post("/routing/ablation?model=finder&score_threshold=1", content=PHOTO)
    assert none.json()["detections"] == []
    assert {variant["similarity"] for variant in none.json()["variants"]} == {1.0}
    for name, value in (("score_threshold", "nan"), ("iou_threshold", "2"), ("max_detections", "1001")):
        response = await shared_client.post("/routing/ablation", params={**FINDER, name: value}, content=PHOTO)
        assert_problem(response, 422, "invalid_parameter", f"{name}: ")


@pytest.mark.asyncio(loop_scope="module")
async def test_more_objects_than_an_answer_holds(shared_client: httpx.AsyncClient) -> None:
    variants = [{"changes": [{"block": "all", "uniform": True}]}] * 1000
    body = {"images": [base64.b64encode(PHOTO).decode()], "variants": variants, "max_detections": 33, **FINDER}
    response = await shared_client.post("/routing/ablation", json=body)
    assert_problem(response, 422, "invalid_parameter", "max_detections may be at most 32 for these 1000 variants")


@pytest.mark.parametrize("model", ["finder", "m"])
@pytest.mark.asyncio(loop_scope="module")
async def test_more_variants_than_are_computed_together(shared_client: httpx.AsyncClient, model: str) -> None:
    off = [{"name": str(number), "changes": [{"block": "block_1", "off": [number % 3]}]} for number in range(130)]
    body = {"images": [base64.b64encode(PHOTO).decode()], "variants": off, "model": model}
    found = (await shared_client.post("/routing/ablation", json=body)).json()["variants"]
    assert [variant["name"] for variant in found] == [str(number) for number in range(130)]
    answers = [{**variant, "name": "", "changes": []} for variant in found]
    assert answers == [answers[number % 3] for number in range(130)]

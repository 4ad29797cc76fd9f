"""`POST /features`: the same numbers in every form, and what goes wrong."""

from __future__ import annotations

import base64
import csv
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from condconv_serve.domain import ImageResult, Timings
from condconv_serve.fronts.native.feature_schemas import features_body
from condconv_serve.tasks.features import Embedding
from tests.contract.fakes import SHADE_FEATURES
from tests.unit.fronts.native.routing_service import ANN, CLASSES, assert_problem, form, image

NPZ, CSV, RAW = "application/x-npz", "text/csv; charset=utf-8", "application/octet-stream"

pytestmark = pytest.mark.asyncio(loop_scope="module")


def features_of(*shades: int | None) -> NDArray[np.float32]:
    """What the fake engine computes; NaN for an image that failed."""
    rows = [[np.nan] * SHADE_FEATURES if shade is None else [shade, 255 - shade, 1] for shade in shades]
    return np.array(rows, np.float32)


def logits_of(*shades: int | None) -> NDArray[np.float32]:
    rows = [np.full(CLASSES, np.nan) if shade is None else 5 * np.eye(CLASSES)[shade % CLASSES] for shade in shades]
    return np.array(rows, np.float32)


async def test_json(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.post("/features", files=form(7, None, 200))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert body["model"] == {"name": "m", "version": "2"}
    first, bad, last = body["predictions"]
    assert first.keys() == {"id", "filename", "features", "timings_ms", "batch_size"}
    assert (first["id"], first["filename"]) == ("0", "shade 7.png")
    np.testing.assert_array_equal([first["features"], last["features"]], features_of(7, 200))
    assert first["timings_ms"].keys() == {"decode", "queue", "inference", "total"}
    assert bad.keys() == {"id", "filename", "error"}
    assert bad["error"]["slug"] == "unsupported_image"


async def test_logits_on_request(shared_client: httpx.AsyncClient) -> None:
    asked: list[dict[str, Any]] = [{"params": {"logits": "true"}}, {"data": {"logits": "1"}}]
    for options in asked:
        entries = (await shared_client.post("/features", files=form(7, 9), **options)).json()["predictions"]
        np.testing.assert_array_equal([entry["logits"] for entry in entries], logits_of(7, 9))
    body = {"images": [{"id": "a", "data": base64.b64encode(image(7)).decode()}], "logits": True, "format": "json"}
    (entry,) = (await shared_client.post("/features", json=body)).json()["predictions"]
    assert entry["id"] == "a"
    np.testing.assert_array_equal(entry["logits"], logits_of(7)[0])
    np.testing.assert_array_equal(entry["features"], features_of(7)[0])


@pytest.mark.parametrize("logits", [False, True])
async def test_npz(shared_client: httpx.AsyncClient, logits: bool) -> None:
    query: dict[str, Any] = {"format": "npz", "logits": logits, "model": "m", "version": "1"}
    response = await shared_client.post("/features", params=query, files=form(7, None, 200))
    assert response.headers["content-type"] == NPZ
    assert response.headers["x-features-shape"] == "3,3"
    assert response.headers["x-features-model"] == "m/1"
    with np.load(io.BytesIO(response.content), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["features"], features_of(7, None, 200))
        assert arrays["features"].dtype == np.float32
        assert ("logits" in arrays) is logits
        if logits:
            np.testing.assert_array_equal(arrays["logits"], logits_of(7, None, 200))
        assert arrays["ids"].tolist() == ["0", "1", "2"]
        assert arrays["filenames"].tolist() == ["shade 7.png", "shade None.png", "shade 200.png"]
        assert arrays["errors"].tolist() == ["", "unsupported_image", ""]
        made_by = json.loads(str(arrays["made_by"]))
    assert (made_by["model"], made_by["version"], made_by["command"]) == ("m", "1", "POST /features")


async def test_raw_numbers(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.post("/features", files=form(7, None, 200), headers={"Accept": RAW})
    assert response.headers["content-type"] == RAW
    shape = [int(size) for size in response.headers["x-features-shape"].split(",")]
    assert response.headers["x-features-model"] == "m/2"
    np.testing.assert_array_equal(np.frombuffer(response.content, "<f4").reshape(shape), features_of(7, None, 200))


@pytest.mark.parametrize("logits", [False, True])
async def test_csv(shared_client: httpx.AsyncClient, logits: bool) -> None:
    response = await shared_client.post("/features", params={"format": "csv", "logits": logits}, files=form(7, None))
    assert response.headers["content-type"] == CSV
    good, bad = csv.DictReader(io.StringIO(response.text))
    names = [f"feature_{number}" for number in range(3)] + [f"logit_{number}" for number in range(CLASSES * logits)]
    assert list(good) == list(bad) == ["image", "id", "filename", "error", *names]
    expected = [*features_of(7)[0], *logits_of(7)[0]]
    assert [np.float32(good[name]) for name in names] == expected[: len(names)]
    assert [bad[name] for name in names] == [""] * len(names)
    assert (good["filename"], good["error"], bad["error"]) == ("shade 7.png", "", "unsupported_image")


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/x-npz", NPZ),
        ("application/json;q=0.1, application/octet-stream;q=0.2", RAW),
        ("image/png, text/*;q=0.5", CSV),
        ("image/png", "application/json"),
        ("application/octet-stream;q=0", "application/json"),
    ],
)
async def test_accept(shared_client: httpx.AsyncClient, accept: str, content_type: str) -> None:
    response = await shared_client.post("/features", content=image(3), headers={"accept": accept})
    assert response.headers["content-type"] == content_type
    chosen = await shared_client.post("/features?format=npz", content=image(3), headers={"accept": accept})
    assert chosen.headers["content-type"] == NPZ


@pytest.mark.parametrize("form_of", ["json", "npz", "csv", "raw"])
async def test_one_image_that_fails_is_the_answers_error(shared_client: httpx.AsyncClient, form_of: str) -> None:
    response = await shared_client.post(f"/features?format={form_of}", content=b"no image")
    assert_problem(response, 415, "unsupported_image")
    assert "x-features-shape" not in response.headers


async def test_all_of_several_images_fail(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.post("/features?format=npz&logits=true", files=form(None, None))
    with np.load(io.BytesIO(response.content)) as arrays:
        np.testing.assert_array_equal(arrays["features"], features_of(None, None))
        assert arrays["errors"].tolist() == ["unsupported_image"] * 2
    response = await shared_client.post("/features?format=raw", files=form(None, None))
    assert np.isnan(np.frombuffer(response.content, "<f4")).sum() == 2 * SHADE_FEATURES


@pytest.mark.parametrize(
    ("query", "status", "slug", "says"),
    [
        ("model=featureless", 422, "invalid_parameter", "featureless has no features: "),
        ("model=nonesuch", 404, "model_not_found", "nonesuch"),
        ("format=raw&logits=true", 422, "invalid_parameter", "has no room for logits; json, npz, csv have"),
        ("format=png", 422, "invalid_parameter", "format: "),
        ("logits=perhaps", 422, "invalid_parameter", "logits: "),
        ("top_k=3", 422, "invalid_parameter", "top_k: no such parameter. Parameters are model, version, timeout_ms"),
        ("routing=true", 422, "invalid_parameter", "routing: no such parameter"),
        ("logits=1&logits=1", 422, "invalid_parameter", "logits: given more than once"),
    ],
)
async def test_refusals(shared_client: httpx.AsyncClient, query: str, status: int, slug: str, says: str) -> None:
    response = await shared_client.post(f"/features?{query}", content=image(3))
    assert_problem(response, status, slug, says)


async def test_limits_of_a_request(shared_client: httpx.AsyncClient) -> None:
    assert_problem(await shared_client.post("/features", files=form(*range(21))), 413, "too_many_images", "20")
    assert_problem(await shared_client.post("/features", content=bytes(10**6 + 1)), 413, "body_too_large")
    response = await shared_client.post("/features?timeout_ms=0", content=image(1))
    assert_problem(response, 422, "invalid_parameter", "timeout_ms")


async def test_other_models_features_stay_apart_from_routing(shared_client: httpx.AsyncClient) -> None:
    """A static model has features, too; and what was embedded can't be read later by its id."""
    response = await shared_client.post(
        "/features?model=static", content=image(9), headers={"X-Request-Id": "e", **ANN}
    )
    np.testing.assert_array_equal(response.json()["predictions"][0]["features"], features_of(9)[0])
    assert_problem(await shared_client.get("/routing/e", headers=ANN), 404, "routing_not_found")


async def test_live_statistics_count_embedded_images(shared_client: httpx.AsyncClient) -> None:
    async def images() -> Any:
        return (await shared_client.get("/routing?model=profiled")).json()["images"]

    before = await images()
    await shared_client.post("/features?model=profiled", files=form(1, 2))
    assert await images() == before + 2


async def test_numbers_in_json_have_the_digits_of_float32() -> None:
    features = np.random.default_rng(0).gamma(1, 1, 1000).astype(np.float32)
    timings = Timings(decode=0, queue=0, inference=0, total=0)
    result = ImageResult(
        id="0", filename=None, prediction=Embedding(features=features, logits=features, timings=timings, batch_size=1)
    )
    body = features_body(result).model_dump_json()
    assert len(body) < 1000 * 13 * 2, "half of what float64 would take"
    found = json.loads(body)
    for name in ("features", "logits"):
        np.testing.assert_array_equal(np.array(found[name], np.float32), features)

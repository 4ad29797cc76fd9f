"""`/routing` and all below it: the real application, classifier and statistics around an engine of our own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import csv
import io
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from condconv_serve.domain import (
    Label,
    ModelInfo,
    Prediction,
    RoutingLayout,
    RoutingProfile,
    ServedModel,
    rows_of,
)
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.keys import ApiKey, KeyRing
from condconv_serve.fronts.native import AppContext, BodyLimits, create_app
from condconv_serve.imaging import ImageDecoder
from condconv_serve.inference.ablation_queue import MAX_WAITING, AblationQueue
from condconv_serve.inference.batching import Batcher
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.routing.drawer import Drawer
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.profile import profile_of
from condconv_serve.routing.recent import RecentRequests
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.tally import Tally, entropy
from condconv_serve.serving.readiness import Readiness
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import (
    FakeModels,
    NoVersions,
    ShadeAblation,
    ShadeEngine,
    even_layout,
    model_info,
    served_model,
)
from tests.pictures import encode

BLOCKS, EXPERTS, CLASSES, SIZE = ("block_1", "block_2"), 3, 8, 8
RANDOM = np.random.default_rng(0).random((256, len(BLOCKS), EXPERTS)).astype(np.float32)
ANN, BOB, ADMIN = ({"X-API-Key": name} for name in ("ann", "bob", "admin"))


UNEVEN = np.concatenate([RANDOM[:, :1], np.where(np.arange(EXPERTS) < 2, RANDOM[:, 1:], 0)], axis=1)
"""The second block has two experts only."""
EVEN_LAYOUT, UNEVEN_LAYOUT = even_layout(BLOCKS, EXPERTS), RoutingLayout(BLOCKS, (EXPERTS, 2))


def served(
    name: str,
    *,
    version: str = "1",
    profile: RoutingProfile | None = None,
    layout: RoutingLayout = EVEN_LAYOUT,
    weights: Any = RANDOM,
) -> ServedModel:
    labels = [Label(i, f"class {i}", f"n{i}") for i in range(CLASSES)]
    info = model_info(name, version, layout=layout, labels=labels, image_size=SIZE, profile=profile)
    return served_model(info, ShadeEngine(classes=CLASSES, layout=layout, weights=weights))


SHADES = np.arange(256)
MODELS = FakeModels(
    served("m"),
    served("m", version="2"),
    served("profiled", profile=profile_of(RANDOM, SHADES % CLASSES, EVEN_LAYOUT)),
    served("static", layout=RoutingLayout(), weights=np.zeros((256, 0, 0))),
    served(
        "uneven",
        profile=profile_of(UNEVEN, SHADES % CLASSES, UNEVEN_LAYOUT),
        layout=UNEVEN_LAYOUT,
        weights=UNEVEN,
    ),
)


def ablation_of(name: str, version: str) -> ShadeAblation:
    layout = MODELS.get(name, version).info.routing
    return ShadeAblation(classes=CLASSES, layout=layout, weights=UNEVEN if name == "uneven" else RANDOM)


@contextlib.asynccontextmanager
async def running(
    *, statistics: bool = True, keys: bool = True, drawer: Drawer | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    metrics = Metrics(CollectorRegistry())
    live = LiveRouting() if statistics else None
    if live is not None:
        metrics.routing.set_source(live.exported)

    def observe(model: ModelInfo, answer: Prediction) -> None:
        if live is not None:
            live.observe(model, answer.routing.weights, answer.classes[0].index)

    async def run(model: ServedModel, rows: Any) -> Any:
        return rows_of(model.engine(np.stack(rows), 0))

    readiness = Readiness(lambda: None)
    readiness.loaded()
    ring = KeyRing(
        [
            ApiKey(name=name, scopes=scopes, sha256=sha256(name.encode()).hexdigest())
            for name, scopes in (("ann", ("predict",)), ("bob", ("predict",)), ("admin", ("predict", "admin")))
        ]
    )
    batcher: Any = Batcher(run, streams=1, max_batch_size=4, max_queue_rows=64, metrics=metrics)
    ablations = AblationQueue(ablation_of, prepare_thread=lambda: None, release_memory=lambda: None)
    with ThreadPoolExecutor(2) as decoders, ablations as lane:
        plane = InferencePlane(MODELS, batcher, metrics=metrics)
        context = AppContext(
            images=ImagePipeline(plane, ImageDecoder(decoders, max_pixels=20_000), observe=observe),
            models=MODELS,
            metrics=metrics,
            limits=BodyLimits(max_body_bytes=10**6, max_images=20),
            gatekeeper=Gatekeeper(readiness, keys=ring if keys else None),
            readiness=readiness,
            versions=NoVersions(),
            routing=live,
            recent=RecentRequests(max_requests=3) if statistics else None,
            ablator=lane,
            drawer=drawer or Drawer(),
        )
        app = create_app(context, lifespan=None)  # type: ignore[arg-type]
        async with batcher, asyncio.timeout(30):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=ADMIN) as client:
                yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with running() as found:
        yield found


def image(shade: int) -> bytes:
    return encode(Image.new("RGB", (16, 16), (shade,) * 3), "PNG")


def form(*shades: int | None) -> list[Any]:
    """Images of these shades, and a broken one for None."""
    return [("image", (f"shade {s}.png", b"broken" if s is None else image(s))) for s in shades]


async def send(client: httpx.AsyncClient, *shades: int, model: str = "m", **options: Any) -> None:
    for shade in shades:
        assert (await client.post(f"/predict?model={model}", content=image(shade), **options)).status_code == 200


def assert_problem(response: httpx.Response, status: int, slug: str, says: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["slug"] == slug
    assert says in response.json()["detail"]


# --- POST /routing


async def test_every_form_holds_the_models_own_weights(client: httpx.AsyncClient) -> None:
    shades = [7, None, 200]
    expected = RANDOM[[7, 200]]
    response = await client.post("/routing", files=form(*shades))
    assert response.status_code == 200, response.text
    body = response.json()
    good = [entry for entry in body["predictions"] if "error" not in entry]
    assert body["predictions"][1]["error"]["slug"] == "unsupported_image"
    found = np.array([[entry["routing"][block] for block in BLOCKS] for entry in good], np.float32)
    np.testing.assert_array_equal(found, expected)

    response = await client.post("/routing?format=csv", files=form(*shades))
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    lines = list(csv.DictReader(io.StringIO(response.text)))
    weights = [np.float32(line["weight"]) for line in lines if line["weight"]]
    np.testing.assert_array_equal(np.array(weights).reshape(expected.shape), expected)
    assert [line["error"] for line in lines if line["error"]] == ["unsupported_image"]
    assert {(line["image"], line["filename"], line["class"]) for line in lines} == {
        ("0", "shade 7.png", "7"),
        ("1", "shade None.png", ""),
        ("2", "shade 200.png", "0"),
    }

    response = await client.post("/routing?format=npz", files=form(*shades))
    arrays = np.load(io.BytesIO(response.content), allow_pickle=False)
    np.testing.assert_array_equal(arrays["routing"][[0, 2]], expected)
    assert np.isnan(arrays["routing"][1]).all()
    assert arrays["blocks"].tolist() == list(BLOCKS)
    assert arrays["classes"].tolist() == [7, -1, 0]
    assert arrays["errors"].tolist() == ["", "unsupported_image", ""]
    made_by = json.loads(str(arrays["made_by"]))
    assert (made_by["model"], made_by["command"]) == ("m", "POST /routing")

    response = await client.post("/routing?format=svg", files=form(*shades))
    for number in RANDOM[[7, 200]].ravel():
        assert f"<!-- {number:.2f} -->" in response.text
    assert "shade None" not in response.text
    assert "condconv-serve" in response.text[: response.text.index("<defs>")]
    assert "prefers-color-scheme: dark" in response.text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html, application/xml;q=0.9, */*;q=0.8", "application/json"),
        ("image/png", "image/png"),
        ("image/svg+xml, image/png;q=0.9", "image/svg+xml"),
        ("image/png;q=0.2, text/csv;q=0.3", "text/csv; charset=utf-8"),
        ("application/octet-stream", "application/octet-stream"),
        ("image/webp, image/*", "image/png"),
        ("text/plain, text/*;q=0.5", "text/csv; charset=utf-8"),
        ("application/json, image/png", "application/json"),
        ("nonsense;;q=x,,", "application/json"),
        ("image/png;q=0", "application/json"),
    ],
)
async def test_accept(client: httpx.AsyncClient, accept: str, content_type: str) -> None:
    response = await client.post("/routing", content=image(3), headers={"accept": accept})
    assert response.headers["content-type"] == content_type
    assert response.headers["cache-control"] == "no-store"
    chosen = await client.post("/routing?format=csv", content=image(3), headers={"accept": accept})
    assert chosen.headers["content-type"].startswith("text/csv")


async def test_pictures_have_limits(client: httpx.AsyncClient) -> None:
    response = await client.post("/routing?format=png", files=form(*range(17)))
    assert_problem(response, 422, "invalid_parameter", "at most 16 images")
    assert (await client.post("/routing?format=npz", files=form(*range(17)))).status_code == 200
    response = await client.post("/routing?format=png", files=form(None, None))
    assert_problem(response, 415, "unsupported_image")
    response = await client.post("/routing?format=png&model=static", content=image(1))
    assert_problem(response, 422, "invalid_parameter", "static network")
    response = await client.post("/routing?format=gif", content=image(1))
    assert_problem(response, 422, "invalid_parameter", "format")


@pytest.mark.parametrize("route", ["/predict", "/routing", "/routing/ablation"])
async def test_parameter_twice_is_refused_before_the_model_is_looked_up(client: httpx.AsyncClient, route: str) -> None:
    response = await client.post(f"{route}?model=m&model=nonesuch", content=image(1))
    assert_problem(response, 422, "invalid_parameter", "model: given more than once")


async def test_insight(client: httpx.AsyncClient) -> None:
    body = (await client.post("/routing?model=profiled", content=image(10))).json()
    weights, mean = RANDOM[10].astype(np.float64), RANDOM.astype(np.float64).mean(axis=0)
    mine = RANDOM[2::8].astype(np.float64).mean(axis=0)
    found = body["predictions"][0]["insight"]
    for number, block in enumerate(found["blocks"]):
        assert block["block"] == BLOCKS[number]
        assert block["entropy"] == pytest.approx(float(entropy(weights[number], EXPERTS)))
        assert block["strongest"] == np.argsort(-weights[number]).tolist()
        distance = np.sqrt(np.mean((weights[number] - mean[number]) ** 2))
        assert block["reference_distance"] == pytest.approx(distance, abs=1e-6)
        assert block["class_distance"] == pytest.approx(
            np.sqrt(np.mean((weights[number] - mine[number]) ** 2)), abs=1e-6
        )
    assert found["reference_distance"] == pytest.approx(np.sqrt(np.mean((weights - mean) ** 2)), abs=1e-6)
    others = (RANDOM.sum(axis=0, dtype=np.float64) - RANDOM) / (len(RANDOM) - 1)
    own = np.sqrt(np.mean((RANDOM - others) ** 2, axis=(1, 2)))
    assert found["typical_distance"] == pytest.approx(np.median(own), abs=1e-6)
    assert found["unusual_above"] == pytest.approx(np.quantile(own, 0.95), abs=1e-6)
    assert found["unusual"] == (found["reference_distance"] > found["unusual_above"])
    assert found["reference_images"] == len(RANDOM)
    assert found["class_profile"] == {"index": 2, "images": 32, "source": "reference"}


async def test_without_a_reference_live_traffic_knows_the_class(client: httpx.AsyncClient) -> None:
    async def insight_of(shade: int) -> Any:
        return (await client.post("/routing", content=image(shade))).json()["predictions"][0]["insight"]

    found = await insight_of(1)
    assert "class_profile" not in found
    assert "reference_distance" not in found
    await send(client, 9, 17, 25, 33)
    found = await insight_of(41)
    assert found["class_profile"] == {"index": 1, "images": 6, "source": "live"}
    mean = RANDOM[[1, 9, 17, 25, 33, 41]].astype(np.float64).mean(axis=0)
    assert found["class_distance"] == pytest.approx(np.sqrt(np.mean((RANDOM[41] - mean) ** 2)), abs=1e-6)


# --- live


@pytest.mark.parametrize("window", ["1m", "15m", "all"])
async def test_live_equals_a_recomputation(client: httpx.AsyncClient, window: str) -> None:
    shades = np.random.default_rng(1).integers(0, 256, 90).tolist()
    await send(client, *shades[:30])
    for start in range(30, 90, 20):
        response = await client.post("/routing", files=form(*shades[start : start + 20]))
        assert response.status_code == 200
    await client.post("/predict", content=b"no image")
    body = (await client.get(f"/routing?window={window}")).json()
    expected = Tally.of(RANDOM[shades], np.array(shades) % CLASSES, EVEN_LAYOUT)
    assert body["images"] == 90
    assert body["window"] == window
    assert body["model"] == {"name": "m", "version": "2"}
    for number, block in enumerate(body["blocks"]):
        assert block["entropy"]["mean"] == pytest.approx(expected.entropy_mean[number], abs=1e-9)
        assert block["entropy"]["deviation"] == pytest.approx(expected.entropy_deviation[number], abs=1e-9)
        for expert, usage in enumerate(block["experts"]):
            assert usage["expert"] == expert
            for name, values in (
                ("mean", expected.mean),
                ("deviation", expected.deviation),
                ("load", expected.load),
                ("active", expected.active_share),
            ):
                assert usage[name] == pytest.approx(values[number, expert], abs=1e-9)
            assert usage["histogram"] == expected.histogram[number, expert].tolist()
    counts = np.bincount(np.array(shades) % CLASSES, minlength=CLASSES)
    frequent = body["classes"]["most_frequent"]
    assert {c["index"]: c["images"] for c in frequent} == dict(enumerate(counts.tolist()))
    assert [c["images"] for c in frequent] == sorted(counts.tolist(), reverse=True)
    assert body["classes"]["dropped_images"] == 0
    assert "drift_alert" not in body
    assert "reference" not in body

    for index in range(CLASSES):
        body = (await client.get(f"/routing/classes/{index}?window={window}")).json()
        mine = RANDOM[[s for s in shades if s % CLASSES == index]].astype(np.float64)
        assert (body["images"], body["label"]) == (len(mine), f"class {index}")
        np.testing.assert_allclose([body["routing"][b] for b in BLOCKS], mine.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose([body["all_classes"]["routing"][b] for b in BLOCKS], expected.mean, atol=1e-6)

    body = (await client.get(f"/routing/experts/block_2/1?window={window}&top=3")).json()
    means = [RANDOM[[s for s in shades if s % CLASSES == i], 1, 1].astype(np.float64).mean() for i in range(CLASSES)]
    order = np.argsort(means)
    assert [c["index"] for c in body["most"]] == order[::-1][:3].tolist()
    assert [c["index"] for c in body["least"]] == order[:3].tolist()
    assert [c["mean"] for c in body["least"]] == pytest.approx(np.sort(means)[:3], abs=1e-6)
    assert body["usage"]["mean"] == pytest.approx(expected.mean[1, 1])


async def test_blocks_with_different_numbers_of_experts(client: httpx.AsyncClient) -> None:
    """Each has its own experts and no others, whichever way they are told."""
    request: dict[str, Any] = {"files": form(8, 9)}
    answer = await client.post("/routing?model=uneven", **request, headers={"X-Request-Id": "uneven"})
    recent = (await client.get("/routing/uneven")).json()
    for body in (answer.json(), recent):
        for prediction, shade in zip(body["predictions"], (8, 9), strict=True):
            weights = UNEVEN[shade].astype(np.float64)
            assert prediction["routing"] == {"block_1": weights[0].tolist(), "block_2": weights[1, :2].tolist()}
            narrow = prediction["insight"]["blocks"][1]
            assert narrow["entropy"] == pytest.approx(float(entropy(weights[1, :2], 2)))
            assert narrow["strongest"] == np.argsort(-weights[1, :2]).tolist()
            distances = weights - UNEVEN.mean(axis=0)
            assert narrow["reference_distance"] == pytest.approx(np.sqrt((distances[1, :2] ** 2).mean()), rel=1e-5)
            whole = np.sqrt((distances**2).sum() / 5)
            assert prediction["insight"]["reference_distance"] == pytest.approx(whole, rel=1e-5)

    lines = list(csv.DictReader(io.StringIO((await client.post("/routing?model=uneven&format=csv", **request)).text)))
    assert [(line["block"], line["expert"]) for line in lines[:5]] == [
        ("block_1", "0"), ("block_1", "1"), ("block_1", "2"), ("block_2", "0"), ("block_2", "1")
    ]  # fmt: skip
    assert len(lines) == 10
    content = (await client.post("/routing?model=uneven&format=npz", **request)).content
    arrays = np.load(io.BytesIO(content), allow_pickle=False)["routing"]
    np.testing.assert_array_equal(arrays[:, 0], UNEVEN[[8, 9], 0])
    np.testing.assert_array_equal(arrays[:, 1, :2], UNEVEN[[8, 9], 1, :2])
    assert np.isnan(arrays[:, 1, 2]).all()

    live = (await client.get("/routing?model=uneven")).json()
    assert [len(block["experts"]) for block in live["blocks"]] == [3, 2]
    seen = UNEVEN[[8, 9] * 3, 1, :2].astype(np.float64)
    assert live["blocks"][1]["entropy"]["mean"] == pytest.approx(entropy(seen, 2).mean())
    assert [len(block["mean"]) for block in live["reference"]["blocks"]] == [3, 2]
    known = (await client.get("/routing/classes/0?model=uneven")).json()
    for routing in (known["routing"], known["all_classes"]["routing"], known["reference"]["routing"]):
        assert [len(weights) for weights in routing.values()] == [3, 2]
    assert (await client.get("/routing/experts/block_2/1?model=uneven")).status_code == 200
    assert_problem(
        await client.get("/routing/experts/block_2/2?model=uneven"), 404, "routing_not_found", "experts 0 to 1"
    )
    state = RoutingState.unpack((await client.get("/routing/state?model=uneven")).content).to_json()
    assert [len(block["experts"]) for block in state["windows"]["all"]["blocks"]] == [3, 2]

    body = (await client.post("/routing/ablation?model=uneven", content=image(8))).json()
    assert [variant["name"] for variant in body["variants"]][3:] == [
        "block_1 uniform", "block_2 without expert 0", "block_2 without expert 1", "block_2 uniform"
    ]  # fmt: skip
    assert [len(weights) for weights in body["routing"].values()] == [3, 2]


async def test_versions_are_apart(client: httpx.AsyncClient) -> None:
    await client.post("/predict?version=1", content=image(1))
    await send(client, 2, 3)
    assert (await client.get("/routing?model=m&version=1")).json()["images"] == 1
    assert (await client.get("/routing?model=m&version=2")).json()["images"] == 2
    assert (await client.get("/routing?model=profiled")).json()["images"] == 0


async def test_drift(client: httpx.AsyncClient) -> None:
    await send(client, *([7] * 60), model="profiled")
    body = (await client.get("/routing?model=profiled")).json()
    assert body["drift_alert"] is True
    assert all(block["drift"]["psi"] > block["drift"]["alert_above"] for block in body["blocks"])
    assert body["reference"]["images"] == 256
    text = (await client.get("/metrics")).text
    for measure in ("psi", "js", "psi_alert"):
        assert f'condconv_routing_drift{{block="block_1",measure="{measure}",model="profiled",version="1"}}' in text
    await client.post("/routing/reset?model=profiled")
    await send(client, *range(0, 250, 3), model="profiled")
    assert (await client.get("/routing?model=profiled")).json()["drift_alert"] is False


async def test_an_empty_window_and_a_static_network(client: httpx.AsyncClient) -> None:
    body = (await client.get("/routing")).json()
    assert body["images"] == 0
    assert body["blocks"][0]["experts"][0]["load"] == 0
    assert (await client.get("/routing/classes/0")).json()["images"] == 0
    assert (await client.get("/routing/experts/block_1/0")).json()["most"] == []
    await send(client, 1, model="static")
    body = (await client.get("/routing?model=static")).json()
    assert (body["images"], body["blocks"]) == (0, [])
    assert (await client.get("/metrics")).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "slug", "says"),
    [
        ("/routing?model=none", 404, "model_not_found", ""),
        ("/routing?version=9", 404, "version_not_found", ""),
        ("/routing?window=2m", 422, "invalid_parameter", "window"),
        ("/routing?classes=-1", 422, "invalid_parameter", "classes"),
        ("/routing?x=1", 422, "invalid_parameter", "no such parameter"),
        ("/routing/classes/8", 404, "routing_not_found", "classes 0 to 7"),
        ("/routing/classes/-1", 422, "invalid_parameter", "index"),
        ("/routing/classes/x", 422, "invalid_parameter", "index"),
        ("/routing/experts/block_9/0", 404, "routing_not_found", "block_1, block_2"),
        ("/routing/experts/block_1/3", 404, "routing_not_found", "experts 0 to 2"),
        ("/routing/experts/block_1/0?model=static", 404, "routing_not_found", "there are: none"),
        ("/routing/none", 404, "routing_not_found", "'none'"),
        ("/routing/nothing/here", 404, "not_found", ""),
    ],
)
async def test_refusals(client: httpx.AsyncClient, path: str, status: int, slug: str, says: str) -> None:
    assert_problem(await client.get(path), status, slug, says)


async def test_statistics_switched_off() -> None:
    async with running(statistics=False) as client:
        response = await client.post("/routing", content=image(1), headers={"X-Request-Id": "a"})
        assert response.json()["predictions"][0]["insight"]["blocks"][0]["entropy"] > 0
        for path in ("/routing", "/routing/classes/0", "/routing/experts/block_1/0", "/routing/state"):
            assert_problem(await client.get(path), 404, "routing_not_found", "ROUTING_STATISTICS")
        assert_problem(await client.get("/routing/a"), 404, "routing_not_found")
        assert (await client.post("/routing/reset")).json() == {"reset": []}
        assert "condconv_routing_weight_bucket" not in (await client.get("/metrics")).text


# --- recent requests


async def test_recent_requests_are_their_senders_alone(client: httpx.AsyncClient) -> None:
    for key, shade in ((ANN, 1), (BOB, 2)):
        await client.post("/predict", content=image(shade), headers={**key, "X-Request-Id": "same"})
    answers = {}
    for name, key in (("ann", ANN), ("bob", BOB)):
        answers[name] = (await client.get("/routing/same", headers=key)).json()
        assert answers[name]["request_id"] == "same"
        assert answers[name]["at"] > 1.7e9
    for name, shade in (("ann", 1), ("bob", 2)):
        (entry,) = answers[name]["predictions"]
        assert entry["routing"] == {b: RANDOM[shade, i].tolist() for i, b in enumerate(BLOCKS)}
        assert len(entry["insight"]["blocks"]) == len(BLOCKS)
    nobodys = await client.get("/routing/same", headers=ADMIN)
    unknown = await client.get("/routing/other", headers=ADMIN)
    assert_problem(nobodys, 404, "routing_not_found")
    assert nobodys.json()["detail"].replace("same", "other") == unknown.json()["detail"]


async def test_only_the_newest_requests_are_kept(client: httpx.AsyncClient) -> None:
    for number in range(5):
        await client.post("/routing", files=form(number, None), headers={"X-Request-Id": str(number)})
    statuses = [(await client.get(f"/routing/{number}")).status_code for number in range(5)]
    assert statuses == [404, 404, 200, 200, 200]
    newest = (await client.get("/routing/4")).json()
    assert newest["predictions"][0]["filename"] == "shade 4.png"
    assert newest["predictions"][1]["error"]["slug"] == "unsupported_image"


async def test_a_model_that_is_no_longer_served(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.post("/predict?model=profiled", content=image(1), headers={"X-Request-Id": "a"})
    monkeypatch.delitem(MODELS.served, "profiled")
    body = (await client.get("/routing/a")).json()
    assert body["model"] == {"name": "profiled", "version": "1"}
    assert "reference_distance" not in body["predictions"][0]["insight"]


# --- admin


async def test_state_and_reset_need_admin(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/routing/state", headers=ANN), 403, "forbidden")
    assert_problem(await client.post("/routing/reset", headers=ANN), 403, "forbidden")
    assert (await client.get("/routing", headers=ANN)).status_code == 200


async def test_states_of_replicas_add_up() -> None:
    shades = [1, 2, 3, 100, 101, 102, 103]
    states = []
    for part in (shades[:2], shades[2:]):
        async with running() as client:
            await send(client, *part)
            response = await client.get("/routing/state")
            assert response.headers["content-type"] == "application/octet-stream"
            states.append(RoutingState.unpack(response.content))
    states[0].merge(states[1])
    expected = Tally.of(RANDOM[shades], np.array(shades) % CLASSES, EVEN_LAYOUT)
    for tally in states[0].windows.values():
        np.testing.assert_allclose(tally.mean, expected.mean, atol=1e-12)
        np.testing.assert_allclose(tally.deviation, expected.deviation, atol=1e-12)
        np.testing.assert_array_equal(tally.histogram, expected.histogram)


async def test_reset(client: httpx.AsyncClient) -> None:
    await client.post("/predict?version=1", content=image(1))
    await send(client, 2)
    await send(client, 3, model="profiled")
    assert (await client.post("/routing/reset?model=m&version=1")).json() == {"reset": [{"name": "m", "version": "1"}]}

    async def images(query: str) -> int:
        return int((await client.get(f"/routing?window=all&{query}")).json()["images"])

    assert [await images("version=1"), await images("version=2"), await images("model=profiled")] == [0, 1, 1]
    assert len((await client.post("/routing/reset?model=m")).json()["reset"]) == 2
    assert [await images("version=2"), await images("model=profiled")] == [0, 1]
    await client.post("/routing/reset")
    assert await images("model=profiled") == 0
    assert_problem(await client.post("/routing/reset?model=none"), 404, "model_not_found")


# --- ablation


async def test_every_expert_off_by_default(client: httpx.AsyncClient) -> None:
    body = (await client.post("/routing/ablation", content=image(8))).json()
    names = [name for b in BLOCKS for name in (*(f"{b} without expert {e}" for e in range(EXPERTS)), f"{b} uniform")]
    assert [variant["name"] for variant in body["variants"]] == names
    assert body["top"]["index"] == 0
    assert body["routing"] == {b: RANDOM[8, i].tolist() for i, b in enumerate(BLOCKS)}
    first = body["variants"][0]
    assert first["changes"] == [{"block": "block_1", "off": [0]}]
    assert first["top"]["index"] == 1
    assert first["same_top"] is False
    original, now = np.exp(5) / (np.exp(5) + 7), 1 / (np.exp(3) + 7)
    assert body["top"]["probability"] == pytest.approx(original)
    assert first["probability"] == pytest.approx(now)
    assert first["difference"] == pytest.approx(now - original)
    assert body["variants"][3]["same_top"] is True
    assert "routing" not in first
    assert set(body["timings_ms"]) == {"decode", "queue", "inference", "total"}


async def test_given_routings(client: httpx.AsyncClient) -> None:
    variants = [
        {"changes": [{"block": "block_2", "weights": [0.25, None, 1]}], "name": "mine"},
        {"changes": [{"block": "all", "uniform": True}, {"block": "block_1", "off": [0, 2]}]},
    ]
    document = {"images": [base64.b64encode(image(8)).decode()], "variants": variants, "routing": True}
    body = (await client.post("/routing/ablation", json=document)).json()
    mine, other = body["variants"]
    assert mine["name"] == "mine"
    assert mine["routing"]["block_2"] == [0.25, float(RANDOM[8, 1, 1]), 1.0]
    assert mine["routing"]["block_1"] == RANDOM[8, 0].tolist()
    assert mine["changes"] == [{"block": "block_2", "weights": [0.25, None, 1.0]}]
    assert other["name"] == "all uniform, block_1 without expert 0 and 2"
    means = [pytest.approx(float(RANDOM[8, block].mean())) for block in (0, 1)]
    assert other["routing"] == {"block_1": [0.0, means[0], 0.0], "block_2": [means[1]] * 3}

    document["variants"] = [{"changes": [{"block": "block_1", "off": [0]}, {"block": "all", "uniform": True}]}]
    (last,) = (await client.post("/routing/ablation", json=document)).json()["variants"]
    assert last["routing"] == {"block_1": [means[0]] * 3, "block_2": [means[1]] * 3}

    same = await client.post(
        "/routing/ablation", files=form(8), data={"variants": json.dumps(variants), "routing": "1"}
    )
    assert [v["routing"] for v in same.json()["variants"]] == [v["routing"] for v in body["variants"]]
    assert same.json()["filename"] == "shade 8.png"

    few = await client.post("/routing/ablation?blocks=block_2&experts=0,2&uniform=false", content=image(8))
    assert [v["name"] for v in few.json()["variants"]] == ["block_2 without expert 0", "block_2 without expert 2"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("blocks=block_7", "block_1, block_2, and all"),
        ("experts=3", "experts 0 to 2"),
        ("experts=-1", "experts 0 to 2"),
        ("experts=x", "experts"),
        ("blocks=", "blocks"),
        ("variants=[]", "variants"),
        ("variants=nonsense", "not valid JSON"),
        ('variants=[{"changes":[]}]', "changes"),
        ('variants=[{"changes":[{"block":"block_1"}]}]', "exactly one of off, uniform and weights"),
        ('variants=[{"changes":[{"block":"block_1","off":[0],"uniform":true}]}]', "exactly one of"),
        ('variants=[{"changes":[{"block":"block_1","weights":[0,1]}]}]', "must be 3, one for each expert"),
        ('variants=[{"changes":[{"block":"block_1","weights":[0,1,1.5]}]}]', "less than or equal to 1"),
        ('variants=[{"changes":[{"block":"block_1","weights":[0,1,NaN]}]}]', "weights"),
        ('blocks=block_1&variants=[{"changes":[{"block":"all","uniform":true}]}]', "not both"),
        ("model=static", "static network"),
        ("model=uneven&blocks=block_2&experts=2", "block_2 has the experts 0 to 1"),
        ("model=uneven&experts=2", "block_2 has the experts 0 to 1"),
        ('model=uneven&variants=[{"changes":[{"block":"block_2","weights":[0,1,1]}]}]', "weights of block_2 must be 2"),
        (f"experts={',0' * 1025}", "experts: these are 1025 entries"),
        ('variants=[{"changes":[{"block":"all","off":[' + "0," * 1024 + "0]}]}]", "off: these are 1025 entries"),
        (
            'variants=[{"changes":[{"block":"all","weights":[' + "0," * 1024 + "0]}]}]",
            "weights: these are 1025 entries",
        ),
        ('variants=[{"changes":[' + "1," * 64 + "1]}]", "changes: these are 65 entries"),
        ('variants=[{"changes":[],"a":1,"b":2,"c":3}]', "the only fields are changes, name"),
        ("timeout_ms=100000", "timeout_ms"),
        ("top_k=3", "no such parameter"),
    ],
)
async def test_impossible_ablations(client: httpx.AsyncClient, query: str, says: str) -> None:
    response = await client.post(f"/routing/ablation?{query}", content=image(8))
    assert_problem(response, 422, "invalid_parameter", says)


async def test_ablations_of_what_is_no_single_image(client: httpx.AsyncClient) -> None:
    assert_problem(await client.post("/routing/ablation", files=form(1, 2)), 413, "too_many_images", "one image")
    assert_problem(await client.post("/routing/ablation", content=b"x"), 415, "unsupported_image")
    assert_problem(await client.post("/routing/ablation", content=b""), 400, "missing_image")
    assert_problem(await client.post("/routing/ablation?model=none", content=image(1)), 404, "model_not_found")


async def test_too_many_variants(client: httpx.AsyncClient) -> None:
    variants = [{"changes": [{"block": "all", "uniform": True}]}] * 1025
    document = {"images": [base64.b64encode(image(8)).decode()], "variants": variants}
    assert_problem(await client.post("/routing/ablation", json=document), 422, "invalid_parameter", "1025 entries")
    many = "&".join(("blocks=" + ",".join(["block_1"] * 1000), "experts=" + ",".join(["0"] * 1000)))
    response = await client.post(f"/routing/ablation?{many}", content=image(8))
    assert_problem(response, 422, "invalid_parameter", "1001000 variants")


async def test_ablations_take_their_places_before_they_decode(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    decode = ImageDecoder.decode

    async def slowly(*arguments: Any, **options: Any) -> Any:
        begun.set()
        await go.wait()
        return await decode(*arguments, **options)

    monkeypatch.setattr(ImageDecoder, "decode", slowly)
    sent = [asyncio.create_task(client.post("/routing/ablation", content=image(1))) for _ in range(MAX_WAITING + 3)]
    await begun.wait()
    refused = [await task for task in sent[MAX_WAITING:]]
    go.set()
    for response in refused:
        assert_problem(response, 429, "ablation_busy")
    assert [(await task).status_code for task in sent[:MAX_WAITING]] == [200] * MAX_WAITING


@pytest.mark.parametrize("parameter", ["variants", "blocks", "experts"])
async def test_lists_that_are_nested_too_deeply(client: httpx.AsyncClient, parameter: str) -> None:
    response = await client.post(f"/routing/ablation?{parameter}={'[' * 5000}", content=image(1))
    assert_problem(response, 422, "invalid_parameter", "not valid JSON")


async def test_pictures_are_there_by_the_deadline_or_not_at_all() -> None:
    go = threading.Event()

    def never(*_: Any) -> bytes:
        go.wait(30)
        return b""

    with Drawer(never) as drawer:
        async with running(drawer=drawer) as client:
            response = await client.post("/routing?format=png&timeout_ms=300", content=image(1))
            assert_problem(response, 504, "deadline_exceeded")
        go.set()

"""The statistics of live traffic below `/routing`."""

from __future__ import annotations

import csv
import io
from typing import Any

import httpx
import numpy as np
import pytest

from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.tally import Tally, entropy
from condconv_serve.routing.views import state_view
from tests.unit.fronts.native.routing_service import (
    BLOCKS,
    CLASSES,
    EVEN_LAYOUT,
    RANDOM,
    UNEVEN,
    assert_problem,
    form,
    image,
    running,
    send,
)


async def test_live_equals_a_recomputation(client: httpx.AsyncClient) -> None:
    shades = np.random.default_rng(1).integers(0, 256, 90).tolist()
    await send(client, *shades[:30])
    for start in range(30, 90, 20):
        response = await client.post("/routing", files=form(*shades[start : start + 20]))
        assert response.status_code == 200
    await client.post("/predict", content=b"no image")
    for window in ("1m", "15m", "all"):
        await assert_recomputed(client, shades, window)


async def assert_recomputed(client: httpx.AsyncClient, shades: list[int], window: str) -> None:
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
    state = state_view(RoutingState.unpack((await client.get("/routing/state?model=uneven")).content))
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
@pytest.mark.asyncio(loop_scope="module")
async def test_refusals(shared_client: httpx.AsyncClient, path: str, status: int, slug: str, says: str) -> None:
    assert_problem(await shared_client.get(path), status, slug, says)


async def test_statistics_switched_off() -> None:
    async with running(statistics=False) as client:
        response = await client.post("/routing", content=image(1), headers={"X-Request-Id": "a"})
        assert response.json()["predictions"][0]["insight"]["blocks"][0]["entropy"] > 0
        for path in ("/routing", "/routing/classes/0", "/routing/experts/block_1/0", "/routing/state"):
            assert_problem(await client.get(path), 404, "routing_not_found", "ROUTING_STATISTICS")
        assert_problem(await client.get("/routing/a"), 404, "routing_not_found")
        assert (await client.post("/routing/reset")).json() == {"reset": []}
        assert "condconv_routing_weight_bucket" not in (await client.get("/metrics")).text

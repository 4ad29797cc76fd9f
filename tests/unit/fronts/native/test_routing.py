"""`/routing`: the weights of given images, of recent requests, and what administrators may do."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import threading
from typing import Any

import httpx
import numpy as np
import pytest

from condconv_serve.routing.drawer import Drawer
from condconv_serve.routing.recent import RecentRequest, RecentRequests
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.tally import Tally, entropy
from tests.unit.fronts.native.routing_service import (
    ADMIN,
    ANN,
    BLOCKS,
    BOB,
    CLASSES,
    EVEN_LAYOUT,
    EXPERTS,
    MODELS,
    RANDOM,
    assert_problem,
    form,
    image,
    running,
    send,
)


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
@pytest.mark.asyncio(loop_scope="module")
async def test_accept(shared_client: httpx.AsyncClient, accept: str, content_type: str) -> None:
    response = await shared_client.post("/routing", content=image(3), headers={"accept": accept})
    assert response.headers["content-type"] == content_type
    assert response.headers["cache-control"] == "no-store"
    chosen = await shared_client.post("/routing?format=csv", content=image(3), headers={"accept": accept})
    assert chosen.headers["content-type"].startswith("text/csv")


@pytest.mark.asyncio(loop_scope="module")
async def test_pictures_have_limits(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.post("/routing?format=png", files=form(*range(17)))
    assert_problem(response, 422, "invalid_parameter", "at most 16 images")
    assert (await shared_client.post("/routing?format=npz", files=form(*range(17)))).status_code == 200
    response = await shared_client.post("/routing?format=png", files=form(None, None))
    assert_problem(response, 415, "unsupported_image")
    response = await shared_client.post("/routing?format=png&model=static", content=image(1))
    assert_problem(response, 422, "invalid_parameter", "static network")
    response = await shared_client.post("/routing?format=gif", content=image(1))
    assert_problem(response, 422, "invalid_parameter", "format")


@pytest.mark.parametrize("route", ["/predict", "/routing", "/routing/ablation"])
@pytest.mark.asyncio(loop_scope="module")
async def test_parameter_twice_is_refused_before_the_model_is_looked_up(
    shared_client: httpx.AsyncClient, route: str
) -> None:
    response = await shared_client.post(f"{route}?model=m&model=nonesuch", content=image(1))
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


async def test_what_is_to_be_kept_is_sent_before_the_answer(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to an engine process, which gets it in the next turn of the loop: another front may be asked for it."""
    sent: list[str] = []

    def send_soon(recent: RecentRequests, request: RecentRequest, *, owner: str | None) -> None:
        asyncio.get_running_loop().call_soon(sent.append, request.request_id)

    monkeypatch.setattr(RecentRequests, "remember", send_soon)
    for path in ("/predict", "/detect?model=finder", "/routing?format=csv"):
        await client.post(path, content=image(1), headers={"X-Request-Id": path})
        assert sent.pop() == path


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

"""`threshold`: classes with a smaller probability are left out, and nothing else changes."""

from __future__ import annotations

import base64
import csv
import io
from typing import Any

import httpx
import numpy as np
import pytest

from tests.unit.fronts.native.routing_service import ANN, CLASSES, assert_problem, form, image

BEST = float(np.exp(5) / (np.exp(5) + CLASSES - 1))
"""The probability of the class that wins."""


def found(response: httpx.Response) -> list[list[int]]:
    assert response.status_code == 200, response.text
    return [[scored["index"] for scored in entry["classes"]] for entry in response.json()["predictions"]]


@pytest.mark.parametrize("route", ["/predict", "/routing"])
@pytest.mark.parametrize("threshold", [0.5, BEST - 1e-6])
@pytest.mark.asyncio(loop_scope="module")
async def test_it_is_given_in_any_form(shared_client: httpx.AsyncClient, route: str, threshold: float) -> None:
    body = {"images": [base64.b64encode(image(3)).decode()], "threshold": threshold}
    asked: list[dict[str, Any]] = [
        {"params": {"threshold": threshold}, "content": image(3)},
        {"data": {"threshold": str(threshold)}, "files": form(3)},
        {"json": body},
    ]
    for options in asked:
        assert found(await shared_client.post(route, **options)) == [[3]]


@pytest.mark.asyncio(loop_scope="module")
async def test_of_the_top_k_only_those_above_it_remain(shared_client: httpx.AsyncClient) -> None:
    assert found(await shared_client.post("/predict?top_k=2", content=image(3))) == [[3, 0]]
    assert found(await shared_client.post("/predict?top_k=2&threshold=0.5", content=image(3))) == [[3]]
    assert found(await shared_client.post("/predict?top_k=2&threshold=0", content=image(3))) == [[3, 0]]
    response = await shared_client.post("/predict?threshold=0.99", files=form(3, None, 4))
    entries = response.json()["predictions"]
    assert [entry.get("classes") for entry in entries] == [[], None, []], "an empty list, not nothing"
    assert entries[0]["batch_size"] >= 1


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_said_of_the_best_class_needs_no_threshold(shared_client: httpx.AsyncClient) -> None:
    sent = {"X-Request-Id": "faint", **ANN}
    (entry,) = (
        await shared_client.post("/routing?threshold=1&model=profiled", content=image(10), headers=sent)
    ).json()["predictions"]
    assert entry["classes"] == []
    assert entry["insight"]["class_profile"]["index"] == 2
    recent = (await shared_client.get("/routing/faint", headers=ANN)).json()
    assert recent["predictions"][0]["insight"]["class_profile"]["index"] == 2
    response = await shared_client.post("/routing?threshold=1&format=csv", content=image(10))
    assert {line["class"] for line in csv.DictReader(io.StringIO(response.text))} == {"2"}
    response = await shared_client.post("/routing?threshold=1&format=svg", content=image(10))
    assert "class 2" in response.text


@pytest.mark.parametrize("threshold", ["-0.1", "1.1", "nan", "inf", "half", "", "1e400"])
@pytest.mark.asyncio(loop_scope="module")
async def test_impossible_values(shared_client: httpx.AsyncClient, threshold: str) -> None:
    response = await shared_client.post("/predict", params={"threshold": threshold}, content=image(3))
    assert_problem(response, 422, "invalid_parameter", "threshold: ")


@pytest.mark.parametrize("threshold", ["true", "NaN", "null", "[0.5]"])
@pytest.mark.asyncio(loop_scope="module")
async def test_impossible_values_in_json(shared_client: httpx.AsyncClient, threshold: str) -> None:
    body = f'{{"images": ["{base64.b64encode(image(3)).decode()}"], "threshold": {threshold}}}'
    response = await shared_client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert_problem(response, 422, "invalid_parameter", "threshold: ")

"""`/routing/ablation`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from condconv_serve.imaging import ImageDecoder
from condconv_serve.inference.ablation_queue import MAX_WAITING
from tests.contract.fakes import FakeModels
from tests.unit.fronts.native.routing_service import (
    BLOCKS,
    EXPERTS,
    RANDOM,
    assert_problem,
    form,
    image,
)


@pytest.mark.asyncio(loop_scope="module")
async def test_every_expert_off_by_default(shared_client: httpx.AsyncClient) -> None:
    body = (await shared_client.post("/routing/ablation", content=image(8))).json()
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


@pytest.mark.asyncio(loop_scope="module")
async def test_given_routings(shared_client: httpx.AsyncClient) -> None:
    variants = [
        {"changes": [{"block": "block_2", "weights": [0.25, None, 1]}], "name": "mine"},
        {"changes": [{"block": "all", "uniform": True}, {"block": "block_1", "off": [0, 2]}]},
    ]
    document = {"images": [base64.b64encode(image(8)).decode()], "variants": variants, "routing": True}
    body = (await shared_client.post("/routing/ablation", json=document)).json()
    mine, other = body["variants"]
    assert mine["name"] == "mine"
    assert mine["routing"]["block_2"] == [0.25, float(RANDOM[8, 1, 1]), 1.0]
    assert mine["routing"]["block_1"] == RANDOM[8, 0].tolist()
    assert mine["changes"] == [{"block": "block_2", "weights": [0.25, None, 1.0]}]
    assert other["name"] == "all uniform, block_1 without expert 0 and 2"
    means = [pytest.approx(float(RANDOM[8, block].mean())) for block in (0, 1)]
    assert other["routing"] == {"block_1": [0.0, means[0], 0.0], "block_2": [means[1]] * 3}

    document["variants"] = [{"changes": [{"block": "block_1", "off": [0]}, {"block": "all", "uniform": True}]}]
    (last,) = (await shared_client.post("/routing/ablation", json=document)).json()["variants"]
    assert last["routing"] == {"block_1": [means[0]] * 3, "block_2": [means[1]] * 3}

    same = await shared_client.post(
        "/routing/ablation", files=form(8), data={"variants": json.dumps(variants), "routing": "1"}
    )
    assert [v["routing"] for v in same.json()["variants"]] == [v["routing"] for v in body["variants"]]
    assert same.json()["filename"] == "shade 8.png"

    few = await shared_client.post("/routing/ablation?blocks=block_2&experts=0,2&uniform=false", content=image(8))
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
@pytest.mark.asyncio(loop_scope="module")
async def test_impossible_ablations(shared_client: httpx.AsyncClient, query: str, says: str) -> None:
    response = await shared_client.post(f"/routing/ablation?{query}", content=image(8))
    assert_problem(response, 422, "invalid_parameter", says)


@pytest.mark.asyncio(loop_scope="module")
async def test_ablations_of_what_is_no_single_image(shared_client: httpx.AsyncClient) -> None:
    assert_problem(await shared_client.post("/routing/ablation", files=form(1, 2)), 413, "too_many_images", "one image")
    assert_problem(await shared_client.post("/routing/ablation", content=b"x"), 415, "unsupported_image")
    assert_problem(await shared_client.post("/routing/ablation", content=b""), 400, "missing_image")
    assert_problem(await shared_client.post("/routing/ablation?model=none", content=image(1)), 404, "model_not_found")


@pytest.mark.asyncio(loop_scope="module")
async def test_too_many_variants(shared_client: httpx.AsyncClient) -> None:
    variants = [{"changes": [{"block": "all", "uniform": True}]}] * 1025
    document = {"images": [base64.b64encode(image(8)).decode()], "variants": variants}
    assert_problem(
        await shared_client.post("/routing/ablation", json=document), 422, "invalid_parameter", "1025 entries"
    )
    many = "&".join(("blocks=" + ",".join(["block_1"] * 1000), "experts=" + ",".join(["0"] * 1000)))
    response = await shared_client.post(f"/routing/ablation?{many}", content=image(8))
    assert_problem(response, 422, "invalid_parameter", "1001000 variants")


async def test_the_model_stays_loaded_until_the_ablation_is_answered(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, held_while_decoding = 0, []
    decode = ImageDecoder.decode

    @contextlib.contextmanager
    def lease(models: FakeModels, *asked: Any, **options: Any) -> Iterator[Any]:
        nonlocal held
        held += 1
        yield models.get(*asked, **options)
        held -= 1

    async def noting(*arguments: Any, **options: Any) -> Any:
        held_while_decoding.append(held)
        return await decode(*arguments, **options)

    monkeypatch.setattr(FakeModels, "lease", lease)
    monkeypatch.setattr(ImageDecoder, "decode", noting)
    assert (await client.post("/routing/ablation", content=image(1))).status_code == 200
    assert (held_while_decoding, held) == ([1], 0)


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
@pytest.mark.asyncio(loop_scope="module")
async def test_lists_that_are_nested_too_deeply(shared_client: httpx.AsyncClient, parameter: str) -> None:
    response = await shared_client.post(f"/routing/ablation?{parameter}={'[' * 5000}", content=image(1))
    assert_problem(response, 422, "invalid_parameter", "not valid JSON")

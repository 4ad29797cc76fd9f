"""Another version on copies of requests: callers never notice, whatever it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import pictures
from tests.e2e.live import MODEL, Load
from tests.e2e.server import Server, sample_name, wait_for
from tests.e2e.tiny_models import CLASSES, answered_by, write_colour_detector, write_fake

STALL_SECONDS = 8
"""Longer than a busy machine keeps the callers' own batches, and less than a copy may wait."""
AGREES, DIFFERS = str(1 + CLASSES), "2"
ALIAS = f"/models/{MODEL}/aliases/stable"


@pytest.fixture(scope="module")
def photo() -> bytes:
    return pictures.jpeg(pictures.photo("coffee", (60, 40)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    for version in (1, int(AGREES), int(DIFFERS)):
        write_fake(store, MODEL, version)
    with Server(
        model_store=store, served_versions=3, stall_timeout=STALL_SECONDS, streams=1, tracebacks=True
    ) as running:
        yield running


def shadows(server: Server) -> dict[str, dict[str, Any]]:
    return {found["shadow"]: found for found in server.client.get(f"/models/{MODEL}").json()["shadows"]}


def skipped(server: Server, version: str, reason: str) -> Callable[[], bool]:
    return lambda: shadows(server)[version]["skipped"].get(reason, 0) > 0


def slowest(server: Server, photo: bytes, requests: int = 20) -> float:
    """Seconds that the slowest of some requests took."""
    took = []
    for _ in range(requests):
        started = time.monotonic()
        assert answered_by(server.client.post("/predict?version=stable", content=photo)) == "1"
        took.append(time.monotonic() - started)
    return max(took)


def test_every_front_mirrors_and_a_shadow_may_be_unloaded_and_loaded_again(server: Server, photo: bytes) -> None:
    client = server.client
    client.put(ALIAS, json={"version": "1", "mirror": {AGREES: 100}}).raise_for_status()
    slowest(server, photo, 3)
    wait_for(lambda: shadows(server)[AGREES]["images"] == 3)
    assert client.get("/routing", params={"model": MODEL, "version": AGREES}).json()["images"] == 3
    pixels = [[[[9, 9, 9]] * 32] * 32]
    tensor = {"name": "pixels", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": pixels}
    client.post(f"/v2/models/{MODEL}/versions/stable/infer", json={"inputs": [tensor]}).raise_for_status()
    client.post(f"/v1/models/{MODEL}/labels/stable:predict", json={"instances": pixels}).raise_for_status()
    wait_for(lambda: shadows(server)[AGREES]["images"] == 5)
    client.post(f"/models/{MODEL}/versions/{AGREES}/unload").raise_for_status()
    wait_for(lambda: shadows(server) == {})  # fronts let a version go a moment later
    slowest(server, photo, 2)
    wait_for(lambda: shadows(server)[AGREES]["skipped"] == {"not_served": 2})
    client.post(f"/models/{MODEL}/versions/{AGREES}/load").raise_for_status()
    slowest(server, photo, 2)
    wait_for(lambda: shadows(server)[AGREES]["images"] == 2)
    rolled = client.put(ALIAS, json={"version": "1"}).json()
    assert rolled == {"versions": {"1": 1}}
    slowest(server, photo, 2)
    assert shadows(server)[AGREES]["images"] == 2


def test_whatever_a_shadow_does_callers_do_not_notice(server: Server, photo: bytes) -> None:
    alias = server.client.put(ALIAS, json={"version": "1", "mirror": {AGREES: 100, DIFFERS: 50}}).json()
    assert alias == {"versions": {"1": 1}, "mirror": {AGREES: 100, DIFFERS: 50}}
    with Load(server.url, photo, query="&version=stable").flowing() as load:
        found: dict[str, dict[str, Any]] = {}

        def compared() -> bool:
            found.update(shadows(server))
            return all(version in found and found[version]["images"] > 20 for version in (AGREES, DIFFERS))

        wait_for(compared)
        assert found[AGREES]["agreement"] == 1
        assert found[AGREES]["distance"] < 1e-6
        assert found[DIFFERS]["agreement"] == 0
        assert found[DIFFERS]["distance"] > 0.99
        assert found[DIFFERS]["routing_distance"] == {"block_4": 0, "block_5": 0}

        server.fault(f"only {DIFFERS} broken")
        wait_for(skipped(server, DIFFERS, "paused"))
        assert skipped(server, DIFFERS, "failed")()

        server.fault(f"only {AGREES} hold rows")
        assert slowest(server, photo) < 0.75 * STALL_SECONDS  # the only stream of callers is free
        wait_for(skipped(server, AGREES, "paused"))
        assert shadows(server)[AGREES]["problem"] == f"The engine gave no answer in {STALL_SECONDS} s."
        assert server.is_ready()
    assert set(load.answers) == {"1"}

    wait_for(lambda: server.metrics()["condconv_rows_in_flight"] == 0)
    samples = server.metrics()
    rows = {name: n for name, n in samples.items() if name.startswith("condconv_rows_total{") and n}
    answered = sum(rows.values())
    assert rows == {sample_name("condconv_rows_total", model=MODEL, outcome="answered"): answered}
    assert samples[sample_name("condconv_version_rows_total", model=MODEL, version="1")] == answered
    assert samples[sample_name("condconv_stage_seconds_count", stage="total")] == answered
    assert sum(n for name, n in samples.items() if name.startswith("condconv_batch_size_sum")) == answered
    assert samples["condconv_stream_stalls_total"] == 0
    assert not any(n for name, n in samples.items() if name.startswith("condconv_batch_failures_total{"))
    assert not any(f'version="{v}"' in name for v in (AGREES, DIFFERS) for name in samples if "version_rows" in name)
    copies = sum(n for name, n in samples.items() if "condconv_shadow_rows_total" in name and f'"{AGREES}"' in name)
    assert 0 < copies <= answered


def test_detectors_are_compared_by_their_objects(tmp_path: Path) -> None:
    for version in ("1", "2"):
        write_colour_detector(tmp_path, version=version)
    with Server(model_store=tmp_path, served_versions=2) as server:
        server.client.put("/models/colours/aliases/default", json={"version": "1", "mirror": {"2": 100}})
        red = pictures.png(np.full((64, 64, 3), (255, 0, 0), np.uint8))
        assert server.client.post("/detect", content=red).status_code == 200
        found: list[dict[str, Any]] = []

        def compared() -> bool:
            found[:] = server.client.get("/models/colours").json()["shadows"]
            return bool(found) and found[0]["images"] == 1

        wait_for(compared)
        assert (found[0]["agreement"], found[0]["distance"]) == (1, 0)

"""The response cache over sockets: what callers see, versions that change, one image from many clients."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from condconv_serve import Client, bootstrap
from condconv_serve.bootstrap import Service
from condconv_serve.errors import ConfigurationError
from condconv_serve.settings import Settings
from tests import pictures
from tests.contract.fakes import load_shades
from tests.e2e.live import MODEL, Load, rewrite, served
from tests.e2e.server import Server, new_client, sample_name, wait_for
from tests.e2e.tiny_models import answered_by, write_fake

PHOTO = pictures.jpeg(pictures.photo("coffee", (60, 40)))
_numbers = itertools.count()


def another() -> bytes:
    """The same picture in another file: what comes after a JPEG's end isn't looked at."""
    return PHOTO + next(_numbers).to_bytes(8, "big")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    write_fake(store, MODEL, 1)
    return store


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    with Server(model_store=store, cache_bytes=200_000, max_queue_rows=8) as running:
        yield running


def evicted(server: Server, reason: str) -> float:
    return server.metrics()[sample_name("condconv_cache_evictions_total", reason=reason)]


def test_what_callers_see(server: Server) -> None:
    photo, client = another(), server.client
    first = client.post("/predict?top_k=2", content=photo)
    second = client.post("/routing?top_k=1", files=[("image", ("a.jpg", photo)), ("image", ("b.jpg", another()))])
    hit, miss = second.json()["predictions"]
    (before,) = first.json()["predictions"]
    assert (before["cached"], hit["cached"], miss["cached"]) == (False, True, False)
    assert first.headers["Cache-Status"] == "condconv-serve; fwd=miss"
    assert second.headers["Cache-Status"] == 'condconv-serve; fwd=partial; detail="1 of 2 images"'
    assert (hit["filename"], hit["batch_size"]) == ("a.jpg", before["batch_size"])
    assert hit["classes"] == before["classes"][:1]
    assert hit["routing"].keys() == {"block_4", "block_5"}
    assert (hit["timings_ms"]["decode"], hit["timings_ms"]["inference"]) == (0, 0)
    remembered = client.get(f"/routing/{second.headers['X-Request-Id']}").json()
    assert [entry["cached"] for entry in remembered["predictions"]] == [True, False]
    features = client.post("/features?logits=true", content=photo)
    assert features.headers["Cache-Status"] == "condconv-serve; hit"
    assert features.json()["predictions"][0]["cached"] is True
    again = client.post("/predict", content=photo, headers={"Cache-Control": "no-cache"})
    assert (again.headers["Cache-Status"], again.json()["predictions"][0]["cached"]) == (
        "condconv-serve; fwd=request",
        False,
    )
    with Client(server.url) as python:
        assert [python.predict(photo, no_cache=fresh).cached for fresh in (False, True)] == [True, False]
    broken = client.post("/predict", content=photo[:100])
    assert broken.is_client_error
    assert "Cache-Status" not in broken.headers


def test_one_image_from_many_clients_is_computed_once(server: Server) -> None:
    photo, before = another(), server.metrics()
    server.fault("slow 0.3")

    def ask(_: int) -> httpx.Response:
        with new_client(server.url) as client:
            return client.post("/predict", content=photo)

    with ThreadPoolExecutor(30) as threads:  # the queue has room for 8
        answers = list(threads.map(ask, range(30)))
    server.fault("")
    assert Counter(answer.status_code for answer in answers) == {200: 30}
    assert len({answer.json()["predictions"][0]["classes"][0]["probability"] for answer in answers}) == 1
    miss = sample_name("condconv_cache_rows_total", model=MODEL, result="miss")
    assert server.metrics()[miss] - before.get(miss, 0) == 1


def test_no_answer_outlives_its_version(server: Server, store: Path, tmp_path: Path) -> None:
    """Versions replace each other while the same images come; then one is loaded again with other weights."""
    first = int(served(server.client)[0])
    with Load(server.url, PHOTO, pause=0.002).flowing() as load:
        for version in range(first + 1, first + 3):
            write_fake(store, MODEL, version)
            wait_for(lambda version=version: served(server.client) == [str(version)])  # type: ignore[misc]
            wait_for(lambda version=version: load.answers[str(version)] > 10)  # type: ignore[misc]
            shutil.rmtree(store / MODEL / str(version - 1))
    wait_for(lambda: evicted(server, "version") >= 2)
    last = str(first + 2)
    assert answered_by(server.client.post("/predict", content=PHOTO)) == last
    other = write_fake(tmp_path, MODEL, first + 3)
    rewrite(other, version=last)
    before = evicted(server, "version")
    shutil.rmtree(store / MODEL / last)
    shutil.move(other, store / MODEL / last)
    for change in ("unload", "load"):
        server.client.post(f"/models/{MODEL}/versions/{last}/{change}")
    wait_for(lambda: evicted(server, "version") > before)
    answer = server.client.post("/predict?top_k=1", content=PHOTO).json()
    assert answer["model"]["version"] == last
    assert answer["predictions"][0]["classes"][0]["index"] == (first + 3) % 16


def test_it_takes_no_more_than_its_bytes(server: Server) -> None:
    for _ in range(20):
        server.client.post("/predict", files=[("image", (str(n), another())) for n in range(8)]).raise_for_status()
    metrics = server.metrics()
    assert 150_000 < metrics["condconv_cache_bytes"] <= metrics["condconv_cache_max_bytes"] == 200_000
    assert evicted(server, "room") > 0


def test_its_full_size_counts_when_models_are_loaded(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an empty cache may still take is not left for a version."""
    monkeypatch.setattr(bootstrap, "memory_left", lambda: 500_000_000)

    def served_with(cache_bytes: int) -> bool:
        settings = Settings(model_store=store, cache_bytes=cache_bytes)
        service = Service(settings, load=load_shades)
        service.follower.sync_now()
        return bool(service.registry.models())

    assert served_with(100_000_000)
    assert not served_with(490_000_000)
    monkeypatch.setattr(bootstrap, "memory_limit", lambda: 400_000_000)
    with pytest.raises(ConfigurationError, match="CONDCONV_CACHE_BYTES"):
        served_with(400_000_000)

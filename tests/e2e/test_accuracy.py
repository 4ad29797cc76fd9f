"""The measured accuracy, through the running server: all of decoding, transform, batching and labels is in it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.server import BUNDLE, MODEL, ROOT, Server, new_client

PHOTOS = ROOT.parent / "shared" / "default_model" / "eval"
pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the labelled photographs are not part of the product")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the same model, but with the transform of the official evaluation."""
    store = tmp_path_factory.mktemp("store")
    bundle = shutil.copytree(BUNDLE, store / MODEL / "1")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["preprocessing"]["transform"] = "official"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with Server(model_store=store) as running:
        yield running


def measure(url: str) -> tuple[float, float]:
    """Top-1 and top-5 in percent, all photographs sent by 16 clients."""
    with (PHOTOS / "labels.csv").open(newline="") as file:
        truth = {row["file"]: (int(row["imagenet_index"]), row["synset"]) for row in csv.DictReader(file)}
    assert len(truth) == 250

    with new_client(url, connections=16) as client, ThreadPoolExecutor(16) as pool:

        def place(name: str) -> int:
            response = client.post("/predict?top_k=5", content=(PHOTOS / name).read_bytes())
            classes = response.json()["predictions"][0]["classes"]
            found = [(scored["index"], scored["synset"]) for scored in classes]
            return found.index(truth[name]) if truth[name] in found else 5

        places = list(pool.map(place, truth))
    return 100 * places.count(0) / len(places), 100 * sum(place < 5 for place in places) / len(places)


@pytest.mark.parametrize(("transform", "expected"), [("pillow", 87.6), ("official", 85.6)])
def test_accuracy(request: pytest.FixtureRequest, transform: str, expected: float) -> None:
    running: Server = request.getfixturevalue("server" if transform == "pillow" else "official")
    assert running.client.get(f"/models/{MODEL}").json()["preprocessing"]["transform"] == transform
    top1, top5 = measure(running.url)
    print(f"\n{transform}: top-1 {top1:.1f} %, top-5 {top5:.1f} %")
    assert top1 == pytest.approx(expected, abs=0.5)
    assert top5 == pytest.approx(98.4, abs=0.5)

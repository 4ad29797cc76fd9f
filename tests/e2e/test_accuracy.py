"""The measured accuracy, through the running server: all of decoding, transform, batching and labels is in it."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.server import MODEL, ROOT, RunningServer, new_client
from tests.e2e.shared import OFFICIAL

PHOTOS = ROOT.parent / "shared" / "default_model" / "eval"
pytestmark = [
    pytest.mark.skipif(not PHOTOS.is_dir(), reason="the labelled photographs are not part of the product"),
    pytest.mark.one_process("it measures the network, which answers alike: tests/e2e/test_workers_answer_alike.py"),
]


def measure(url: str, model: str, *, every: int = 1) -> tuple[int, int, int]:
    """How many photographs there are, or every so many of them, and at how many the first class is right, or one of 5.

    They are sent by 16 clients.
    """
    with (PHOTOS / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 250
    truth = {row["file"]: (int(row["imagenet_index"]), row["synset"]) for row in rows[::every]}

    with new_client(url, connections=16) as client, ThreadPoolExecutor(16) as pool:

        def place(name: str) -> int:
            response = client.post(f"/predict?top_k=5&model={model}", content=(PHOTOS / name).read_bytes())
            classes = response.json()["predictions"][0]["classes"]
            found = [(scored["index"], scored["synset"]) for scored in classes]
            return found.index(truth[name]) if truth[name] in found else 5

        places = list(pool.map(place, truth))
    return len(places), places.count(0), sum(place < 5 for place in places)


def test_a_sample(server: RunningServer) -> None:
    """On some machine one photograph between two classes may go to the other one, no more; all are measured below."""
    photos, top1, top5 = measure(server.url, MODEL, every=12)
    assert photos == 21
    assert top1 == pytest.approx(18, abs=1)
    assert top5 == pytest.approx(19, abs=1)


@pytest.mark.full_parity
@pytest.mark.parametrize(("model", "transform", "expected"), [(MODEL, "pillow", 87.6), (OFFICIAL, "official", 85.6)])
def test_accuracy(server: RunningServer, model: str, transform: str, expected: float) -> None:
    assert server.client.get(f"/models/{model}").json()["preprocessing"]["transform"] == transform
    photos, *right = measure(server.url, model)
    top1, top5 = (100 * number / photos for number in right)
    print(f"\n{transform}: top-1 {top1:.1f} %, top-5 {top5:.1f} %")
    assert top1 == pytest.approx(expected, abs=0.5)
    assert top5 == pytest.approx(98.4, abs=0.5)

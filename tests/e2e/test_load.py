"""Many clients at once, and more than fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import httpx
import numpy as np
import pytest

from tests import pictures
from tests.e2e.server import RunningServer, Server, assert_problem, new_client, probabilities, sample_name, wait_for

ESPRESSO = 967


def different_photos() -> list[bytes]:
    """32 crops of four photographs."""
    crops = []
    for name in pictures.PHOTOS:
        pixels = pictures.photo(name, (400, 300))
        crops += [pictures.jpeg(pixels[8 * i : 8 * i + 200, 10 * i : 10 * i + 260]) for i in range(8)]
    return crops


def post_at_once(url: str, path: str, bodies: list[bytes]) -> list[httpx.Response]:
    """Send all bodies at the same moment, each on its own connection."""
    start = Barrier(len(bodies))
    with new_client(url, connections=len(bodies)) as client, ThreadPoolExecutor(len(bodies)) as pool:

        def post(body: bytes) -> httpx.Response:
            start.wait()
            return client.post(path, content=body)

        return list(pool.map(post, bodies))


def test_everyone_gets_the_answer_to_their_own_photograph(server: RunningServer) -> None:
    photos = different_photos()
    path = "/predict?top_k=1000&routing=true"
    alone = [server.client.post(path, content=photo) for photo in photos]
    together = post_at_once(server.url, path, photos)
    difference = 0.0
    for one, other in zip(alone, together, strict=True):
        difference = max(difference, np.abs(np.subtract(probabilities(one), probabilities(other))).max())
        (expected,), (entry,) = one.json()["predictions"], other.json()["predictions"]
        np.testing.assert_allclose(list(entry["routing"].values()), list(expected["routing"].values()), atol=1e-4)
    assert difference <= 1e-4
    answers = [probabilities(response)[0] for response in alone]
    apart = min(np.abs(np.subtract(a, b)).max() for i, a in enumerate(answers) for b in answers[:i])
    assert apart > 10 * 1e-4, "the photographs must differ for this to prove anything"
    sizes = [response.json()["predictions"][0]["batch_size"] for response in together]
    print(f"\nlargest difference {difference:.1e}; batch sizes {sorted(sizes)}")
    assert 1 < max(sizes) <= 8


def test_one_request_of_many_images_is_spread_over_batches(server: RunningServer, coffee: bytes) -> None:
    files = [("image", (f"{i}.jpg", coffee)) for i in range(64)]
    entries = server.client.post("/predict?top_k=1", files=files).json()["predictions"]
    assert [entry["filename"] for entry in entries] == [f"{i}.jpg" for i in range(64)]
    assert {entry["classes"][0]["index"] for entry in entries} == {ESPRESSO}
    assert 1 < max(entry["batch_size"] for entry in entries) <= 8


def test_a_lone_image_is_a_batch_of_its_own(fake_server: Server) -> None:
    for photo in different_photos()[:8]:
        (entry,) = fake_server.client.post("/predict", content=photo).json()["predictions"]
        assert entry["batch_size"] == 1


@pytest.fixture(scope="module")
def narrow() -> Iterator[Server]:
    """A server that is easily overrun."""
    with Server(max_queue_rows=2, streams=1, max_batch_size=1, decode_threads=1) as running:
        yield running


def test_full_queue_refuses_some_and_serves_the_others(narrow: Server, coffee: bytes) -> None:
    alone = probabilities(narrow.client.post("/predict?top_k=1000", content=coffee))
    requests = 24
    refusals = sample_name("condconv_rejected_total", reason="queue_full")
    with narrow.holding(), new_client(narrow.url, connections=requests) as client, ThreadPoolExecutor(requests) as pool:
        futures = [pool.submit(client.post, "/predict?top_k=1000", content=coffee)]
        wait_for(lambda: narrow.metrics()["condconv_rows_in_flight"] == 1)  # until then it fills the queue, too
        futures += [pool.submit(client.post, "/predict?top_k=1000", content=coffee) for _ in range(requests - 1)]
        wait_for(lambda: narrow.metrics().get(refusals) == requests - 3)
        assert narrow.metrics()["condconv_queue_rows"] == 2
        assert narrow.metrics()["condconv_rows_in_flight"] == 1
        narrow.fault()
        responses = [future.result() for future in futures]
    refused = [response for response in responses if response.status_code != 200]
    assert len(refused) == requests - 3
    for response in refused:
        assert_problem(response, 429, "queue_full", "of 2 images are waiting")
        assert int(response.headers["retry-after"]) == math.ceil(response.json()["retry_after"]) >= 1
    for response in (response for response in responses if response.status_code == 200):
        assert np.abs(np.subtract(probabilities(response), alone)).max() <= 1e-4
    wait_for(lambda: narrow.metrics()["condconv_queue_rows"] == 0)


def test_more_images_than_the_queue_holds_are_not_told_to_try_again(narrow: Server, coffee: bytes) -> None:
    response = narrow.client.post("/predict", files=[("image", ("a.jpg", coffee))] * 3)
    assert_problem(response, 413, "too_many_images", "more than 2 images")

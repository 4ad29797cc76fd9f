"""An engine that raises, hangs, or finds no memory: who isn't guilty gets the right answer all the same.

`tests/unit/runtime/test_fresh_process.py` has what TensorFlow itself says of too little memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from condconv_serve.inference.batching.health import COOL_DOWN_SECONDS, MAX_FAILURES
from tests.contract.fake_server import HANG, POISON
from tests.e2e.server import MODEL, Server, assert_problem, new_client, sample_name, wait_for
from tests.fault.traffic import PATH, Traffic, plain

STALL_TIMEOUT = 8.0
"""Longer than a busy machine lets a process stand still, since the batches of others must not seem to hang, too."""
STREAMS = 2
IN_FLIGHT, QUEUED = "condconv_rows_in_flight", "condconv_queue_rows"
STALLS = "condconv_stream_stalls_total"


@pytest.fixture(scope="module")
def faulty() -> Iterator[Server]:
    # A batch that a test holds must not count as one that hangs, so only one test waits for that.
    with Server(stall_timeout=60, streams=STREAMS, max_batch_size=8, tracebacks=True) as server:
        yield server
        server.stop()
        assert "/secret/path" in server.log, "the log says what went wrong"


@pytest.fixture(scope="module")
def traffic(faulty: Server) -> Traffic:
    return Traffic.learn(faulty.client)


@contextmanager
def busy_streams(faulty: Server, photo: bytes) -> Iterator[None]:
    """Hold each stream with a lone row, so that what comes rides together once `fault` says something else."""
    with (
        new_client(faulty.url, connections=STREAMS) as client,
        ThreadPoolExecutor(STREAMS) as pool,
        faulty.holding(),
    ):
        for busy in range(STREAMS):
            pool.submit(client.post, "/predict", content=photo)
            wait_for(lambda busy=busy: faulty.metrics()[IN_FLIGHT] == busy + 1)  # type: ignore[misc]
        yield


def test_one_poison_row_in_a_full_batch(faulty: Server, traffic: Traffic) -> None:
    numbers = range(15)
    connections = len(numbers) + 1
    with new_client(faulty.url, connections=connections) as client, ThreadPoolExecutor(connections) as pool:
        with busy_streams(faulty, traffic.photos[0]):
            futures = [pool.submit(client.post, PATH, content=traffic.photos[i]) for i in numbers]
            poisoned = pool.submit(client.post, "/predict", content=plain(POISON))
            wait_for(lambda: faulty.metrics()[QUEUED] == len(numbers) + 1)
        responses = [future.result() for future in futures]
        refused = poisoned.result()
    for number, response in zip(numbers, responses, strict=True):
        traffic.check(number, response)
    assert_problem(refused, 500, "inference_failed", "could not compute this image")
    assert "secret" not in refused.text
    assert faulty.is_ready()


def test_poison_in_one_request_of_many_images(faulty: Server, traffic: Traffic) -> None:
    files = [("image", ("a.jpg", traffic.photos[i])) for i in range(3)]
    files.insert(1, ("image", ("poison.png", plain(POISON))))
    entries = faulty.client.post("/predict", files=files).json()["predictions"]
    assert [entry.get("error", {}).get("slug") for entry in entries] == [None, "inference_failed", None, None]


def test_poison_again_and_again_among_other_traffic(faulty: Server, traffic: Traffic) -> None:
    clients = 8
    with (
        busy_streams(faulty, traffic.photos[0]),
        traffic.flowing(faulty.url, clients),
        new_client(faulty.url) as client,
    ):
        wait_for(lambda: faulty.metrics()[QUEUED] == clients)
        faulty.fault()
        for number in range(10):
            assert client.post("/predict", content=plain(POISON)).status_code == 500
            # Several failures in a row would mean that the engine is broken, and the others may be slow.
            traffic.check(number, client.post(PATH, content=traffic.photos[number]))
    assert max(r.json()["predictions"][0]["batch_size"] for r in traffic.responses) > 1


def test_a_stream_that_hangs(traffic: Traffic) -> None:
    """The rows that share its batch are told to come again; all others are answered meanwhile by the other stream."""
    with Server(stall_timeout=STALL_TIMEOUT, streams=STREAMS, max_batch_size=8) as server:
        with new_client(server.url) as client, ThreadPoolExecutor(1) as pool:
            hanging = pool.submit(client.post, "/predict", content=plain(HANG))
            wait_for(lambda: server.metrics()[IN_FLIGHT] == 1)
            traffic.check(0, server.client.post(PATH, content=traffic.photos[0]))
            assert not hanging.done(), "the other stream has answered"
            with traffic.flowing(server.url, clients=2, pause=0.1):  # it takes seconds
                response = hanging.result()
        assert_problem(response, 503, "engine_stalled", f"no answer in {STALL_TIMEOUT:g} s")
        assert int(response.headers["retry-after"]) >= 1
        assert server.metrics()[STALLS] == 1
        with traffic.flowing(server.url) as answers:
            wait_for(lambda: len(answers) > 20)
        assert server.metrics()[STALLS] == 1


def test_too_little_memory_for_full_batches(faulty: Server, traffic: Traffic) -> None:
    failures = sample_name("condconv_batch_failures_total", model=MODEL, reason="out_of_memory")
    clients = 16
    with busy_streams(faulty, traffic.photos[0]), traffic.flowing(faulty.url, clients) as answers:
        wait_for(lambda: faulty.metrics()[QUEUED] == clients)
        faulty.fault("memory 2")
        wait_for(lambda: faulty.metrics().get(failures, 0) >= 1)
        before = len(answers)
        wait_for(lambda: len(answers) > before + 50)
    assert max(r.json()["predictions"][0]["batch_size"] for r in traffic.responses) == 2
    assert faulty.is_ready()


def test_too_little_memory_for_anything(faulty: Server, traffic: Traffic) -> None:
    faulty.fault("memory 0")
    response = faulty.client.post("/predict", content=traffic.photos[0])
    faulty.fault()
    assert_problem(response, 503, "out_of_memory", "too little memory")
    assert response.headers["retry-after"]
    traffic.check(0, faulty.client.post(PATH, content=traffic.photos[0]))


def test_a_broken_engine_is_not_ready_until_it_works_again(faulty: Server, traffic: Traffic) -> None:
    faulty.fault("broken")
    for _ in range(MAX_FAILURES):
        assert faulty.client.post("/predict", content=traffic.photos[0]).status_code == 500
    said = f"failed {MAX_FAILURES} times in a row"
    assert_problem(faulty.client.get("/readyz"), 503, "not_ready", said, "RuntimeError")
    response = faulty.client.post("/predict", content=traffic.photos[0])
    assert_problem(response, 503, "not_ready", said)
    assert 0 < int(response.headers["retry-after"]) <= COOL_DOWN_SECONDS
    assert "secret" not in response.text
    assert faulty.client.get("/livez").status_code == 200
    faulty.fault()
    wait_for(faulty.is_ready)
    traffic.check(0, faulty.client.post(PATH, content=traffic.photos[0]))
    with traffic.flowing(faulty.url) as answers:
        wait_for(lambda: len(answers) > 20)


def test_deadlines(faulty: Server, traffic: Traffic) -> None:
    def given_up_while_computed() -> bool:
        response = faulty.client.post("/predict?timeout_ms=300", content=traffic.photos[0])
        assert_problem(response, 504, "deadline_exceeded")
        return faulty.metrics()[IN_FLIGHT] == 1  # on a busy machine it may be too late before that

    with faulty.holding():
        wait_for(given_up_while_computed)
    response = faulty.client.post("/predict?timeout_ms=30001", content=traffic.photos[0])
    assert_problem(response, 422, "invalid_parameter", "at most 30000")
    traffic.check(1, faulty.client.post(f"{PATH}&timeout_ms=30000", content=traffic.photos[1]))

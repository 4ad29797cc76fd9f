"""An engine that raises, hangs, or finds no memory: who isn't guilty gets the right answer all the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from condconv_serve.inference.batching.health import COOL_DOWN_SECONDS, MAX_FAILURES
from tests.e2e.server import MODEL, Server, assert_problem, new_client, sample_name, wait_for
from tests.fault.faulty_server import HANG, POISON
from tests.fault.traffic import PATH, Traffic, plain

STALL_TIMEOUT = 2.0


class Faults:
    """Tells the engine how to fail."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.end()

    def begin(self, what: str) -> None:
        self._file.write_text(what)

    def end(self) -> None:
        self._file.write_text("")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return Faults(tmp_path_factory.mktemp("faults") / "fault")


@pytest.fixture(scope="module")
def faulty(faults: Faults) -> Iterator[Server]:
    server = Server(
        module="tests.fault.faulty_server",
        variables={"FAULT_FILE": str(faults._file)},
        stall_timeout=STALL_TIMEOUT,
        max_batch_size=8,
    )
    with server:
        yield server
        faults.end()
        server.stop()
        assert "/secret/path" in server.log, "the log says what went wrong"
        server._lines.clear()  # tracebacks of the faults are meant to be there


@pytest.fixture(scope="module")
def traffic(faulty: Server) -> Traffic:
    return Traffic.learn(faulty.client)


def hold(faulty: Server, faults: Faults, seconds: float, photo: bytes) -> threading.Thread:
    """Keep both streams busy for a while, so that what comes next rides in one batch."""
    faults.begin(f"slow {seconds}")

    def busy() -> None:
        with new_client(faulty.url, connections=2) as client, ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: client.post("/predict", content=photo), range(2)))

    thread = threading.Thread(target=busy)
    thread.start()
    in_flight = sample_name("condconv_rows_in_flight")
    wait_for(lambda: faulty.metrics()[in_flight] == 2, 10)
    faults.end()
    return thread


def test_one_poison_row_in_a_full_batch(faulty: Server, faults: Faults, traffic: Traffic) -> None:
    held = hold(faulty, faults, 1.5, traffic.photos[0])
    with new_client(faulty.url, connections=16) as client, ThreadPoolExecutor(16) as pool:
        numbers = range(15)
        futures = [pool.submit(client.post, PATH, content=traffic.photos[i]) for i in numbers]
        poisoned = pool.submit(client.post, "/predict", content=plain(POISON))
        responses = [future.result() for future in futures]
        refused = poisoned.result()
    held.join()
    for number, response in zip(numbers, responses, strict=True):
        traffic.check(number, response)
    assert_problem(refused, 500, "inference_failed", "could not compute this image")
    assert "secret" not in refused.text
    assert faulty.client.get("/readyz").status_code == 200


def test_poison_in_one_request_of_many_images(faulty: Server, traffic: Traffic) -> None:
    files = [("image", ("a.jpg", traffic.photos[i])) for i in range(3)]
    files.insert(1, ("image", ("poison.png", plain(POISON))))
    entries = faulty.client.post("/predict", files=files).json()["predictions"]
    assert [entry.get("error", {}).get("slug") for entry in entries] == [None, "inference_failed", None, None]


def test_poison_again_and_again_among_other_traffic(faulty: Server, traffic: Traffic) -> None:
    with traffic.flowing(faulty.url), new_client(faulty.url) as client:
        for _ in range(10):
            assert client.post("/predict", content=plain(POISON)).status_code == 500
    assert max(r.json()["predictions"][0]["batch_size"] for r in traffic.responses) > 1


def test_a_stream_that_hangs(faulty: Server, traffic: Traffic) -> None:
    """The rows that share its batch are told to come again; all others are answered meanwhile by the other stream."""
    stalls = sample_name("condconv_stream_stalls_total")
    before = faulty.metrics()[stalls]
    started = time.monotonic()
    with new_client(faulty.url) as client:
        response = client.post("/predict", content=plain(HANG))
    assert STALL_TIMEOUT <= time.monotonic() - started < STALL_TIMEOUT + 2
    assert_problem(response, 503, "engine_stalled", "no answer in 2 s")
    assert int(response.headers["retry-after"]) >= 1
    assert faulty.metrics()[stalls] == before + 1
    with traffic.flowing(faulty.url):
        time.sleep(1)
    hanging = threading.Thread(target=lambda: faulty.client.post("/predict", content=plain(HANG)))
    hanging.start()
    wait_for(lambda: "condconv_rows_in_flight 1.0" in _text(faulty.url), 10)
    with traffic.flowing(faulty.url):
        time.sleep(1)
    hanging.join()


def _text(url: str) -> str:
    with new_client(url) as client:
        return client.get("/metrics").text


def test_too_little_memory_for_full_batches(faulty: Server, faults: Faults, traffic: Traffic) -> None:
    faults.begin("memory 2")
    with traffic.flowing(faulty.url, clients=16):
        time.sleep(2)
    faults.end()
    assert max(r.json()["predictions"][0]["batch_size"] for r in traffic.responses) == 2
    assert faulty.metrics()[sample_name("condconv_batch_failures_total", model=MODEL, reason="out_of_memory")] >= 1
    assert faulty.client.get("/readyz").status_code == 200


def test_too_little_memory_for_anything(faulty: Server, faults: Faults, traffic: Traffic) -> None:
    faults.begin("memory 0")
    response = faulty.client.post("/predict", content=traffic.photos[0])
    faults.end()
    assert_problem(response, 503, "out_of_memory", "too little memory")
    assert response.headers["retry-after"]
    traffic.check(0, faulty.client.post(PATH, content=traffic.photos[0]))


def test_a_broken_engine_is_not_ready_until_it_works_again(faulty: Server, faults: Faults, traffic: Traffic) -> None:
    faults.begin("broken")
    for _ in range(MAX_FAILURES):
        assert faulty.client.post("/predict", content=traffic.photos[0]).status_code == 500
    said = f"failed {MAX_FAILURES} times in a row"
    assert_problem(faulty.client.get("/readyz"), 503, "not_ready", said, "RuntimeError")
    response = faulty.client.post("/predict", content=traffic.photos[0])
    assert_problem(response, 503, "not_ready", said)
    assert 0 < int(response.headers["retry-after"]) <= COOL_DOWN_SECONDS
    assert "secret" not in response.text
    assert faulty.client.get("/livez").status_code == 200
    faults.end()
    wait_for(lambda: faulty.client.get("/readyz").status_code == 200, COOL_DOWN_SECONDS + 5)
    traffic.check(0, faulty.client.post(PATH, content=traffic.photos[0]))
    with traffic.flowing(faulty.url):
        time.sleep(0.5)


def test_deadlines(faulty: Server, faults: Faults, traffic: Traffic) -> None:
    faults.begin("slow 1")
    started = time.monotonic()
    response = faulty.client.post("/predict?timeout_ms=300", content=traffic.photos[0])
    assert 0.25 < time.monotonic() - started < 0.8
    faults.end()
    assert_problem(response, 504, "deadline_exceeded")
    time.sleep(1)
    response = faulty.client.post("/predict?timeout_ms=30001", content=traffic.photos[0])
    assert_problem(response, 422, "invalid_parameter", "at most 30000")
    traffic.check(1, faulty.client.post(f"{PATH}&timeout_ms=5000", content=traffic.photos[1]))

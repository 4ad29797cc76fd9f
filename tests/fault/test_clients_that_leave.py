"""Clients that go away, and a server that does: nobody else suffers, and what was accepted is answered."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests import pictures
from tests.e2e.server import MODEL, Server, new_client, probabilities, sample_name, wait_for
from tests.fault.traffic import PATH, TOLERANCE, Traffic

CANCELLED = sample_name("condconv_rows_total", model=MODEL, outcome="cancelled")
ACCEPTED = sample_name("condconv_rows_accepted_total", model=MODEL)
ANSWERED = sample_name("condconv_rows_total", model=MODEL, outcome="answered")


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fault") / "fault"
    file.write_text("")
    return file


@pytest.fixture(scope="module")
def server(fault: Path) -> Iterator[Server]:
    """One stream, which takes as long as a test tells it to, and one decoder."""
    with Server(
        module="tests.fault.faulty_server",
        variables={"FAULT_FILE": str(fault)},
        streams=1,
        max_batch_size=2,
        decode_threads=1,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def traffic(server: Server) -> Traffic:
    return Traffic.learn(server.client)


def send(server: Server, body: bytes, path: str = "/predict") -> socket.socket:
    """Send a request and leave the answer unread."""
    connected = socket.create_connection(server.address)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    connected.sendall(head.encode() + body)
    return connected


def value(server: Server, name: str) -> float:
    return server.metrics().get(name, 0.0)


def test_gone_while_queued(server: Server, fault: Path, traffic: Traffic) -> None:
    cancelled, answered = value(server, CANCELLED), value(server, ANSWERED)
    fault.write_text("slow 1.5")
    first = send(server, traffic.photos[0], PATH)
    wait_for(lambda: value(server, "condconv_rows_in_flight") == 1, 10)
    fault.write_text("")
    leaving = [send(server, photo) for photo in traffic.photos[1:9]]
    staying = send(server, traffic.photos[9], PATH)
    wait_for(lambda: value(server, "condconv_queue_rows") == 9, 10)
    for connected in leaving:
        connected.close()
    wait_for(lambda: value(server, "condconv_queue_rows") == 1, 1)
    for number, connected in ((0, first), (9, staying)):
        traffic.check(number, receive(connected))
    assert value(server, CANCELLED) == cancelled + 8
    assert value(server, ANSWERED) == answered + 2, "what nobody waits for is not computed"


def test_gone_in_flight(server: Server, fault: Path, traffic: Traffic) -> None:
    cancelled = value(server, CANCELLED)
    fault.write_text("slow 1")
    first = send(server, traffic.photos[0])
    wait_for(lambda: value(server, "condconv_rows_in_flight") == 1, 10)
    leaving, staying = send(server, traffic.photos[1]), send(server, traffic.photos[2], PATH)
    receive(first)
    wait_for(lambda: value(server, "condconv_rows_in_flight") == 2, 10)
    leaving.close()
    wait_for(lambda: value(server, CANCELLED) == cancelled + 1, 0.8)
    fault.write_text("")
    traffic.check(2, receive(staying))


def test_gone_while_decoded(server: Server, traffic: Traffic) -> None:
    cancelled = value(server, CANCELLED)
    large = pictures.encode(pictures.photo("cat", (6000, 6000)), "PNG", compress_level=1)
    leaving = [send(server, large) for _ in range(3)]
    wait_for(lambda: value(server, "condconv_queue_rows") == 3, 10)
    for connected in leaving:
        connected.close()
    staying = send(server, traffic.photos[0], PATH)
    wait_for(lambda: value(server, CANCELLED) == cancelled + 3, 2)
    traffic.check(0, receive(staying))
    assert value(server, "condconv_queue_rows") == 0


def test_others_get_their_answers_among_clients_that_leave(server: Server, traffic: Traffic) -> None:
    with traffic.flowing(server.url):
        for i in range(60):
            connected = send(server, traffic.photos[i % 16])
            time.sleep(0.005 * (i % 5))
            connected.close()
    assert value(server, "condconv_queue_rows") == 0


def receive(connected: socket.socket) -> httpx.Response:
    """Read one answer and close."""
    with connected, connected.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = dict(line.decode().strip().split(": ", 1) for line in iter(file.readline, b"\r\n"))
        return httpx.Response(status, headers=headers, content=file.read(int(headers["content-length"])))


def test_sigterm_under_load_loses_nothing_that_was_accepted(traffic: Traffic) -> None:
    """Clients go on until they are refused a connection; every request that was sent must be answered, and rightly."""
    answers: list[tuple[int, httpx.Response]] = []
    lost: list[Exception] = []
    with Server(drain_delay=2.0) as server:

        def ask(number: int) -> None:
            while True:
                with new_client(server.url) as client:
                    try:
                        while True:
                            response = client.post(PATH, content=traffic.photos[number])
                            answers.append((number, response))
                            if response.headers.get("connection") == "close":
                                break
                    except httpx.ConnectError:
                        return  # it listens no longer
                    except httpx.HTTPError as error:
                        lost.append(error)
                        return

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(ask, number) for number in range(8)]
            time.sleep(1)
            before = len(answers)
            server.terminate()
            wait_for(lambda: server.client.get("/readyz").status_code == 503, 1)
            time.sleep(0.5)
            draining = server.client.get("/livez")
            assert (draining.status_code, draining.headers["connection"]) == (200, "close")
            for future in futures:
                future.result()
        assert server.stop() == 0
    assert not lost
    assert len(answers) > before + 8, "while it drained it still served"
    for number, response in answers:
        traffic.check(number, response)


def test_sigint_does_not_wait_for_load_balancers() -> None:
    with Server(drain_delay=20.0) as server:
        started = time.monotonic()
        server._asked_to_end = True
        server.send(signal.SIGINT)
        assert server.wait() == 0
        assert time.monotonic() - started < 5


def test_shutdown_answers_what_it_has_accepted(fault: Path, traffic: Traffic) -> None:
    requests, images = 8, 12
    files = [("image", (f"{i}.jpg", traffic.photos[i])) for i in range(images)]
    with Server(
        module="tests.fault.faulty_server", variables={"FAULT_FILE": str(fault)}, streams=1, max_batch_size=2
    ) as server:
        with new_client(server.url, connections=requests) as client, ThreadPoolExecutor(requests) as pool:
            fault.write_text("slow 1")  # each batch, so 48 seconds in all
            futures = [pool.submit(client.post, PATH, files=files) for _ in range(requests)]
            wait_for(lambda: value(server, ACCEPTED) == requests * images, 30)
            server.terminate()
            fault.write_text("")
            responses = [future.result() for future in futures]
        for response in responses:
            assert np.abs(np.subtract(probabilities(response), traffic.expected[:images])).max() <= TOLERANCE
        assert server.stop() == 0
        with pytest.raises(httpx.ConnectError), new_client(server.url) as late:
            late.get("/livez")


def test_a_second_signal_forces_the_end(fault: Path, traffic: Traffic) -> None:
    with Server(module="tests.fault.faulty_server", variables={"FAULT_FILE": str(fault)}) as server:
        fault.write_text("slow 30")
        connected = send(server, traffic.photos[0])
        wait_for(lambda: value(server, "condconv_rows_in_flight") == 1, 10)
        fault.write_text("")
        server.terminate()
        time.sleep(0.5)
        assert not server.process_ended(), "it waits for the answer"
        started = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - started < 2
        connected.close()
        assert "SIGTERM again: ending now" in server.log
        server._process.returncode = 0  # as it should be, this once


def test_shutdown_ends_in_time_even_if_the_engine_hangs(fault: Path, traffic: Traffic) -> None:
    with Server(module="tests.fault.faulty_server", variables={"FAULT_FILE": str(fault)}, shutdown_timeout=2) as server:
        fault.write_text("slow 60")
        connected = send(server, traffic.photos[0])
        wait_for(lambda: value(server, "condconv_rows_in_flight") == 1, 10)
        fault.write_text("")
        started = time.monotonic()
        server.terminate()
        assert server.wait() == 0
        assert time.monotonic() - started < 5
        connected.close()
        server._lines.clear()  # uvicorn tells of the task that it gave up


def test_shutdown_does_not_wait_for_a_load(fault: Path) -> None:
    fault.write_text("hanging load")
    with Server(until_ready=False, module="tests.fault.faulty_server", variables={"FAULT_FILE": str(fault)}) as server:
        wait_for(lambda: "bundle checked" in server.log)
        assert server.client.get("/readyz").status_code == 503
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 5
        assert "a load that was under way is dropped" in server.log


def test_killed_under_load_it_starts_again(traffic: Traffic) -> None:
    with Server() as server:
        threads = [threading.Thread(target=_ask_until_lost, args=(server.url, traffic.photos[0])) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        server.send(signal.SIGKILL)
        server.wait()
        for thread in threads:
            thread.join()
        server._process.returncode = 0
    with Server() as again:
        traffic.check(1, again.client.post(PATH, content=traffic.photos[1]))


def _ask_until_lost(url: str, photo: bytes) -> None:
    with new_client(url) as client:
        try:
            while True:
                client.post("/predict", content=photo)
        except httpx.HTTPError:
            return

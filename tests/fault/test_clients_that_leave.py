"""Clients that go away, and a server that does: nobody else suffers, and what was accepted is answered."""

from __future__ import annotations

import json
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from condconv_serve.http.guard import LAST_CALL_SECONDS
from condconv_serve.http.server import REPEAT_SECONDS
from tests import pictures
from tests.e2e.server import MODEL, Server, new_client, probabilities, sample_name, wait_for
from tests.fault.traffic import PATH, TOLERANCE, Traffic

CANCELLED = sample_name("condconv_rows_total", model=MODEL, outcome="cancelled")
ACCEPTED = sample_name("condconv_rows_accepted_total", model=MODEL)
ANSWERED = sample_name("condconv_rows_total", model=MODEL, outcome="answered")
IN_FLIGHT, QUEUED = "condconv_rows_in_flight", "condconv_queue_rows"
HOURS = 3 * 3600.0
"""So long that no test waits for it."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One stream, whose batches last as long as a test tells them to, and one decoder."""
    with Server(streams=1, max_batch_size=2, decode_threads=1) as running:
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


def test_gone_while_queued(server: Server, traffic: Traffic) -> None:
    cancelled, answered = value(server, CANCELLED), value(server, ANSWERED)
    with server.holding():
        first = send(server, traffic.photos[0], PATH)
        wait_for(lambda: value(server, IN_FLIGHT) == 1)
        leaving = [send(server, photo) for photo in traffic.photos[1:9]]
        staying = send(server, traffic.photos[9], PATH)
        wait_for(lambda: value(server, QUEUED) == 9)
        for connected in leaving:
            connected.close()
        wait_for(lambda: value(server, QUEUED) == 1)
    for number, connected in ((0, first), (9, staying)):
        traffic.check(number, receive(connected))
    assert value(server, CANCELLED) == cancelled + 8
    assert value(server, ANSWERED) == answered + 2, "what nobody waits for is not computed"


def test_gone_in_flight(server: Server, traffic: Traffic) -> None:
    cancelled = value(server, CANCELLED)
    with server.holding("first"):
        first = send(server, traffic.photos[0])
        wait_for(lambda: value(server, IN_FLIGHT) == 1)
        leaving, staying = send(server, traffic.photos[1]), send(server, traffic.photos[2], PATH)
        wait_for(lambda: value(server, QUEUED) == 2)
        with server.holding("second"):
            receive(first)
            wait_for(lambda: value(server, IN_FLIGHT) == 2)
            leaving.close()
            wait_for(lambda: value(server, CANCELLED) == cancelled + 1)
    traffic.check(2, receive(staying))


def test_gone_while_decoded(server: Server, traffic: Traffic) -> None:
    cancelled = value(server, CANCELLED)
    large = pictures.encode(pictures.photo("cat", (4000, 4000)), "PNG", compress_level=1)
    with server.holding():  # so that none is computed if this process has to wait
        first = send(server, traffic.photos[1], PATH)
        wait_for(lambda: value(server, IN_FLIGHT) == 1)
        leaving = [send(server, large) for _ in range(3)]
        wait_for(lambda: value(server, QUEUED) == 3)
        for connected in leaving:
            connected.close()
        staying = send(server, traffic.photos[0], PATH)
        wait_for(lambda: value(server, CANCELLED) == cancelled + 3)
    traffic.check(1, receive(first))
    traffic.check(0, receive(staying))
    assert value(server, QUEUED) == 0


def test_others_get_their_answers_among_clients_that_leave(server: Server, traffic: Traffic) -> None:
    with traffic.flowing(server.url) as answers:
        for i in range(30):
            connected = send(server, traffic.photos[i % 16])
            enough = len(answers) + i % 5
            wait_for(lambda enough=enough: len(answers) >= enough)  # type: ignore[misc]
            connected.close()
    wait_for(lambda: value(server, QUEUED) == 0)


def receive(connected: socket.socket) -> httpx.Response:
    """Read one answer and close."""
    with connected, connected.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = dict(line.decode().strip().split(": ", 1) for line in iter(file.readline, b"\r\n"))
        return httpx.Response(status, headers=headers, content=file.read(int(headers["content-length"])))


def test_after_sigterm_it_serves_on_for_a_while(traffic: Traffic) -> None:
    """Its load balancer needs that time; each answer tells its client to open the next connection elsewhere."""
    with Server(drain_delay=HOURS, shutdown_timeout=HOURS, exit_code=128 + signal.SIGTERM) as server:
        server.terminate()
        wait_for(lambda: server.client.get("/readyz").status_code == 503)
        wait_for(lambda: server.client.get("/livez").headers.get("connection") == "close")
        assert server.client.get("/livez").status_code == 200
        for number in range(8):
            traffic.check(number, server.client.post(PATH, content=traffic.photos[number]))
        assert not server.process_ended()
        time.sleep(REPEAT_SECONDS)
        server.send(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM


def test_sigterm_under_load_loses_nothing_that_was_accepted(traffic: Traffic) -> None:
    """Clients go on until they are refused a connection; every request that was sent must be answered, and rightly.

    A connection on which nothing comes at the end is closed soon, so those don't count that took longer to send.
    """
    answers: list[tuple[int, httpx.Response]] = []
    lost: list[Exception] = []
    clients = 8
    with Server(drain_delay=0.5) as server:

        def ask(number: int) -> None:
            sent_after = math.inf

            def note(event: str, _: object) -> None:
                nonlocal sent_after
                if event == "http11.send_request_body.complete":
                    sent_after = time.monotonic() - started

            while True:
                with new_client(server.url) as client:
                    try:
                        while True:
                            sent_after, started = math.inf, time.monotonic()
                            response = client.post(PATH, content=traffic.photos[number], extensions={"trace": note})
                            answers.append((number, response))
                            if response.headers.get("connection") == "close":
                                break
                    except httpx.ConnectError:
                        return  # it listens no longer
                    except httpx.HTTPError as error:
                        if sent_after < LAST_CALL_SECONDS:
                            lost.append(error)
                        return

        with ThreadPoolExecutor(clients) as pool:
            futures = [pool.submit(ask, number) for number in range(clients)]
            wait_for(lambda: len(answers) > clients)
            server.terminate()
            for future in futures:
                future.result()
        assert server.stop() == 0
    assert not lost
    for number, response in answers:
        traffic.check(number, response)


def test_sigint_does_not_wait_for_load_balancers() -> None:
    with Server(drain_delay=HOURS, shutdown_timeout=HOURS) as server:
        server.send(signal.SIGINT)
        assert server.wait() == 0


def test_shutdown_answers_what_it_has_accepted(traffic: Traffic) -> None:
    requests, images = 8, 12
    files = [("image", (f"{i}.jpg", traffic.photos[i])) for i in range(images)]
    with Server(streams=1, max_batch_size=2) as server:
        with new_client(server.url, connections=requests) as client, ThreadPoolExecutor(requests) as pool:
            with server.holding():
                futures = [pool.submit(client.post, PATH, files=files) for _ in range(requests)]
                wait_for(lambda: value(server, ACCEPTED) == requests * images)
                server.terminate()
                wait_for(server.refuses_connections)
            responses = [future.result() for future in futures]
        for response in responses:
            assert np.abs(np.subtract(probabilities(response), traffic.expected[:images])).max() <= TOLERANCE
        assert server.stop() == 0


def test_a_second_signal_forces_the_end(traffic: Traffic) -> None:
    with Server(shutdown_timeout=HOURS, exit_code=128 + signal.SIGTERM) as server, server.holding():
        connected = send(server, traffic.photos[0])
        wait_for(lambda: value(server, IN_FLIGHT) == 1)
        server.terminate()
        wait_for(server.refuses_connections)
        assert not server.process_ended(), "it waits for the answer"
        time.sleep(REPEAT_SECONDS)
        server.send(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        connected.close()
        assert "SIGTERM again: ending now" in server.log


def test_shutdown_ends_in_time_even_if_the_engine_hangs(traffic: Traffic) -> None:
    with Server(shutdown_timeout=1) as server, server.holding():
        connected = send(server, traffic.photos[0])
        wait_for(lambda: value(server, IN_FLIGHT) == 1)
        server.terminate()
        with connected, connected.makefile("rb") as received:
            head, _, body = received.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"x-request-id: " in head.lower()
        assert json.loads(body)["slug"] == "draining"
        assert server.wait() == 0


def test_shutdown_does_not_wait_for_a_load() -> None:
    with Server(until_ready=False, fault="hold load", shutdown_timeout=HOURS) as server:
        wait_for(lambda: "bundle checked" in server.log)
        assert server.client.get("/readyz").status_code == 503
        assert server.stop() == 0
        assert "work that was under way is dropped" in server.log


def test_killed_under_load_it_starts_again(traffic: Traffic) -> None:
    with Server(exit_code=-signal.SIGKILL) as server:
        threads = [threading.Thread(target=_ask_until_lost, args=(server.url, traffic.photos[0])) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: value(server, ANSWERED) > 8)
        server.send(signal.SIGKILL)
        server.wait()
        for thread in threads:
            thread.join()
    with Server() as again:
        traffic.check(1, again.client.post(PATH, content=traffic.photos[1]))


def _ask_until_lost(url: str, photo: bytes) -> None:
    with new_client(url) as client:
        try:
            while True:
                client.post("/predict", content=photo)
        except httpx.HTTPError:
            return

"""A process that is stopped for a while, as a suspended machine or a debugger does it, and then goes on."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from tests import pictures
from tests.e2e.server import MODEL, Server, new_client, sample_name, wait_for

IN_FLIGHT = sample_name("condconv_rows_in_flight")
STOPPED_SECONDS = 6.0
LESS_MS = 5000
"""How long callers wait afterwards: less than that, so they would be refused if it counted."""
BATCHES = sample_name("condconv_batch_size_count", model=MODEL)


def tell_all(server: Server, number: signal.Signals) -> None:
    for process in server.processes():
        os.kill(process, number)


def test_one_hiccup_does_not_make_an_idle_server_refuse() -> None:
    """The first batch seems to take as long as the process was stopped. Nobody who asks afterwards may pay for it."""
    photo = pictures.jpeg(pictures.photo("coffee", (60, 40)))
    with Server(streams=1) as server, new_client(server.url) as other, ThreadPoolExecutor(1) as pool:
        with server.holding():
            held = pool.submit(other.post, "/predict", content=photo)
            wait_for(lambda: server.metrics()[IN_FLIGHT] == 1)
            tell_all(server, signal.SIGSTOP)
            time.sleep(STOPPED_SECONDS)
        tell_all(server, signal.SIGCONT)
        timings = held.result().json()["predictions"][0]["timings_ms"]
        assert timings["inference"] > 1000 * STOPPED_SECONDS
        answers = [server.client.post(f"/predict?timeout_ms={LESS_MS}", content=photo) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
        assert server.metrics()[BATCHES] == 21

"""Clients that send or read slowly, over real sockets; others must not suffer from them.

They wait for times to pass, so they run alone; `tests/unit/http/test_guard.py` has what may run beside other tests.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.unit.http.guarded import (
    GET,
    HEAD,
    LONG,
    PATIENCE,
    Running,
    answer,
    assert_refused,
    everything,
    hasty,
    wait_for,
)


@pytest.fixture
def running() -> Iterator[Running]:
    with hasty() as server:
        yield server


def test_headers_that_trickle_in_are_cut_off(running: Running) -> None:
    """A byte now and then does not prolong the deadline."""
    received = b""
    with running.connect() as connected, contextlib.suppress(OSError):
        connected.settimeout(PATIENCE / 8)
        for byte in GET[:-2] + b"X: " + b"y" * 1000:
            connected.send(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                if received := connected.recv(65536):
                    break
    assert_refused(received, 408, "request_timeout")


def test_keep_alive_outlasts_the_header_timeout(running: Running) -> None:
    """Between requests a connection may be idle for longer: that is uvicorn's keep-alive timeout."""
    with running.connect() as connected:
        connected.sendall(GET)
        assert answer(connected).endswith(b"ok")
        time.sleep(PATIENCE * 2)
        connected.sendall(GET)
        assert answer(connected).endswith(b"ok")
        connected.sendall(GET[:20])
        assert_refused(everything(connected), 408, "request_timeout")


def test_blank_lines_keep_no_connection_open(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(GET)
        answer(connected)
        connected.sendall(b"\r\n")  # ends uvicorn's keep-alive timeout without beginning a request
        assert_refused(everything(connected), 408, "request_timeout")


def test_slow_answers_are_waited_for(running: Running) -> None:
    slow = GET.replace(b"/ok", b"/slow")
    with running.connect() as connected:
        connected.sendall(slow)
        assert answer(connected).endswith(b"slow")
    with running.connect() as connected:
        connected.sendall(slow + GET[:20])  # the second request's headers wait for the first answer
        assert answer(connected).endswith(b"slow")


def test_body_that_trickles_in_is_cut_off(running: Running) -> None:
    head = HEAD.replace(b"10\r\n\r\n", b"900\r\n\r\n")
    received, sent = b"", 0
    with running.connect() as connected:
        connected.sendall(head)
        connected.settimeout(PATIENCE / 4)
        while not received and sent < 100:
            sent += connected.send(b"x")
            with contextlib.suppress(TimeoutError):
                received = connected.recv(65536)
    assert_refused(received, 408, "request_timeout")
    assert sent > 2 * 4, "each byte is waited for anew, so it is not the pauses that are too long"


def test_slow_body_in_time(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(HEAD)
        for _ in range(5):
            time.sleep(PATIENCE / 4)
            connected.sendall(b"12")
        assert answer(connected).endswith(b"1212121212")


def test_rest_of_a_body_that_was_answered_early(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(HEAD.replace(b"/echo", b"/early") + b"1")
        assert answer(connected).endswith(b"early")
        connected.sendall(b"2")
        assert everything(connected) == b"", "closed before the client gives up"


def test_keep_alive_after_a_body_that_was_answered_early(running: Running) -> None:
    """Once the rest of the body is here, the connection is idle like any other."""
    with running.connect() as connected:
        connected.sendall(HEAD.replace(b"/echo", b"/early") + b"1")
        assert answer(connected).endswith(b"early")
        connected.sendall(b"234567890")
        time.sleep(PATIENCE * 2)
        connected.sendall(GET)
        assert answer(connected).endswith(b"ok")


def test_a_connection_is_idle_once_the_rest_of_a_body_has_come(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert b"200" in answer(connected)
        connected.sendall(b"x" * 10)
        assert connected.recv(1) == b"", "closed as others are"


def test_answer_that_nobody_reads(running: Running) -> None:
    """The server gives it up, so that its memory is not held for ever."""
    with running.connect() as connected:
        connected.sendall(GET.replace(b"/ok", b"/large"))
        wait_for(lambda: running.connections() == 1, seconds=5)
        wait_for(lambda: running.connections() == 0, seconds=10)


def test_idle_connections_while_others_are_served() -> None:
    with hasty(max_connections=300, header_timeout=1.5) as running, contextlib.ExitStack() as stack:
        with running.standing_still():  # so that all are there before the first is late
            idle = [stack.enter_context(running.connect()) for _ in range(250)]
            for connected in idle[::2]:
                connected.sendall(GET[:20])
        with httpx.Client(base_url=running.url, trust_env=False, timeout=LONG) as client:
            for _ in range(50):
                assert client.get("/ok").text == "ok"
            wait_for(lambda: running.connections() <= 1)
            assert client.get("/ok").text == "ok"
        assert running.rejected("request_timeout") == 250

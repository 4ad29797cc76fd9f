"""Requests that are answered before they have come whole, over real sockets: the answer must arrive all the same."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from condconv_serve.http import guard, lingering
from condconv_serve.http.limits import REFUSED_AT_ONCE
from tests.unit.http.guarded import (
    GET,
    LONG,
    PATIENCE,
    Running,
    answer,
    assert_refused,
    everything,
    serving,
    wait_for,
)

SIZE = 5_000_000
PIECE = bytes(100_000)
CLOSE = "Connection: close\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
EXPECT = "Expect: 100-continue\r\n"
LENGTH = f"Content-Length: {SIZE}\r\n"


@pytest.fixture
def running() -> Iterator[Running]:
    with serving() as server:
        yield server


def head(path: str, *lines: str, version: str = "1.1", method: str = "POST") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: x\r\n{''.join(lines)}\r\n".encode()


def send_all(connected: socket.socket, *, chunked: bool = False) -> None:
    """Send a large body without looking at the answer, as most clients do, and slowly enough to be late."""
    for _ in range(SIZE // len(PIECE)):
        connected.sendall(b"%x\r\n%s\r\n" % (len(PIECE), PIECE) if chunked else PIECE)
        time.sleep(0.001)


def flood(connected: socket.socket, seconds: float = LONG) -> int:
    """Send without end until the connection is closed; how many bytes that were."""
    sent, end = 0, time.monotonic() + seconds
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < end:
            sent += connected.send(PIECE)
    assert time.monotonic() < end, "never closed"
    return sent


def trickle(connected: socket.socket, pause: float) -> float:
    """Send a byte now and then until the connection is closed; when that was."""
    end = time.monotonic() + LONG
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < end:
            connected.sendall(b"x")
            time.sleep(pause)
    return time.monotonic()


@pytest.mark.parametrize(
    ("version", "lines"), [("1.0", LENGTH), ("1.1", LENGTH + CLOSE), ("1.1", CHUNKED + CLOSE), ("1.1", LENGTH)]
)
@pytest.mark.parametrize(
    ("path", "status"), [("/early", 200), ("/nowhere", 404), ("/ok", 405), ("/echo", 413), ("/bad path", 400)]
)
def test_an_answer_reaches_a_client_that_reads_it_only_after_a_large_body(
    running: Running, version: str, lines: str, path: str, status: int
) -> None:
    with running.connect() as connected:
        connected.sendall(head(path, lines, version=version))
        send_all(connected, chunked=CHUNKED in lines)
        assert answer(connected).startswith(b"HTTP/1.1 %d " % status)
    wait_for(lambda: running.connections() == 0)
    wait_for(lambda: running.lingering() == 0)


@pytest.mark.parametrize("body", [b"", PIECE])
def test_a_client_that_waits_for_the_end_of_the_answer_sees_it_at_once(body: bytes) -> None:
    with serving() as running, running.connect() as connected:
        connected.sendall(head("/early", LENGTH, CLOSE) + body)
        assert everything(connected).endswith(b"early")
        wait_for(lambda: running.lingering() == 1)
        wait_for(lambda: running.connections() == 1)


def test_tls_has_no_half_closed_connections(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    file = tmp_path / "all.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(file)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        serving(options={"ssl_certfile": file}) as running,
        context.wrap_socket(running.connect(), server_hostname="localhost") as connected,
    ):
        connected.sendall(head("/early", LENGTH, CLOSE))
        send_all(connected)
        assert answer(connected).endswith(b"early")
        running.server.should_exit = True
        assert everything(connected) == b"", "closed after a pause, of which there is less at the end"


@pytest.mark.parametrize("lines", [LENGTH, LENGTH + CLOSE])
def test_a_client_that_sends_nothing_more_is_left(lines: str) -> None:
    with serving(linger_pause=PATIENCE) as running, running.connect() as connected:
        started = time.monotonic()
        connected.sendall(head("/early", lines) + PIECE)
        assert answer(connected).endswith(b"early")
        wait_for(lambda: running.connections() == 0)
        assert time.monotonic() - started > PATIENCE * 0.9
        wait_for(lambda: running.lingering() == 0)
        assert everything(connected) == b""


@pytest.mark.parametrize("lines", [CHUNKED, CHUNKED + CLOSE])
def test_a_client_that_sends_too_much_is_cut_off(lines: str) -> None:
    with serving(linger_bytes=SIZE) as running, running.connect() as connected:
        connected.sendall(head("/early", lines) + b"fffffffff\r\n")
        assert answer(connected).endswith(b"early")
        assert flood(connected) > SIZE
        wait_for(lambda: running.connections() == 0)
        wait_for(lambda: running.lingering() == 0)


@pytest.mark.parametrize("lines", [LENGTH, LENGTH + CLOSE])
def test_a_client_that_sends_for_too_long_is_cut_off(lines: str) -> None:
    """Though it never pauses, and however little it sends."""
    with serving(linger_timeout=2 * PATIENCE) as running, running.connect() as connected:
        started = time.monotonic()
        connected.sendall(head("/early", lines))
        assert answer(connected).endswith(b"early")
        assert PATIENCE < trickle(connected, PATIENCE / 8) - started < LONG / 2


@pytest.mark.parametrize("rest", [b"nonsense\r\n", b"1;" + b"x" * 100_000, b"0\r\n" + b"x: y\r\n" * 20_000])
def test_a_rest_that_is_no_chunked_encoding_gets_no_answer_of_its_own(running: Running, rest: bytes) -> None:
    with running.connect() as connected:
        connected.sendall(head("/early", CHUNKED))
        first = answer(connected)
        connected.sendall(rest)
        assert (first + everything(connected)).count(b"HTTP/1.1") == 1
    assert running.rejected("malformed_request") == running.rejected("headers_too_large") == 0


@pytest.mark.parametrize(("lines", "answers"), [("", 2), (CLOSE, 1)])
def test_a_request_behind_a_body_that_is_not_read(running: Running, lines: str, answers: int) -> None:
    """It is answered, unless the one before was the last."""
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with running.connect() as connected:
        connected.sendall(head("/early", LENGTH, lines) + bytes(SIZE) + last)
        received = everything(connected)
    assert received.count(b"HTTP/1.1 200 ") == answers
    assert received.endswith(b"ok" if answers == 2 else b"early")
    wait_for(lambda: running.lingering() == 0)


def test_a_client_that_resets_the_connection(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(head("/early", LENGTH, CLOSE) + PIECE)
        wait_for(lambda: running.lingering() == 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(lambda: running.connections() == 0)
    wait_for(lambda: running.lingering() == 0)


def test_lingering_connections_make_room_the_longest_first() -> None:
    with serving(max_connections=3) as running, contextlib.ExitStack() as stack:
        early, late, kept = (stack.enter_context(running.connect()) for _ in range(3))
        for connected, lines in ((early, CLOSE), (late, CLOSE), (kept, "")):
            connected.sendall(head("/early", LENGTH, lines))
            assert answer(connected).endswith(b"early")
        wait_for(lambda: running.lingering() == running.connections() == 3)
        others = [stack.enter_context(running.connect()) for _ in range(2)]
        wait_for(lambda: (running.lingering(), running.connections()) == (1, 3))
        for other in others:
            other.sendall(GET)
            assert answer(other).endswith(b"ok")
        kept.sendall(bytes(SIZE) + GET)
        assert answer(kept).endswith(b"ok"), "the last one was not needed"
        assert running.get().status_code == 200, "idle ones come first"


def test_an_answer_of_a_lingering_connection_may_be_read_slowly() -> None:
    with serving(linger_pause=PATIENCE / 2) as running, running.connect() as connected:
        connected.sendall(head("/large", LENGTH, CLOSE, method="GET"))
        time.sleep(2 * PATIENCE)
        received = everything(connected)
    assert len(received) > 20_000_000


def test_a_connection_beyond_the_limit_gets_its_answer_after_a_large_body() -> None:
    with serving(max_connections=1) as running, running.connect():
        wait_for(lambda: running.connections() == 1)
        with running.connect() as connected:
            connected.sendall(head("/echo", LENGTH, CLOSE))
            send_all(connected)
            assert_refused(everything(connected), 503, "too_many_connections")


def test_refused_connections_make_room_for_each_other() -> None:
    with serving(max_connections=1) as running, contextlib.ExitStack() as stack:
        stack.enter_context(running.connect())
        wait_for(lambda: running.connections() == 1)
        for _ in range(REFUSED_AT_ONCE + 10):
            connected = stack.enter_context(running.connect())
            connected.sendall(head("/echo", LENGTH))
            assert_refused(everything(connected), 503, "too_many_connections")
        wait_for(lambda: running.lingering() == REFUSED_AT_ONCE)


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/ok", 405), ("/early", 200), ("/echo", 413)])
def test_whoever_waits_for_our_100_gets_the_answer_in_its_place(running: Running, path: str, status: int) -> None:
    with running.connect() as connected:
        connected.sendall(head(path, LENGTH, EXPECT))
        received = everything(connected)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close\r\n" in received, "nobody can tell whether the body still comes"


def test_our_100_is_sent_for_a_body_that_is_read(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(head("/echo", "Content-Length: 4\r\n", EXPECT))
        assert connected.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connected.sendall(b"body")
        assert answer(connected).endswith(b"body")
        connected.sendall(GET)
        assert answer(connected).endswith(b"ok"), "and the connection is kept"


def test_http_1_0_knows_no_100(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(head("/echo", "Content-Length: 4\r\n", EXPECT, version="1.0") + b"body")
        received = everything(connected)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"body")


def test_the_end_of_the_server_does_not_wait_for_silent_clients(caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.ExitStack() as stack:
        with serving(options={"timeout_graceful_shutdown": LONG}) as running:
            for lines in (CLOSE, ""):
                connected = stack.enter_context(running.connect())
                connected.sendall(head("/early", LENGTH, lines))
                assert answer(connected).endswith(b"early")
            started = time.monotonic()
        assert time.monotonic() - started < LONG / 2
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_the_end_of_the_server_waits_for_those_that_send_but_only_while_there_is_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More time than in earnest: no pause of one that sends is too long, and none is left for uvicorn to cut off.
    monkeypatch.setattr(lingering, "_LAST_PAUSE", LONG)
    monkeypatch.setattr(guard, "LAST_CALL_SECONDS", LONG - 3)
    with contextlib.ExitStack() as stack:
        with serving(options={"timeout_graceful_shutdown": LONG}) as running:
            connected = stack.enter_context(running.connect())
            connected.sendall(head("/early", LENGTH, CLOSE))
            assert answer(connected).endswith(b"early")
            pool = stack.enter_context(ThreadPoolExecutor(1))
            sending = pool.submit(trickle, connected, PATIENCE / 8)
            started = time.monotonic()
        assert 2 < sending.result() - started < LONG / 2
    assert not [record for record in caplog.records if record.levelname == "ERROR"]

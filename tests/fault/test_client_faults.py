"""Both Python clients and what can go wrong: lost connections, half answers, proxies, servers that restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from condconv_serve import AsyncClient
from condconv_serve.errors import DeadlineExceeded, QueueFull, RemoteFailed
from tests import pictures
from tests.e2e.server import PATIENCE, Server, wait_for
from tests.unit.client.answers_of_ours import MODEL, entry
from tests.unit.client.both import KINDS, opened

ANSWER = json.dumps({"model": MODEL, "predictions": [entry(1)]}).encode()
# Each answer ends its connection; a client that isn't told may send its next request where nobody reads any more.
HEAD = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n"
Act = Callable[[socket.socket], None]


def good(connection: socket.socket) -> None:
    connection.sendall(HEAD % (b"200 OK", len(ANSWER), b"") + ANSWER)


def closed(connection: socket.socket) -> None:
    """The connection ends before there is an answer."""


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half(connection: socket.socket) -> None:
    connection.sendall((HEAD % (b"200 OK", len(ANSWER), b"") + ANSWER)[:-20])


def half_a_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-")


def no_http(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


def gateway(connection: socket.socket) -> None:
    page = b"<html><h1>502 Bad Gateway</h1></html>"
    connection.sendall(HEAD % (b"502 Bad Gateway", len(page), b"") + page)


def later(connection: socket.socket) -> None:
    page = b"<html><h1>Slow down</h1></html>"
    connection.sendall(HEAD % (b"429 Too Many Requests", len(page), b"Retry-After: 1\r\n") + page)


def dripping(connection: socket.socket) -> None:
    """A byte now and then, so that no pause is long, for a minute unless the client leaves."""
    connection.sendall(HEAD % (b"200 OK", 10**6, b""))
    with contextlib.suppress(OSError):
        for _ in range(1200):
            connection.sendall(b" ")
            time.sleep(0.05)


class Scripted:
    """A server that does one thing after the other, each with a request on a connection of its own."""

    def __init__(self, *acts: Act, tls: ssl.SSLContext | None = None) -> None:
        self.requests = self.connections = 0
        self._tls = tls
        self._acts = list(acts)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            if self._tls is not None:
                try:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                except OSError:  # the client distrusts us
                    continue
            with connection:
                if not self._read(connection):
                    continue
                act = self._acts[min(self.requests, len(self._acts) - 1)]
                self.requests += 1
                act(connection)

    def _read(self, connection: socket.socket) -> bool:
        """Read a whole request."""
        connection.settimeout(10)
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := connection.recv(65536)):
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        missing = int(lengths[0]) - len(body) if lengths else 0
        while missing > 0:
            missing -= len(connection.recv(65536))
        return True


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("act", [closed, reset, half, half_a_head, no_http, gateway])
def test_trouble_that_passes(act: Act, kind: str) -> None:
    with Scripted(act, good) as server, opened(kind, server.url) as client:
        assert client.predict(b"\1").label == "class 1"
    assert server.requests == 2


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (closed, "can't be reached"),
        (half, "can't be reached"),
        (no_http, "can't be reached"),
        (gateway, "answered 502, but this is no answer of condconv-serve"),
    ],
)
def test_trouble_that_stays(act: Act, says: str, kind: str) -> None:
    with Scripted(act) as server, opened(kind, server.url, retries=1) as client:
        with pytest.raises(RemoteFailed, match=says):
            client.predict(b"\1")
        assert server.requests == 2
        with pytest.raises(RemoteFailed, match=says):
            client.load_version("m", "1")
    assert server.requests == 3, "what changes the server is sent once"


def test_a_proxy_that_says_when(kind: str) -> None:
    with Scripted(later, good) as server, opened(kind, server.url) as client:
        started = time.monotonic()
        assert client.predict(b"\1").ok
        assert 1 <= time.monotonic() - started < 15


def test_an_answer_that_drips(kind: str) -> None:
    with Scripted(dripping) as server, opened(kind, server.url) as client, pytest.raises(DeadlineExceeded):
        client.predict(b"\1", timeout=0.3)


def test_nobody_listens(kind: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # so that nobody else does
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with opened(kind, url, retries=1) as client, pytest.raises(RemoteFailed, match="can't be reached"):
            client.predict(b"\1")


def test_certificates(kind: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Scripted(good, tls=context) as server:
        for trusted in (tmp_path / "ca.pem", False):
            with opened(kind, server.url, verify=trusted) as client:
                assert client.predict(b"\1").ok
        before = server.connections
        with opened(kind, server.url) as client, pytest.raises(RemoteFailed, match="CERTIFICATE_VERIFY_FAILED"):
            client.predict(b"\1")
        assert server.connections == before + 1, "it would be refused again"


@pytest.fixture
def photo() -> bytes:
    return pictures.jpeg(pictures.photo("coffee", (60, 40)))


def test_a_server_that_restarts(kind: str, photo: bytes) -> None:
    """One shuts down in the middle, and another takes its port: every image has its answer all the same."""
    answers: list[Any] = []
    with Server() as first, opened(kind, first.url, retries=100, timeout=PATIENCE, concurrency=2) as client:
        port = first.address[1]

        def images() -> Iterator[bytes]:
            for number in range(48):
                if number == 24:
                    first.terminate()
                yield photo

        asking = threading.Thread(target=lambda: answers.extend(client.predict_iter(images(), top_k=1)))
        asking.start()
        first.wait()
        with Server(port=port):
            asking.join()
    assert [answer.id for answer in answers] == [str(number) for number in range(48)]
    assert {answer.label for answer in answers} == {answers[0].label}


def test_a_full_queue(kind: str, photo: bytes) -> None:
    with Server(max_queue_rows=2, max_batch_size=1, streams=1) as server, ThreadPoolExecutor(3) as pool:
        with opened(kind, server.url, retries=0) as client, server.holding():
            pool.submit(httpx.post, f"{server.url}/predict", content=photo, timeout=60)
            wait_for(lambda: server.metrics()["condconv_rows_in_flight"] == 1)
            waiting = [pool.submit(httpx.post, f"{server.url}/predict", content=photo, timeout=60) for _ in "12"]
            wait_for(lambda: server.metrics()["condconv_queue_rows"] == 2)
            with pytest.raises(QueueFull) as raised:
                client.predict(photo)
            assert raised.value.status == 429
            assert raised.value.retry_after is not None
            assert raised.value.request_id
        assert [future.result().status_code for future in waiting] == [200, 200]


async def test_closing_while_tasks_wait(photo: bytes) -> None:
    with Server() as server:
        client = AsyncClient(server.url)
        with server.holding():
            asked = asyncio.create_task(client.predict(photo))
            await asyncio.to_thread(wait_for, lambda: server.metrics()["condconv_rows_in_flight"] == 1)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await client.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await client.predict(photo)

"""A real nginx in front: it must pass on what is answered before a large body is read, and go on trusting the server.

If the server closed such a connection at once, nginx would report 502 and take the server for dead: three requests
without a key would then take all replicas out.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from condconv_serve.fronts.keys import new_key
from condconv_serve.http.server import REPEAT_SECONDS
from tests.e2e.server import Server, wait_for
from tests.fault.nginx import Proxy, proxy

BODY = bytes(5_000_000)
TIMES = 3
LONG = 600
"""Seconds: longer than any test lasts."""
SERVERS = {
    "http10": "proxy_http_version 1.0;",  # the default before nginx 1.29.7
    "http11": "proxy_http_version 1.1;",
    "kept": 'proxy_http_version 1.1; proxy_set_header Connection "";',
    "unbuffered10": "proxy_http_version 1.0; proxy_request_buffering off;",
    "unbuffered11": "proxy_http_version 1.1; proxy_request_buffering off;",
}


def in_chunks() -> Iterator[bytes]:
    for start in range(0, len(BODY), 100_000):
        yield BODY[start : start + 100_000]


def post(nginx: Proxy, name: str, path: str, headers: dict[str, str], *, chunked: bool = False) -> tuple[int, str]:
    """The status and the slug that a client of nginx gets for a large body."""
    with contextlib.closing(nginx.connect(name)) as connection:
        with contextlib.suppress(ConnectionError):  # nginx itself may close early: its answer is there all the same
            connection.request(
                "POST", path, body=in_chunks() if chunked else BODY, headers=headers, encode_chunked=chunked
            )
        response = connection.getresponse()
        return response.status, json.loads(response.read())["slug"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file of keys, and their secrets by name."""
    made = {
        "good": new_key("good"),
        "suspended": new_key("suspended", scopes=()),
        "slow": new_key("slow", requests_per_minute=1),
    }
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text(json.dumps({"keys": [key.model_dump(exclude_none=True) for _, key in made.values()]}))
    return file, {name: secret for name, (secret, _) in made.items()}


@pytest.fixture(scope="module")
def server(keys: tuple[Path, dict[str, str]]) -> Iterator[Server]:
    with Server(api_keys_file=keys[0], max_body_bytes=1_000_000) as running:
        yield running


@pytest.fixture(scope="module")
def nginx(server: Server) -> Iterator[Proxy]:
    with proxy(server.address, SERVERS) as running:
        yield running


@pytest.mark.parametrize("name", SERVERS)
def test_every_early_status_is_passed_on(
    nginx: Proxy, server: Server, keys: tuple[Path, dict[str, str]], name: str
) -> None:
    good = {"X-API-Key": keys[1]["good"]}
    slow = {"X-API-Key": keys[1]["slow"]}
    cases: list[tuple[int, str, str, dict[str, str]]] = [
        (401, "unauthenticated", "/predict", {}),
        (403, "forbidden", "/predict", {"X-API-Key": keys[1]["suspended"]}),
        (404, "model_not_found", "/predict?model=none", good),
        (413, "body_too_large", "/predict", good),
        (415, "unsupported_body", "/predict", good | {"Content-Type": "text/plain"}),
        (422, "invalid_parameter", "/predict?top_k=none", good),
        (429, "rate_limited", "/predict", slow),
    ]
    for status, slug, path, headers in cases:
        if headers is slow:
            server.client.post("/predict", headers=slow)
        for _ in range(TIMES):
            assert post(nginx, name, path, headers) == (status, slug)
    assert post(nginx, name, "/predict", {}, chunked=True) == (401, "unauthenticated")
    assert post(nginx, name, "/predict", good, chunked=True) == (413, "body_too_large")
    assert nginx.errors == ""
    wait_for(lambda: server.metrics()["condconv_lingering_connections"] == 0)


@pytest.mark.one_process("a front lets its share of CONDCONV_MAX_CONNECTIONS in, however many others have")
def test_too_many_connections_are_passed_on() -> None:
    with (
        Server(max_connections=3, body_timeout=LONG) as server,
        proxy(server.address, SERVERS) as nginx,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(3):
            busy = stack.enter_context(socket.create_connection(server.address))
            busy.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        wait_for(lambda: post(nginx, "http11", "/predict?model=none", {})[0] == 503)
        for name in SERVERS:
            for _ in range(TIMES):
                assert post(nginx, name, "/predict", {}) == (503, "too_many_connections")
        assert nginx.errors == ""


def test_what_is_refused_while_the_server_is_about_to_end_is_passed_on() -> None:
    ending = 128 + signal.SIGTERM
    with (
        Server(drain_delay=LONG, shutdown_timeout=LONG, exit_code=ending) as server,
        proxy(server.address, SERVERS) as nginx,
    ):
        server.terminate()
        wait_for(lambda: "no longer ready" in server.log)
        for name in SERVERS:
            assert post(nginx, name, "/predict?model=none", {}) == (404, "model_not_found")
        assert nginx.errors == ""
        time.sleep(REPEAT_SECONDS)
        server.send(signal.SIGTERM)
        assert server.wait() == ending
        assert " ERROR " not in server.log


def test_what_is_incomplete_when_the_server_ends_is_refused_and_that_is_passed_on() -> None:
    with Server(shutdown_timeout=3) as server, proxy(server.address, SERVERS) as nginx:
        incomplete = [nginx.connect(name) for name in ("unbuffered10", "unbuffered11")]
        for connection in incomplete:
            connection.putrequest("POST", "/predict")
            connection.putheader("Content-Length", "1000000")
            connection.endheaders(bytes(10))
        wait_for(lambda: post(nginx, "kept", "/predict?model=none", {})[0] == 404)
        server.terminate()
        for connection in incomplete:
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())["slug"]) == (503, "draining")
            connection.close()
        assert nginx.errors == ""
        assert server.wait() == 0
        assert " ERROR " not in server.log

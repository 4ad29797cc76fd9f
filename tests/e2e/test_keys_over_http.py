"""A guarded server with a port of its own for metrics: who gets in, and that it still ends well."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import PATIENCE, ROOT, Server, assert_problem, connection, new_client, wait_for
from tests.unit.http.guarded import answer

USER, LIMITED = {"X-API-Key": "user-secret"}, {"Authorization": "Bearer limited-secret"}


def write(file: Path, *names: str) -> None:
    """Keys by name, whose secret is `<name>-secret`; as an editor does, not in one step."""
    entries: list[dict[str, Any]] = [
        {"name": name, "scopes": ["predict"], "sha256": sha256(f"{name}-secret".encode()).hexdigest()} for name in names
    ]
    for entry in entries:
        if entry["name"] == "limited":
            entry["requests_per_minute"] = 2
    file.write_text(json.dumps({"keys": entries}))


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    write(file, "user", "limited")
    return file


@pytest.fixture(scope="module")
def guarded(keys_file: Path) -> Iterator[Server]:
    """Its end is a test, too: exit code 0 and no traceback, though both ports hold open connections."""
    with Server(api_keys_file=keys_file, metrics_port=0, cors_origins="https://a.org") as running:
        yield running


@pytest.fixture(scope="module")
def probes(guarded: Server) -> Iterator[httpx.Client]:
    match = re.search(r"metrics and probes on (http://\S+)", guarded.log)
    assert match, guarded.log
    with new_client(match[1]) as client:
        yield client


def test_keys_are_counted_in_the_log_but_not_told(guarded: Server) -> None:
    assert "2 API keys are accepted: user, limited" in guarded.log
    assert "WARNING" not in guarded.log
    assert "secret" not in guarded.log


def test_only_who_has_a_key_gets_an_answer(guarded: Server, coffee: bytes) -> None:
    client = guarded.client
    large = bytes(5 * 2**20)
    refused = client.post("/predict", content=large)
    assert_problem(refused, 401, "unauthenticated", "X-API-Key")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert_problem(client.post("/predict", content=coffee, headers={"X-API-Key": "x"}), 401, "unauthenticated")
    answered = client.post("/predict", content=coffee, headers=USER)
    assert answered.status_code == 200
    assert connection(answered) == connection(refused), "a refusal doesn't cost the connection"
    for response in (refused, answered):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"


def test_who_may_not_change_an_alias_is_told_before_sending_it(guarded: Server) -> None:
    url = httpx.URL(guarded.url)
    head = b"PUT /models/m/aliases/a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999\r\n"
    for key, status in ((b"", b"401"), (b"X-API-Key: user-secret\r\n", b"403")):
        with socket.create_connection((url.host, url.port or 80), timeout=PATIENCE) as sender:
            sender.sendall(head + key + b"\r\n")
            assert answer(sender).split()[1] == status


def test_bearer_and_limit(guarded: Server, coffee: bytes) -> None:
    for _ in range(2):
        assert guarded.client.post("/predict", content=coffee, headers=LIMITED).status_code == 200
    response = guarded.client.get("/models", headers=LIMITED)
    assert_problem(response, 429, "rate_limited", "2 requests per minute")
    assert 0 < int(response.headers["retry-after"]) <= 60
    assert guarded.client.get("/models", headers=USER).status_code == 200


def test_documentation_is_for_everybody_and_names_the_schemes(guarded: Server) -> None:
    client = guarded.client
    page = client.get("/docs")
    assert page.status_code == 200
    for script in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert client.get(script).status_code == 200
    assert set(client.get("/openapi.json").json()["components"]["securitySchemes"]) == {"ApiKey", "Bearer"}


def test_browser_of_an_allowed_origin(guarded: Server) -> None:
    asking = {"Origin": "https://a.org", "Access-Control-Request-Method": "POST"}
    asking["Access-Control-Request-Headers"] = "x-api-key"
    assert guarded.client.options("/predict", headers=asking).status_code == 200
    response = guarded.client.get("/models", headers=USER | {"Origin": "https://a.org"})
    assert response.headers["access-control-allow-origin"] == "https://a.org"


def test_metrics_are_on_their_own_port_only_and_probes_on_both(guarded: Server, probes: httpx.Client) -> None:
    assert_problem(guarded.client.get("/metrics"), 404, "not_found")
    scraped = probes.get("/metrics")
    assert scraped.status_code == 200
    assert "condconv_rows_total" in scraped.text
    assert scraped.headers["x-content-type-options"] == "nosniff"
    for client in (guarded.client, probes):
        for path in ("/livez", "/readyz", "/healthz"):
            assert client.get(path).json()["status"] == "ok"
    for path in ("/models", "/docs", "/openapi.json"):
        assert_problem(probes.get(path), 404, "not_found")
    assert_problem(probes.post("/predict", content=b"x"), 404, "not_found")


def test_keys_follow_their_file_and_survive_a_broken_one(guarded: Server, keys_file: Path) -> None:
    def status(name: str) -> int:
        return guarded.client.get("/models", headers={"X-API-Key": f"{name}-secret"}).status_code

    assert status("added") == 401
    write(keys_file, "user", "added")
    wait_for(lambda: status("added") == 200)
    assert status("limited") == 401
    keys_file.write_text('{"keys": [')
    wait_for(lambda: status("added") == 200 and "stay in force" in guarded.log)
    assert status("user") == 200
    write(keys_file, "user", "limited")
    wait_for(lambda: status("added") == 401)
    assert status("user") == 200


def test_refusals_tell_nothing_of_the_inside(guarded: Server, keys_file: Path) -> None:
    told = ""
    for request in (
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET /models HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /%00/../../etc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /static-offline-docs/%2e%2e/core HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"POST /predict?top_k=a HTTP/1.1\r\nHost: x\r\nX-API-Key: user-secret\r\nConnection: close\r\n\r\n",
        b"GET /models HTTP/1.1\r\nHost: x\r\nX-API-Key: \xff\x00\r\nConnection: close\r\n\r\n",
    ):
        with socket.create_connection(guarded.address, timeout=PATIENCE) as connected:
            connected.sendall(request)
            while chunk := connected.recv(65536):
                told += chunk.decode("latin-1")
    assert told.count("HTTP/1.1 4") == 7, told
    for inside in (str(ROOT), str(keys_file.parent), "Traceback", "site-packages", ".py", "uvicorn", "user-secret"):
        assert inside not in told


def test_metrics_stay_until_the_last_answer_is_out(coffee: bytes) -> None:
    with Server(metrics_port=0) as server:
        match = re.search(r"metrics and probes on (http://\S+)", server.log)
        assert match
        url = httpx.URL(match[1])
        assert url.port is not None
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(coffee)}\r\n\r\n".encode()
        with new_client(match[1]) as probes, socket.create_connection(server.address) as slow:
            slow.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer(slow).startswith(b"HTTP/1.1 200"), "the connection is no longer in the queue"
            slow.sendall(head + coffee[:1000])
            server.terminate()
            wait_for(server.refuses_connections)
            assert probes.get("/metrics").status_code == 200
            slow.sendall(coffee[1000:])
            assert answer(slow).startswith(b"HTTP/1.1 200")
            assert server.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((url.host, url.port))


def test_open_server_that_others_can_reach_says_so() -> None:
    with Server(until_ready=False, host="0.0.0.0") as server:
        wait_for(lambda: "anyone who can reach" in server.log)
        assert re.search(r"WARNING there are no API keys: anyone who can reach http://0\.0\.0\.0:\d+ may", server.log)

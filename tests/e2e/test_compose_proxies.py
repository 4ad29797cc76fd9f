"""The proxies of the Compose project: their own files, in front of a server here instead of a pool of containers."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import httpx
import pytest
import trustme

from tests.debian import ENVIRONMENT, need
from tests.e2e.server import ROOT, Server, wait_for
from tests.e2e.test_grpc_over_sockets import infer
from tests.free_ports import free_ports

NGINX = ROOT / "deploy/nginx"
MOST = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Proxies:
    """Where the two proxies listen, and who vouches for the one with TLS."""

    http: str
    tls: str
    authority: trustme.CA

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(grpc_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def proxies(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxies]:
    need({"nginx": "nginx"})
    directory = tmp_path_factory.mktemp("proxies")
    (directory / "servers").mkdir()
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    (directory / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(directory / "tls.key"))
    ports = free_ports(2)
    places = {
        "/etc/nginx/": f"{directory}/",
        "/run/tls/": f"{directory}/",
        "/tmp/": f"{directory}/",
        "/dev/stderr": f"{directory}/log",
        # No name server is asked for an address.
        "set $pool pool;": "set $pool 127.0.0.1;",
        "$pool:8000": f"$pool:{server.address[1]}",
        "$pool:8001": f"$pool:{server.grpc.rpartition(':')[2]}",
        "listen 8080;": f"listen 127.0.0.1:{ports[0]};",
        # As it was written before nginx 1.25.
        "listen 8443 ssl;\n    http2 on;": f"listen 127.0.0.1:{ports[1]} ssl http2;",
    }
    found = set()

    def replaced(match: re.Match[str]) -> str:
        found.add(match[0])
        return places[match[0]]

    for name, target in (("nginx.conf", "nginx.conf"), ("replicas.conf", "replicas.conf"),
                         ("http.conf", "servers/http.conf"), ("tls.conf", "servers/tls.conf")):  # fmt: skip
        text = re.sub("|".join(map(re.escape, places)), replaced, (NGINX / name).read_text())
        (directory / target).write_text(text)
    assert found == set(places)
    if os.geteuid() == 0:  # its workers must reach the directory
        (directory / "nginx.conf").write_text("user root;\n" + (directory / "nginx.conf").read_text())
    process = subprocess.Popen(
        ["nginx", "-c", directory / "nginx.conf", "-e", directory / "log", "-g", "daemon off;"], env=ENVIRONMENT
    )
    try:
        wait_for(lambda: process.poll() is not None or (directory / "nginx.pid").exists())
        assert process.poll() is None, (directory / "log").read_text()
        yield Proxies(f"http://127.0.0.1:{ports[0]}", f"https://localhost:{ports[1]}", authority)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(params=["http", "tls"])
def client(request: pytest.FixtureRequest, proxies: Proxies) -> Iterator[httpx.Client]:
    url = getattr(proxies, request.param)
    with httpx.Client(base_url=url, verify=proxies.trusting(), timeout=60) as made:
        yield made


def test_photos_are_answered(client: httpx.Client, coffee: bytes) -> None:
    answer = client.post("/predict", content=coffee)
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["classes"]
    assert client.get("/metrics").status_code == 404


def test_bodies_are_as_large_as_the_service_takes(client: httpx.Client) -> None:
    allowed = client.post("/predict", content=bytes(MOST))
    assert allowed.status_code == 415
    assert allowed.headers["content-type"] == "application/problem+json"
    assert client.post("/predict", content=bytes(MOST + 1)).status_code == 413


def test_only_tls_says_that_it_is_always_there(client: httpx.Client) -> None:
    assert ("strict-transport-security" in client.get("/readyz").headers) == (client.base_url.scheme == "https")


def test_calls_of_grpc_share_the_port_with_tls(proxies: Proxies, coffee: bytes) -> None:
    address = proxies.tls.removeprefix("https://")
    credentials = grpc.ssl_channel_credentials(proxies.authority.cert_pem.bytes())
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(address, credentials, options=options) as channel:
        assert infer(channel, coffee, timeout=60).raw_output_contents
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/no.Service/Call", bytes, bytes)(b"", timeout=60)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_whoever_forgets_the_s_is_sent_on(proxies: Proxies) -> None:
    answer = httpx.post(proxies.tls.replace("https", "http") + "/predict?top_k=1", content=b"x")
    assert answer.status_code == 308
    assert answer.headers["location"] == f"{proxies.tls}/predict?top_k=1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls_are_refused(proxies: Proxies, version: ssl.TLSVersion) -> None:
    context = proxies.trusting()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    host, _, port = proxies.tls.removeprefix("https://").partition(":")
    with socket.create_connection((host, int(port))) as raw, pytest.raises(OSError, match=r"(?i)protocol|alert"):
        context.wrap_socket(raw, server_hostname=host)


def test_the_service_takes_what_they_let_through_and_answers_before_they_give_up() -> None:
    text = "".join((NGINX / name).read_text() for name in ("nginx.conf", "replicas.conf", "tls.conf"))
    assert set(re.findall(r"client_max_body_size (\d+)m;", text)) == {"32", "33"}
    assert set(re.findall(r"(?:proxy|grpc)_read_timeout (\d+)s;", text)) == {"90"}

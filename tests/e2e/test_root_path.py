"""Under a path prefix: behind a real nginx that passes it on, one that takes it off, and straight at the port."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
import yaml

from tests.e2e.server import PATIENCE, ROOT, Server, new_client, wait_for
from tests.nginx import UNDER_A_PREFIX, nginx_servers

PREFIX = "/classify"
WAYS = ("passed on", "taken off", "straight, with the prefix", "straight, without")


def test_examples_for_kubernetes_are_about_the_service_that_is_there() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    documents = [d for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.S) for d in yaml.safe_load_all(block)]
    kinds = {document["kind"]: document["spec"] for document in documents if "kind" in document}
    (path,) = kinds["Ingress"]["rules"][0]["http"]["paths"]
    (route,) = kinds["IngressRoute"]["routes"]
    assert path["path"] == PREFIX
    assert kinds["Middleware"]["stripPrefix"]["prefixes"] == [PREFIX]
    assert route["match"] == f"PathPrefix(`{PREFIX}`)"
    deployed = yaml.safe_load_all((ROOT / "deploy/kubernetes/base/services.yaml").read_text())
    services = {
        d["metadata"]["name"]: [p["name"] for p in d["spec"]["ports"]] for d in deployed if d["kind"] == "Service"
    }
    backend, (service,) = path["backend"]["service"], route["services"]
    assert backend["port"]["name"] in services[backend["name"]]
    assert service["port"] in services[service["name"]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(root_path=PREFIX, metrics_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def addresses(server: Server) -> Iterator[dict[str, str]]:
    """Where the server is reached: through the examples of docs/operations.md as printed, and directly."""
    backend = "127.0.0.1:{1}".format(*server.address)
    assert len(UNDER_A_PREFIX) == 2
    with nginx_servers(*(example.replace("127.0.0.1:8000", backend) for example in UNDER_A_PREFIX)) as (on, off):
        yield dict(zip(WAYS, (on + PREFIX, off + PREFIX, server.url + PREFIX, server.url), strict=True))


@pytest.fixture(params=WAYS)
def base(request: pytest.FixtureRequest, addresses: dict[str, str]) -> str:
    return addresses[request.param]


@pytest.fixture
def client(base: str) -> Iterator[httpx.Client]:
    with new_client(base) as made:
        yield made


def follow(client: httpx.Client, page: httpx.Response) -> set[str]:
    """The paths of all that a page refers to; each must be there."""
    base = re.search(r'<base href="([^"]+)"', page.text)
    start = urljoin(str(page.url), base[1]) if base else str(page.url)
    found = {
        urljoin(start, path)
        for path in re.findall(r"""(?:src|href|url|spec-url)\s*[=:]\s*["']([^"'#]+)["']""", page.text)
    }
    for url in found:
        assert client.get(url).status_code == 200, url
    return {urlsplit(url).path for url in found}


def test_routes(client: httpx.Client, coffee: bytes) -> None:
    answer = client.post("/predict", content=coffee)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    again = client.get(f"/routing/{answer.headers['x-request-id']}")
    assert again.json()["predictions"][0]["classes"] == answer.json()["predictions"][0]["classes"]
    for path in ("/models", "/routing", "/livez", "/readyz", "/healthz"):
        assert client.get(path).status_code == 200
    missing = client.get("/nothing/here")
    assert missing.json()["detail"] == f"There is nothing at {PREFIX}/nothing/here; {PREFIX}/docs lists what there is."
    assert client.get("/predict").json()["slug"] == "method_not_allowed"


def test_open_inference(client: httpx.Client, coffee: bytes) -> None:
    (name,) = client.get("/v2/models").json()["models"]
    headers = {"Inference-Header-Content-Length": "0"}
    assert client.post(f"/v2/models/{name}/infer", content=coffee, headers=headers).status_code == 200
    missing = client.get("/v2/nothing").json()
    assert missing == {
        "error": f"There is nothing at {PREFIX}/v2/nothing; {PREFIX}/v2/openapi.json lists what there is."
    }
    found = follow(client, client.get("/v2/docs"))
    assert f"{PREFIX}/v2/openapi.json" in found
    assert all(part.startswith(f"{PREFIX}/v2/") for part in found)


def test_photos_of_many_megabytes_get_through(client: httpx.Client) -> None:
    answer = client.post("/predict", content=bytes(9 * 2**20))
    assert (answer.status_code, answer.json()["slug"]) == (415, "unsupported_image")


def test_documents_and_what_they_refer_to(client: httpx.Client, base: str, coffee: bytes) -> None:
    for path in ("/docs", "/redoc"):
        found = follow(client, client.get(path))
        assert f"{PREFIX}/openapi.json" in found
        assert all(part.startswith(f"{PREFIX}/") for part in found)
    document = client.get("/openapi.json")
    (told,) = document.json()["servers"]
    # What a generated client does: the server's address is relative to the document's.
    address = urljoin(str(document.url), told["url"])
    assert address.removesuffix(PREFIX) == base.removesuffix(PREFIX)
    for path in ("/predict", "/features", "/routing"):
        assert path in document.json()["paths"]
        assert client.post(address + path, content=coffee).status_code == 200


@pytest.mark.parametrize("slash", ["/", ""])
def test_page_and_what_it_refers_to(base: str, slash: str) -> None:
    with httpx.Client(trust_env=False, follow_redirects=True, timeout=PATIENCE) as client:
        page = client.get(base + slash)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "base-uri 'self'" in page.headers["content-security-policy"]
        found = follow(client, page)
    assert {f"{PREFIX}/web/app.js", f"{PREFIX}/web/style.css", f"{PREFIX}/docs"} < found
    assert all(part.startswith(f"{PREFIX}/") for part in found)


def test_metrics_have_a_port_and_no_prefix(server: Server, client: httpx.Client) -> None:
    found = re.search(r"metrics and probes on (\S+)", server.log)
    assert found
    # Only here are requests without an image, so none that another front counts late is among these.
    name = 'condconv_requests_total{code="400",deadline="",front="native",method="POST",route="/predict"}'
    with new_client(found[1]) as metrics:

        def count() -> float:
            text = metrics.get("/metrics").text
            assert PREFIX not in text
            line = re.search(rf"^{re.escape(name)} (\S+)$", text, flags=re.M)
            return float(line[1]) if line else 0.0

        before = count()
        assert client.post("/predict").status_code == 400
        wait_for(lambda: count() > before)
        assert count() == before + 1
        for path in ("/metrics", "/readyz"):
            assert metrics.get(PREFIX + path).status_code == metrics.get(path).status_code == 200
    wait_for(lambda: f"POST {PREFIX}/predict 400" in server.log)
    assert "POST /predict " not in server.log

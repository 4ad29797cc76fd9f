"""What is served, how it is doing, and how it is described."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from hashlib import sha256
from importlib.util import find_spec
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from condconv_serve.runtime.devices import detect_machine
from tests.e2e.documented import example_requests
from tests.e2e.server import BUNDLE, MODEL, Server, sample_name
from tests.e2e.shared import OFFICIAL

MANIFEST = json.loads((BUNDLE / "manifest.json").read_text())


def test_list_of_models(client: httpx.Client) -> None:
    model, other = client.get("/models").json()["models"]
    assert (other["name"], other["default"]) == (OFFICIAL, False)
    assert model == {
        "name": MODEL,
        "versions": ["1"],
        "default": True,
        "all_versions": [{"version": "1", "state": "serving"}],
        "aliases": {},
        "task": "classification",
        "architecture": MODEL,
        "num_classes": 1000,
        "num_experts": 4,
    }


@pytest.mark.parametrize("query", ["", "?version=1"])
def test_one_model(client: httpx.Client, query: str) -> None:
    model = client.get(f"/models/{MODEL}{query}").json()
    assert (model["name"], model["version"], model["versions"]) == (MODEL, "1", ["1"])
    assert model["architecture"]["name"] == MODEL
    assert model["parameters"] == 12_677_576
    assert 350e6 < model["multiply_adds"] < 450e6
    assert (model["num_classes"], model["labels_count"], model["num_experts"]) == (1000, 1000, 4)
    assert (len(model["labels"]), model["labels"][967]) == (1000, "espresso")
    assert model["routing_blocks"] == [f"block_{i}" for i in range(8, 16)]
    assert model["preprocessing"] == {
        "transform": "pillow",
        "image_size": 224,
        "crop_padding": 32,
        "interpolation": "bicubic",
        "exact_decoding": False,
        "mean": [127, 127, 127],
        "std": [128, 128, 128],
    }
    by, machine = model["computed_by"], detect_machine(look_for_accelerators=False)
    assert by["device"] == "CPU"
    assert by["native"]["isa"] == machine.native.isa
    assert by["native"]["state"] == ("used" if machine.native.isa else "unavailable")
    assert (by["native"]["native_layers"] > 0) == bool(machine.native.isa)
    assert model["model_card"] == (BUNDLE / "MODEL_CARD.md").read_text()
    for key in ("provenance", "licence", "accuracy"):
        assert without_nulls(model[key]) == MANIFEST[key]


def without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def test_checksums_are_those_of_the_files(client: httpx.Client) -> None:
    files = client.get(f"/models/{MODEL}").json()["files"]
    assert set(files) == {path.name for path in BUNDLE.iterdir()} - {"manifest.json"}
    for name, described in files.items():
        data = (BUNDLE / name).read_bytes()
        assert described == {"size": len(data), "sha256": sha256(data).hexdigest()}


def test_metrics_count(fake_server: Server, coffee: bytes) -> None:
    server = fake_server

    def counted(name: str, **labels: object) -> float:
        key = sample_name(name, **labels)
        return after.get(key, 0) - before.get(key, 0)

    before = server.metrics()
    server.client.post("/predict", content=coffee)
    server.client.post("/predict", files=[("image", ("a", coffee)), ("image", ("b", b"no image"))])
    server.client.post("/predict", content=b"no image")
    server.client.get("/nowhere/1")
    server.client.get("/nowhere/2")
    after = server.metrics()

    assert counted("condconv_requests_total", front="native", route="/predict", method="POST", code=200) == 2
    assert counted("condconv_requests_total", front="native", route="/predict", method="POST", code=415) == 1
    assert counted("condconv_requests_total", front="native", route="unmatched", method="GET", code=404) == 2
    assert counted("condconv_request_seconds_count", front="native", route="/predict") == 3
    assert counted("condconv_rows_total", model=MODEL, outcome="answered") == 2
    assert counted("condconv_rows_total", model=MODEL, outcome="unsupported_image") == 2
    assert counted("condconv_rejected_total", reason="unsupported_image") == 1
    assert counted("condconv_batch_size_sum", model=MODEL) == 2
    assert 0 < counted("condconv_request_seconds_sum", front="native", route="/predict") < 60
    for stage in ("decode", "queue", "inference", "total"):
        assert counted("condconv_stage_seconds_count", stage=stage) == 2
    for block in range(8, 16):
        for expert in range(4):
            labels = {"model": MODEL, "version": "1", "block": f"block_{block}", "expert": expert}
            assert counted("condconv_routing_weight_count", **labels) == 2
    assert after["condconv_ready"] == 1
    assert after["condconv_queue_rows"] == after["condconv_rows_in_flight"] == 0
    (info,) = (name for name in after if name.startswith("condconv_model_info{"))
    assert f'architecture="{MODEL}"' in info
    assert f'model="{MODEL}"' in info
    assert 'version="1"' in info
    assert after[info] == 1
    assert after[sample_name("condconv_native_info", model=MODEL, version=1, state="off")] == 1
    assert after[sample_name("condconv_native_layers", model=MODEL, version=1, computed_by="native")] == 0
    assert after[sample_name("condconv_model_load_seconds", model=MODEL, version=1)] > 0
    assert after["process_resident_memory_bytes"] > 5e7


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("*/*", "text/plain", parse_text),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", parse_openmetrics),
    ],
)
def test_metrics_in_both_formats(client: httpx.Client, accept: str, content_type: str, parse: Any) -> None:
    response = client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith(content_type)
    families = {family.name: family for family in parse(response.text)}
    ours = [family for name, family in families.items() if name.startswith("condconv_")]
    assert len(ours) >= 12
    assert all(family.documentation for family in ours)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_pages_of_documentation_need_nothing_from_elsewhere(client: httpx.Client, path: str) -> None:
    page = client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://|[\"']//", page.text)
    linked = re.findall(r"(?:src|href|spec-url)=[\"']([^\"']+)", page.text) + re.findall(r"url: '([^']+)'", page.text)
    assert any(link.endswith(".js") for link in linked)
    for link in linked:
        response = client.get(urljoin(path, link))
        assert response.status_code == 200, link
        assert len(response.content) > 100


@pytest.fixture
def openapi(client: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_openapi_is_valid(openapi: dict[str, Any]) -> None:
    if find_spec("openapi_spec_validator"):
        from openapi_spec_validator import validate

        validate(openapi)
    assert re.fullmatch(r"3\.1\.\d", openapi["openapi"])
    assert {"title", "version", "description"} <= set(openapi["info"])
    ids = [operation["operationId"] for _, _, operation in operations(openapi)]
    assert len(ids) == len(set(ids))
    tags = {tag["name"] for tag in openapi["tags"]}
    for _, path, operation in operations(openapi):
        assert operation["summary"]
        assert operation["description"]
        assert set(operation["tags"]) <= tags
        assert all(re.fullmatch(r"[2-5]\d\d", code) for code in operation["responses"])
        assert all(response["description"] for response in operation["responses"].values())
        declared = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path))


def test_openapi_references_resolve(openapi: dict[str, Any]) -> None:
    found = set(references(openapi))
    assert found
    for reference in found:
        assert reference.startswith("#/")
        node = openapi
        for step in reference[2:].split("/"):
            node = node[step.replace("~1", "/").replace("~0", "~")]


def test_openapi_names_every_route(openapi: dict[str, Any]) -> None:
    assert {(method, path) for method, path, _ in operations(openapi)} == {
        ("post", "/predict"),
        ("post", "/detect"),
        ("post", "/features"),
        ("post", "/routing"),
        ("get", "/routing"),
        ("get", "/routing/classes/{index}"),
        ("get", "/routing/experts/{block}/{expert}"),
        ("get", "/routing/{request_id}"),
        ("get", "/routing/state"),
        ("post", "/routing/reset"),
        ("post", "/routing/ablation"),
        ("get", "/models"),
        ("get", "/models/{name}"),
        ("get", "/models/{name}/aliases"),
        ("put", "/models/{name}/aliases/{alias}"),
        ("delete", "/models/{name}/aliases/{alias}"),
        ("post", "/models/{name}/aliases/{alias}/rollback"),
        ("post", "/models/{name}/versions/{version}/load"),
        ("post", "/models/{name}/versions/{version}/unload"),
        ("get", "/livez"),
        ("get", "/readyz"),
        ("get", "/healthz"),
        ("get", "/metrics"),
    }


def patiently(client: httpx.Client, method: str, path: str, **request: Any) -> httpx.Response:
    """Ask again as long as the server has too much to do for other workers."""
    while (response := client.request(method, path, **request)).status_code == 429:
        time.sleep(0.1)
    return response


def test_every_documented_example_runs(client: httpx.Client, openapi: dict[str, Any]) -> None:
    ran = []
    for method, path, operation in operations(openapi):
        if path.startswith("/models/") and method != "get":
            continue  # tests.e2e.test_live_versions runs them, on models that may be changed
        if path == "/detect":
            continue  # tests.e2e.test_detector_server runs it, on a detector
        place, requests = example_requests(path, operation)
        for media_type, request in requests:
            response = patiently(client, method, place, **request)
            assert response.is_success, (path, media_type, response.text)
            ran.append((path, media_type))
    assert len(ran) == 4 * 4 + 13


def test_documented_statuses_are_those_that_are_answered(client: httpx.Client, openapi: dict[str, Any]) -> None:
    documented = {(m, path): set(operation["responses"]) for m, path, operation in operations(openapi)}
    images = {"200", "400", "404", "408", "413", "415", "422", "429", "500", "503", "504"}
    for path in ("/predict", "/detect", "/features", "/routing", "/routing/ablation"):
        assert documented["post", path] == images
    assert documented["get", "/readyz"] == documented["get", "/healthz"] == {"200", "503"}
    for path in ("/models/{name}", "/routing", "/routing/classes/{index}", "/routing/experts/{block}/{expert}"):
        assert documented["get", path] == {"200", "404", "422", "503"}

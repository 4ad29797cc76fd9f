"""The OpenAPI document: complete, and in line with what the protocol publishes."""

from __future__ import annotations

import json
from typing import Any

from condconv_serve.fronts.oip.errors import STATUS
from tests.unit.fronts.oip.application import opened

PUBLISHED = {
    "metadata_server_response": {"name", "version", "extensions"},
    "metadata_model_response": {"name", "platform"},
    "metadata_tensor": {"name", "datatype", "shape"},
    "inference_request": {"inputs"},
    "request_input": {"name", "shape", "datatype"},  # and data, unless it is binary
    "request_output": {"name"},
    "response_output": {"name", "shape", "datatype"},
    "inference_response": {"model_name", "outputs"},
}
"""Required fields by schema, as published."""
PATHS = {
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    ("get", "/v2"),
    *(
        (method, f"/v2/models/{{model}}{version}{suffix}")
        for version in ("", "/versions/{version}")
        for method, suffix in (("get", ""), ("get", "/ready"), ("post", "/infer"))
    ),
}


async def document() -> dict[str, Any]:
    async with opened() as client:
        found: dict[str, Any] = (await client.get("/v2/openapi.json")).json()
        return found


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


async def test_it_has_what_the_protocol_publishes() -> None:
    found = await document()
    schemas = found["components"]["schemas"]
    assert {name: set(schemas[name]["required"]) for name in PUBLISHED} == PUBLISHED
    assert {(method, path) for path, methods in found["paths"].items() for method in methods} >= PATHS
    assert schemas["error"]["required"] == ["error"]


async def test_every_reference_leads_somewhere() -> None:
    found = await document()
    assert references(found) == {f"#/components/schemas/{name}" for name in found["components"]["schemas"]}


async def test_every_parameter_of_a_path_is_described() -> None:
    for path, methods in (await document())["paths"].items():
        for operation in methods.values():
            described = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert described == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            assert operation["summary"]
            assert operation["description"]


async def test_every_error_that_is_described_has_its_status() -> None:
    for methods in (await document())["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                for slug in answer["description"].split(", "):
                    assert STATUS.get(slug, int(status)) == int(status)


async def test_the_example_is_answered() -> None:
    content = (await document())["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]
    async with opened() as client:
        response = await client.post(
            "/v2/models/fake/infer", content=json.dumps(content["application/json"]["example"])
        )
    assert [output["name"] for output in response.json()["outputs"]] == ["probabilities", "label"]
    assert response.json()["outputs"][0]["shape"] == [1, 3]

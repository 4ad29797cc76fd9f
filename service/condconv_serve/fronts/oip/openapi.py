"""What the OpenAPI document says of each route: summaries, bodies, and answers, errors included."""

from __future__ import annotations

from typing import Any

from condconv_serve.fronts.examples import EXAMPLE_JPEG_BASE64, EXAMPLE_MODEL
from condconv_serve.fronts.http_errors import documented
from condconv_serve.fronts.oip.errors import STATUS
from condconv_serve.fronts.oip.schemas import SCHEMAS, Schema, ref

Route = dict[str, Any]
"""Keyword arguments of `add_api_route`."""

_NAME: Schema = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "example": EXAMPLE_MODEL,
}
_VERSION: Schema = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "A version or an alias.",
    "schema": {"type": "string"},
    "example": "1",
}
_UNKNOWN = ("invalid_parameter", "model_not_found", "version_not_found", "model_unavailable")
_SMALL_BODY = (
    "malformed_body",
    "body_too_large",
    "unsupported_encoding",
    "request_timeout",
    "draining",
    "store_unavailable",
)
_INFER_SLUGS = (
    *_UNKNOWN,
    "malformed_body",
    "missing_image",
    "too_many_images",
    "unsupported_image",
    "image_too_large",
    "corrupt_image",
    "body_too_large",
    "request_timeout",
    "unsupported_encoding",
    "queue_full",
    "wait_too_long",
    "not_ready",
    "draining",
    "engine_stalled",
    "out_of_memory",
    "deadline_exceeded",
    "not_cached",
    "inference_failed",
)
_EXAMPLE = {
    "id": "42",
    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [EXAMPLE_JPEG_BASE64]}],
    "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}, {"name": "label"}],
}


def paths(prefix: str, suffix: str) -> tuple[str, str]:
    """The two paths of a route about a model: without a version, and with one."""
    return f"{prefix}{suffix}", f"{prefix}/versions/{{version}}{suffix}"


def errors(*slugs: str) -> dict[int | str, Schema]:
    """OpenAPI entries for the errors that a route may answer with."""
    return documented(slugs, STATUS, content=_content("error"))


def _answer(description: str, schema: str) -> Schema:
    return {"description": description, "content": _content(schema)}


def _content(schema: str) -> Schema:
    return {"application/json": {"schema": ref(schema)}}


def _route(summary: str, schema: str | None, *slugs: str, body: Schema | None = None) -> Route:
    answers: dict[int | str, Schema] = {200: _answer("Done", schema)} if schema else {}
    route: Route = {"summary": summary, "responses": answers | errors(*slugs)}
    return {**route, "openapi_extra": {"requestBody": body}} if body else route


def _json(schema: str, example: Any) -> Schema:
    return {"content": {"application/json": {"schema": ref(schema), "example": example}}}


LIVE = _route("Is the process alive?", "live")
READY = _route("Does the server take requests?", "ready")
READY["responses"][400] = _answer("It doesn't", "ready")
SERVER = _route("Describe the server", "metadata_server_response")
NAMES = _route("List the models", "models")
METADATA = _route("Describe a model", "metadata_model_response", *_UNKNOWN)
MODEL_READY = _route("Does a model take requests?", "model_ready")
MODEL_READY["responses"] |= {400: _answer("It doesn't", "model_ready"), 404: _answer("There is none", "model_ready")}
CONFIG = _route("A model's configuration in Triton's shape", None, *_UNKNOWN)
STATISTICS = _route("Statistics in Triton's shape", "model_statistics", *_UNKNOWN)
INFER = _route(
    "Compute outputs for images or pixels",
    "inference_response",
    *_INFER_SLUGS,
    body={
        "required": True,
        "content": {
            "application/json": {"schema": ref("inference_request"), "example": _EXAMPLE},
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary"},
            },
        },
    },
)
INFER["responses"][200]["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
INFER["openapi_extra"]["parameters"] = [
    {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "Bytes of the JSON, if raw bytes follow it. 0: the whole body is one encoded image.",
        "schema": {"type": "integer", "minimum": 0},
    },
]
INDEX = _route(
    "List the versions of all models in the store",
    "repository_index_response",
    "invalid_parameter",
    *_SMALL_BODY,
    body=_json("repository_index_request", {"ready": True}),
)
_CHANGE = ("invalid_parameter", "model_not_found", "version_not_found", *_SMALL_BODY)
LOAD = _route(
    "Load a model", None, *_CHANGE, "invalid_bundle", "too_little_memory", body=_json("repository_request", {})
)
UNLOAD = _route("Unload a model", None, *_CHANGE, "version_in_use", body=_json("repository_request", {}))


def complete(document: Schema) -> None:
    """Add to a new document the schemas, and the parameters in the paths, which no signature tells."""
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **SCHEMAS}
    for path, operations in document["paths"].items():
        own = [parameter for parameter in (_NAME, _VERSION) if f"{{{parameter['name']}}}" in path]
        for operation in operations.values():
            operation["parameters"] = own + [p for p in operation.get("parameters", []) if p["in"] != "path"]

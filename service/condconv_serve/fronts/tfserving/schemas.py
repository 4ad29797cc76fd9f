"""What requests and answers look like, for the OpenAPI document. Bodies of requests are read by `inputs.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from condconv_serve.fronts.examples import EXAMPLE_JPEG_BASE64, EXAMPLE_MODEL
from condconv_serve.fronts.gatekeeper import SPLIT_KEY_HEADER
from condconv_serve.fronts.tfserving.signatures import CLASSES
from condconv_serve.fronts.thresholds import THRESHOLD_SCHEMAS


def _parameter(name: str, place: str, description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "description": description, "schema": schema}


_NAME = _parameter("name", "path", "The model.", {"type": "string", "minLength": 1, "example": EXAMPLE_MODEL})
_VERSION = _parameter(
    "version", "path", "The number of the version.", {"type": "string", "pattern": "^[0-9]{1,18}$", "example": "1"}
)
_LABEL = _parameter("label", "path", "An alias of the model.", {"type": "string", "minLength": 1, "example": "stable"})

MODEL_PATHS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "/v1/models/{name}": (_NAME,),
    "/v1/models/{name}/versions/{version}": (_NAME, _VERSION),
    "/v1/models/{name}/labels/{label}": (_NAME, _LABEL),
}
"""The beginnings of all paths, with their parameters."""

QUERY_PARAMETERS = (
    _parameter(
        "timeout_ms",
        "query",
        "Milliseconds that you wait at most. Not part of TensorFlow Serving's API.",
        {"type": "integer", "minimum": 1},
    ),
    _parameter(
        "priority",
        "query",
        "How urgent the images are. Not part of TensorFlow Serving's API.",
        {"type": "string", "enum": ["high", "normal", "low"]},
    ),
    _parameter(
        SPLIT_KEY_HEADER,
        "header",
        "Where an alias splits traffic, equal keys get equal versions.",
        {"type": "string"},
    ),
)

THRESHOLD_PARAMETERS = tuple(
    _parameter(
        name,
        "query",
        f"{schema['description']} Not part of TensorFlow Serving's API.",
        {key: value for key, value in schema.items() if key != "description"},
    )
    for name, schema in THRESHOLD_SCHEMAS.items()
)
_B64 = {
    "type": "object",
    "properties": {"b64": {"type": "string", "description": "An encoded image, such as a JPEG file, in base64."}},
    "required": ["b64"],
}
_NUMBERS = {"type": "array", "items": {}, "description": "Numbers from 0 to 255, nested as [side, side, 3]."}
_INSTANCE = {
    "anyOf": [
        _B64,
        {"type": "object", "properties": {"image": _B64}, "required": ["image"]},
        {"type": "object", "properties": {"pixels": _NUMBERS}, "required": ["pixels"]},
        _NUMBERS,
    ]
}
_SIGNATURE = {"type": "string", "description": "The signature; `GET .../metadata` lists them.", "example": "routing"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Documented:
    """What the OpenAPI document says of a route: its summary, and the entries of its body, answers and own query."""

    summary: str
    request_body: dict[str, Any]
    responses: dict[int | str, dict[str, Any]]
    query: tuple[dict[str, Any], ...] = ()


def _json(schema: Mapping[str, Any], example: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema, "example": example}}}


class StatusBody(BaseModel):
    """How loading went."""

    error_code: str = Field(description="OK, or the code of what went wrong.")
    error_message: str


class VersionStatusBody(BaseModel):
    """One version's state."""

    version: str
    state: Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
    status: StatusBody


class StatusResponse(BaseModel):
    """The state of a model's versions."""

    model_config = ConfigDict(protected_namespaces=())

    model_version_status: list[VersionStatusBody]


class ModelSpecBody(BaseModel):
    """The version that is described."""

    name: str
    signature_name: str
    version: str


class MetadataResponse(BaseModel):
    """What a version takes and returns."""

    model_config = ConfigDict(protected_namespaces=())

    model_spec: ModelSpecBody
    metadata: dict[str, Any] = Field(description="`signature_def`: inputs and outputs of each signature.")


PREDICT = Documented(
    summary="Compute the outputs of a signature",
    query=THRESHOLD_PARAMETERS,
    request_body={
        "required": True,
        **_json(
            {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {
                            "signature_name": _SIGNATURE,
                            "instances": {"type": "array", "items": _INSTANCE, "description": "Rows."},
                        },
                        "required": ["instances"],
                    },
                    {
                        "type": "object",
                        "properties": {
                            "signature_name": _SIGNATURE,
                            "inputs": {"description": "A column: a list of images, or `image` or `pixels` with one."},
                        },
                        "required": ["inputs"],
                    },
                ]
            },
            {"instances": [{"b64": EXAMPLE_JPEG_BASE64}]},
        ),
    },
    responses={
        200: {
            "description": "The outputs: `predictions` by row, or `outputs` by column.",
            **_json(
                {
                    "type": "object",
                    "properties": {
                        "predictions": {"type": "array", "items": {}},
                        "outputs": {},
                    },
                },
                {"predictions": [{"probabilities": [0.9, 0.1], "label": "giant panda"}]},
            ),
        }
    },
)

CLASSIFY = Documented(
    summary="Name the most probable classes of examples",
    request_body={
        "required": True,
        **_json(
            {
                "type": "object",
                "properties": {
                    "signature_name": {"type": "string"},
                    "context": {"type": "object", "description": "Features that all examples have."},
                    "examples": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"image/encoded": _B64}},
                        "description": "Each with an image as its feature `image/encoded` or `image`.",
                    },
                },
                "required": ["examples"],
            },
            {"examples": [{"image/encoded": {"b64": EXAMPLE_JPEG_BASE64}}]},
        ),
    },
    responses={
        200: {
            "description": f"The {CLASSES} most probable classes of each example, as pairs of label and score.",
            **_json(
                {
                    "type": "object",
                    "properties": {"results": {"type": "array", "items": {"type": "array", "items": {}}}},
                    "required": ["results"],
                },
                {"results": [[["giant panda", 0.9], ["teddy", 0.1]]]},
            ),
        }
    },
)

REGRESS = Documented(
    summary="Refused: no model here has a signature for it",
    request_body={"required": False, **_json({"type": "object"}, {"examples": []})},
    responses={200: {"description": "Never: no model here has a signature for regression."}},
)

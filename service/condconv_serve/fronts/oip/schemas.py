"""Schemas of the bodies, as the protocol and Triton's extensions publish them, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from condconv_serve.domain import BOXES, FEATURES, LABEL, LOGITS, PROBABILITIES, ROUTING, SCORES
from condconv_serve.fronts.thresholds import THRESHOLD_SCHEMAS
from condconv_serve.tasks.named_outputs import DETECTIONS

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_WHOLE: Schema = {"type": "integer"}
_SHAPE = _list({"type": "integer", "minimum": 0})

SCHEMAS: dict[str, Schema] = {
    "error": _object(("error",), error=_TEXT),
    "live": _object(("live",), live=_FLAG),
    "ready": _object(("ready",), live=_FLAG, ready=_FLAG, error=_TEXT),
    "model_ready": _object(("name", "ready"), name=_TEXT, ready=_FLAG, error=_TEXT),
    "metadata_server_response": _object(
        ("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions=_list(_TEXT)
    ),
    "models": _object(("models",), models=_list(_TEXT)),
    "metadata_model_response": _object(
        ("name", "platform"),
        name=_TEXT,
        versions=_list(_TEXT),
        platform=_TEXT,
        inputs=_list(ref("metadata_tensor")),
        outputs=_list(ref("metadata_tensor")),
        parameters=ref("parameters"),
    ),
    "metadata_tensor": _object(
        ("name", "datatype", "shape"),
        name=_TEXT,
        datatype=_TEXT,
        shape={**_list(_WHOLE), "description": "-1 where an axis may have any length."},
    ),
    "parameters": {
        "type": "object",
        "additionalProperties": {"anyOf": [_TEXT, {"type": "number"}, _FLAG]},
    },
    "tensor_data": {
        "type": "array",
        "description": "Flat, or nested as the shape says.",
        "items": {"anyOf": [ref("tensor_data"), {"type": "number"}, _TEXT, _FLAG]},
    },
    "inference_request": _object(
        ("inputs",),
        id={**_TEXT, "description": "Returned with the answer."},
        parameters={
            **_object(
                (),
                priority={"anyOf": [_WHOLE, _TEXT], "description": "1 (high), 2 (normal), 3 (low), or 0 for normal."},
                timeout={"type": "integer", "description": "Microseconds that you wait.", "minimum": 0},
                binary_data_output={**_FLAG, "description": "Whether outputs are binary unless they say otherwise."},
                **THRESHOLD_SCHEMAS,
            ),
            "additionalProperties": True,
        },
        inputs={**_list(ref("request_input")), "minItems": 1, "maxItems": 1},
        outputs=_list(ref("request_output")),
    ),
    "request_input": _object(
        ("name", "shape", "datatype"),
        name={"type": "string", "enum": ["image", "pixels"]},
        shape=_SHAPE,
        datatype={"type": "string", "enum": ["BYTES", "UINT8", "FP32"]},
        parameters={
            **_object(
                (),
                binary_data_size={
                    "type": "integer",
                    "minimum": 0,
                    "description": "Bytes of this input behind the JSON, in place of `data`.",
                },
                content_type={"type": "string", "enum": ["base64"], "description": "Of `image` in JSON."},
            ),
            "additionalProperties": True,
        },
        data=ref("tensor_data"),
    ),
    "request_output": _object(
        ("name",),
        name={
            "type": "string",
            "enum": [LOGITS, PROBABILITIES, LABEL, ROUTING, FEATURES, BOXES, SCORES, *DETECTIONS],
            "description": "The model's metadata says which of these it has.",
        },
        parameters={
            **_object(
                (),
                binary_data={**_FLAG, "description": "Whether to return it behind the JSON."},
                classification={
                    "type": "integer",
                    "minimum": 0,
                    "description": "How many classes to return as `score:index:label` in place of the tensor.",
                },
            ),
            "additionalProperties": True,
        },
    ),
    "inference_response": _object(
        ("model_name", "outputs"),
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        parameters=ref("parameters"),
        outputs=_list(ref("response_output")),
    ),
    "response_output": _object(
        ("name", "shape", "datatype"),
        name=_TEXT,
        shape=_SHAPE,
        datatype=_TEXT,
        parameters=ref("parameters"),
        data=ref("tensor_data"),
    ),
    "repository_index_request": _object((), ready={**_FLAG, "description": "Only what serves."}),
    "repository_index_response": _list(
        _object(("name", "state", "reason"), name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)
    ),
    "repository_request": _object((), parameters={**_object((), version=_TEXT), "additionalProperties": True}),
    "duration": _object(("count", "ns"), count=_WHOLE, ns=_WHOLE),
    "model_statistics": _object(
        ("model_stats",),
        model_stats=_list(
            _object(
                ("name", "version", "last_inference", "inference_count", "execution_count", "inference_stats"),
                name=_TEXT,
                version=_TEXT,
                last_inference=_WHOLE,
                inference_count=_WHOLE,
                execution_count=_WHOLE,
                inference_stats={"type": "object", "additionalProperties": ref("duration")},
                batch_stats=_list({"type": "object"}),
            )
        ),
    ),
}

"""Requests of TensorFlow Serving's protocol whose parts lie: JSON to REST, and messages to gRPC."""

from __future__ import annotations

import base64
import functools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from condconv_serve.fronts.grpc.messages import MessageSet
from tests.fault.fuzzing_requests import (
    ENVELOPES,
    NUMBERS,
    ODD,
    SIDE,
    FuzzedModel,
    GrpcRequest,
    HttpRequest,
    damaged_call,
    flip,
    photo,
)

SIGNATURES = ("", "serving_default", "pixels", "all", "label", "pixels_routing", "classify", "x", "\ud800", "x" * 500)
DT_FLOAT, DT_UINT8, DT_STRING = 1, 4, 7
PREDICTION_SERVICE = "/tensorflow.serving.PredictionService"

_LONGEST = 2 * 2**20
"""About how many bytes a body may have; a server allows half of them."""
Document = dict[str, Any]
Place = tuple[dict[str, Any] | list[Any], Any]
"""Where a value stands: what holds it, and its key or number."""


# --- REST


def http_request(rng: random.Random, model: FuzzedModel) -> HttpRequest:
    """A request for REST: one in twelve is right."""
    verb = rng.choice(("predict", "predict", "predict", "classify" if model.classifies else "predict"))
    document, done = (_to_classify(rng) if verb == "classify" else _to_predict(rng)), []
    path = f"/v1/models/{model.name}:{verb}"
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3))):
        lie = rng.choice(LIES)
        try:  # a lie before may have left nothing to lie about
            lie(document, rng)
            done.append(lie.__name__)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    if rng.random() < 0.1:
        done.append("path")
        path = _odd_path(rng, model, verb)
    body = json.dumps(document).encode()
    if rng.random() < 0.1:
        done.append("number")
        body = body.replace(b"7", rng.choice((b"NaN", b"-Infinity", b"1e999", b"7.", b"07", b"+7", b"0x7", b"7e")), 1)
    made = HttpRequest(name="+".join(done) or "tensorflow_serving right", path=path, headers=(), body=body)
    return rng.choice(ENVELOPES)(made, rng) if rng.random() < 0.3 else made


def _to_predict(rng: random.Random) -> Document:
    rows = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.6:
        name, values = "image", [{"b64": base64.b64encode(photo()).decode()}] * rows
    else:
        name, values = "pixels", np.full((rows, SIDE, SIDE, 3), 7).tolist()
    named = rng.random() < 0.5
    document: Document = (
        {"instances": [{name: value} for value in values] if named else list(values)}
        if rng.random() < 0.5
        else {"inputs": {name: values} if named else values}
    )
    if rng.random() < 0.5:
        document["signature_name"] = name if name == "pixels" else "serving_default"
    return document


def _to_classify(rng: random.Random) -> Document:
    example = {rng.choice(("image", "image/encoded")): {"b64": base64.b64encode(photo()).decode()}, "label": 7}
    return {"examples": [dict(example) for _ in range(rng.choice((1, 1, 3)))]}


def _places(value: Any, *, depth: int = 5) -> Iterator[Place]:
    """Where values stand in a document; of a long list only the first ones."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, entry in list(entries) if depth else []:
        yield value, key
        yield from _places(entry, depth=depth - 1)


def _somewhere(document: Document, rng: random.Random) -> Place:
    return rng.choice(list(_places(document)))


def odd_value(document: Document, rng: random.Random) -> None:
    where, key = _somewhere(document, rng)
    where[key] = rng.choice((*ODD, *NUMBERS))


def missing(document: Document, rng: random.Random) -> None:
    where, key = _somewhere(document, rng)
    del where[key]


def wrapped(document: Document, rng: random.Random) -> None:
    """A value stands deeper than it should, or far too deep."""
    where, key = _somewhere(document, rng)
    depth = rng.choice((1, 1, 2, 300))
    where[key] = json.loads(depth * "[" + json.dumps(where[key]) + depth * "]")


def repeated(document: Document, rng: random.Random) -> None:
    """More rows than allowed, or more of something within a row, as long as it is written soon."""
    where, key = _somewhere(document, rng)
    if isinstance(where[key], list):
        times = min(rng.choice((2, 65, 2000)), _LONGEST // len(json.dumps(where[key])) + 1)
        where[key] = where[key] * times


def both(document: Document, rng: random.Random) -> None:
    """Rows and columns at once, or what belongs to another verb."""
    document[rng.choice(("instances", "inputs", "examples", "context"))] = rng.choice((*ODD, [7], [{"b64": "QQ=="}]))


def signature(document: Document, rng: random.Random) -> None:
    document["signature_name"] = rng.choice((*SIGNATURES, *ODD))


def other_name(document: Document, rng: random.Random) -> None:
    where, key = _somewhere(document, rng)
    if isinstance(where, dict):
        where[rng.choice(("b64", "image", "pixels", "bytes", "image/encoded", "instances", "", "\0"))] = where.pop(key)


def damaged_image(document: Document, rng: random.Random) -> None:
    where, key = rng.choice([place for place in _places(document) if place[1] == "b64"])
    data = flip(photo(), rng)[: rng.choice((None, 0, 10, 300))]
    text = base64.b64encode(data).decode()
    where[key] = rng.choice((text, text[:-1], text + "=", "data:," + text, "*" + text))


LIES: tuple[Callable[[Document, random.Random], None], ...] = (
    *(odd_value, odd_value, odd_value, missing, missing, wrapped, repeated, both, signature, signature, other_name),
    *(damaged_image, damaged_image),
)


def _odd_path(rng: random.Random, model: FuzzedModel, verb: str) -> str:
    version = rng.choice((*map(str, NUMBERS), "x", "%00", "1.0", "9" * 300))
    query = rng.choice(
        ("timeout_ms=-1", "priority=x", "score_threshold=x", "max_detections=5", "timeout_ms=1e9", "%00")
    )
    return rng.choice(
        (
            f"/v1/models/{model.name}/versions/{version}:{verb}",
            f"/v1/models/{model.name}/labels/{version}:{verb}",
            f"/v1/models/{model.name}:{verb}?{query}",
            f"/v1/models/{version}:{verb}",
            f"/v1/models/{model.name}:{rng.choice(('regress', 'x', ''))}",
        )
    )


# --- gRPC


@functools.cache
def tensorflow_serving() -> MessageSet:
    """The messages of TensorFlow Serving."""
    return MessageSet("tensorflow_serving")


def call(rng: random.Random, model: FuzzedModel) -> GrpcRequest:
    """A call of `Predict` or, one in four, of `Classify`."""
    return _classify(rng, model) if model.classifies and rng.random() < 0.25 else _predict(rng, model)


def _predict(rng: random.Random, model: FuzzedModel) -> GrpcRequest:
    message = tensorflow_serving().message("tensorflow.serving.PredictRequest")()
    message.model_spec.name = model.name
    rows, is_image = rng.choice((1, 1, 2, 3)), rng.random() < 0.6
    tensor = message.inputs["image" if is_image else "pixels"]
    if is_image:
        tensor.dtype = DT_STRING
        tensor.string_val.extend([photo()] * rows)
        shape: tuple[int, ...] = (rows,)
    else:
        tensor.dtype = rng.choice((DT_UINT8, DT_FLOAT))
        shape = (rows, SIDE, SIDE, 3)
        tensor.tensor_content = np.full(shape, 7, np.uint8 if tensor.dtype == DT_UINT8 else "<f4").tobytes()
    for size in shape:
        tensor.tensor_shape.dim.add().size = size
    done: list[str] = []
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3))):
        lie = rng.choice((_tensor_lie, _tensor_lie, _tensor_lie, _predict_lie, _spec_lie))
        done.append(lie(message, tensor, rng))
    return damaged_call("tensorflow_serving", f"{PREDICTION_SERVICE}/Predict", message, done, rng)


def _tensor_lie(message: Any, tensor: Any, rng: random.Random) -> str:
    lie = rng.choice(("dtype", "shape", "rank", "content", "strings", "numbers", "nothing", "unknown rank"))
    match lie:
        case "dtype":
            tensor.dtype = rng.choice((0, 1, 2, 3, 4, 7, 9, 14, 20, 101))
        case "shape":
            for dim in tensor.tensor_shape.dim:
                if rng.random() < 0.5:
                    dim.size = max(-(2**63), min(rng.choice(NUMBERS), 2**63 - 1))
        case "rank":
            for _ in range(rng.choice((1, 3, 300))):
                tensor.tensor_shape.dim.add().size = rng.choice((0, 1, 2))
        case "content":
            tensor.tensor_content = rng.choice((b"", rng.randbytes(100), tensor.tensor_content[:-1], bytes([255]) * 9))
        case "strings":
            tensor.string_val.extend(rng.choice(([b""], [b"x"] * 70, [flip(photo(), rng)])))
        case "numbers":
            field, value = rng.choice((("float_val", 7.0), ("int_val", 300), ("double_val", 1.0), ("half_val", 1)))
            getattr(tensor, field).extend([value] * rng.choice((1, 3, SIDE * SIDE * 3, 20_000)))
        case "nothing":
            tensor.ClearField(rng.choice(("string_val", "tensor_content")))
        case "unknown rank":
            tensor.tensor_shape.unknown_rank = True
    return lie


def _predict_lie(message: Any, tensor: Any, rng: random.Random) -> str:
    lie = rng.choice(("another input", "other name", "filter"))
    match lie:
        case "another input":
            message.inputs[rng.choice(("image", "pixels", "x"))].dtype = rng.choice((DT_STRING, DT_FLOAT))
        case "other name":
            message.inputs[rng.choice(("", "bytes", "image", "pixels", "é" * 300))].CopyFrom(tensor)
            for name in [name for name in message.inputs if rng.random() < 0.5]:
                del message.inputs[name]
        case "filter":
            message.output_filter.extend(rng.choice((["label"], ["label", "label"], ["x"], ["logits"] * 2000)))
    return lie


def _spec_lie(message: Any, tensor: Any, rng: random.Random) -> str:
    lie = rng.choice(("model", "version", "label", "signature"))
    match lie:
        case "model":
            message.model_spec.name = rng.choice(("", "x", "é" * 300))
        case "version":
            message.model_spec.version.value = max(-(2**63), min(rng.choice(NUMBERS), 2**63 - 1))
        case "label":
            message.model_spec.version_label = rng.choice(("", "x", "stable"))
        case "signature":
            message.model_spec.signature_name = rng.choice([name for name in SIGNATURES if name.isascii()])
    return lie


def _classify(rng: random.Random, model: FuzzedModel) -> GrpcRequest:
    message = tensorflow_serving().message("tensorflow.serving.ClassificationRequest")()
    message.model_spec.name = model.name
    given, done = message.input.example_list, list[str]()
    for _ in range(rng.choice((1, 1, 2))):
        given.examples.add().features.feature["image/encoded"].bytes_list.value.append(photo())
    for _ in range(rng.choice((0, 1, 1, 2))):
        lie = rng.choice(("no example", "many", "another kind", "two images", "damaged", "context", "spec"))
        done.append(lie)
        features = given.examples[0].features.feature if given.examples else None
        match lie:
            case "no example":
                del given.examples[:]
            case "many":
                for _ in range(70):
                    given.examples.add()
            case "another kind" if features is not None:
                features["image/encoded"].float_list.value.extend([1.0] * rng.choice((0, 1, 20_000)))
            case "two images" if features is not None:
                features[rng.choice(("image", "image/encoded"))].bytes_list.value.append(photo())
            case "damaged" if features is not None:
                features["image/encoded"].bytes_list.value[:] = [flip(photo(), rng)[: rng.choice((None, 0, 100))]]
            case "context":
                message.input.example_list_with_context.context.features.feature["image"].bytes_list.value.append(b"x")
                given = message.input.example_list_with_context
            case "spec":
                _spec_lie(message, None, rng)
    return damaged_call("tensorflow_serving", f"{PREDICTION_SERVICE}/Classify", message, done, rng)

"""Requests of the Open Inference Protocol whose parts lie: to REST with binary tensors or JSON, and to gRPC."""

from __future__ import annotations

import base64
import functools
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from condconv_serve.fronts.grpc.messages import MessageSet
from tests.fault.fuzzing_requests import (
    ENVELOPES,
    NUMBERS,
    ODD,
    SIDE,
    THRESHOLDS,
    FuzzedModel,
    GrpcRequest,
    HttpRequest,
    damaged_call,
    photo,
)

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass
class Draft:
    """A request for REST before it is written: its JSON, the raw bytes behind it, and what the headers say."""

    document: dict[str, Any]
    raw: bytes
    length: Callable[[int], str] = str
    headers: list[tuple[str, str]] = field(default_factory=list)


# --- right requests


def joined(*elements: bytes) -> bytes:
    """Raw BYTES: each element behind its length."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def right(rng: random.Random, model: FuzzedModel, *, binary: bool) -> Draft:
    """A request that is answered: one input, with raw bytes or in JSON."""
    rows = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.6:
        entry: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [rows]}
        raw = joined(*[photo()] * rows)
        data: Any = [base64.b64encode(photo()).decode()] * rows
    else:
        kind = rng.choice(("UINT8", "FP32"))
        entry = {"name": "pixels", "datatype": kind, "shape": [rows, SIDE, SIDE, 3]}
        raw = np.full((rows, SIDE, SIDE, 3), 7, np.uint8 if kind == "UINT8" else "<f4").tobytes()
        data = [7] * (rows * SIDE * SIDE * 3)
    if binary:
        entry["parameters"] = {"binary_data_size": len(raw)}
    else:
        entry["data"], raw = data, b""
    outputs = [
        {"name": name, "parameters": {"binary_data": rng.random() < 0.5}}
        for name in rng.sample(model.outputs, rng.randint(0, 2))
    ]
    return Draft({"inputs": [entry], "outputs": outputs, "parameters": {}}, raw)


# --- what lies


def header_length(draft: Draft, rng: random.Random) -> None:
    odd = ("", "-1", "+5", "0x10", "1e2", "1.0", "٣", "1 2", "0", "00", "9" * 30, "nan", ",", "5, 5")
    draft.length = rng.choice(
        (
            lambda size: str(size + rng.choice((-2, -1, 1, 2, 100))),
            lambda size: str(rng.randint(0, 2 * size)),
            lambda size: rng.choice(odd),
            lambda size: str(rng.choice(NUMBERS)),
            lambda size: f" {size} ",
        )
    )


def twice(draft: Draft, rng: random.Random) -> None:
    draft.headers.append((HEADER_LENGTH, str(rng.choice(NUMBERS))))


def binary_size(draft: Draft, rng: random.Random) -> None:
    sizes = (*NUMBERS, len(draft.raw) - 1, len(draft.raw) + 1, *ODD)
    draft.document["inputs"][0].setdefault("parameters", {})["binary_data_size"] = rng.choice(sizes)


def overlapping(draft: Draft, rng: random.Random) -> None:
    """Several inputs claim the same bytes, or the rest of them."""
    first = draft.document["inputs"][0]
    other = json.loads(json.dumps(first))
    other["name"] = rng.choice((first["name"], "image", "pixels", "x"))
    sizes = [len(draft.raw), rng.randint(0, len(draft.raw) + 4)]
    rng.shuffle(sizes)
    for entry, size in zip((first, other), sizes, strict=True):
        entry.setdefault("parameters", {})["binary_data_size"] = size
    draft.document["inputs"].append(other)


def element_lengths(draft: Draft, rng: random.Random) -> None:
    """The lengths in front of elements lie: too long, too short, reaching into the next one."""
    place = rng.choice([0, len(draft.raw) // 2, max(len(draft.raw) - 4, 0)])
    draft.raw = draft.raw[:place] + struct.pack("<I", rng.choice(NUMBERS) % 2**32) + draft.raw[place + 4 :]


def shape(draft: Draft, rng: random.Random) -> None:
    entry = draft.document["inputs"][0]
    if rng.random() < 0.3:
        entry["shape"] = rng.choice(ODD)
    elif entry["shape"] and rng.random() < 0.7:
        entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice((*NUMBERS, *ODD))
    else:
        entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 2, 4, 5, 400)))]


def missing(draft: Draft, rng: random.Random) -> None:
    where = rng.choice((draft.document, *draft.document["inputs"], *draft.document["outputs"]))
    if where:
        where.pop(rng.choice(list(where)))


def odd_value(draft: Draft, rng: random.Random) -> None:
    where = rng.choice((draft.document, *draft.document["inputs"], *draft.document["outputs"]))
    names = ("id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data")
    where[rng.choice((*where, *names))] = rng.choice((*ODD, *NUMBERS))


def parameter(draft: Draft, rng: random.Random) -> None:
    names = (
        *("priority", "timeout", "binary_data_output", "sequence_id", "classification", "binary_data"),
        *(*THRESHOLDS, "shared_memory_region", "shared_memory_byte_size", "content_type", "headers"),
    )
    where = rng.choice((draft.document, *draft.document["inputs"], *draft.document["outputs"]))
    where.setdefault("parameters", {})
    if isinstance(where["parameters"], dict):
        where["parameters"][rng.choice(names)] = rng.choice((*ODD, *NUMBERS))


def cut(draft: Draft, rng: random.Random) -> None:
    draft.raw = draft.raw[: rng.randint(0, len(draft.raw))]


def longer(draft: Draft, rng: random.Random) -> None:
    draft.raw += rng.randbytes(rng.choice((1, 4, 100, 3072)))


def many(draft: Draft, rng: random.Random) -> None:
    """Far too many of something."""
    kind = rng.choice(("inputs", "outputs", "nested", "data"))
    if kind in ("inputs", "outputs"):
        draft.document[kind] = [{"name": rng.choice(("image", "label"))}] * 2000
    elif kind == "data":
        draft.document["inputs"][0]["data"] = [0] * 20_000
    else:
        draft.document["parameters"] = json.loads(300 * "[" + 300 * "]")


LIES: tuple[Callable[[Draft, random.Random], None], ...] = (
    *(header_length, header_length, twice, binary_size, binary_size, overlapping, element_lengths, element_lengths),
    *(shape, shape, missing, odd_value, odd_value, parameter, cut, longer, many),
)


# --- REST


def http_request(rng: random.Random, model: FuzzedModel) -> HttpRequest:
    """A request for REST: one in twelve is right."""
    draft, done = right(rng, model, binary=rng.random() < 0.85), []
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3))):
        lie = rng.choice(LIES)
        # A lie before may have left nothing to lie about.
        try:
            lie(draft, rng)
            done.append(lie.__name__)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    head = json.dumps(draft.document).encode()
    headers = [*draft.headers]
    if draft.raw or HEADER_LENGTH in dict(headers) or draft.length is not str:
        headers.append((HEADER_LENGTH, draft.length(len(head))))
    made = HttpRequest(
        name="+".join(done) or "right",
        path=f"/v2/models/{model.name}/infer",
        headers=tuple(headers),
        body=head + draft.raw,
    )
    return rng.choice(ENVELOPES)(made, rng) if rng.random() < 0.3 else made


# --- gRPC


@functools.cache
def open_inference() -> MessageSet:
    """The messages of the Open Inference Protocol."""
    return MessageSet("open_inference")


def open_inference_call(rng: random.Random, model: FuzzedModel) -> GrpcRequest:
    """A call of `ModelInfer`."""
    kind = open_inference().message("inference.ModelInferRequest")
    message, done = kind(model_name=model.name), []
    draft = right(rng, model, binary=True)
    (entry,) = draft.document["inputs"]
    tensor = message.inputs.add(name=entry["name"], datatype=entry["datatype"], shape=entry["shape"])
    message.raw_input_contents.append(draft.raw)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3))):
        lie = rng.choice(("raw", "more raw", "no raw", "typed", "shape", "name", "parameter", "input", "output"))
        done.append(lie)
        match lie:
            case "raw" if message.raw_input_contents:
                element_lengths(draft, rng)
                rng.choice((cut, longer, element_lengths))(draft, rng)
                message.raw_input_contents[0] = draft.raw
            case "more raw":
                message.raw_input_contents.extend([draft.raw] * rng.choice((1, 2, 50)))
            case "no raw":
                del message.raw_input_contents[:]
            case "typed":
                contents = tensor.contents
                field_name = rng.choice(contents.DESCRIPTOR.fields).name
                value: Any = {"bytes_contents": b"x", "bool_contents": True}.get(field_name, 1)
                getattr(contents, field_name).extend([value] * rng.choice((1, 3, SIDE * SIDE * 3, 20_000)))
            case "shape":
                del tensor.shape[:]
                tensor.shape.extend(
                    max(-(2**63), min(rng.choice(NUMBERS), 2**63 - 1)) for _ in range(rng.choice((0, 1, 4, 400)))
                )
            case "name":
                tensor.name = rng.choice(("", "image", "pixels", "x" * 500))
                tensor.datatype = rng.choice(("", "BYTES", "UINT8", "FP32", "FP16", "INT64", "x"))
            case "parameter":
                where = rng.choice((message, tensor))
                value = where.parameters[
                    rng.choice(("priority", "timeout", "binary_data_size", "classification", "x", *THRESHOLDS))
                ]
                setattr(value, *rng.choice((("int64_param", -1), ("string_param", "x"), ("bool_param", True))))
            case "input":
                message.inputs.add(name=rng.choice(("image", "pixels", "x")))
            case "output":
                output = message.outputs.add(name=rng.choice((*model.outputs, "x")))
                output.parameters["classification"].int64_param = rng.choice((-1, 0, 3, 2**40))
    return damaged_call("open_inference", "/inference.GRPCInferenceService/ModelInfer", message, done, rng)

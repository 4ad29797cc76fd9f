"""Whatever a message holds, it is read or refused as the client's mistake: nothing else comes out."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

from condconv_serve.domain import ImageSource
from condconv_serve.errors import ServiceError
from condconv_serve.fronts.grpc.calls import parsed
from condconv_serve.fronts.grpc.status import HTTP_STATUS, MAX_MESSAGE, refusal
from condconv_serve.fronts.oip.datatypes import joined
from condconv_serve.fronts.oip.grpc_messages import REQUEST, read_infer_request
from tests.contract.fakes import model_info

SIZE = 4
MODEL = model_info(image_size=SIZE)
MAX_ROWS = 3
ROW = 3 * SIZE * SIZE
MESSAGES = int(os.environ.get("FUZZ_MESSAGES", "4000"))
"""How many are tried; 50,000 take a few seconds."""


def valid(random: random.Random) -> Any:
    request, rows = REQUEST(model_name="fake", id="1"), random.randint(1, MAX_ROWS)
    kind = random.choice(["BYTES", "UINT8", "FP32"])
    raw = random.random() < 0.6
    if kind == "BYTES":
        images = [random.randbytes(random.randint(1, 30)) for _ in range(rows)]
        only = request.inputs.add(name="image", datatype=kind, shape=[rows])
        if raw:
            request.raw_input_contents.append(joined(images))
        else:
            only.contents.bytes_contents.extend(images)
    else:
        only = request.inputs.add(name="pixels", datatype=kind, shape=[rows, SIZE, SIZE, 3])
        values = np.frombuffer(random.randbytes(rows * ROW), np.uint8).astype("u1" if kind == "UINT8" else "<f4")
        if raw:
            request.raw_input_contents.append(values.tobytes())
        elif kind == "UINT8":
            only.contents.uint_contents.extend(values.tolist())
        else:
            only.contents.fp32_contents.extend(values)
    for name in random.sample(["logits", "routing", "label"], random.randint(0, 2)):
        request.outputs.add(name=name)
    return request


def changed(request: Any, random: random.Random) -> None:
    """One thing of a request is something else."""
    only = random.choice(request.inputs) if request.inputs else request.inputs.add()
    sizes = [-(2**63), -1, 0, 1, 2, ROW, 2**31, 2**62]
    match random.randrange(12):
        case 0:
            only.shape[:] = random.choices(sizes, k=random.randint(0, 6))
        case 1:
            only.name = random.choice(["image", "pixels", "", "x" * 500])
        case 2:
            only.datatype = random.choice(["BYTES", "UINT8", "FP32", "INT64", "", "x" * 500])
        case 3:
            request.raw_input_contents.append(random.randbytes(random.randint(0, 60)))
        case 4 if request.raw_input_contents:
            data = bytearray(request.raw_input_contents[0])
            data[: random.randint(0, 8)] = random.randbytes(random.randint(0, 8))
            request.raw_input_contents[0] = bytes(data)
        case 5:
            only.contents.uint_contents.extend(
                random.choices([0, 127, 128, 255, 256, 2**32 - 1], k=random.randint(1, 60))
            )
        case 6:
            only.contents.fp32_contents.extend(random.choices([0.0, -1.0, 1e30, float("nan")], k=random.randint(1, 60)))
        case 7:
            only.contents.bytes_contents.append(random.randbytes(random.randint(0, 9)))
        case 8:
            name = random.choice(["priority", "timeout", "binary_data_output", "triton_x", "own"])
            kind = random.choice(["bool_param", "int64_param", "string_param", "double_param", "uint64_param"])
            value = {"bool_param": True, "string_param": "high", "double_param": 1e300}.get(kind, 2**62)
            setattr(request.parameters[name], kind, value)
        case 9:
            only.parameters[random.choice(["shared_memory_region", "binary_data_size", "own"])].int64_param = 1
        case 10:
            output = request.outputs.add(name=random.choice(["logits", "label", "x"]))
            output.parameters["classification"].int64_param = random.choice([-1, 0, 1, 6, 7, 2**62])
        case _:
            request.inputs.add(name="pixels")


def read(data: bytes) -> bool:
    """Whether a message is a request; a refusal is the client's mistake, in a message of a decent length."""
    try:
        found = read_infer_request(parsed(REQUEST, data), model=MODEL, max_rows=MAX_ROWS)
    except ServiceError as error:
        said = refusal(error)
        assert HTTP_STATUS[said.code] < 500
        assert 10 < len(said.message) < MAX_MESSAGE
        return False
    assert 1 <= len(found.sources) <= MAX_ROWS
    for source in found.sources:
        if isinstance(source, ImageSource):
            assert 0 < len(source.data) <= len(data)
        else:
            assert source.values.shape == (SIZE, SIZE, 3)
            assert source.values.dtype in (np.uint8, np.float32)
    return True


@pytest.mark.parametrize("seed", range(2))
def test_messages_with_something_wrong(seed):
    source, taken = random.Random(seed), 0
    for _ in range(MESSAGES // 2):
        request = valid(source)
        for _ in range(source.randint(0, 3)):
            changed(request, source)
        data = request.SerializeToString()
        if source.random() < 0.3:  # bytes that are wrong, or missing
            damaged = bytearray(data[: source.randint(1, len(data))])
            for _ in range(source.randint(0, 4)):
                damaged[source.randrange(len(damaged))] = source.randrange(256)
            data = bytes(damaged)
        taken += read(data)
    assert MESSAGES // 20 < taken < MESSAGES // 2, "some were right, and some were not"

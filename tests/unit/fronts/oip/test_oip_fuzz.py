"""Whatever a body holds, it is read or refused: nothing else comes out, and nothing large is made."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from condconv_serve.domain import ImageSource
from condconv_serve.errors import ServiceError
from condconv_serve.fronts.oip.binary import read_infer_request
from condconv_serve.fronts.oip.errors import render
from condconv_serve.fronts.oip.infer_request import InferRequest
from condconv_serve.http.answer import Answer
from tests.contract.fakes import model_info
from tests.unit.fronts.oip.application import MAX_ROWS, SIZE, image_input, pixel_input, pixels, raw_images

MODEL = model_info(image_size=SIZE)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
SIZES = st.integers(-2, 2**70) | st.sampled_from([0, 1, 2, SIZE, 3, SIZE * SIZE * 3, 4 * SIZE * SIZE * 3])
PARAMETERS = st.dictionaries(
    st.sampled_from(
        (
            *("binary_data_size", "content_type", "binary_data", "classification", "priority", "timeout"),
            *("binary_data_output", "shared_memory_region", "own"),
        )
    ),
    SIZES | ANYTHING,
    max_size=3,
)
INPUTS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["image", "pixels"]) | ANYTHING,
        "datatype": st.sampled_from(["BYTES", "UINT8", "FP32", "INT64"]) | ANYTHING,
        "shape": st.lists(SIZES, max_size=5) | st.just([1, SIZE, SIZE, 3]) | ANYTHING,
    },
    optional={
        "parameters": PARAMETERS | ANYTHING,
        "data": st.lists(st.integers(0, 300) | st.text(max_size=8), max_size=4)
        | st.just([7] * SIZE * SIZE * 3)
        | ANYTHING,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(INPUTS, max_size=2) | ANYTHING},
    optional={
        "id": ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
        "outputs": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["logits", "routing", "label"]) | ANYTHING},
                optional={"parameters": PARAMETERS | ANYTHING},
            ),
            max_size=3,
        )
        | ANYTHING,
    },
)
VALID = [
    ({"inputs": [image_input(2, parameters={"binary_data_size": 20})]}, raw_images(b"123456", b"654321")),
    ({"inputs": [pixel_input(pixels(1), parameters={"binary_data_size": 3 * SIZE**2})]}, pixels(1).tobytes()),
    ({"id": "1", "inputs": [image_input(1, data=["QUJD"])], "outputs": [{"name": "label"}]}, b""),
]


def read(body: bytes, header_length: str | None) -> InferRequest | None:
    """Read a body; None if it is refused, in the protocol's shape and with a status below 500."""
    refused: Answer | None = None
    try:
        request = read_infer_request(body, header_length=header_length, model=MODEL, max_rows=MAX_ROWS)
    except ServiceError as refusal:
        refused = render(refusal)
    if refused is not None:
        assert refused.status < 500
        assert json.loads(refused.body).keys() == {"error"}
        assert len(refused.body) < 2000
        return None
    assert 1 <= len(request.sources) <= MAX_ROWS
    for source in request.sources:
        if isinstance(source, ImageSource):
            assert 0 < len(source.data) <= len(body)
        else:
            assert source.values.shape == (SIZE, SIZE, 3)
            assert source.values.dtype in (np.uint8, np.float32)
    return request


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.binary(max_size=30), st.integers(-3, 3))
def test_documents_of_any_kind(request: Any, raw: bytes, lie: int) -> None:
    head = json.dumps(request).encode()
    read(head, None)
    read(head + raw, str(max(len(head) + lie, 0)))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60), st.none() | st.text(max_size=6) | st.integers(-2, 70).map(str))
@example(b"[" * 100_000, None)
@example(b'{"inputs": ' + b"[" * 100_000, None)
@example(b'{"inputs": [' + b"9" * 5000 + b"]}", None)
@example(b"{}", "9" * 5000)
@example(b"{}", "\u0662")
@example(b'{"inputs": []}', "-0")
def test_bodies_of_any_kind(body: bytes, header_length: str | None) -> None:
    read(body, header_length)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(VALID), st.data())
def test_good_requests_with_a_few_other_bytes(valid: tuple[dict[str, Any], bytes], data: st.DataObject) -> None:
    document, raw = valid
    head = json.dumps(document).encode()
    assert read(head + raw, str(len(head)) if raw else None)
    body = bytearray(head + raw)
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    read(bytes(body[:cut]), str(len(head) + data.draw(st.integers(-2, 2))) if raw else None)
    read(bytes(body), str(len(head)))

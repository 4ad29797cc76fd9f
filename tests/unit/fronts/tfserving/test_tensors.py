"""TensorFlow's tensors as messages: what fits, what is refused, and nothing in between."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condconv_serve.errors import RequestError
from condconv_serve.fronts.tfserving.grpc import MESSAGES
from condconv_serve.fronts.tfserving.tensors import DT_FLOAT, DT_STRING, DT_UINT8, fill_tensor, images_of, pixels_of

TENSOR = MESSAGES.message("tensorflow.TensorProto")
SHAPE = (2, 2, 3)
MOST = 4


def tensor(dtype: int, shape: Any, **values: Any) -> Any:
    made = TENSOR(dtype=dtype, **values)
    for size in shape:
        made.tensor_shape.dim.add().size = size
    return made


def varints(*lengths: int) -> bytes:
    found = b""
    for length in lengths:
        while length >= 0x80:
            found += bytes([length & 0x7F | 0x80])
            length >>= 7
        found += bytes([length])
    return found


@pytest.mark.parametrize(
    ("given", "images"),
    [
        (tensor(DT_STRING, [2], string_val=[b"a", b"b"]), [b"a", b"b"]),
        (tensor(DT_STRING, [], string_val=[b"a"]), [b"a"]),
        (tensor(DT_STRING, [3], string_val=[b"a", b"b"]), [b"a", b"b", b"b"]),
        (tensor(DT_STRING, [1], string_val=[b"a", b"b"]), [b"a"]),
        (tensor(DT_STRING, [2], tensor_content=varints(1, 300) + b"a" + b"b" * 300), [b"a", b"b" * 300]),
    ],
)
def test_images(given: Any, images: list[bytes]) -> None:
    assert images_of(given, "image", max_images=MOST) == images


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tensor(DT_UINT8, [1], int_val=[1]), "Input image is DT_STRING, not DT_UINT8"),
        (tensor(99, [1]), "Input image is DT_STRING, not data type 99"),
        (tensor(DT_STRING, [1, 1], string_val=[b"a"]), r"has the shape \[N\], with an encoded image in each row"),
        (tensor(DT_STRING, [0], string_val=[b"a"]), "Input image is empty"),
        (tensor(DT_STRING, [-1], string_val=[b"a"]), "must have a known shape"),
        (tensor(DT_STRING, [1]), "has no values; give them in string_val"),
        (tensor(DT_STRING, [5], string_val=[b"a"]), "5 rows; 4 are allowed"),
        (tensor(DT_STRING, [2**62], string_val=[b"a"]), "rows; 4 are allowed"),
        (tensor(DT_STRING, [2], string_val=[b"a", b""]), "Image 1 of 2 in input image is empty"),
        (tensor(DT_STRING, [2], tensor_content=varints(1, 2) + b"a"), "isn't as TensorFlow writes 2 strings"),
        (tensor(DT_STRING, [2], tensor_content=varints(1, 2) + b"abcd"), "isn't as TensorFlow writes 2 strings"),
        (tensor(DT_STRING, [2], tensor_content=b"\xff" * 99), "isn't as TensorFlow writes 2 strings"),
    ],
)
def test_images_that_are_refused(given: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        images_of(given, "image", max_images=MOST)


@settings(max_examples=25, deadline=None, database=None)
@given(st.data())
def test_pixels_in_either_field(data: st.DataObject) -> None:
    count, floats = data.draw(st.integers(1, MOST)), data.draw(st.booleans())
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = random.uniform(0, 255, (count, *SHAPE)).astype(np.float32 if floats else np.uint8)
    dtype, field = (DT_FLOAT, "float_val") if floats else (DT_UINT8, "int_val")
    for stored in ({"tensor_content": values.tobytes()}, {field: values.ravel().tolist()}):
        found = pixels_of(tensor(dtype, values.shape, **stored), "pixels", SHAPE, max_images=MOST)
        np.testing.assert_array_equal(found, values)
        assert found.dtype == values.dtype


def test_the_last_value_stands_for_all_that_follow() -> None:
    found = pixels_of(tensor(DT_UINT8, (2, *SHAPE), int_val=[1, 2, 7]), "pixels", SHAPE, max_images=MOST)
    np.testing.assert_array_equal(found.ravel(), [1, 2, *[7] * 22])
    many = tensor(DT_FLOAT, (1, *SHAPE), float_val=range(99))
    np.testing.assert_array_equal(pixels_of(many, "pixels", SHAPE, max_images=MOST).ravel(), range(12))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tensor(DT_STRING, (1, *SHAPE), string_val=[b"a"]), "Input pixels is DT_UINT8 or DT_FLOAT, not DT_STRING"),
        (tensor(2, (1, *SHAPE), double_val=[1]), "Input pixels is DT_UINT8 or DT_FLOAT, not DT_DOUBLE"),
        (tensor(DT_UINT8, SHAPE, int_val=[1]), r"Input pixels has the shape \[N, 2, 2, 3\], not \[2, 2, 3\]"),
        (tensor(DT_UINT8, (1, 2, 2, 4), int_val=[1]), r"Input pixels has the shape \[N, 2, 2, 3\], not"),
        (tensor(DT_UINT8, [1] * 300, int_val=[1]), r"Input pixels has the shape \[N, 2, 2, 3\], not"),
        (tensor(DT_UINT8, (5, *SHAPE), int_val=[1]), "5 rows; 4 are allowed"),
        (tensor(DT_UINT8, (2**62, *SHAPE), int_val=[1]), "rows; 4 are allowed"),
        (tensor(DT_UINT8, (0, *SHAPE), int_val=[1]), "Input pixels is empty"),
        (tensor(DT_UINT8, (1, *SHAPE)), "Input pixels has no values; give them in tensor_content or in int_val"),
        (
            tensor(DT_FLOAT, (1, *SHAPE), int_val=[1]),
            "Input pixels has no values; give them in tensor_content or in fl",
        ),
        (tensor(DT_UINT8, (1, *SHAPE), int_val=[256]), "are from 0 to 255"),
        (tensor(DT_UINT8, (1, *SHAPE), int_val=[-1]), "are from 0 to 255"),
        (tensor(DT_UINT8, (1, *SHAPE), tensor_content=b"\1" * 11), "has 11 bytes; its shape .* needs 12"),
        (tensor(DT_FLOAT, (1, *SHAPE), tensor_content=b"\1" * 12), "has 12 bytes; its shape .* needs 48"),
    ],
)
def test_pixels_that_are_refused(given: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pixels_of(given, "pixels", SHAPE, max_images=MOST)


def test_an_unknown_rank_is_refused() -> None:
    given = TENSOR(dtype=DT_STRING, string_val=[b"a"])
    given.tensor_shape.unknown_rank = True
    with pytest.raises(RequestError, match="known shape"):
        images_of(given, "image", max_images=MOST)


@settings(max_examples=100, deadline=None, database=None)
@given(
    dtype=st.integers(0, 30),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=5),
    values=st.fixed_dictionaries(
        {},
        optional={
            "tensor_content": st.binary(max_size=60),
            "string_val": st.lists(st.binary(max_size=4), max_size=5),
            "int_val": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=15),
            "float_val": st.lists(st.floats(width=32), max_size=15),
        },
    ),
)
def test_any_tensor_is_read_or_refused(dtype: int, shape: list[int], values: dict[str, Any]) -> None:
    made = TENSOR.FromString(tensor(dtype, shape, **values).SerializeToString())
    for read in (images_of, partial(pixels_of, shape=SHAPE)):
        with contextlib.suppress(RequestError):
            assert 1 <= len(read(made, "x", max_images=MOST)) <= MOST


def test_outputs() -> None:
    fill_tensor(made := TENSOR(), np.array([[1.5, 2], [3, 4]], np.float32))
    assert (made.dtype, [dim.size for dim in made.tensor_shape.dim]) == (DT_FLOAT, [2, 2])
    assert list(made.float_val) == [1.5, 2, 3, 4]
    fill_tensor(made := TENSOR(), np.array(["grüne Birne", "b"], np.object_))
    assert (made.dtype, [dim.size for dim in made.tensor_shape.dim]) == (DT_STRING, [2])
    assert [text.decode() for text in made.string_val] == ["grüne Birne", "b"]

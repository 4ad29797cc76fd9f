"""Raw tensors: bytes in, views out, and lengths that lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.oip.datatypes import array_of, bytes_of, joined, split


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=6))
def test_elements_come_back_as_they_were(elements: list[bytes]) -> None:
    assert split(joined(elements), len(elements), name="image") == elements


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_so_many_elements_or_refused(data: bytes, count: int) -> None:
    try:
        elements = split(data, count, name="image")
    except InvalidParameter:
        return
    assert (len(elements), joined(elements)) == (count, data)


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (b"", 1, "holds 0 elements, not 1"),
        (joined([b"abc"]), 2, "holds 1 elements, not 2"),
        (joined([b"abc", b"d"]), 1, "has 5 bytes after its 1 elements"),
        (b"\x04\0\0\0abc", 1, "Element 0 of input image says that it has 4 bytes, but only 3 are left"),
        (b"\xff\xff\xff\xffabc", 1, "says that it has 4294967295 bytes"),
        (b"\x01\0\0", 1, "holds 0 elements"),
    ],
)
def test_lengths_that_lie(data: bytes, count: int, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        split(data, count, name="image")


@pytest.mark.parametrize(("datatype", "dtype"), [("UINT8", "uint8"), ("FP32", "float32")])
def test_numbers_are_viewed_where_they_are(datatype: str, dtype: str) -> None:
    values = np.arange(24, dtype=dtype)
    data = b"#" + values.tobytes()  # at an odd address, as behind JSON of any length
    found = array_of(memoryview(data)[1:], datatype, (2, 3, 4), name="pixels")
    np.testing.assert_array_equal(found, values.reshape(2, 3, 4))
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))
    assert bytes_of(found, datatype) == values.tobytes()


@pytest.mark.parametrize("size", [0, 23, 25])
def test_numbers_of_another_size(size: int) -> None:
    with pytest.raises(InvalidParameter, match=rf"has {size} bytes; UINT8 \[2, 3, 4\] has 24, 1 per element"):
        array_of(bytes(size), "UINT8", (2, 3, 4), name="pixels")


def test_text_is_utf_8_behind_its_length() -> None:
    assert bytes_of(np.array([["é"], ["b"]], object), "BYTES") == b"\x02\0\0\0\xc3\xa9\x01\0\0\0b"

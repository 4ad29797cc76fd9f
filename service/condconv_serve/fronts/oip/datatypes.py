"""The protocol's data types, and tensors as raw bytes: row-major, little-endian, without padding.

REST puts them behind the JSON, gRPC into `raw_input_contents` and `raw_output_contents`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import InvalidParameter

BYTES = "BYTES"
"""The type of elements that are bytes, such as encoded images, or text in UTF-8."""
_BY_DTYPE = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "str": BYTES,
    "bytes": BYTES,
}
_DTYPES = {datatype: np.dtype(name).newbyteorder("<") for name, datatype in _BY_DTYPE.items() if datatype != BYTES}
_LENGTH = struct.Struct("<I")


def datatype_of(dtype: str) -> str:
    """The protocol's name of a dtype as `OutputSpec` names it: `FP32` for `float32`, `BYTES` for `str`."""
    return _BY_DTYPE[dtype]


def array_of(data: bytes | memoryview, datatype: str, shape: Sequence[int], *, name: str) -> NDArray[Any]:
    """View raw bytes as a tensor; nothing is copied.

    Args:
        data: the bytes.
        datatype: of the elements, not `BYTES`.
        shape: of the tensor.
        name: of the input, for the message.

    Raises:
        InvalidParameter: the number of bytes doesn't fit the shape.
    """
    dtype = _DTYPES[datatype]
    needed = math.prod(shape) * dtype.itemsize
    if len(data) != needed:
        raise InvalidParameter(
            f"Input {name} has {len(data)} bytes; {datatype} {list(shape)} has {needed}, {dtype.itemsize} per element."
        )
    array: NDArray[Any] = np.frombuffer(data, dtype).reshape(shape)
    return array


def bytes_of(array: NDArray[Any], datatype: str) -> bytes:
    """The raw bytes of a tensor; those of `BYTES` are text, or bytes, behind their lengths."""
    if datatype == BYTES:
        return joined(map(encoded, array.ravel().tolist()))
    return array.astype(_DTYPES[datatype], copy=False).tobytes()


def encoded(element: str | bytes) -> bytes:
    """An element of `BYTES`: text becomes UTF-8."""
    return element.encode(errors="replace") if isinstance(element, str) else element


def split(data: bytes | memoryview, count: int, *, name: str) -> list[bytes]:
    """Split raw `BYTES`: each element stands behind its length, an unsigned 32-bit number.

    Args:
        data: the raw bytes.
        count: how many elements there must be.
        name: of the input, for messages.

    Raises:
        InvalidParameter: there are more or fewer elements, or a length lies.
    """
    view, offset = memoryview(data), 0
    elements: list[bytes] = []
    for place in range(count):
        start = offset + _LENGTH.size
        if start > len(view):
            raise InvalidParameter(
                f"Input {name} holds {place} elements, not {count}. Each one is its length, as four bytes in "
                "little-endian order, and then its bytes."
            )
        (length,) = _LENGTH.unpack_from(view, offset)
        offset = start + length
        if offset > len(view):
            raise InvalidParameter(
                f"Element {place} of input {name} says that it has {length} bytes, but only {len(view) - start} are "
                "left of the input."
            )
        elements.append(bytes(view[start:offset]))
    if offset != len(view):
        raise InvalidParameter(f"Input {name} has {len(view) - offset} bytes after its {count} elements.")
    return elements


def joined(elements: Iterable[bytes]) -> bytes:
    """Raw `BYTES` of elements, as `split` takes them."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))

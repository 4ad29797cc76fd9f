"""Numbers in a message's packed fields, as arrays, without an object for each number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import InvalidParameter


def floats_of(contents: Any, field: str) -> NDArray[np.float32]:
    """The numbers of a field of type `repeated float`: float32 `[N]`, a view. No other field may be set."""
    return np.frombuffer(_payload(contents, field), "<f4")


def small_numbers_of(contents: Any, field: str, *, name: str) -> NDArray[np.uint8]:
    """The numbers of a field of type `repeated uint32`: uint8 `[N]`. No other field may be set.

    Args:
        contents: the message.
        field: of the message.
        name: of the input, for the message of an error.

    Raises:
        InvalidParameter: one is above 255.
    """
    data = np.frombuffer(_payload(contents, field), np.uint8)
    if len(data) == len(getattr(contents, field)):  # a byte each: all are below 128
        return data
    last = data < 128  # a number ends with a byte below 128
    ends = np.flatnonzero(last)
    lengths = np.diff(ends, prepend=-1)
    # Seven bits per byte, the lowest ones first.
    first = data[ends - lengths + 1] & np.uint8(127)
    if lengths.max() > 2 or (data[ends[lengths == 2]] > 1).any():
        raise InvalidParameter(f"The elements of input {name} are whole numbers from 0 to 255, as it is UINT8.")
    first[lengths == 2] |= np.uint8(128)
    return first


def _payload(contents: Any, field: str) -> memoryview:
    """The field's bytes: behind its tag, of one byte, and their number, of one to five."""
    if not len(getattr(contents, field)):
        return memoryview(b"")
    contents.DiscardUnknownFields()  # of a newer protocol; they would stand behind the field
    data = contents.SerializeToString()
    start = 1
    while data[start] >= 128:
        start += 1
    return memoryview(data)[start + 1 :]

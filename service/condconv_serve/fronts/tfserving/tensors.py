"""TensorFlow's `TensorProto` <-> images, pixels and outputs. TensorFlow itself isn't needed for that."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import InvalidParameter, MissingImage, TooManyImages

DT_FLOAT, DT_UINT8, DT_STRING = 1, 4, 7
PIXEL_TYPES: dict[int, tuple[str, str]] = {DT_UINT8: ("u1", "int_val"), DT_FLOAT: ("<f4", "float_val")}
"""For each data type of pixels, the dtype of `tensor_content`, and the field that may hold the values instead."""

_PIECE = 32 * 1024


def images_of(tensor: Any, name: str, *, max_images: int) -> list[bytes]:
    """The encoded images in a `TensorProto` of strings, `[N]`, or a scalar for one image.

    Args:
        tensor: the message.
        name: of the input, for messages.
        max_images: most images.

    Raises:
        InvalidParameter: it is no such tensor.
        MissingImage, TooManyImages: there are no images, or more than allowed.
    """
    shape = _shape_of(tensor, name)
    if tensor.dtype != DT_STRING:
        raise InvalidParameter(f"Input {name} is DT_STRING, not {_type_of(tensor)}.")
    if len(shape) > 1:
        raise InvalidParameter(f"Input {name} has the shape [N], with an encoded image in each row, not {list(shape)}.")
    count = _checked_count(prod(shape), name, max_images)
    values = _strings(tensor.tensor_content, count, name) if tensor.tensor_content else list(tensor.string_val)
    images = _filled(values, count, name)
    if b"" in images:
        raise MissingImage(f"Image {images.index(b'')} of {count} in input {name} is empty.")
    return images


def pixels_of(tensor: Any, name: str, shape: tuple[int, ...], *, max_images: int) -> NDArray[np.generic]:
    """The pixels in a `TensorProto`, uint8 or float32 `[N, *shape]`.

    Args:
        tensor: the message.
        name: of the input, for messages.
        shape: of one image.
        max_images: most images.

    Raises:
        InvalidParameter: it is no such tensor.
        MissingImage, TooManyImages: there are no images, or more than allowed.
    """
    given = _shape_of(tensor, name)
    if tensor.dtype not in PIXEL_TYPES:
        raise InvalidParameter(f"Input {name} is DT_UINT8 or DT_FLOAT, not {_type_of(tensor)}.")
    if len(given) != 1 + len(shape) or given[1:] != shape:
        wanted = ", ".join(map(str, ("N", *shape)))
        raise InvalidParameter(f"Input {name} has the shape [{wanted}], not {list(given)[:10]}.")
    count = _checked_count(given[0], name, max_images)
    dtype, field = PIXEL_TYPES[tensor.dtype]
    elements = count * prod(shape)
    if tensor.tensor_content:
        content = tensor.tensor_content
        if len(content) != elements * np.dtype(dtype).itemsize:
            raise InvalidParameter(
                f"The tensor_content of input {name} has {len(content)} bytes; its shape {list(given)} needs "
                f"{elements * np.dtype(dtype).itemsize}."
            )
        return np.frombuffer(content, dtype).reshape(count, *shape)
    values = np.empty(elements, np.float32)
    place = 0
    for piece in _pieces(getattr(tensor, field), elements):
        values[place : place + len(piece)] = piece
        place += len(piece)
    if not place:
        raise InvalidParameter(f"Input {name} has no values; give them in tensor_content or in {field}.")
    values[place:] = values[place - 1]  # as TensorFlow does: the last value stands for all that follow
    if dtype == "u1":
        if not (values.min() >= 0 and values.max() <= 255):
            raise InvalidParameter(f"The values of input {name} are from 0 to 255.")
        return values.astype(np.uint8).reshape(count, *shape)
    return values.reshape(count, *shape)


def fill_tensor(tensor: Any, values: NDArray[Any]) -> None:
    """Put an output into an empty `TensorProto`, in the fields that TensorFlow Serving fills and its clients read."""
    for size in values.shape:
        tensor.tensor_shape.dim.add().size = size
    if values.dtype == np.object_:
        tensor.dtype = DT_STRING
        tensor.string_val.extend([text.encode() for text in values.ravel()])
    else:
        tensor.dtype = DT_FLOAT
        flat = values.ravel()
        for start in range(0, len(flat), _PIECE):
            tensor.float_val.extend(flat[start : start + _PIECE].tolist())


def _shape_of(tensor: Any, name: str) -> tuple[int, ...]:
    shape = tensor.tensor_shape
    if shape.unknown_rank or any(dim.size < 0 for dim in shape.dim):
        raise InvalidParameter(f"Input {name} must have a known shape.")
    return tuple(dim.size for dim in shape.dim)


def _type_of(tensor: Any) -> str:
    known = tensor.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_number.get(tensor.dtype)
    return known.name if known else f"data type {tensor.dtype}"


def _checked_count(count: int, name: str, max_images: int) -> int:
    if not count:
        raise MissingImage(f"Input {name} is empty; give at least one image.")
    if count > max_images:
        raise TooManyImages(f"The request has {count} rows; {max_images} are allowed.")
    return count


def _filled(values: list[bytes], count: int, name: str) -> list[bytes]:
    """As many values as the shape says: as TensorFlow does, the last one stands for all that follow."""
    if not values:
        raise MissingImage(f"Input {name} has no values; give them in string_val.")
    return (values + values[-1:] * (count - len(values)))[:count]


def _strings(content: bytes, count: int, name: str) -> list[bytes]:
    """Strings as TensorFlow writes them to `tensor_content`: all lengths as varints, then all bytes."""
    lengths, place = [], 0
    for _ in range(count):
        length, shift = 0, 0
        while place < len(content) and shift < 35:
            byte = content[place]
            place, length, shift = place + 1, length | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        lengths.append(length)
    if place + sum(lengths) != len(content):
        raise InvalidParameter(f"The tensor_content of input {name} isn't as TensorFlow writes {count} strings.")
    strings = []
    for length in lengths:
        strings.append(content[place : place + length])
        place += length
    return strings


def _pieces(values: Any, count: int) -> Iterator[NDArray[np.float64]]:
    """The values of a repeated field, at most `count`, so that others may run in between."""
    for start in range(0, min(len(values), count), _PIECE):
        yield np.array(values[start : min(start + _PIECE, count)], np.float64)

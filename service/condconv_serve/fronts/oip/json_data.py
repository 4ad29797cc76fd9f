"""Tensors in JSON: `data` flat or nested, numbers as they are, and encoded images as base64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.base64_text import decode_base64
from condconv_serve.fronts.oip.datatypes import BYTES
from condconv_serve.fronts.oip.inputs import DeclaredInput, Sources, sources_of_images, sources_of_pixels

BASE64 = "base64"
"""The only `content_type` of images in JSON, since JSON can hold no other bytes than text."""


def sources_of_json(of: DeclaredInput, data: Any, *, content_type: Any = None) -> Sources:
    """The images, or the rows of pixels, of an input whose `data` is in the JSON.

    Args:
        of: the input.
        data: its elements, as a flat list or nested as its shape is.
        content_type: the input's parameter of that name, as MLServer has it.

    Raises:
        InvalidParameter: the data doesn't fit the shape or the type.
        MalformedBody: an image isn't base64. MissingImage: one is empty.
    """
    if not isinstance(data, list):
        raise InvalidParameter(f"The data of input {of.name} must be a list in JSON, or binary with binary_data_size.")
    if of.datatype != BYTES:
        return sources_of_pixels(of, _numbers(of, data))
    if content_type not in (None, BASE64):
        raise InvalidParameter(
            f"The content_type of input {of.name} may be {BASE64}, not {str(content_type)[:100]!r}: in JSON, encoded "
            "images are base64 text."
        )
    return sources_of_images(of, list(_images(of, data)))


def _images(of: DeclaredInput, data: list[Any]) -> Iterator[bytes]:
    if len(data) != of.elements:
        raise InvalidParameter(f"Input {of.name} has {len(data)} elements; its shape {list(of.shape)} says otherwise.")
    for place, element in enumerate(data):
        if not isinstance(element, str):
            raise InvalidParameter(f"Element {place} of input {of.name} must be base64 text, not {_kind(element)}.")
        yield decode_base64(element, what=f"Element {place} of input {of.name}")


def _numbers(of: DeclaredInput, data: list[Any]) -> NDArray[np.float64]:
    # NumPy alone would take "5", null and true for numbers, and make one long text as wide as all others.
    flat: Iterable[Any] = data
    while (kinds := set(map(type, flat))) == {list}:
        flat = list(chain.from_iterable(flat))
    if not kinds <= {int, float}:
        raise InvalidParameter(f"The elements of input {of.name} are numbers from 0 to 255.")
    try:
        values = np.array(data, np.float64)
    except (ValueError, OverflowError):  # ragged lists, or numbers beyond all bounds
        values = np.empty((0, 0))
    if values.shape not in ((of.elements,), of.shape):
        raise InvalidParameter(
            f"The data of input {of.name} must be a flat list of {of.elements} numbers from 0 to 255, or lists nested "
            f"as its shape {list(of.shape)} says."
        )
    return values


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")

"""Tensors in JSON: `data` flat or nested, numbers as they are, and encoded images as base64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.base64_text import decode_base64
from condconv_serve.fronts.json_documents import Numbers
from condconv_serve.fronts.oip.datatypes import BYTES
from condconv_serve.fronts.oip.inputs import DeclaredInput, Sources, sources_of_images, sources_of_pixels
from condconv_serve.fronts.oip.shown import shown

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
        MalformedBody: an image isn't base64, or a list of numbers no JSON. MissingImage: an image is empty.
    """
    if not isinstance(data, list | Numbers):
        raise InvalidParameter(f"The data of input {of.name} must be a list in JSON, or binary with binary_data_size.")
    if of.datatype != BYTES:
        if not isinstance(data, Numbers):
            raise InvalidParameter(
                f"The data of input {of.name} must be a flat list of numbers from 0 to 255, or lists nested as "
                f"its shape {list(of.shape)} says."
            )
        return sources_of_pixels(of, data.array_or_flat(of.shape))
    if isinstance(data, Numbers):
        raise InvalidParameter(f"The elements of input {of.name} must be base64 text, not numbers.")
    if content_type not in (None, BASE64):
        raise InvalidParameter(
            f"The content_type of input {of.name} may be {BASE64}, not {shown(content_type)}: in JSON, encoded "
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


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")

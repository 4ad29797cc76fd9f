"""A request's inputs: what it declares, checked against the model, and the images or rows of pixels in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import ImageSource, ModelInfo, PixelSource
from condconv_serve.errors import InvalidParameter, MissingImage, TooManyImages
from condconv_serve.fronts.oip.datatypes import BYTES, array_of, split
from condconv_serve.fronts.oip.shown import shown
from condconv_serve.fronts.tensor_inference import IMAGE, PIXELS, inputs_of

ACCEPTED = {IMAGE: (BYTES,), PIXELS: ("UINT8", "FP32")}
"""The data types of each input."""
_MOST_AXES = 32
"""Most axes of a shape that are looked at: more than any input has."""
Sources = list[ImageSource] | list[PixelSource]


@dataclass(frozen=True, slots=True)
class DeclaredInput:
    """What a request says of its input, checked: `[N]` of images, or `[N, S, S, 3]` of pixels."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def declared(name: Any, datatype: Any, shape: Any, *, model: ModelInfo, max_rows: int) -> DeclaredInput:
    """Check what a request says of an input, before anything is made of its data.

    Args:
        name: of the input.
        datatype: of its elements.
        shape: with the number of rows first.
        model: takes it.
        max_rows: most rows of a request.

    Raises:
        InvalidParameter: the model has no such input, or takes it in another type or shape.
        MissingImage: it has no rows. TooManyImages: it has more than allowed.
    """
    rows = {spec.name: spec.shape for spec in inputs_of(model)}
    if not isinstance(name, str) or name not in rows:
        raise InvalidParameter(f"{model.name} has no input {shown(name)}; it takes {' or '.join(rows)}.")
    if datatype not in ACCEPTED[name]:
        raise InvalidParameter(f"Input {name} is {' or '.join(ACCEPTED[name])}, not {shown(datatype)}.")
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise InvalidParameter(f"The shape of input {name} is a list of whole numbers from 0 on, not {shown(shape)}.")
    given = list(shape[:_MOST_AXES])  # a message may hold millions
    if any(type(size) is not int or size < 0 for size in given):
        raise InvalidParameter(f"The shape of input {name} is a list of whole numbers from 0 on, not {shown(given)}.")
    if tuple(given[1:]) != rows[name] or not given:
        allowed = ", ".join(map(str, ("N", *rows[name])))
        raise InvalidParameter(
            f"Input {name} of {model.name} has the shape [{allowed}], with a row per image, not {shown(given)}."
        )
    if not given[0]:
        raise MissingImage(f"Input {name} has no rows; send at least one.")
    if given[0] > max_rows:
        raise TooManyImages(f"Input {name} has {given[0]} rows; {max_rows} are allowed in one request.")
    return DeclaredInput(name, datatype, tuple(given))


def demand_one(names: Sequence[Any]) -> None:
    """Refuse a request whose inputs are not exactly one of those that models take.

    Raises:
        MissingImage: there is none. InvalidParameter: there are several.
    """
    if not names:
        raise MissingImage(f"The request has no inputs; send {IMAGE} or {PIXELS}.")
    if len(names) > 1:
        raise InvalidParameter(
            f"Send exactly one input, {IMAGE} or {PIXELS}, not {len(names)}. Several images are rows of one input."
        )


def sources_of_raw(of: DeclaredInput, data: bytes | memoryview) -> Sources:
    """The images, or the rows of pixels, in raw bytes; pixels aren't copied.

    Raises:
        InvalidParameter: the bytes don't fit the shape.
    """
    if of.datatype == BYTES:
        return sources_of_images(of, split(data, of.elements, name=of.name))
    return sources_of_pixels(of, array_of(data, of.datatype, of.shape, name=of.name))


def sources_of_images(of: DeclaredInput, images: Sequence[bytes]) -> list[ImageSource]:
    """The images as sources.

    Raises:
        InvalidParameter: there are more or fewer than the shape says. MissingImage: one is empty.
    """
    if len(images) != of.elements:
        raise InvalidParameter(
            f"Input {of.name} has {len(images)} elements; its shape {list(of.shape)} says otherwise."
        )
    for place, image in enumerate(images):
        if not image:
            which = "The image" if len(images) == 1 else f"Image {place} of {len(images)}"
            raise MissingImage(f"{which} is empty.")
    return [ImageSource(image) for image in images]


def sources_of_pixels(of: DeclaredInput, values: NDArray[Any]) -> list[PixelSource]:
    """The rows of an array of pixels, flat or in its shape, as sources.

    Raises:
        InvalidParameter: it has more or fewer elements than the shape says, or others than its type can have.
    """
    if values.size != of.elements:
        raise InvalidParameter(f"Input {of.name} has {values.size} elements; {list(of.shape)} has {of.elements}.")
    return [PixelSource(row) for row in _in_type(of, values).reshape(of.shape)]


def _in_type(of: DeclaredInput, values: NDArray[Any]) -> NDArray[Any]:
    """Numbers of any type as the declared type, if they are all such numbers."""
    wanted = np.dtype(np.uint8 if of.datatype == "UINT8" else np.float32)
    if values.dtype == wanted:
        return values
    if wanted == np.uint8:
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.uint8)
        if not np.array_equal(whole, values):
            raise InvalidParameter(f"The elements of input {of.name} are whole numbers from 0 to 255, as it is UINT8.")
        return whole
    with np.errstate(over="ignore"):
        return values.astype(np.float32)

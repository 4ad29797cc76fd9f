"""Images as Python callers give them: one or many, in any form, in folders or one after the other."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from condconv_serve.domain import ImageSource, PixelSource, ServedModel, readable
from condconv_serve.errors import BodyTooLarge, CorruptImage, ServiceError
from condconv_serve.imaging import as_rgb, place_row, transform
from condconv_serve.inputs.files import expand, read_image
from condconv_serve.inputs.image import ImageInput, is_one_image, picture_of
from condconv_serve.inputs.image import read_image as read_input

ImagesInput = ImageInput | Iterable[ImageInput]
"""One image, or many. The name of a folder stands for all images in it and below it, and so does a pattern such as
`photos/*.jpg`. An array of more than one image is uint8 `[N, height, width, channels]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenImage:
    """An image to read: a file, bytes, a PIL image, an array; or why there is none."""

    id: str
    filename: str | None
    value: Any

    def read(self, model: ServedModel, *, max_bytes: int) -> ImageSource | PixelSource:
        """Its bytes, or its pixels as the model takes them.

        Raises:
            ServiceError: it can't be read, or a file has more than `max_bytes`.
        """
        if isinstance(self.value, ServiceError):
            raise self.value
        if isinstance(self.value, Path):
            return self._source(read_image(self.value, max_bytes))
        if isinstance(self.value, bytes):
            if len(self.value) > max_bytes:
                raise BodyTooLarge(f"The image has {len(self.value)} bytes; the most allowed is {max_bytes}.")
            return self._source(self.value)
        preprocessing = model.info.preprocessing
        if preprocessing.official_decoding:  # its rows overshoot the scale that given pixels keep to
            return self._source(read_input(self.value).data)
        picture = as_rgb(picture_of(self.value))
        placement = place_row(preprocessing, width=picture.width, height=picture.height)
        return PixelSource(transform(picture, preprocessing), id=self.id, placement=placement)

    def encoded(self) -> ImageSource:
        """Its bytes, as they are sent: arrays and PIL images become PNGs.

        Raises:
            ServiceError: it can't be read.
        """
        if isinstance(self.value, ServiceError):
            raise self.value
        return self._source(self.value if isinstance(self.value, bytes) else read_input(self.value).data)

    def _source(self, data: bytes) -> ImageSource:
        return ImageSource(data, filename=self.filename, id=self.id)


class GivenImages:
    """The images of one call.

    Attributes:
        alone: whether one image was given, rather than a list or a folder, even one of a single image.
        total: how many there are; None if nobody knows before the last one.
    """

    def __init__(self, images: ImagesInput) -> None:
        """Look at what was given.

        Raises:
            MissingImage: a folder without images, a pattern that matches none, or a file that isn't there.
            TypeError: these are no images.
        """
        images = _as_array(images)
        self.alone = _is_alone(images)
        items: Any = images
        if self.alone:
            items = [images]
        if isinstance(images, str | os.PathLike):
            items = expand([os.fspath(images)])
        elif isinstance(images, np.ndarray) and not self.alone:
            items = list(images)
        elif not isinstance(items, Iterable):
            raise TypeError(
                "Images are files' names, bytes, open files, PIL images or NumPy arrays, one or many; not "
                f"{type(images).__name__}."
            )
        self.total: int | None = len(items) if hasattr(items, "__len__") else None
        self._items = items

    def __iter__(self) -> Iterator[GivenImage]:
        """Yield each image. What may change or be closed when the next one is taken is read or copied now.

        Raises:
            TypeError: one of them is no image.
        """
        place = 0
        for item in self._items:
            found = images_of(item, place)
            place += len(found)
            if self.total is not None:
                self.total += len(found) - 1
            yield from found


def images_of(item: Any, place: int) -> list[GivenImage]:
    """The images that one of several items stands for: itself, or those of a folder or a pattern.

    Args:
        item: it is read or copied now if it may change or be closed later.
        place: of the first image, for its id.

    Raises:
        TypeError: it is no image.
    """
    return [
        GivenImage(id=str(number), filename=filename, value=value)
        for number, (filename, value) in enumerate(_values_of(_as_array(item)), place)
    ]


def _values_of(item: Any) -> Iterator[tuple[str | None, Any]]:
    if not isinstance(item, str | os.PathLike):
        yield _kept(item)
        return
    try:
        files = [item] if isinstance(item, Path) and item.is_file() else expand([os.fspath(item)])
    except ServiceError as error:
        yield readable(os.fspath(item)), error
        return
    for file in files:
        yield readable(file), file


def _is_alone(images: Any) -> bool:
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        return not path.is_dir() and (path.exists() or not glob.has_magic(os.fspath(images)))
    if isinstance(images, np.ndarray):
        return images.ndim < 4 and images.dtype.kind not in "OU"
    return is_one_image(images)


def _as_array(value: Any) -> Any:
    """Arrays of other libraries, such as tensors, as NumPy's."""
    if isinstance(value, np.ndarray | str | bytes) or not hasattr(value, "__array__"):  # NumPy has text of its own
        return value
    return np.asarray(value)


def _kept(item: Any) -> tuple[str | None, Any]:
    """An image's file name, and what stays as it is when the next one is taken."""
    if isinstance(item, np.ndarray):
        return None, item.copy()
    try:
        if hasattr(item, "getexif"):  # a PIL image, whose file may be closed next
            item.load()
            return getattr(item, "filename", None) or None, item
        source = read_input(item)
    except ServiceError as error:
        return None, error
    except Exception as error:  # Pillow's readers may raise anything
        if not hasattr(item, "getexif"):
            raise
        return None, CorruptImage(f"The PIL image can't be read: {error}.")
    return source.filename, source.data

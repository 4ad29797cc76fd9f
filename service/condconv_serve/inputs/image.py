"""What Python callers may give as an image: a file's name, bytes, an open file, a PIL image, or an array."""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, TypeGuard, Union, cast

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import ImageSource, readable
from condconv_serve.errors import CorruptImage, InvalidParameter, MissingImage

if TYPE_CHECKING:
    from PIL import Image

ImageInput: TypeAlias = Union[
    str, os.PathLike[str], bytes, bytearray, memoryview, BinaryIO, "Image.Image", NDArray[np.uint8]
]
"""One image. An array is uint8 `[height, width]` (grey), or `[height, width, C]` with 1 (grey), 3 (RGB) or 4 (RGBA)
channels."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+://|data:image/", re.IGNORECASE)
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_OPEN_MODES = ("I", "F")
"""Whose values may be anything."""
_FAST = 1
"""Level of compression: more would take longer than a network does."""


def is_one_image(value: object) -> bool:
    """Whether this is one image, or is meant to be one; else it may be many."""
    return isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | np.ndarray) or (
        hasattr(value, "read") or _is_pil(value)
    )


def read_image(image: ImageInput, *, id: str | None = None) -> ImageSource:
    """Read an image's bytes. What has no bytes of its own becomes a PNG.

    A PIL image is turned as its EXIF orientation says, like a file that is sent as it is.

    Args:
        image: what to read. A file is read from where it stands, and left open.
        id: names the image in answers.

    Raises:
        MissingImage: the file can't be read. CorruptImage: a PIL image's file is damaged.
        InvalidParameter: an array of another shape or type, or a PIL image without pixels, or of a mode that no file
            has.
        TypeError: this can't be an image.
    """
    filename = None
    if isinstance(image, str | os.PathLike):
        filename, data = readable(image), _read_file(image)
    elif isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
    elif isinstance(image, np.ndarray) or _is_pil(image):
        filename, data = getattr(image, "filename", None) or None, _to_png(picture_of(image))
    elif hasattr(image, "read"):
        file = cast(BinaryIO, image)
        filename, data = _name_of(file), _read_open(file)
    else:
        raise TypeError(
            f"An image is a file's name, bytes, an open file, a PIL image or a NumPy array, not {type(image).__name__}."
        )
    return ImageSource(data, filename=None if filename is None else readable(filename), id=id)


def picture_of(image: Image.Image | NDArray[np.generic]) -> Image.Image:
    """An array or a PIL image as a picture of a mode that PNGs have, turned as its EXIF orientation says.

    Errors are those of `read_image`.
    """
    from PIL import ImageOps

    if isinstance(image, np.ndarray):
        return _from_array(image)
    try:
        if 0 in image.size:
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _OPEN_MODES:
            raise ValueError(f"its mode is {upright.mode}, whose values have no known range; convert it to RGB first")
        return upright if upright.mode in _PNG_MODES else upright.convert("RGB")
    except OSError as error:
        raise CorruptImage(f"The PIL image can't be read: {error}.") from error
    except ValueError as error:
        raise InvalidParameter(f"The PIL image can't become a PNG: {error}.") from error


def _read_file(path: str | os.PathLike[str]) -> bytes:
    if isinstance(path, str) and _URL.match(path):
        raise MissingImage(
            f"{path[:200]}: this is a URL, and nothing is fetched from the network. Give the picture's bytes."
        )
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise MissingImage(f"{readable(path)} can't be read: {getattr(error, 'strerror', None) or error}.") from error


def _read_open(file: BinaryIO) -> bytes:
    try:
        data: object = file.read()
    except (OSError, ValueError) as error:
        raise MissingImage(f"The open file can't be read: {getattr(error, 'strerror', None) or error}.") from error
    if not isinstance(data, bytes):
        raise TypeError('The file is open as text. Open it as bytes: open(path, "rb").')
    return data


def _name_of(file: BinaryIO) -> str | None:
    name = getattr(file, "name", None)  # a number, if it was opened by one
    return name if isinstance(name, str) else None


def _to_png(picture: Image.Image) -> bytes:
    picture.save(buffer := io.BytesIO(), "PNG", compress_level=_FAST)
    return buffer.getvalue()


def _from_array(array: NDArray[np.generic]) -> Image.Image:
    from PIL import Image

    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise InvalidParameter(
            "An array is one image, uint8 [height, width] or [height, width, channels] with 1, 3 or 4 channels, not "
            f"{array.dtype} {list(array.shape)}. Give many images as a list."
        )
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


def _is_pil(value: object) -> TypeGuard[Image.Image]:
    """Whether this is a PIL image, without importing PIL for what isn't."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(value).__mro__)

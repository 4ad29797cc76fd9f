"""AVIF and HEIC: readers that may be missing, and limits that hold before they decode."""

from __future__ import annotations

import functools
import importlib.util
import io

from PIL import AvifImagePlugin, features
from PIL.ImageFile import ImageFile

from condconv_serve.errors import ImageTooLarge
from condconv_serve.imaging.foreign import unread_kind
from condconv_serve.imaging.isobmff import Announced, announced
from condconv_serve.imaging.limits import check_size

# Pictures are decoded on as many threads as there are cores; a decoder with threads of its own would only crowd them.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
_DECODER_THREADS = 1

_FRAMES_PER_PICTURE = 4
"""How often a picture may be decoded over: with alpha, a thumbnail, a gain map, and the rims of tiles."""
_SMALL = 1 << 16
"""Pixels that are always allowed on top: small frames are coded larger than they are."""
_HEIC_KINDS = (b"hvc1", b"hev1", b"grid")


@functools.cache
def can_read_avif() -> bool:
    """Say whether Pillow was built with AVIF."""
    return bool(features.check("avif"))


@functools.cache
def can_read_heic() -> bool:
    """Say whether the extra `heif` is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def open_avif(data: bytes, max_pixels: int) -> ImageFile:
    """Read the header of an AVIF.

    Raises:
        ImageTooLarge: header or frames announce too much.
        Exception: whatever comes of damaged files.
    """
    _check_announced(data, max_pixels)
    return AvifImagePlugin.AvifImageFile(io.BytesIO(data))


def open_heic(data: bytes, max_pixels: int) -> ImageFile:
    """Read the header of a HEIC, by the extra `heif`.

    Raises:
        UnsupportedImage: it is coded otherwise than in HEVC, or put together of layers.
        ImageTooLarge: header or frames announce too much.
        Exception: whatever comes of damaged files.
    """
    found = _check_announced(data, max_pixels)
    if not found.kind and found.is_film:
        raise unread_kind("a sequence of HEIC photos")
    if found.kind not in _HEIC_KINDS and found.kind.isalnum():
        raise unread_kind(f"a HEIF image with {found.kind.decode('ascii')} inside")
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = _DECODER_THREADS
    image: ImageFile = pillow_heif.HeifImageFile(io.BytesIO(data))
    return image


def _check_announced(data: bytes, max_pixels: int) -> Announced:
    found = announced(data)
    for size in found.sizes:
        check_size(size, max_pixels)
    most = _FRAMES_PER_PICTURE * max_pixels + _SMALL
    if found.pixels > most:
        raise ImageTooLarge(f"The image's frames have {found.pixels} pixels in all; {most} are allowed.")
    return found

"""File formats: what the bytes are, and what must be known before Pillow opens them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, Literal

from condconv_serve.imaging.png import SIGNATURE as PNG_SIGNATURE

FormatName = Literal["JPEG", "PNG", "WebP", "GIF", "TIFF", "BMP", "AVIF", "HEIC"]
ACCEPTED_FORMATS: tuple[FormatName, ...] = ("JPEG", "PNG", "WebP", "GIF", "TIFF", "BMP", "AVIF", "HEIC")
"""The last two only if their readers are installed: `accepted_formats()` tells."""
SUFFIXES: Final[Mapping[FormatName, tuple[str, ...]]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
    "HEIC": (".heic", ".heif", ".hif"),
}
"""Suffixes of files, by format."""
IMAGE_SUFFIXES: Final = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
"""A folder's files with these suffixes, in lower case, are taken for images."""

_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# In this order: both name the container's own brands, mif1 and msf1, beside that of what is in it.
_BRANDS: Final[Mapping[FormatName, tuple[bytes, ...]]] = {
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"),
}
_MAX_GIF_BLOCKS = 100_000
"""Most blocks before a GIF's frame; they may hold 25 MB of metadata."""
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)


def recognise(data: bytes) -> FormatName | None:
    """Name the accepted format of these bytes by their signature; None if they have no such signature."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(_TIFF_SIGNATURES):
        return "TIFF"
    # Two letters are too weak a signature ("BMW is a car"): the header's size must be one that exists, too.
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    if data[4:8] == b"ftyp":
        brands = media_brands(data)
        return next((name for name, known in _BRANDS.items() if not brands.isdisjoint(known)), None)
    return None


def media_brands(data: bytes) -> set[bytes]:
    """Say what a file of the ISO base media format is: its major brand, and those that it is compatible with."""
    return {data[8:12]} | {data[i : i + 4] for i in range(16, min(int.from_bytes(data[:4]), 256), 4)}


def webp_size(data: bytes) -> tuple[int, int]:
    """Read width and height from a WebP's first chunk.

    Raises:
        ValueError: the chunk is unknown or damaged.
        struct.error: the header is truncated.
    """
    match data[12:16]:
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L" if data[20:21] == b"\x2f":
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            width_low, width_high, height_low, height_high = struct.unpack_from("<HBHB", data, 24)
            return (width_high << 16 | width_low) + 1, (height_high << 16 | height_low) + 1
    raise ValueError("unknown WebP header")


def first_gif_frame(data: bytes) -> bytes:
    """Copy a GIF's header and its frames, without the blocks before the first frame.

    Of the extensions only transparency stays. The frame's disposal goes, since Pillow would fill a whole picture in
    preparation of the second frame while it only opens the file.

    Raises:
        ValueError: there is no frame, or absurdly much before it.
        IndexError: the data is truncated.
        struct.error: the data is truncated.
    """
    flags = data[10]
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    head, control, blocks = data[:position], b"", 0
    while data[position] != ord(","):
        blocks += 1
        if blocks > _MAX_GIF_BLOCKS:
            raise ValueError("too many blocks before a GIF's frame")
        if data[position] == ord(";"):
            raise ValueError("a GIF without a frame")
        if data[position] != ord("!"):
            position += 1
            continue
        if data[position + 1 : position + 3] == b"\xf9\x04":
            flags, _, transparent = struct.unpack_from("<BHB", data, position + 3)
            control = struct.pack("<4BHBB", ord("!"), 0xF9, 4, flags & 1, 0, transparent, 0)
        position += 2
        while data[position]:
            position, blocks = position + 1 + data[position], blocks + 1
            if blocks > _MAX_GIF_BLOCKS:
                raise ValueError("too many blocks before a GIF's frame")
        position += 1
    return head + control + data[position:]

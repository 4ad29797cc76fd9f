"""TIFF, of which there are endless kinds: those that Pillow reads right, and names for the others."""

from __future__ import annotations

import ctypes
import io
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from PIL import _imaging
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2, TiffImageFile

from condconv_serve.imaging.foreign import RAW_PHOTO, unread_kind
from condconv_serve.imaging.jpeg import whole_jpeg

_CR2: Final = b"CR\2"
"""What follows the header in raw photos of Canon's."""
_SUB_DIRECTORIES, _DNG_VERSION = 330, 50706
_PLANAR, _SAMPLE_FORMAT = 284, 339
_SEPARATE = 2
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _YCBCR, _LAB = 0, 1, 6, 8
_JPEG = 7
_COLOURS: Final[Mapping[int, str]] = {
    0: "grey, white is zero",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "Lab",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "mosaic of a sensor",
    32844: "logarithmic luminance",
    32845: "LogLuv",
    34892: "linear raw",
}
_NUMBERS: Final[Mapping[int, str]] = {
    1: "integers",
    2: "signed integers",
    3: "floats",
    4: "undefined numbers",
    5: "complex integers",
    6: "complex floats",
}
_BYTES_OF: Final[Mapping[int, int]] = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 17, 18), 8),
}
"""Bytes of a value by its tag's type."""
_AS_THEY_ARE: Final = (1, 2, 7)
"""The types whose values stay bytes; of all others Pillow makes an object of each value."""
_FRACTIONS: Final = (5, 10)
_MAX_TAGS, _MAX_VALUES, _MAX_FRACTIONS = 1000, 500_000, 1000
"""Most tags of a directory, and most values of a tag. A picture has as many strips or tiles."""
_MAX_COPIES: Final = 4
"""How often the file's bytes may be the values of tags. Damaged tags may claim all that follows."""
# libtiff gives numbers in the machine's byte order. Pillow knows that for some modes only.
_NATIVE: Final[Mapping[str, str]] = {
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
}


def _load_libtiff() -> ctypes.CDLL | None:
    """Find the libtiff that Pillow uses, and mute it; None if this build hides it.

    It complains about damaged files on the standard error of the process. A decoding thread would wait there for as
    long as nobody reads.
    """
    try:
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
    except (OSError, AttributeError):
        return None
    return library


_LIBTIFF: Final = _load_libtiff()


class _LibtiffImageFile(TiffImageFile):
    """Reads all files through libtiff, as Pillow does with compressed ones.

    Pillow's own reader takes uncompressed planes of 16 bits for 8 bits, and doesn't notice that a strip is too short.
    """

    @property
    def use_load_libtiff(self) -> bool:
        return True

    @use_load_libtiff.setter
    def use_load_libtiff(self, value: bool) -> None:
        """Pillow sets it for compressed files."""


class Tag(NamedTuple):
    """An entry of a directory: how many values of a kind it has, and where they are, unless they are few."""

    number: int
    kind: int
    values: int
    place: int


def tags_in(data: bytes) -> Iterator[Tag]:
    """Walk over the entries of the first directory, as far as it is there."""
    order, is_big = "<" if data[:1] == b"I" else ">", b"+" in data[2:4]
    head, entry = (
        struct.Struct(f"{order}{'Q' if is_big else 'H'}"),
        struct.Struct(f"{order}HH{'QQ' if is_big else 'II'}"),
    )
    try:
        (place,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", data, 8 if is_big else 4)
        (count,) = head.unpack_from(data, place)
        for number in range(count):
            yield Tag(*entry.unpack_from(data, place + head.size + number * (20 if is_big else 12)))
    except (struct.error, OverflowError):
        return


def _check_tags(data: bytes) -> None:
    """Refuse a directory whose tags have more values than a picture needs, or the same ones many times.

    libtiff copies the values of each tag: two megabytes, of which thousands have their values, would take a computer's
    whole memory. Values beyond the file's end are read by nobody.

    Raises:
        ValueError: it has.
    """
    copied = 0
    for count, tag in enumerate(tags_in(data), start=1):
        size, there = tag.values * _BYTES_OF.get(tag.kind, 0), max(len(data) - tag.place, 0)
        copied += min(size, there)
        most = _MAX_FRACTIONS if tag.kind in _FRACTIONS else _MAX_VALUES
        too_long = most < tag.values and size <= there and tag.kind not in _AS_THEY_ARE
        if too_long or count > _MAX_TAGS or copied > _MAX_COPIES * len(data):
            raise ValueError("too many tags or values")


def open_tiff(data: bytes) -> TiffImageFile:
    """Read the first directory of a TIFF; no pixel yet.

    Raises:
        UnsupportedImage: this kind isn't read.
        ValueError: it has more tags or values than a picture needs.
        Exception: whatever Pillow raises for a damaged file.
    """
    _check_tags(data)
    if data[8:11] == _CR2:
        raise unread_kind(RAW_PHOTO)
    try:
        image = _LibtiffImageFile(io.BytesIO(data))
    except SyntaxError as error:
        if (kind := _unread(_tags(data))) is not None:
            raise unread_kind(kind) from error
        raise
    tile = image.tile[0]
    raw_mode, *rest = tile.args if isinstance(tile.args, tuple) else ("",)
    if (kind := _misread(image.tag_v2, raw_mode)) is not None:
        raise unread_kind(kind)
    image.tile = [tile._replace(args=(_NATIVE.get(raw_mode, raw_mode), *rest))]
    return image


def tiff_number(tags: Mapping[int, Any], tag: Base | int, default: int) -> int:
    """Look up a tag that holds a number; of several numbers, the first."""
    value = tags.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def check_tiff_parts(tags: Mapping[int, Any], data: bytes) -> None:
    """Refuse a TIFF whose strips or tiles aren't all there, where libtiff would make something up.

    It would take the file's beginning for those that have no place, and grey for what is missing from a JPEG.

    Raises:
        ValueError: parts are missing, or incomplete JPEGs.
        Exception: the tags contradict each other.
    """
    width, height = tags[Base.ImageWidth], tags[Base.ImageLength]
    if Base.TileOffsets in tags:
        offsets, lengths = tags[Base.TileOffsets], tags[Base.TileByteCounts]
        parts = math.ceil(width / tags[Base.TileWidth]) * math.ceil(height / tags[Base.TileLength])
    else:
        offsets, lengths = tags[Base.StripOffsets], tags.get(Base.StripByteCounts, ())
        parts = math.ceil(height / (tiff_number(tags, Base.RowsPerStrip, height) or height))
    if tiff_number(tags, _PLANAR, 1) == _SEPARATE:
        parts *= tiff_number(tags, Base.SamplesPerPixel, 1)
    if len(offsets) < parts or not all(offsets[:parts]):
        raise ValueError("strips or tiles are missing")
    if tiff_number(tags, Base.Compression, 1) == _JPEG:
        if len(lengths) < parts or sum(lengths) > len(data):
            raise ValueError("strips or tiles overlap")
        for offset, length in zip(offsets[:parts], lengths, strict=False):
            whole_jpeg(data[offset : offset + length])


def _tags(data: bytes) -> ImageFileDirectory_v2:
    """Read the first directory, whatever it holds."""
    file = io.BytesIO(data)
    header_size = 16 if b"+" in data[2:4] else 8
    tags = ImageFileDirectory_v2(file.read(header_size))
    file.seek(tags.next)
    tags.load(file)
    return tags


def _unread(tags: Mapping[int, Any]) -> str | None:
    """Name a kind that Pillow can't open; None if it looks rather like damage."""
    if not {Base.ImageWidth, Base.ImageLength} <= tags.keys():
        return None
    compression = tiff_number(tags, Base.Compression, 1)
    return _kind(tags) if compression in COMPRESSION_INFO else f"a TIFF image with compression {compression}"


def _misread(tags: ImageFileDirectory_v2, raw_mode: str) -> str | None:
    """Name a kind that Pillow opens, but whose picture it gets wrong, or that is only a preview."""
    if _DNG_VERSION in tags or (tags.get(Base.NewSubfileType) == 1 and _SUB_DIRECTORIES in tags):
        return RAW_PHOTO
    compression = tiff_number(tags, Base.Compression, 1)
    if compression != 1 and _LIBTIFF is not None and not _LIBTIFF.TIFFIsCODECConfigured(compression):
        return f"a TIFF image with compression {compression}"
    colour = tiff_number(tags, Base.PhotometricInterpretation, 0)
    if tiff_number(tags, Base.BitsPerSample, 1) == 8 and tiff_number(tags, _SAMPLE_FORMAT, 1) != 1:
        return _kind(tags)
    if tiff_number(tags, _PLANAR, 1) == _SEPARATE:
        alpha = colour in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and any(tags.get(Base.ExtraSamples, ()))
        ignored = (
            "X" in raw_mode and colour != _YCBCR
        )  # channels that mean nothing; Pillow 13 leaves them out by itself
        if alpha or ignored or colour == _LAB or (colour == _YCBCR and compression == _JPEG):
            return f"{_kind(tags)} in planes"
    return None


def _kind(tags: Mapping[int, Any]) -> str | None:
    colour = _COLOURS.get(tiff_number(tags, Base.PhotometricInterpretation, 0))
    numbers = _NUMBERS.get(tiff_number(tags, _SAMPLE_FORMAT, 1))
    bits = tiff_number(tags, Base.BitsPerSample, 1)
    samples = tiff_number(tags, Base.SamplesPerPixel, 1)
    if colour is None or numbers is None or not 1 <= bits <= 128 or not 1 <= samples <= 1000:
        return None
    order = "big-endian " if getattr(tags, "prefix", b"II") == b"MM" else ""
    reversed_bits = ", bits reversed" if tiff_number(tags, Base.FillOrder, 1) == 2 else ""
    return f"a {order}TIFF image ({colour}, {samples} x {bits}-bit {numbers}{reversed_bits})"

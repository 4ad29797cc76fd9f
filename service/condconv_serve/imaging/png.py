"""PNG: only the chunks that make up the picture, and whether they make up all of it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL.PngImagePlugin import PngImageFile

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PICTURE = {b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the header's type of colour."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and the steps between them, of an interlaced picture's passes."""
_PIECE = 1 << 18
_MAX_CHUNKS = 100_000
"""More than a picture has rows, each of which may be in a chunk of its own. Empty ones would keep a core busy."""


def essential_png(data: bytes) -> bytes:
    """Copy the chunks of a PNG which make up its picture.

    All other chunks can only do harm: text and colour profiles may inflate to many times their size, and an animation
    has more frames than the first. Checksums are tested here, since Pillow ignores those of pixels.

    Raises:
        ValueError: a checksum is wrong, the end is missing, or there are absurdly many chunks.
        struct.error: a chunk is truncated.
    """
    kept = [SIGNATURE]
    view = memoryview(data)
    for name, start, end in _chunks(data):
        if name in _PICTURE:
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(view[start + 4 : end - 4]) != checksum:
                raise ValueError("wrong checksum in a PNG chunk")
            kept.append(data[start:end])
    return b"".join(kept)


def check_png_rows(image: PngImageFile, data: bytes) -> None:
    """Refuse a decoded PNG whose compressed data, though valid, ended before its last row.

    Pillow leaves the missing rows black. Where the last row isn't, none is missing, and nothing needs to be counted.

    Args:
        image: the decoded picture.
        data: the file that it was decoded from.

    Raises:
        ValueError: rows are missing.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, len(SIGNATURE) + 8)
    if not interlaced and np.asarray(image.crop((0, height - 1, width, height))).any():
        return
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    missing = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            missing += rows * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8)
    inflater = zlib.decompressobj()
    for name, start, end in _chunks(data):
        piece = data[start + 8 : end - 4] if name == b"IDAT" else b""
        while piece and missing > 0:
            missing -= len(inflater.decompress(piece, _PIECE))
            piece = inflater.unconsumed_tail
    if missing > 0:
        raise ValueError("rows are missing")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Walk over the chunks up to the end: the name of each, and where it lies."""
    position, name, found = len(SIGNATURE), b"", 0
    while name != b"IEND":
        found += 1
        if found > _MAX_CHUNKS:
            raise ValueError("too many chunks")
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        yield name, position, end
        position = end

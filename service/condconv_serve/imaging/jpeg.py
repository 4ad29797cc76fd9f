"""What a JPEG's markers tell: is it of a kind that is read, and is its picture all there?

Pillow doesn't say that data was missing: the rest of such a picture is grey, or worse. So the decoder is given a file
in which it stumbles over the gap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from condconv_serve.imaging.foreign import unread_kind

# Inside a scan, 0xff is followed by zero or a restart marker; anything else ends it.
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_TEM, _SOI, _EOI, _SOS = 0x01, 0xD8, 0xD9, 0xDA
_ALONE: Final = (_TEM, _SOI, _EOI)
"""Markers that begin no segment."""
_AFTER_SCAN: Final = (_EOI, _SOI, 0xDC, *range(0xE0, 0xF0), 0xFE)
"""What may follow a picture's only scan: its end, another picture, a number of lines, metadata."""
_APP1, _EXIF = 0xE1, b"Exif\0\0"
_METADATA: Final = frozenset((*range(0xE0, 0xF0), 0xFE)) - {0xEE}
"""What tells nothing of the pixels, as 0xee (Adobe's) does."""
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL: Final = (0xC0, 0xC1)
_PROGRESSIVE: Final = (0xC2, 0xCA)
_LOSSLESS: Final = 0xC3
_READ: Final = (*_SEQUENTIAL, *_PROGRESSIVE, _LOSSLESS, 0xC9)
"""The kinds of frames that are read. 0xc9 and 0xca are coded arithmetically, the others by Huffman."""

_MAX_SCANS = 64
"""Progressive encoders write about ten scans, the most elaborate ones some thirty."""

_MAX_SEGMENTS = 10_000
"""A photo has some ten, one with large metadata some hundred. Each takes Pillow ten microseconds."""

_LOOKAHEAD: Final = b"\xff\x00" * 8
"""The decoder wants to see eight bytes beyond what it decodes. These bits are no code, and can't stand for pixels."""

_COEFFICIENTS, _ALL_BITS = 64, 16
"""Of a block, and of a coefficient of which no scan has told anything."""


class _Segment(NamedTuple):
    code: int
    content: bytes
    end: int


def check_jpeg_kind(data: bytes) -> None:
    """Refuse a JPEG of a kind that isn't read.

    Raises:
        UnsupportedImage: its samples don't have 8 bits, or it was made by a rare process.
    """
    frame = _frame(data)
    if frame is None:
        return
    if frame.code not in _READ:
        raise unread_kind("a hierarchical or otherwise rare JPEG image")
    if frame.content and 8 < frame.content[0] <= 16:
        raise unread_kind(f"a JPEG image with {frame.content[0]} bits per sample")


def is_lossless_jpeg(data: bytes) -> bool:
    """Say whether it is made of pixels, not of frequencies, so that it can't be decoded at a fraction of its size."""
    return (frame := _frame(data)) is not None and frame.code == _LOSSLESS


def jpeg_header(data: bytes) -> bytes:
    """Copy the segments up to the first scan that tell of its picture, and the first EXIF.

    Pillow reads what lies between segments byte by byte, and puts all EXIF together, of whatever length.

    Raises:
        ValueError: there are absurdly many segments.
    """
    kept, has_exif = [data[:2]], False
    for segment in _segments(data):
        is_exif = segment.code == _APP1 and segment.content.startswith(_EXIF)
        if segment.code in _METADATA and (has_exif or not is_exif):
            continue
        has_exif = has_exif or is_exif
        kept.append(bytes((0xFF, segment.code)))
        if segment.code not in _ALONE:
            kept += [(2 + len(segment.content)).to_bytes(2), segment.content]
        if segment.code == _SOS:
            break
    return b"".join(kept)


def whole_jpeg(data: bytes) -> bytes:
    """Return a file with the first picture for the decoder, which fails if some of the picture is missing.

    Of a picture in one scan (as most are), the file ends with that scan and not with an end marker, at which the
    decoder would make up what is missing. Of a picture in several scans, only a missing scan or end can be told.

    Raises:
        ValueError: the end or a scan is missing; or there are absurdly many scans. Each one makes the decoder walk over
            the whole picture, however few bytes it has: a megabyte of them would keep a core busy for minutes.
        IndexError, KeyError: a header is damaged.
    """
    frame, components, scans = 0, b"", 0
    missing_bits: dict[int, list[int]] = {}
    for segment in _segments(data):
        code, content, end = segment
        if code == _EOI:
            break
        if code in _FRAMES:
            frame, components = code, content[6::3]
            missing_bits = {component: [_ALL_BITS] * _COEFFICIENTS for component in components}
        if code != _SOS:
            continue
        scans += 1
        if scans > _MAX_SCANS:
            raise ValueError("too many scans")
        scanned = content[1 : 1 + 2 * content[0] : 2]
        if frame in _SEQUENTIAL and len(scanned) == len(components):
            marker = _MARKER.search(data, end)
            if marker is None or data[marker.start() + 1] not in _AFTER_SCAN:
                raise ValueError("the end is missing")
            return data[: marker.start()] + _LOOKAHEAD
        first, last, before, after = content[-3], content[-2], content[-1] >> 4, content[-1] & 15
        if frame not in _PROGRESSIVE:
            first, last, before, after = 0, _COEFFICIENTS - 1, 0, 0
        for component in scanned:
            coefficients = missing_bits[component]
            if before and any(bits > before for bits in coefficients[first : last + 1]):
                raise ValueError("a scan is missing")
            coefficients[first : last + 1] = [after] * (last + 1 - first)
    else:
        raise ValueError("the end is missing")
    if any(any(coefficients) for coefficients in missing_bits.values()):
        raise ValueError("a scan is missing")
    return data


def _frame(data: bytes) -> _Segment | None:
    return next((segment for segment in _segments(data) if segment.code in _FRAMES), None)


def _segments(data: bytes) -> Iterator[_Segment]:
    """Walk over the markers; entropy-coded data lies between a scan's header and the next marker.

    Raises:
        ValueError: there are absurdly many.
    """
    position, found = 2, 0
    while marker := _MARKER.search(data, position):
        found += 1
        if found > _MAX_SEGMENTS:
            raise ValueError("too many segments")
        code, position = data[marker.start() + 1], marker.end()
        if code in _ALONE:
            yield _Segment(code, b"", position)
            continue
        start = position
        position += int.from_bytes(data[position : position + 2])
        yield _Segment(code, data[start + 2 : position], position)

"""Small files that would take a lot of time or memory: too many parts, or parts that are told of many times."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from condconv_serve.errors import CorruptImage
from condconv_serve.imaging import decode
from condconv_serve.imaging.decode import as_rgb
from condconv_serve.imaging.jpeg import jpeg_header

MAX_PIXELS = 10_000


def encoded(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 32), (200, 40, 90)).save(file, kind, **options)
    return file.getvalue()


def behind_signature(data: bytes, kind: str, more: bytes) -> bytes:
    """A file with something more before its picture."""
    place = {"JPEG": 2, "PNG": 33, "GIF": data.find(b",", 13 + 3 * 2)}[kind]
    return data[:place] + more + data[place:]


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(tags: list[tuple[int, int, int, int]], rest: bytes, *, order: str = "<", big: bool = False) -> bytes:
    """A grey picture of 8 by 8 pixels, with more tags."""
    usual = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (278, 3, 1, 8)]
    every = sorted([*usual, (273, 4, 1, 16 if big else 8), (279, 4, 1, 64), *tags])
    packed = []
    for number, kind, count, value in every:
        short = kind == 3 and count == 1
        field = struct.pack(order + ("H" if short else "Q" if big and count > 8 else "I"), value)
        entry = struct.pack(order + ("HHQ" if big else "HHI"), number, kind, count)
        packed.append(entry + field.ljust(8 if big else 4, b"\0"))
    name = b"II" if order == "<" else b"MM"
    if big:
        start = name + struct.pack(order + "HHHQ", 43, 8, 0, 16 + len(rest)) + rest
        return start + struct.pack(order + "Q", len(every)) + b"".join(packed) + bytes(8)
    start = name + struct.pack(order + "HI", 42, 8 + len(rest)) + rest
    return start + struct.pack(order + "H", len(every)) + b"".join(packed) + bytes(4)


@pytest.mark.parametrize(
    ("kind", "part", "most"),
    [
        ("JPEG", b"\xff\xe0\0\2", 10_000),
        ("JPEG", b"\xff\xd8", 10_000),
        ("JPEG", b"\xff\xdb\0\2", 10_000),
        ("PNG", chunk(b"tEXt"), 100_000),
        ("PNG", chunk(b"PLTE"), 100_000),
        ("GIF", b"!\xfe\0", 100_000),
        ("GIF", b"?", 100_000),
    ],
)
def test_absurdly_many_parts(kind, part, most):
    plain = encoded(kind)
    few = decode(behind_signature(plain, kind, b"!\xfe\0" if kind == "GIF" else b""), max_pixels=MAX_PIXELS)
    assert np.array_equal(few, decode(plain, max_pixels=MAX_PIXELS))
    with pytest.raises(CorruptImage):
        decode(behind_signature(plain, kind, part * (most + 1)), max_pixels=MAX_PIXELS)


def test_a_gifs_metadata_in_absurdly_many_parts():
    metadata = b"!\xfe" + b"\1a" * 100_001 + b"\0"
    with pytest.raises(CorruptImage):
        decode(behind_signature(encoded("GIF"), "GIF", metadata), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("between", [b"\xff", b"a"], ids=["fill", "something else"])
def test_what_lies_between_the_segments_of_a_jpeg_is_not_read_byte_by_byte(between):
    plain = encoded("JPEG")
    photo = behind_signature(plain, "JPEG", b"\xff\xfe\0\2" + between * 2**20)
    assert len(jpeg_header(photo)) < len(plain)
    assert np.array_equal(decode(photo, max_pixels=MAX_PIXELS), decode(plain, max_pixels=MAX_PIXELS))


def test_the_first_exif_of_a_jpeg_counts_and_the_others_are_not_put_together():
    exif = Image.Exif()
    exif[274] = 6
    plain = encoded("JPEG", exif=exif)
    more = b"\xff\xe1" + struct.pack(">H", 60_008) + b"Exif\0\0" + bytes(60_000)
    at = plain.index(b"\xff\xdb")
    photo = plain[:at] + more * 20 + plain[at:]
    assert len(jpeg_header(photo)) < len(plain)
    assert decode(photo, max_pixels=MAX_PIXELS).shape == (48, 32, 3)


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_tags_that_share_their_values(order, big):
    """libtiff copies the values of each: two megabytes took six gigabytes."""
    start, pixels = 16 if big else 8, bytes(range(64)) + bytes(100_000)
    tags = [(1000 + place, 7, 100_000, start) for place in range(5)]
    photo = tiff(tags[:1], pixels, order=order, big=big)
    assert decode(photo, max_pixels=MAX_PIXELS)[0, :4, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(CorruptImage):
        decode(tiff(tags, pixels, order=order, big=big), max_pixels=MAX_PIXELS)


def test_tags_that_a_picture_may_have():
    beyond = [(270, 2, 2**30, 8), (320, 3, 2**29, 8), (1000, 3, 600_000, 2**31)]
    tags = [(1001 + place, 7, 90, 8) for place in range(100)]
    photo = tiff([*beyond, *tags], bytes(range(64)) + bytes(10_000))
    try:
        with warnings.catch_warnings(action="ignore"):
            Image.open(io.BytesIO(photo)).load()
    except (KeyError, UnidentifiedImageError):  # it stops at the first tag that lies beyond the file
        pytest.skip("this Pillow can't read it")
    assert decode(photo, max_pixels=MAX_PIXELS)[0, :4, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "tags",
    [
        [(1000 + place, 3, 1, 0) for place in range(1000)],
        [(282, 5, 1001, 8)],
        [(320, 3, 500_001, 8)],
    ],
    ids=["tags", "fractions", "numbers"],
)
def test_absurdly_many_tags_or_values(tags):
    photo = tiff(tags, bytes(1_100_000))
    with pytest.raises(CorruptImage):
        decode(photo, max_pixels=MAX_PIXELS)


def test_an_orientation_of_many_numbers_says_nothing():
    count = 1_000_000
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 274, 5, count, 26, 0) + bytes([1]) * 8 * count
    plain = encoded("PNG")
    photo = behind_signature(plain, "PNG", chunk(b"eXIf", exif[6:]))
    started = time.thread_time()
    assert decode(photo, max_pixels=MAX_PIXELS).shape == (32, 48, 3)
    assert time.thread_time() - started < 1, "Pillow takes three seconds to make objects of them"


def test_a_large_picture_of_floats_is_converted_piece_by_piece():
    side = 2000
    levels = np.linspace(-1, 1, side * side, dtype=np.float32).reshape(side, side)
    picture = Image.fromarray(levels)
    tracemalloc.start()
    try:
        grey = np.asarray(as_rgb(picture))[..., 0]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (grey[0, 0], grey[-1, -1]) == (0, 255)
    assert np.array_equal(grey, np.rint((levels.astype(np.float64) + 1) * 127.5).astype(np.uint8))
    assert peak < 16 * side * side, "as a whole it takes twice as much"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_large_picture_is_laid_on_white_piece_by_piece(mode, monkeypatch):
    noise = np.random.default_rng(1).integers(0, 256, (700, 900, 4), dtype=np.uint8)
    picture = Image.fromarray(noise).convert(mode)
    if mode == "P":
        picture.info["transparency"] = bytes(range(256))
    whole = Image.new("RGBA", picture.size, "white")
    whole.alpha_composite(picture.convert("RGBA"))
    made, new = [], Image.new

    def making(kind, size, *options):
        made.append((kind, size[0] * size[1]))
        return new(kind, size, *options)

    monkeypatch.setattr(Image, "new", making)
    assert np.array_equal(np.asarray(as_rgb(picture)), np.asarray(whole.convert("RGB")))
    assert max(pixels for kind, pixels in made if kind == "RGBA") < 700 * 900 / 2

"""A file from which pixels are missing is refused, whatever stands in their place."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from condconv_serve.errors import CorruptImage, UnsupportedImage
from condconv_serve.imaging import SufficientSize, decode
from tests import pictures
from tests.pictures import PNG_SIGNATURE, encode, jpeg, photo, png_chunk

LIMIT = 10**6
SIZE = (150, 100)
PHOTO = photo("cat", SIZE)
END = b"\xff\xd9"
JPEGS = {
    "plain": jpeg(PHOTO),
    "subsampled": jpeg(PHOTO, subsampling=2, quality=75),
    "grey": jpeg(pictures.grey(PHOTO)),
    "cmyk": jpeg(Image.fromarray(PHOTO).convert("CMYK")),
    "optimised": jpeg(PHOTO, optimize=True, quality=30),
    "restarts": jpeg(PHOTO, restart_marker_rows=1),
    "progressive": jpeg(PHOTO, progressive=True),
}
FILLINGS = {
    "nothing": lambda kept, missing: b"",
    "zeros": lambda kept, missing: bytes(missing),
    "many zeros": lambda kept, missing: bytes(20 * missing),
    "ones": lambda kept, missing: b"\xff" * missing,
    "spaces": lambda kept, missing: b" " * missing,
    "text": lambda kept, missing: b"The quick brown fox. " * (missing // 20),
    "noise": lambda kept, missing: np.random.default_rng(missing).bytes(missing),
    "a repeated piece": lambda kept, missing: (kept[len(kept) // 2 :] * 9)[:missing],
    "the beginning": lambda kept, missing: kept[:missing],
}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("name", JPEGS)
def test_a_cut_jpeg_is_refused_whatever_fills_the_gap(name, filling, share):
    whole = JPEGS[name]
    kept = whole[: int(share * len(whole))]
    data = kept + FILLINGS[filling](kept, len(whole) - len(kept))
    for sufficient in (None, SufficientSize(short=40)):
        with pytest.raises(CorruptImage):
            decode(data, max_pixels=LIMIT, sufficient=sufficient)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", sorted(set(JPEGS) - {"progressive"}))
def test_a_cut_jpeg_of_one_scan_is_refused_although_it_has_an_end_marker(name, share):
    kept = JPEGS[name][: int(share * len(JPEGS[name]))]
    for filling in (b"", b"\xff" * 100):
        with pytest.raises(CorruptImage):
            decode(kept + filling + END, max_pixels=LIMIT)


def test_a_jpeg_without_its_end_marker_is_cut():
    for data in JPEGS.values():
        with pytest.raises(CorruptImage):
            decode(data.removesuffix(END), max_pixels=LIMIT)


def test_every_scan_of_a_progressive_jpeg_is_needed():
    data = JPEGS["progressive"]
    starts = [i for i in range(len(data)) if data.startswith(b"\xff\xda", i)]
    assert len(starts) > 5
    for start in starts[1:]:
        with pytest.raises(CorruptImage):
            decode(data[:start] + END, max_pixels=LIMIT)


def without_scan(data, which):
    """Cut out a scan with its Huffman table."""
    starts = [i for i in range(len(data)) if data.startswith((b"\xff\xda", b"\xff\xc4"), i)]
    scans = [i for i in starts if data[i + 1] == 0xDA]
    after = [i for i in (*starts, len(data) - 2) if i > scans[which]]
    return data[: scans[which]] + data[after[0] :]


def test_a_scan_missing_in_the_middle_is_noticed():
    for which in range(1, 8):
        with pytest.raises(CorruptImage):
            decode(without_scan(JPEGS["progressive"], which), max_pixels=LIMIT)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize(
    "trailer",
    [
        b"\0",
        bytes(5000),
        b"\xff" * 50,
        np.random.default_rng(0).bytes(5000),
        JPEGS["plain"],
        JPEGS["plain"][:2000],
        b"\0\0\0\x18ftypmp42" + bytes(500),
        b"SEFHe\0\0\0" + bytes(100) + b"SEFT",
    ],
    ids=["byte", "zeros", "ones", "noise", "picture", "half a picture", "motion", "samsung"],
)
def test_whatever_follows_a_whole_jpeg_doesnt_matter(name, trailer):
    expected = decode(JPEGS[name], max_pixels=LIMIT)
    np.testing.assert_array_equal(decode(JPEGS[name] + trailer, max_pixels=LIMIT), expected)


def test_fill_bytes_before_a_marker_are_no_gap():
    for data in JPEGS.values():
        padded = data.removesuffix(END) + b"\xff\xff\xff" + END
        np.testing.assert_array_equal(decode(padded, max_pixels=LIMIT), decode(data, max_pixels=LIMIT))


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (16, 17), (33, 100)])
@pytest.mark.parametrize("colour", ["white", "teal", None])
def test_whole_jpegs_of_all_sizes_are_read(size, colour):
    image = Image.new("RGB", size, colour) if colour else Image.fromarray(photo("astronaut", size))
    for options in ({}, {"subsampling": 2}, {"optimize": True, "quality": 5}, {"restart_marker_blocks": 3}):
        data = jpeg(image, **options)
        np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), as_pillow_reads(data))


def as_pillow_reads(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


LOSSLESS = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALCAAMABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABQEI/9oACAEBAAEAAM/oIIIIIIIIIIIIIIVBBBBB"
    "BBBBBBBBBCoIIIIIIIIIIIIIIVBBBBBBBBBBBBBBCoIIIIIIIIIIIIIIVBBBBBBBBBBBBBBCoIIIIIIIIIIIIIIVBBBBBBBBBBBBBBCoIIIIIIII"
    "IIIIIIVBBBBBBBBBBBBBBCoIIIIIIIIIIIIIIVBBBBBBBBBBBBBBD//Z"
)
"""Made by libjpeg-turbo 3: a level is 16 times its column and once its row."""

ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYU"
    "GBIUFRT/yQALCAAoADABAREA/8wABgAQEAX/2gAIAQEAAD8A/wDtrJDYc2U/QltgFMUsPToz/KKhZepBa33iER1ciX1KG4sNvq7LnjHQ2/APX+zI"
    "QvP7+IhgOJ7pPATMga4Pqf0M4ViV0+1VbNFyi1Izb//Z"
)
"""Made by jpegtran: a level is 5 times its column."""


@pytest.mark.parametrize("sufficient", [None, SufficientSize(short=6)])
def test_a_lossless_jpeg_is_read(sufficient):
    row, column = np.mgrid[:12, :16]
    pixels = decode(LOSSLESS, max_pixels=LIMIT, sufficient=sufficient)
    np.testing.assert_array_equal(pixels[..., 0], 16 * column + row)


@pytest.mark.parametrize("comment", range(65_200, 65_500, 25))
def test_an_arithmetic_jpeg_is_read_wherever_the_blocks_end_in_which_files_are_read(comment):
    data = ARITHMETIC[:2] + b"\xff\xfe" + struct.pack(">H", comment) + bytes(comment - 2) + ARITHMETIC[2:]
    pixels = decode(data, max_pixels=LIMIT)
    assert np.abs(pixels[..., 0] - 5.0 * np.arange(48)).max() <= 3


@pytest.mark.parametrize(("code", "depth", "says"), [(0xC1, 12, "12 bits per sample"), (0xC5, 8, "hierarchical")])
def test_rare_kinds_of_jpeg_are_unsupported(code, depth, says):
    data = JPEGS["plain"]
    frame = data.index(b"\xff\xc0")
    data = data[:frame] + bytes([0xFF, code]) + data[frame + 2 : frame + 4] + bytes([depth]) + data[frame + 5 :]
    with pytest.raises(UnsupportedImage, match=says):
        decode(data, max_pixels=LIMIT)


def rows_of(pixels):
    return [b"\0" + row.tobytes() for row in pixels]


def png_of(raw, *, interlaced=0, size=SIZE, colour=2):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, interlaced))
    half = len(raw) // 2
    packed = zlib.compressobj()
    pieces = [
        packed.compress(raw[:half]) + packed.flush(zlib.Z_FULL_FLUSH),
        packed.compress(raw[half:]) + packed.flush(),
    ]
    return PNG_SIGNATURE + header + b"".join(png_chunk(b"IDAT", piece) for piece in pieces) + png_chunk(b"IEND", b"")


def interlaced_rows(pixels):
    steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    return [row for x, y, dx, dy in steps for row in rows_of(pixels[y::dy, x::dx]) if len(row) > 1]


@pytest.mark.parametrize("interlaced", [0, 1])
def test_a_png_with_too_few_rows_is_refused(interlaced):
    rows = interlaced_rows(PHOTO) if interlaced else rows_of(PHOTO)
    whole = png_of(b"".join(rows), interlaced=interlaced)
    np.testing.assert_array_equal(decode(whole, max_pixels=LIMIT), PHOTO)
    np.testing.assert_array_equal(
        decode(png_of(b"".join(rows) + bytes(9999), interlaced=interlaced), max_pixels=LIMIT), PHOTO
    )
    for count in (0, 1, len(rows) // 2, len(rows) - 1):
        with pytest.raises(CorruptImage):
            decode(png_of(b"".join(rows[:count]), interlaced=interlaced), max_pixels=LIMIT)
    with pytest.raises(CorruptImage):
        decode(png_of(b"".join(rows)[:-1], interlaced=interlaced), max_pixels=LIMIT)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (5, 5), (9, 2)])
def test_a_png_that_is_black_at_the_bottom_is_whole(size, interlaced):
    pixels = photo("coffee", size).copy()
    pixels[-1] = 0
    rows = interlaced_rows(pixels) if interlaced else rows_of(pixels)
    data = png_of(b"".join(rows), interlaced=interlaced, size=size)
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), pixels)


@pytest.mark.parametrize(("mode", "colour"), [("1", 0), ("L", 0), ("LA", 0), ("P", 0), ("RGBA", 0), ("I;16", 0)])
def test_a_png_that_is_all_black_or_transparent_is_whole(mode, colour):
    image = Image.new(mode, (20, 10), colour)
    expected = 255 if mode in ("LA", "RGBA") else 0
    assert (decode(encode(image, "PNG"), max_pixels=LIMIT) == expected).all()


def test_a_png_that_inflates_without_end_is_not_followed():
    """What is counted is at most the picture."""
    data = png_of(bytes(5_000_000), size=(4, 4))
    assert (decode(data, max_pixels=LIMIT) == 0).all()


def gif(indices, *, size, frame):
    """Write a GIF that isn't compressed: every code is a pixel, and the table is cleared before it grows."""
    codes = [code for i, index in enumerate(indices) for code in ((256, index) if i % 100 == 0 else (index,))] + [257]
    number = sum(code << 9 * i for i, code in enumerate(codes))
    packed = number.to_bytes((9 * len(codes) + 7) // 8, "little")
    blocks = b"".join(bytes([len(packed[i : i + 255])]) + packed[i : i + 255] for i in range(0, len(packed), 255))
    palette = b"".join(bytes([i, 255 - i, i // 2]) for i in range(256))
    screen = b"GIF89a" + struct.pack("<HHBBB", *size, 0xF7, 0, 0) + palette
    return screen + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x08" + blocks + b"\0;"


def test_a_gif_with_too_few_pixels_is_refused():
    indices = [(7 * i) % 256 for i in range(40 * 30)]
    decode(gif(indices, size=(40, 30), frame=(40, 30)), max_pixels=LIMIT)
    for count in (0, 600, 1199):
        with pytest.raises(CorruptImage):
            decode(gif(indices[:count], size=(40, 30), frame=(40, 30)), max_pixels=LIMIT)


def test_around_the_frame_of_a_gif_it_is_white():
    pixels = decode(gif([9] * 12, size=(10, 8), frame=(4, 3)), max_pixels=LIMIT)
    assert (pixels[:3, :4] == (9, 246, 4)).all()
    pixels = pixels.copy()
    pixels[:3, :4] = 255
    assert (pixels == 255).all()


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_short_bmp_is_refused(share):
    data = encode(PHOTO, "BMP")
    with pytest.raises(CorruptImage):
        decode(data[: int(share * len(data))], max_pixels=LIMIT)


def test_a_rare_layout_of_bmp_is_unsupported():
    masks = struct.pack("<III", 0xF00, 0xF0, 0xF)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0)
    data = b"BM" + struct.pack("<IHHI", 74, 0, 0, 66) + header + masks + bytes(8)
    with pytest.raises(UnsupportedImage, match="a BMP image of a rare kind, a kind that isn't read"):
        decode(data, max_pixels=LIMIT)


@pytest.mark.parametrize("lossless", [False, True])
def test_a_short_webp_is_refused(lossless):
    data = encode(PHOTO, "WEBP", lossless=lossless)
    for share in (0.3, 0.6, 0.9):
        kept = data[: int(share * len(data)) // 2 * 2]
        # Once as it was cut, once with the lengths that it has now.
        adapted = kept[:4] + struct.pack("<I", len(kept) - 8) + kept[8:16] + struct.pack("<I", len(kept) - 20)
        for cut in (kept, adapted + kept[20:]):
            with pytest.raises(CorruptImage):
                decode(cut, max_pixels=LIMIT)

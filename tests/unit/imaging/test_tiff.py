"""The space of TIFFs: each kind gives the right picture or is called unsupported, and none a wrong picture."""

from __future__ import annotations

import io
import itertools
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from condconv_serve.errors import CorruptImage, UnsupportedImage
from condconv_serve.imaging import decode
from tests import pictures
from tests.pictures import encode

WIDTH, HEIGHT = 21, 19
COLOUR = pictures.photo("cat", (WIDTH, HEIGHT))
GREY = pictures.grey(COLOUR)[..., None]
ALPHA = np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8)[:, None], (HEIGHT, WIDTH, 1))
YCBCR = Image.fromarray(COLOUR).convert("YCbCr")
LAYOUTS = {"strips": {"rowsperstrip": 4}, "tiles": {"tile": (16, 16)}}
NUMBERS = ["u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"]
# The samples (8 bits), how they are written, and how they look in 8 bits.
KINDS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "grey": (GREY, {"photometric": "minisblack"}, np.repeat(GREY, 3, 2)),
    "white is zero": (GREY, {"photometric": "miniswhite"}, np.repeat(255 - GREY, 3, 2)),
    "grey, alpha": (
        np.dstack([GREY, ALPHA]),
        {"photometric": "minisblack", "extrasamples": ["unassalpha"]},
        pictures.on_white(np.dstack([GREY, GREY, GREY, ALPHA])),
    ),
    "RGB": (COLOUR, {"photometric": "rgb"}, COLOUR),
    "RGB, alpha": (
        np.dstack([COLOUR, ALPHA]),
        {"photometric": "rgb", "extrasamples": ["unassalpha"]},
        pictures.on_white(np.dstack([COLOUR, ALPHA])),
    ),
    "RGB, something": (np.dstack([COLOUR, ALPHA]), {"photometric": "rgb", "extrasamples": ["unspecified"]}, COLOUR),
    "CMYK": (
        np.dstack([COLOUR, ALPHA // 2]),
        {"photometric": "separated"},
        (255.0 - COLOUR) * (255 - ALPHA // 2) / 255,
    ),
    "YCbCr": (
        np.asarray(YCBCR),
        {"photometric": "ycbcr", "subsampling": (1, 1)},
        np.asarray(YCBCR.convert("RGB")),
    ),
}
READ = {("grey", number) for number in ("u1", "u2", "i2", "u4", "i4", "f4")}
READ |= {("white is zero", number) for number in ("u1", "u2", "f4")}
READ |= {(kind, number) for kind in ("RGB", "RGB, alpha", "RGB, something", "CMYK") for number in ("u1", "u2")}
READ |= {("grey, alpha", "u1"), ("YCbCr", "u1")}
"""What is read in little-endian files with the samples of a pixel side by side."""


def scaled(samples, number):
    """Spread 8-bit levels over the range of another type; floats get 0..1."""
    kind = np.dtype(number)
    if kind.kind == "f":
        return (samples / 255).astype(kind)
    bits = 8 * kind.itemsize
    wide = samples.astype(object) * ((2**bits - 1) // 255)
    return (wide - (2 ** (bits - 1) if kind.kind == "i" else 0)).astype(kind)


def written(samples, *, order="<", planar=False, **options):
    file = io.BytesIO()
    planes = np.moveaxis(samples, -1, 0) if planar else samples
    if samples.shape[2] > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    with tifffile.TiffWriter(file, byteorder=order) as writer:
        writer.write(planes if samples.shape[2] > 1 else samples[..., 0], metadata=None, **options)
    return file.getvalue()


def looks(expected, number):
    """Levels without a range of their own are stretched between their extremes."""
    if number in ("i2", "u4", "i4"):
        return (expected - expected.min()) * (255 / (expected.max() - expected.min()))
    return expected


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind in KINDS for number in (NUMBERS if kind != "YCbCr" else ["u1"])]
)
def test_every_tiff_is_right_or_unsupported(kind, number):
    samples, options, expected = KINDS[kind]
    expected = looks(expected.astype(float), number)
    wide = scaled(samples, number)
    outcomes = {}
    for order, planar, layout, compression in itertools.product("<>", (False, True), LAYOUTS, (None, "zlib")):
        if planar and samples.shape[2] == 1:
            continue
        data = written(wide, order=order, planar=planar, compression=compression, **LAYOUTS[layout], **options)
        case = (order, planar, layout, compression)
        try:
            pixels = decode(data, max_pixels=10**6)
        except UnsupportedImage:
            outcomes[case] = "unsupported"
        else:
            assert np.abs(pixels - expected).max() <= 2, case
            outcomes[case] = "right"
    little_endian = {outcome for (order, planar, *_), outcome in outcomes.items() if order == "<" and not planar}
    assert little_endian == {"right" if (kind, number) in READ else "unsupported"}


@pytest.mark.parametrize("kind", ["RGB", "RGB, alpha", "CMYK"])
@pytest.mark.parametrize("order", "<>")
def test_planes_of_16_bits_are_read_as_such(kind, order):
    samples, options, expected = KINDS[kind]
    data = written(scaled(samples, "u2"), order=order, planar=True, **options)
    assert np.abs(decode(data, max_pixels=10**6) - expected).max() <= 1


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("number", ["i2", "i4", "f4"])
def test_wide_samples_are_read_in_both_byte_orders(number, compression, order):
    samples, options, expected = KINDS["grey"]
    data = written(scaled(samples, number), order=order, compression=compression, **options)
    assert np.abs(decode(data, max_pixels=10**6) - looks(expected.astype(float), number)).max() <= 1


def test_integers_beyond_31_bits_are_no_negative_numbers():
    levels = np.array([[0, 2**31 - 1, 2**31, 2**32 - 1]], np.uint32)[..., None]
    pixels = decode(written(levels, photometric="minisblack"), max_pixels=100)
    assert pixels[0, :, 0].tolist() == [0, 127, 128, 255]


def retagged(data, tag, new):
    """Give a tag another number; readers don't mind that it is out of order."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        where = file.pages[0].tags[tag].offset
    return data[:where] + struct.pack("<H", new) + data[where + 2 :]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(("kind", "number"), [("grey", "u1"), ("grey", "u2"), ("RGB", "u1"), ("RGB", "u2")])
def test_reversed_bits(kind, number, compression):
    samples, options, expected = KINDS[kind]
    private, fill_order = 65000, 266
    data = written(scaled(samples, number), compression=compression, extratags=[(private, 3, 1, 2, True)], **options)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        (start,), (length,) = file.pages[0].dataoffsets, file.pages[0].databytecounts
    table = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    data = data[:start] + data[start : start + length].translate(table) + data[start + length :]
    data = retagged(data, private, fill_order)
    if (kind, number) == ("RGB", "u2"):
        with pytest.raises(UnsupportedImage, match=r"TIFF image \(RGB, 3 x 16-bit integers, bits reversed\)"):
            decode(data, max_pixels=10**6)
    else:
        assert np.abs(decode(data, max_pixels=10**6) - expected).max() <= 1


@pytest.mark.parametrize(
    ("samples", "options", "name"),
    [
        (scaled(GREY, "f8"), {"photometric": "minisblack"}, "(grey, 1 x 64-bit floats)"),
        (scaled(COLOUR, "f4"), {"photometric": "rgb"}, "(RGB, 3 x 32-bit floats)"),
        (scaled(np.dstack([GREY, ALPHA]), "u2"), KINDS["grey, alpha"][1], "(grey, 2 x 16-bit integers)"),
        (scaled(GREY, "i1"), {"photometric": "minisblack"}, "(grey, 1 x 8-bit signed integers)"),
        (scaled(GREY, "u4"), {"photometric": "minisblack", "order": ">"}, "a big-endian TIFF image (grey, 1 x 32-bit"),
        (np.dstack([GREY, ALPHA]), KINDS["grey, alpha"][1] | {"planar": True}, "in planes"),
    ],
)
def test_kinds_that_arent_read_are_named(samples, options, name):
    with pytest.raises(UnsupportedImage) as refused:
        decode(written(samples, **options), max_pixels=10**6)
    assert name in str(refused.value)
    assert str(refused.value).endswith("a kind that isn't read. Convert it to JPEG or PNG first.")


@pytest.mark.parametrize("compression", [34712, 34887, 50002])
def test_unknown_compressions_are_unsupported(compression):
    """JPEG 2000, LERC and JPEG XL."""
    data = pictures.raw_tiff(GREY[..., 0], {pictures.TIFF_COMPRESSION: compression})
    with pytest.raises(UnsupportedImage, match=f"a TIFF image with compression {compression}"):
        decode(data, max_pixels=10**6)


@pytest.mark.parametrize(
    "data",
    [
        pictures.raw_tiff(GREY[..., 0], {50706: 1}),
        pictures.raw_tiff(GREY[..., 0], {254: 1, 330: 8}),
        b"II*\0\x10\0\0\0CR\2\0" + bytes(40),
    ],
    ids=["DNG", "preview", "CR2"],
)
def test_raw_photos_are_named_rather_than_answered_from_their_preview(data):
    with pytest.raises(UnsupportedImage, match="a raw photo of a camera"):
        decode(data, max_pixels=10**6)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("damage", ["short", "empty", "nowhere", "at the start", "missing"])
def test_strips_that_arent_there_are_noticed(damage, compression, capfd):
    data = bytearray(written(COLOUR, photometric="rgb", rowsperstrip=4, compression=compression))
    assert (decode(bytes(data), max_pixels=10**6) == COLOUR).all()
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        offsets, counts = file.pages[0].tags["StripOffsets"], file.pages[0].tags["StripByteCounts"]
        half = file.pages[0].databytecounts[1] // 2
    place, size = {"H": (2, 2), "I": (4, 4)}, {3: "H", 4: "I"}
    tag, value = {
        "short": (counts, half),
        "empty": (counts, 0),
        "nowhere": (offsets, 10**6),
        "at the start": (offsets, 0),
    }.get(damage, (None, 0))
    if tag is None:
        struct.pack_into("<I", data, offsets.offset + 4, 2)
    else:
        code = size[tag.dtype]
        struct.pack_into(
            "<" + code, data, tag.valueoffset + place[code][0], min(value, 65535 if code == "H" else value)
        )
    with pytest.raises(CorruptImage):
        decode(bytes(data), max_pixels=10**6)
    assert capfd.readouterr().err == "", "libtiff says it to the process"


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"text", None])
def test_a_cut_jpeg_in_a_tiff_is_refused(filling):
    data = encode(COLOUR, "TIFF", compression="jpeg", quality=90)
    decode(data, max_pixels=10**6)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        (start,), (length,) = file.pages[0].dataoffsets, file.pages[0].databytecounts
        counts = file.pages[0].tags["StripByteCounts"].valueoffset
    half = length // 2
    if filling is None:
        damaged = data[:counts] + struct.pack("<I", half) + data[counts + 4 :]
    else:
        damaged = data[: start + half] + (filling * length)[: length - half] + data[start + length :]
    with pytest.raises(CorruptImage):
        decode(damaged, max_pixels=10**6)

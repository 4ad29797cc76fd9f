"""Decoding against the pixels that were encoded, and everything that untrusted bytes may try."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from condconv_serve.errors import CorruptImage, ImageError, ImageTooLarge, UnsupportedImage
from condconv_serve.imaging import ACCEPTED_FORMATS, decode
from condconv_serve.imaging.formats import IMAGE_SUFFIXES, SUFFIXES, FormatName
from tests import pictures
from tests.pictures import PNG_SIGNATURE, encode, grey, jpeg, on_white, photo, png, png_chunk, png_header, raw_tiff

SIZE = (120, 80)
PHOTO = photo("cat", SIZE)
FILES = pictures.accepted(PHOTO)
UNSUPPORTED, TOO_LARGE, CORRUPT = pictures.unsupported(), pictures.too_large(), pictures.corrupt()
LIMIT = 1_000_000

EXACT = ["png", "png_16bit_rgb", "png_animated", "webp_lossless", "webp_animated"]
EXACT += ["tiff", "tiff_lzw", "tiff_deflate", "tiff_cmyk", "tiff_pages", "bmp"]
LOSSY = ["jpeg", "jpeg_progressive", "jpeg_cmyk", "jpeg_ycck", "mpo", "tiff_jpeg", "webp"]
LOSSY += ["avif", "avif_animated", "heic", "heic_tiles"]
GREY = ["png_grey", "png_16bit_grey", "tiff_grey", "tiff_16bit_grey", "tiff_16bit_grey_lzw", "tiff_float"]
PALETTE = ["png_palette", "gif", "gif_animated", "tiff_palette", "bmp_palette"]
ALPHA = ["png_rgba", "png_16bit_rgba", "webp_alpha", "tiff_rgba"]
BILEVEL = ["png_1bit", "tiff_1bit", "bmp_1bit"]


def difference(pixels, expected):
    return np.abs(pixels.astype(float) - expected)


def in_rgb(levels):
    """Show `[H, W]` levels as `[H, W, 3]`."""
    return np.repeat(levels[..., None], 3, axis=2)


@pytest.mark.parametrize("name", FILES)
def test_every_accepted_file_gives_rgb(name):
    pixels = decode(FILES[name], max_pixels=LIMIT)
    assert pixels.dtype == np.uint8
    assert pixels.shape == ((120, 80, 3) if name == "jpeg_exif" else (80, 120, 3))
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("name", EXACT)
def test_lossless_colour_is_exact(name):
    np.testing.assert_array_equal(decode(FILES[name], max_pixels=LIMIT), PHOTO)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_colour_is_close(name):
    """Wrongly inverted CMYK or YCCK, or the second picture of an MPO, would be off by a hundred levels."""
    assert difference(decode(FILES[name], max_pixels=LIMIT), PHOTO).mean() < 2.5


def test_lossy_grey_and_subsampled_colour_are_close():
    assert difference(decode(FILES["jpeg_grey"], max_pixels=LIMIT), in_rgb(grey(PHOTO))).mean() < 2.5
    assert difference(decode(FILES["jpeg_subsampled"], max_pixels=LIMIT), PHOTO).mean() < 5


@pytest.mark.parametrize("name", GREY)
def test_grey_of_any_depth_is_exact(name):
    np.testing.assert_array_equal(decode(FILES[name], max_pixels=LIMIT), in_rgb(grey(PHOTO)))


@pytest.mark.parametrize("name", PALETTE)
def test_palettes_are_looked_up(name):
    expected = np.asarray(Image.fromarray(PHOTO).quantize(64).convert("RGB"))
    np.testing.assert_array_equal(decode(FILES[name], max_pixels=LIMIT), expected)


@pytest.mark.parametrize("name", ALPHA)
def test_alpha_lies_on_white(name):
    expected = on_white(pictures.with_alpha(PHOTO))
    assert difference(decode(FILES[name], max_pixels=LIMIT), expected).max() <= 1


def test_grey_alpha_lies_on_white():
    levels = grey(PHOTO)
    for name, alpha in (("png_grey_alpha", pictures.with_alpha(PHOTO)[..., 3]), ("png_16bit_grey_alpha", levels)):
        expected = on_white(np.dstack([in_rgb(levels), alpha]))
        assert difference(decode(FILES[name], max_pixels=LIMIT), expected).max() <= 1, name


def test_palette_transparency_lies_on_white():
    palette = Image.fromarray(PHOTO).quantize(64)
    index, colours = np.asarray(palette), np.asarray(palette.convert("RGB"))
    expected = on_white(np.dstack([colours, (index * 4).astype(np.uint8)]))
    assert difference(decode(FILES["png_palette_transparency"], max_pixels=LIMIT), expected).max() <= 1
    expected = np.where((index == 3)[..., None], 255, colours)
    np.testing.assert_array_equal(decode(FILES["gif_transparency"], max_pixels=LIMIT), expected)


def test_a_transparent_colour_lies_on_white():
    keyed = PHOTO.copy()
    keyed[10:20, 10:30] = (1, 2, 3)
    key = png_chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    expected = keyed.copy()
    expected[10:20, 10:30] = 255
    np.testing.assert_array_equal(decode(png(keyed, extra=[key]), max_pixels=LIMIT), expected)


def test_a_transparent_colour_of_16_bits_is_unsupported():
    key = png_chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    with pytest.raises(UnsupportedImage, match="16 bits per sample and a transparent colour, a kind that isn't read"):
        decode(png(PHOTO.astype(np.uint16) * 257, extra=[key]), max_pixels=LIMIT)


@pytest.mark.parametrize(("depth", "key"), [(1, 1), (2, 2), (4, 9), (8, 200), (16, 0x1234)])
def test_a_transparent_grey_lies_on_white(depth, key):
    levels = np.arange(64, dtype=np.uint32).reshape(8, 8) * 797 % 2**depth
    levels[2:4] = key
    bits = np.unpackbits(levels.astype(">u4").view(np.uint8).reshape(8, 8, 4), axis=2)[..., -depth:]
    rows = [b"\0" + np.packbits(row.ravel()).tobytes() for row in bits]
    chunks = [
        png_header(8, 8, depth=depth, colour=0),
        png_chunk(b"tRNS", struct.pack(">H", key)),
        png_chunk(b"IDAT", zlib.compress(b"".join(rows))),
        png_chunk(b"IEND", b""),
    ]
    expected = in_rgb(np.where(levels == key, 255, np.rint(levels * 255 / (2**depth - 1))).astype(np.uint8))
    np.testing.assert_array_equal(decode(PNG_SIGNATURE + b"".join(chunks), max_pixels=LIMIT), expected)


@pytest.mark.skipif(
    (b"II", 1, (1,), 1, (8, 8), (1,)) not in TiffImagePlugin.OPEN_INFO, reason="this Pillow can't read it"
)
def test_premultiplied_grey_lies_on_white():
    samples = np.dstack([np.full((4, 6), 60, np.uint8), np.full((4, 6), 120, np.uint8)])
    tags = {pictures.TIFF_BITS: (8, 8), pictures.TIFF_EXTRA_SAMPLES: 1}
    assert difference(decode(raw_tiff(samples, tags), max_pixels=LIMIT), 60 + 135).max() <= 1


@pytest.mark.parametrize("name", BILEVEL)
def test_one_bit_is_black_and_white(name):
    expected = in_rgb(np.asarray(Image.fromarray(PHOTO).convert("1")).astype(np.uint8) * 255)
    np.testing.assert_array_equal(decode(FILES[name], max_pixels=LIMIT), expected)


RAMP = np.arange(65536, dtype=np.uint16).reshape(128, 512)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(RAMP[..., None]), id="png_grey"),
        pytest.param(png(np.dstack([RAMP] * 3)), id="png_rgb"),
        pytest.param(encode(RAMP, "TIFF"), id="tiff"),
        pytest.param(encode(RAMP.astype(">u2"), "TIFF"), id="tiff_big_endian"),
        pytest.param(encode(RAMP, "TIFF", compression="tiff_adobe_deflate"), id="tiff_deflate"),
        pytest.param(raw_tiff(65535 - RAMP, {pictures.TIFF_PHOTOMETRIC: 0}), id="tiff_white_is_zero"),
        pytest.param(raw_tiff(np.dstack([RAMP] * 3), {pictures.TIFF_PHOTOMETRIC: 2}), id="tiff_rgb"),
    ],
)
def test_every_16_bit_level_is_scaled(data):
    expected = in_rgb(RAMP / 257)
    assert difference(decode(data, max_pixels=LIMIT), expected).max() <= 1


def test_12_bit_levels_are_scaled_by_their_own_range():
    levels = np.arange(4096, dtype=np.uint32).reshape(32, 128)
    pairs = (levels[:, ::2] << 12 | levels[:, 1::2]).reshape(-1)
    packed = np.stack([pairs >> 16, pairs >> 8, pairs], axis=1).astype(np.uint8).tobytes()
    skeleton = np.zeros((32, 128), np.uint8)
    data = raw_tiff(skeleton, {pictures.TIFF_BITS: 12, pictures.TIFF_COUNTS: len(packed)}, payload=packed)
    pixels = decode(data, max_pixels=LIMIT)
    assert difference(pixels, in_rgb(levels * (255 / 4095))).max() <= 1


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 0.25, 0.5]], np.float32), [0, 64, 128]),
        (np.array([[-100, 0, 100]], np.float32), [0, 128, 255]),
        (np.array([[0, 1000, 4000]], np.float32), [0, 64, 255]),
        (np.array([[np.nan, 0, 1]], np.float32), [0, 0, 255]),
        (np.array([[-np.inf, 0.5, np.inf]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.nan, np.nan]], np.float32), [0, 0, 0]),
        (np.array([[0x7F800001, 0, 0x3F800000]], np.uint32).view(np.float32), [0, 0, 255]),
        (np.array([[-3e38, 0, 3e38]], np.float32), [0, 128, 255]),
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        (np.array([[7, 7, 7]], np.int32), [0, 0, 0]),
    ],
)
def test_levels_without_a_range_are_stretched(samples, expected):
    pixels = decode(encode(samples, "TIFF"), max_pixels=LIMIT)
    assert difference(pixels[0, :, 0], expected).max() <= 1


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 2.5),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4", "speed": 10}, 2.5),
    ],
)
def test_all_orientations_give_the_same_upright_picture(file_format, options, tolerance, orientation):
    data = pictures.oriented(PHOTO, orientation, file_format, **options)
    pixels = decode(data, max_pixels=LIMIT)
    assert pixels.shape == PHOTO.shape
    assert difference(pixels, PHOTO).mean() <= tolerance


def test_only_exif_turns_a_picture():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert difference(decode(jpeg(PHOTO, xmp=xmp), max_pixels=LIMIT), PHOTO).mean() < 2.5


@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", pictures.exif(77)]
)
def test_damaged_or_odd_exif_doesnt_spoil_the_picture(block):
    assert difference(decode(jpeg(PHOTO, exif=block), max_pixels=LIMIT), PHOTO).mean() < 2.5
    np.testing.assert_array_equal(decode(png(PHOTO, extra=[png_chunk(b"eXIf", block[6:])]), max_pixels=LIMIT), PHOTO)


def test_a_damaged_index_of_pictures_doesnt_spoil_the_first():
    data = FILES["mpo"]
    start = data.index(b"MPF\0") + 4
    for garbage in (b"\xff" * 40, bytes(40), b"II*\0\xff\xff\xff\x7f" + bytes(32)):
        broken = data[:start] + garbage + data[start + 40 :]
        np.testing.assert_array_equal(decode(broken, max_pixels=LIMIT), decode(data, max_pixels=LIMIT))


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_formats_are_unsupported(name):
    with pytest.raises(UnsupportedImage) as caught:
        decode(UNSUPPORTED[name], max_pixels=LIMIT)
    assert all(accepted in str(caught.value) for accepted in ACCEPTED_FORMATS)


@pytest.fixture
def no_pixels(monkeypatch):
    """Make every way to allocate or decode a picture fail."""

    def fail(*arguments, **options):
        raise AssertionError("a pixel was touched")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr(Image.core, "new", fail)
    monkeypatch.setattr(Image.core, "fill", fail)
    monkeypatch.setattr("PIL.WebPImagePlugin._webp.WebPAnimDecoder", fail)
    monkeypatch.setattr("PIL.AvifImagePlugin._avif.AvifDecoder", fail)
    monkeypatch.setattr("pillow_heif.HeifImageFile", fail)


@pytest.mark.usefixtures("no_pixels")
@pytest.mark.parametrize("name", TOO_LARGE)
def test_too_many_pixels_are_refused_by_the_header(name):
    with pytest.raises(ImageTooLarge, match=r"has \d{5} x \d{5} pixels, \d+ in all; 50000000 are allowed"):
        decode(TOO_LARGE[name], max_pixels=50_000_000)


@pytest.mark.parametrize("name", FILES)
def test_the_limit_is_exact(name):
    width, height = SIZE
    decode(FILES[name], max_pixels=width * height)
    with pytest.raises(ImageTooLarge):
        decode(FILES[name], max_pixels=width * height - 1)


def test_a_limit_beyond_pillows_own_is_kept(monkeypatch):
    """Pillow would warn from 89 million pixels and refuse from twice as many."""
    assert Image.MAX_IMAGE_PIXELS is None
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (_ for _ in ()).throw(OSError("reached")))
    with pytest.raises(CorruptImage) as caught:
        decode(TOO_LARGE["bmp"], max_pixels=10**10)
    assert str(caught.value.__cause__) == "reached"


@pytest.mark.parametrize("name", CORRUPT)
def test_damaged_files_are_corrupt(name):
    with pytest.raises(CorruptImage):
        decode(CORRUPT[name], max_pixels=LIMIT)


@pytest.mark.parametrize(
    "error", [MemoryError(), OverflowError(), RecursionError(), struct.error(), zlib.error(), KeyError(1)]
)
def test_whatever_pillow_raises_is_corrupt(monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(CorruptImage) as caught:
        decode(FILES["png"], max_pixels=LIMIT)
    assert caught.value.__cause__ is error


def test_messages_are_fit_for_the_caller():
    for files in (UNSUPPORTED, TOO_LARGE, CORRUPT):
        for name, data in files.items():
            with pytest.raises(ImageError) as caught:
                decode(data, max_pixels=LIMIT)
            assert re.fullmatch(r"[A-Z][^<>/]{20,160}\.", str(caught.value)), name


def test_truncated_images_are_never_completed():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


SMALL = pictures.accepted(photo("coffee", (12, 9)))


@pytest.mark.parametrize("name", SMALL)
def test_truncation_anywhere_is_noticed_or_harmless(name):
    data = SMALL[name]
    whole = decode(data, max_pixels=LIMIT)
    # Anywhere in the headers and at the end; between those, where pixels are, at every third byte.
    ends = {*range(min(200, len(data))), *range(max(0, len(data) - 20), len(data))}
    for length in sorted(ends | {*range(0, len(data), 3)}):
        try:
            pixels = decode(data[:length], max_pixels=LIMIT)
        except ImageError:
            continue
        np.testing.assert_array_equal(pixels, whole, err_msg=f"{length} of {len(data)} bytes")


def with_checksums(data):
    """Make the checksums of a damaged PNG right, so that the damage reaches the decoder."""
    kept, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kept.append(png_chunk(data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join(kept)


@pytest.mark.parametrize("name", SMALL)
def test_random_damage_never_escapes(name):
    random = np.random.default_rng(zlib.crc32(name.encode()))
    original = np.frombuffer(SMALL[name], np.uint8)
    for attempt in range(80):  # `make fuzz` makes many more
        damaged = original.copy()
        # The headers are where decoders branch, so half of the attempts hit only them.
        reach = min(len(damaged), 200) if attempt % 2 else len(damaged)
        places = random.integers(0, reach, random.integers(1, 6))
        damaged[places] = random.integers(0, 256, len(places))
        data = damaged.tobytes()
        if name.startswith("png") and attempt % 3:
            data = with_checksums(data)
        try:
            pixels = decode(data, max_pixels=LIMIT)
        except ImageError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3


def test_inflating_metadata_is_left_alone():
    """Text and colour profiles of a PNG inflate a thousandfold; the picture needs neither."""
    bomb = zlib.compress(bytes(50_000_000))
    profile = png_chunk(b"iCCP", b"profile\0\0" + bomb)
    text = png_chunk(b"zTXt", b"comment\0\0" + bomb)
    international = png_chunk(b"iTXt", b"comment\0\x01\0\0\0" + bomb)
    data = png(PHOTO, extra=[profile, text, international], after=[text, international])
    tracemalloc.start()
    pixels = decode(data, max_pixels=LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(pixels, PHOTO)
    assert peak < 1_000_000


def test_other_frames_are_not_even_looked_at():
    """Damage in later frames doesn't matter."""
    first = np.asarray(Image.fromarray(PHOTO).quantize(64).convert("RGB"))
    second = FILES["gif_animated"].rindex(b"\x21\xf9\x04")
    damaged = FILES["gif_animated"][: second + 20] + b"\xff" * 50
    np.testing.assert_array_equal(decode(damaged, max_pixels=LIMIT), first)
    damaged = FILES["mpo"][:-500] + bytes(100)
    np.testing.assert_array_equal(decode(damaged, max_pixels=LIMIT), decode(FILES["mpo"], max_pixels=LIMIT))


def test_many_scans_are_refused_and_some_accepted():
    decode(pictures.jpeg_of_many_scans(40), max_pixels=LIMIT)
    with pytest.raises(CorruptImage):
        decode(pictures.jpeg_of_many_scans(60), max_pixels=LIMIT)
    # The markers of an embedded thumbnail, and of whatever follows the picture, are none of its scans.
    thumbnail = b"Exif\0\0" + b"\xff\xda\0\x02" * 200
    decode(jpeg(PHOTO, exif=thumbnail) + b"\0\x02" + b"\xff\xda\0\x02" * 200, max_pixels=LIMIT)


def noisy_files():
    """Files that make Pillow warn, but have a good picture."""
    control = png_chunk(b"acTL", struct.pack(">II", 0, 0))
    copyright_tag = 0x8298
    odd_tiff = raw_tiff(grey(PHOTO), {copyright_tag: (1, 2)})
    odd_tiff = odd_tiff.replace(
        struct.pack("<HHI", copyright_tag, 3, 2), struct.pack("<HHI", copyright_tag, 2, 1 << 20)
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\0\0\0\x10\xff\xff\0\0\0\0\0\0"
    return {
        "tiff": odd_tiff,
        "png": png(PHOTO, extra=[control, control]),
        "exif": encode(PHOTO, "PNG", exif=exif),
        "mpo": FILES["mpo"].replace(b"MPF\0II*\0", b"MPF\0XX*\0"),
    }


@pytest.mark.parametrize("name", ["tiff", "png", "exif", "mpo"])
@pytest.mark.parametrize("action", ["error", "always"])
def test_pillows_warnings_stay_inside(name, action):
    data = noisy_files()[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        pixels = decode(data, max_pixels=LIMIT)
    assert not caught
    assert difference(pixels, in_rgb(grey(PHOTO)) if name == "tiff" else PHOTO).mean() < 2.5


def test_the_noisy_tiff_is_noisy():
    """Else the test above would prove nothing."""
    with pytest.warns(UserWarning, match="Tag data larger than file|Truncated File Read"):
        Image.open(io.BytesIO(noisy_files()["tiff"]))


def test_other_peoples_warnings_still_work():
    decode(FILES["png"], max_pixels=LIMIT)
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)


def test_threads_dont_disturb_each_other():
    files = [*FILES.values(), *noisy_files().values()] * 4
    expected = [decode(data, max_pixels=LIMIT) for data in files]
    with ThreadPoolExecutor(8) as pool:
        for pixels, wanted in zip(pool.map(lambda data: decode(data, max_pixels=LIMIT), files), expected, strict=True):
            np.testing.assert_array_equal(pixels, wanted)


def test_every_accepted_format_has_its_suffixes():
    assert set(SUFFIXES) == set(ACCEPTED_FORMATS) == set(get_args(FormatName))
    assert all(re.fullmatch(r"\.[a-z]+", suffix) for suffixes in SUFFIXES.values() for suffix in suffixes)
    assert all(SUFFIXES.values())
    assert len(IMAGE_SUFFIXES) == sum(map(len, SUFFIXES.values())), "no suffix is of two formats"

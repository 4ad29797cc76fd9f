"""AVIF and HEIC: what is read, what is refused before anything is decoded, and readers that are missing."""

from __future__ import annotations

import base64
import io
import struct

import numpy as np
import pillow_heif
import pytest
from PIL import AvifImagePlugin, Image

from condconv_serve.errors import CorruptImage, ImageTooLarge, UnsupportedImage
from condconv_serve.imaging import decode, formats, heif
from condconv_serve.imaging.coded_size import av1_sizes, hevc_size
from condconv_serve.imaging.isobmff import announced
from tests import pictures
from tests.pictures import box, media_type, photo

LIMIT = 10**6
PHOTO = photo("cat", (120, 80))
AVIF = pictures.avif(PHOTO)
HEIC = pictures.heic(Image.fromarray(PHOTO))


def difference(data, expected):
    return np.abs(decode(data, max_pixels=LIMIT).astype(float) - expected)


@pytest.mark.parametrize("write", [pictures.avif, pictures.heic])
def test_grey(write):
    levels = pictures.grey(PHOTO)
    assert difference(write(Image.fromarray(levels)), levels[..., None]).mean() < 2.5


@pytest.mark.parametrize("write", [pictures.avif, pictures.heic])
def test_alpha_lies_on_white(write):
    rgba = pictures.with_alpha(PHOTO)
    assert difference(write(Image.fromarray(rgba)), pictures.on_white(rgba)).mean() < 2.5


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_heic_is_turned_once(orientation):
    """The box that turns it (`irot`, `imir`) counts; EXIF says the same, and is left alone."""
    stored = Image.fromarray(np.ascontiguousarray(pictures.as_stored(PHOTO, orientation)))
    data = pictures.heic(stored, exif=pictures.exif(orientation))
    assert difference(data, PHOTO).mean() < 2.5


TEN_BITS = base64.b64decode(
    "AAAAHGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZgAAAOltZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAAA5waXRt"
    "AAAAAAABAAAAHmlsb2MAAAAARAAAAQABAAAAAQAAAQ0AAABRAAAAKGlpbmYAAAAAAAEAAAAaaW5mZQIAAAAAAQAAYXYwMUNvbG9yAAAAAGhp"
    "cHJwAAAASWlwY28AAAAUaXNwZQAAAAAAAAAgAAAAGAAAAA5waXhpAAAAAAEKAAAADGF2MUOBAFwAAAAAE2NvbHJuY2x4AAIAAgACgAAAABdp"
    "cG1hAAAAAAAAAAEAAQQBAoMEAAAAWW1kYXQSAAoFGBE/fnUyRhAAgiLYceO+1YUlzjFT8SjMqhK6Z726MjWVchaHRjyw22GOAS0RW7ihA78B"
    "ACvwj34PJeC7Dzrg7zy+VleZV0K8l4LzSn8="
)
"""Made by libavif 1.4: each column 33 levels brighter, of 1024."""


def test_ten_bits():
    ramp = np.arange(32) * 33 / 4
    assert difference(TEN_BITS, np.broadcast_to(ramp[None, :, None], (24, 32, 3))).max() <= 1.5
    deep = (np.arange(64 * 48) * 21).astype(np.uint16).reshape(48, 64)
    for mode, samples in (("I;16", deep), ("RGB;16", np.dstack([deep] * 3))):
        file = io.BytesIO()
        image = pillow_heif.from_bytes(mode=mode, size=(64, 48), data=samples.tobytes())
        image.save(file, quality=100, chroma=444)
        assert difference(file.getvalue(), deep[..., None] / 257).max() <= 2


@pytest.mark.parametrize(
    ("brands", "expected"),
    [
        ((b"avif", b"mif1", b"miaf"), "AVIF"),
        ((b"mif1", b"avif", b"miaf"), "AVIF"),
        ((b"avis", b"avif", b"msf1"), "AVIF"),
        ((b"heic", b"mif1"), "HEIC"),
        ((b"heix", b"mif1"), "HEIC"),
        ((b"hevc", b"msf1"), "HEIC"),
        ((b"mif1", b"heic"), "HEIC"),
        ((b"msf1", b"hevc", b"heic"), "HEIC"),
        ((b"isom", b"mp41"), None),
        ((b"qt  ",), None),
        ((b"crx ", b"isom"), None),
    ],
)
def test_brands(brands, expected):
    assert formats.recognise(media_type(*brands)) == expected


@pytest.mark.parametrize("brand", [b"mif1", b"miaf"])
def test_an_avif_may_have_any_main_brand(brand):
    data = AVIF.replace(b"ftypavif", b"ftyp" + brand, 1)
    np.testing.assert_array_equal(decode(data, max_pixels=LIMIT), decode(AVIF, max_pixels=LIMIT))


@pytest.mark.parametrize("size", [(1, 1), (15, 17), (64, 64), (333, 201)])
def test_the_size_of_coded_frames_is_read(size):
    image = Image.fromarray(photo("coffee", size))
    for options in ({}, {"save_all": True, "append_images": [image]}):
        data = pictures.avif(image, **options)
        assert set(av1_sizes(data[data.index(b"mdat") + 4 :])) == {size}, options
    found = announced(pictures.heic(image))
    width, height = (-(-side // 64) * 64 for side in size)
    assert size[0] * size[1] <= found.pixels <= width * height


def test_the_first_frame_of_a_sequence_is_looked_at():
    image = Image.fromarray(PHOTO)
    data = pictures.avif(image, save_all=True, append_images=[image.rotate(180)] * 3)
    found = announced(data)
    assert found.is_film
    assert found.pixels == 2 * 120 * 80, "the still picture, and the first frame"


def test_damaged_parameter_sets_end():
    assert av1_sizes(b"") == []
    for unit in (b"", b"\x42\x01", bytes(40)):
        with pytest.raises(ValueError, match="no number"):
            hevc_size(unit)


def small_header(data):
    """Let the header announce 16 x 16 pixels; the coded frame stays as it is."""
    where = data.index(b"ispe") + 8
    return data[:where] + struct.pack(">II", 16, 16) + data[where + 8 :]


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_a_header_that_lies_about_the_frame_is_refused_before_it_is_decoded(kind, monkeypatch):
    image = Image.new("RGB", (400, 300), "teal")
    data = small_header(pictures.avif(image) if kind == "AVIF" else pictures.heic(image))
    monkeypatch.setattr(AvifImagePlugin, "AvifImageFile", None)
    monkeypatch.setattr(pillow_heif, "HeifImageFile", None)
    with pytest.raises(ImageTooLarge, match=r"frames have \d{6} pixels in all; 105536 are allowed"):
        decode(data, max_pixels=10_000)


def test_a_tile_that_is_used_often_counts_as_often():
    tile = box(b"infe", b"\2\0\0\0", struct.pack(">HH4s", 2, 0, b"av01"), b"\0")
    grid = box(b"infe", b"\2\0\0\0", struct.pack(">HH4s", 1, 0, b"grid"), b"\0")
    kinds = box(b"iinf", bytes(4), struct.pack(">H", 2), grid, tile)
    uses = box(b"dimg", struct.pack(">HH", 1, 5000), struct.pack(">H", 2) * 5000)
    references = box(b"iref", bytes(4), uses)
    frame = AVIF[AVIF.index(b"mdat") + 4 :]
    layout = bytes([0, 0, 49, 99]) + struct.pack(">HH", 100, 50)
    content = box(b"idat", layout, frame)
    places = b"".join(
        struct.pack(">HHHHII", item, 1, 0, 1, start, length)
        for item, start, length in ((1, 0, len(layout)), (2, len(layout), len(frame)))
    )
    # The third number of an entry, its base, has no bytes.
    table = box(b"iloc", b"\1\0\0\0\x44\0", struct.pack(">H", 2), places)
    main = box(b"pitm", bytes(4), struct.pack(">H", 1))
    data = media_type(b"avif") + box(b"meta", bytes(4), main, kinds, references, content, table)
    found = announced(data)
    assert (found.kind, found.sizes, found.pixels) == (b"grid", [(100, 50)], 5000 * 120 * 80)
    with pytest.raises(ImageTooLarge):
        decode(data, max_pixels=LIMIT)


def test_tables_without_end_are_not_followed():
    many = struct.pack(">I", 2**31)
    for table in (
        box(b"iloc", b"\2\0\0\0\x44\0", many, bytes(200)),
        box(b"iprp", box(b"ipma", bytes(4), many, bytes(200))),
        box(b"iprp", box(b"ipco", box(b"free") * 100_001)),
    ):
        with pytest.raises(ValueError, match="too many"):
            announced(media_type(b"avif") + box(b"meta", bytes(4), table))


def items(kind: bytes, count: int, *more: bytes, extents: int = 1) -> bytes:
    """A file with items, each of which is the whole file so many times."""
    entries = [box(b"infe", b"\2\0\0\0", struct.pack(">HH4s", item, 0, kind), b"\0") for item in range(1, count + 1)]
    kinds = box(b"iinf", bytes(4), struct.pack(">H", count), *entries)
    places = b"".join(struct.pack(">HHH", item, 0, extents) for item in range(1, count + 1))
    table = box(b"iloc", bytes(4), b"\0\0", struct.pack(">H", count), places)
    return media_type(b"avif") + box(b"meta", bytes(4), kinds, table, *more)


@pytest.mark.parametrize(("count", "extents"), [(1, 1000), (1000, 1)])
def test_the_same_bytes_are_not_put_together_again_and_again(count, extents):
    """Two bytes make another copy of a file: of four megabytes they would take any computer's memory."""
    with pytest.raises(ValueError, match="the same bytes are told of too often"):
        announced(items(b"av01", count, extents=extents) + box(b"mdat", bytes(10_000)))


def test_frames_of_a_film_are_not_read_again_and_again():
    sample = [box(b"stco", bytes(7), b"\1", bytes(4)), box(b"stsz", bytes(4), struct.pack(">I", 2**31), bytes(4))]
    track = box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", *sample))))
    with pytest.raises(ValueError, match="the same bytes are told of too often"):
        announced(media_type(b"avis") + box(b"moov", track * 1000))


def test_frames_in_absurdly_many_parts():
    kinds = box(b"iinf", bytes(4), struct.pack(">H", 1), box(b"infe", b"\2\0\0\0\0\1\0\0av01\0"))
    for count in (10, 100_001):
        obus = b"\x12\0" * count  # temporal delimiters without content
        place = struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(obus))
        table = box(b"iloc", b"\1\0\0\0\x44\0", struct.pack(">H", 1), place)
        data = media_type(b"avif") + box(b"meta", bytes(4), kinds, box(b"idat", obus), table)
        if count == 10:
            assert announced(data).pixels == 0
        else:
            with pytest.raises(ValueError, match="too many entries"):
                announced(data)


def test_a_configuration_that_many_items_share_is_read_once(monkeypatch):
    read = []
    monkeypatch.setattr("condconv_serve.imaging.isobmff.hevc_size", lambda unit: read.append(unit) or (8, 8))
    unit = bytes([33 << 1]) + bytes(9)
    array = b"\x21" + struct.pack(">H", 100) + (struct.pack(">H", len(unit)) + unit) * 100
    configuration = box(b"hvcC", bytes(21), b"\3\1", array)
    shared = b"".join(struct.pack(">HBB", item, 1, 1) for item in range(1, 1001))
    uses = box(b"ipma", bytes(4), struct.pack(">I", 1000), shared)
    kinds = [box(b"infe", b"\2\0\0\0", struct.pack(">HH4s", item, 0, b"hvc1"), b"\0") for item in range(1, 1001)]
    table = box(b"iinf", bytes(4), struct.pack(">H", 1000), *kinds)
    properties = box(b"iprp", box(b"ipco", configuration), uses)
    found = announced(media_type(b"heic") + box(b"meta", bytes(4), table, properties))
    assert (found.pixels, len(read)) == (1000 * 64, 100)


@pytest.mark.parametrize("data", [AVIF, HEIC], ids=["AVIF", "HEIC"])
def test_cut_files_are_corrupt(data):
    for share in (0.1, 0.3, 0.6, 0.9, 0.99):
        with pytest.raises(CorruptImage):
            decode(data[: int(share * len(data))], max_pixels=LIMIT)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (pictures.large_item(b"mif1", b"jpeg", 16), "a HEIF image with jpeg inside"),
        (pictures.large_item(b"heic", b"iovl", 16), "a HEIF image with iovl inside"),
        (media_type(b"hevc", b"msf1") + box(b"moov", box(b"trak")), "a sequence of HEIC photos"),
    ],
)
def test_other_kinds_of_heif_are_unsupported(data, says):
    with pytest.raises(UnsupportedImage, match=f"^This is {says}, a kind that isn't read. Convert it"):
        decode(data, max_pixels=LIMIT)


def test_without_the_extra_the_refusal_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("condconv_serve.imaging.refusal.can_read_heic", lambda: False)
    with pytest.raises(UnsupportedImage) as refused:
        decode(HEIC, max_pixels=LIMIT)
    assert str(refused.value) == (
        "This is a HEIC photo, as phones take them, and the server has no reader for it. Convert it to JPEG or PNG "
        "first, or have the reader installed: pip install 'condconv-serve[heif]'. "
        "JPEG, PNG, WebP, GIF, TIFF, BMP and AVIF are accepted."
    )
    decode(AVIF, max_pixels=LIMIT)


def test_without_avif_in_pillow_the_refusal_says_so(monkeypatch):
    monkeypatch.setattr("condconv_serve.imaging.refusal.can_read_avif", lambda: False)
    with pytest.raises(UnsupportedImage, match="Pillow was built without AVIF") as refused:
        decode(AVIF, max_pixels=LIMIT)
    assert str(refused.value).endswith(" JPEG, PNG, WebP, GIF, TIFF, BMP and HEIC are accepted.")


def test_whether_there_are_readers_is_asked_of_what_is_installed(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda name: name != "avif")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not heif.can_read_avif.__wrapped__()
    assert not heif.can_read_heic.__wrapped__()


def test_decoders_have_no_threads_of_their_own():
    decode(HEIC, max_pixels=LIMIT)
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == 1
    assert pillow_heif.options.DECODE_THREADS == 1

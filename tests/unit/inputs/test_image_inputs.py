"""What Python callers may give as an image."""

import io
import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from condconv_serve.errors import CorruptImage, InvalidParameter, MissingImage
from condconv_serve.inputs import is_one_image, read_image
from tests.pictures import jpeg, photo

PIXELS = photo("coffee", (24, 16))


def opened(source):
    return Image.open(io.BytesIO(source.data))


def test_bytes_and_files_are_sent_as_they_are(tmp_path):
    data = jpeg(PIXELS)
    (file := tmp_path / "photo.jpg").write_bytes(data)
    with file.open("rb") as handle:
        for given, name in (
            (data, None),
            (bytearray(data), None),
            (memoryview(data), None),
            (file, str(file)),
            (str(file), str(file)),
            (handle, str(file)),
            (io.BytesIO(data), None),
        ):
            assert is_one_image(given)
            source = read_image(given, id="7")
            assert (source.data, source.filename, source.id) == (data, name, "7")
        assert not handle.closed
    assert os.fspath(file)


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_arrays_keep_every_value(channels):
    array = np.random.default_rng(0).integers(0, 256, (5, 9, *channels), dtype=np.uint8)
    for given in (array, np.asfortranarray(array), array[::-1, ::2]):
        assert is_one_image(given)
        np.testing.assert_array_equal(np.asarray(opened(read_image(given))).reshape(given.shape), given)


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((5, 9, 3), np.float32), r"float32 \[5, 9, 3\]"),
        (np.zeros((2, 5, 9, 3), np.uint8), r"uint8 \[2, 5, 9, 3\]\. Give many images as a list\."),
        (np.zeros((3, 5, 9), np.uint8), r"uint8 \[3, 5, 9\]"),
        (np.zeros((0, 9, 3), np.uint8), r"uint8 \[0, 9, 3\]"),
        (np.zeros(9, np.uint8), r"uint8 \[9\]"),
        (np.zeros((5, 9), np.int64), r"int64 \[5, 9\]"),
    ],
)
def test_other_arrays_are_refused(array, named):
    with pytest.raises(InvalidParameter, match=named):
        read_image(array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I;16"])
def test_pil_images_of_each_mode(mode):
    image = Image.fromarray(PIXELS)
    image = image.convert("RGBA").convert(mode) if mode == "RGBa" else image.convert("L").convert(mode)
    assert is_one_image(image)
    found = opened(read_image(image))
    assert (found.format, found.size) == ("PNG", (24, 16))
    if mode in ("L", "RGB", "RGBA"):
        assert found.mode == mode
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


def test_pil_images_are_turned_as_their_files_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(file := tmp_path / "turned.png", exif=exif)
    with Image.open(file) as image:
        source = read_image(image)
        assert source.filename == str(file)
        assert opened(source).size == (16, 24)
        np.testing.assert_array_equal(np.asarray(opened(source)), np.asarray(ImageOps.exif_transpose(image)))
        assert image.size == (24, 16), "yours stays as it is"


def test_pil_images_that_no_file_can_hold():
    for mode in ("F", "I"):
        with pytest.raises(InvalidParameter, match="convert it to RGB first"):
            read_image(Image.new(mode, (2, 2)))
    for size in ((0, 5), (5, 0), (0, 0)):
        with pytest.raises(InvalidParameter, match=f"it has {size[0]} x {size[1]} pixels"):
            read_image(Image.new("RGB", size))
    truncated = Image.open(io.BytesIO(jpeg(photo("coffee", (200, 200)))[:1500]))
    with pytest.raises(CorruptImage, match="truncated"):
        read_image(truncated)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nowhere/photo.jpg", r"^nowhere/photo\.jpg can't be read: No such file or directory\.$"),
        (".", r"Is a directory"),
        ("a\0b", "null byte"),
        ("https://example.org/a.jpg", "nothing is fetched from the network"),
        ("data:image/png;base64,AAAA", "nothing is fetched from the network"),
    ],
)
def test_files_that_cannot_be_read(given, says):
    with pytest.raises(MissingImage, match=says):
        read_image(given)


def test_closed_files_and_files_of_text(tmp_path):
    (file := tmp_path / "photo.jpg").write_bytes(b"")
    handle = file.open("rb")
    handle.close()
    with pytest.raises(MissingImage, match="closed file"):
        read_image(handle)
    with file.open() as text, pytest.raises(TypeError, match='open\\(path, "rb"\\)'):
        read_image(text)


@pytest.mark.parametrize("given", [None, 7, object(), ["a.jpg"], ("a.jpg",), {}, iter("ab")])
def test_what_is_no_image(given):
    assert not is_one_image(given)
    with pytest.raises(TypeError, match=f"not {type(given).__name__}"):
        read_image(given)

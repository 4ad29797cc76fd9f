"""From bytes to a row, with TensorFlow's decoder as with Pillow's."""

import io

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import Preprocessing
from condconv_serve.errors import CorruptImage, ImageTooLarge, UnsupportedImage
from condconv_serve.imaging import decode, make_row, official, official_float, pillow
from condconv_serve.runtime.official_jpeg import crop_jpeg
from tests.golden import GOLDEN, needs_golden
from tests.pictures import jpeg, photo

pytestmark = pytest.mark.tensorflow

EXACT = Preprocessing(transform="official", image_size=64, exact_decoding=True)
SHAPE = {"image_size": 64, "crop_padding": 32}
PHOTO = photo("coffee", (301, 200))


def exact_row(data, **changes):
    return make_row(data, EXACT, **{"max_pixels": 10**6, "crop_jpeg": crop_jpeg} | changes).row


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


@needs_golden
def test_exact_rows_are_the_golden_pixels():
    with np.load(GOLDEN / "official" / "preprocessed_224.npz") as golden:
        names, expected = golden["images"], golden["pixels"]
    exact = Preprocessing(transform="official", image_size=224, exact_decoding=True)
    for name, wanted in zip(names, expected, strict=True):
        data = (GOLDEN / "images" / str(name)).read_bytes()
        row = make_row(data, exact, max_pixels=10**6, crop_jpeg=crop_jpeg).row
        assert row.dtype == np.float32
        np.testing.assert_array_equal(row, wanted)


@pytest.mark.parametrize("options", [{"quality": 60}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("size", [(301, 200), (200, 301), (64, 64), (40, 30), (1, 1)])
def test_exact_rows_are_those_of_the_official_evaluation(size, options):
    """Its own words: TensorFlow crops, decodes and resizes."""
    import tensorflow as tf

    data = saved(Image.fromarray(photo("cat", size)), format="JPEG", **options)
    height, width = tf.image.extract_jpeg_shape(data).numpy()[:2]
    side = int(tf.cast(64 / 96 * tf.cast(min(height, width), tf.float32), tf.int32)) or 1
    window = [(height - side + 1) // 2, (width - side + 1) // 2, side, side]
    square = tf.image.decode_and_crop_jpeg(data, window, channels=3)
    wanted = tf.compat.v1.image.resize_bicubic([square], [64, 64])[0].numpy()
    np.testing.assert_array_equal(exact_row(data), wanted)


def test_grey_jpegs():
    grey = Image.fromarray(PHOTO).convert("L")
    data = saved(grey, format="JPEG")
    row = exact_row(data)
    assert np.ptp(row, axis=-1).max() == 0
    assert np.abs(row - official_float(decode(data, max_pixels=10**6), **SHAPE)).mean() < 1


def test_other_formats_are_not_rounded_either():
    data = saved(Image.fromarray(PHOTO), format="PNG")
    np.testing.assert_array_equal(exact_row(data), official_float(PHOTO, **SHAPE))
    assert not np.array_equal(exact_row(data), np.rint(exact_row(data)))


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(PHOTO).convert("CMYK"), format="JPEG"),
        saved(
            Image.fromarray(PHOTO),
            format="JPEG",
            exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
        ),
    ],
    ids=["CMYK", "lying on its side"],
)
def test_what_tensorflow_would_get_wrong(data):
    np.testing.assert_array_equal(exact_row(data), official_float(decode(data, max_pixels=10**6), **SHAPE))


def test_a_file_that_only_pillow_can_decode():
    data = jpeg(PHOTO)
    row = exact_row(data, crop_jpeg=lambda data, left, top, side: None)
    np.testing.assert_array_equal(row, official_float(decode(data, max_pixels=10**6), **SHAPE))


def test_without_exactness_rows_are_whole_levels():
    data = jpeg(PHOTO)
    for transform, function in (("official", official), ("pillow", pillow)):
        row = make_row(data, Preprocessing(transform=transform, image_size=64), max_pixels=10**6).row
        assert row.dtype == np.uint8
        np.testing.assert_array_equal(row, function(decode(data, max_pixels=10**6), **SHAPE))
    exact_pillow = Preprocessing(transform="pillow", image_size=64, exact_decoding=True)
    assert make_row(data, exact_pillow, max_pixels=10**6).row.dtype == np.uint8


def test_what_lies_below_the_square_must_be_there():
    data = jpeg(photo("coffee", (200, 600)))
    rest = data[: len(data) * 4 // 5]
    assert crop_jpeg(rest, 40, 200, 100) is not None  # TensorFlow alone would not notice
    with pytest.raises(CorruptImage):
        exact_row(rest)


def test_what_follows_the_end_does_not_matter():
    np.testing.assert_array_equal(exact_row(jpeg(PHOTO) + b"trailer"), exact_row(jpeg(PHOTO)))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"no photo", UnsupportedImage),
        (b"", UnsupportedImage),
        (jpeg(PHOTO)[:300], CorruptImage),
        (jpeg(PHOTO)[:300] + b"\xff\xd9", CorruptImage),
        (jpeg(PHOTO)[:9000] + bytes(50_000), CorruptImage),
        (jpeg(PHOTO)[:9000] + b"The quick brown fox. " * 2000, CorruptImage),
        (b"\xff\xd8\xff" + bytes(100) + b"\xff\xd9", CorruptImage),
    ],
)
def test_refusals(data, error):
    with pytest.raises(error):
        exact_row(data)


def test_the_limit_of_pixels():
    with pytest.raises(ImageTooLarge, match="60200 in all; 1000 are allowed"):
        exact_row(jpeg(PHOTO), max_pixels=1000)


def test_a_cropper_refuses_quietly_what_it_cannot_decode():
    assert crop_jpeg(b"no JPEG", 0, 0, 10) is None
    assert crop_jpeg(jpeg(PHOTO), 200, 0, 200) is None  # reaches beyond the edge

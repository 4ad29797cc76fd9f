"""Both transforms against independent computations: TensorFlow's own kernel, Pillow's filters, golden pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import Preprocessing
from condconv_serve.imaging import decode, official, official_float, pillow, transform
from tests.golden import GOLDEN, needs_golden
from tests.pictures import PHOTOS, photo

SHAPES = [(375, 500), (500, 375), (224, 224), (256, 256), (100, 90), (3, 2), (1, 1), (1, 5000), (5000, 1), (1000, 1300)]


def square(pixels, size, padding):
    """The centre crop, computed another way: whole-number arithmetic, and padding both sides by hand."""
    height, width, _ = pixels.shape
    side = max(1, size * min(height, width) // (size + padding))
    top, left = -((side - height) // 2), -((side - width) // 2)
    return pixels[top : top + side, left : left + side]


@pytest.mark.tensorflow
@pytest.mark.parametrize("size", [224, 240, 96])
@pytest.mark.parametrize("name", PHOTOS)
def test_official_is_tensorflows_bicubic_of_the_centre_crop(name, size):
    tensorflow = pytest.importorskip("tensorflow")
    pixels = photo(name)
    crop = square(pixels, size, 32)[None].astype(np.float32)
    expected = tensorflow.raw_ops.ResizeBicubic(
        images=crop, size=[size, size], align_corners=False, half_pixel_centers=False
    )[0].numpy()

    exact = official_float(pixels, image_size=size, crop_padding=32)

    assert exact.dtype == np.float32
    np.testing.assert_allclose(exact, expected, atol=1e-3)
    rounded = official(pixels, image_size=size, crop_padding=32)
    assert rounded.dtype == np.uint8
    np.testing.assert_allclose(rounded, np.clip(expected, 0, 255), atol=0.501)


@pytest.mark.tensorflow
@pytest.mark.parametrize("shape", SHAPES)
def test_official_is_tensorflows_bicubic_for_any_shape(shape):
    tensorflow = pytest.importorskip("tensorflow")
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    crop = square(pixels, 224, 32)[None].astype(np.float32)
    expected = tensorflow.raw_ops.ResizeBicubic(
        images=crop, size=[224, 224], align_corners=False, half_pixel_centers=False
    )[0].numpy()
    np.testing.assert_allclose(official_float(pixels, image_size=224, crop_padding=32), expected, atol=1e-3)


def test_official_clips_overshoot():
    pixels = np.zeros((300, 300, 3), np.uint8)
    pixels[:, np.arange(300) // 11 % 2 == 1] = 255
    exact = official_float(pixels, image_size=224, crop_padding=32)
    assert exact.min() < -5
    assert exact.max() > 260
    rounded = official(pixels, image_size=224, crop_padding=32)
    np.testing.assert_array_equal(rounded, np.rint(np.clip(exact, 0, 255)))


def test_official_at_the_crops_own_size_changes_nothing():
    pixels = photo(size=(256, 256))
    result = official(pixels, image_size=224, crop_padding=32)
    np.testing.assert_array_equal(result, pixels[16:240, 16:240])


def test_official_weights_by_hand():
    """Twice the size: every second pixel is new, with Keys' weights (-3, 19, 19, -3) / 32 for -0.75."""
    row = np.array([10, 50, 90, 200], np.uint8)
    pixels = np.broadcast_to(row[None, :, None], (4, 4, 3))
    result = official_float(pixels, image_size=8, crop_padding=0)
    middle = (-3 * 10 + 19 * 50 + 19 * 90 - 3 * 200) / 32
    edge = (-3 * 10 + 19 * 10 + 19 * 50 - 3 * 90) / 32
    np.testing.assert_allclose(result[0, [0, 1, 2, 3, 4], 0], [10, edge, 50, middle, 90], atol=1e-4)


@pytest.mark.parametrize("function", [official, pillow])
def test_the_crop_is_central_and_odd_remainders_go_to_the_top_left(function):
    """A photo of 9 x 12 with a crop of 8: one line is left over, and the crop starts after it."""
    pixels = np.zeros((9, 12, 3), np.uint8)
    pixels[1:9, 2:10] = 200
    result = function(pixels, image_size=8, crop_padding=1)
    np.testing.assert_array_equal(result, np.full((8, 8, 3), 200))


@pytest.mark.parametrize("size", [224, 240, 260, 300, 380])
def test_crops_of_whole_sides_lose_no_line(size):
    """Where the crop's side is a whole number, rounding must not take a line from it."""
    for factor in (1, 2, 3, 5, 7):
        short = (size + 32) * factor
        pixels = np.zeros((short, short + 1, 3), np.uint8)
        edge = (short - size * factor + 1) // 2
        pixels[edge] = 255
        assert official_float(pixels, image_size=size, crop_padding=32)[0].mean() > 200


def test_the_crops_side_is_computed_as_tensorflow_does():
    """61 / 93 of 651 lines are 427, but fall just short of it in float32."""
    pixels = np.zeros((651, 700, 3), np.uint8)
    first = (651 - 426 + 1) // 2
    pixels[first] = 255
    assert official_float(pixels, image_size=61, crop_padding=32)[0].mean() > 200


@pytest.mark.parametrize("name", PHOTOS)
def test_pillow_is_an_antialiased_resize_of_the_centre_crop(name):
    pixels = photo(name)
    crop = Image.fromarray(np.ascontiguousarray(square(pixels, 224, 32)))
    channels = [np.asarray(c).astype(np.float32) for c in crop.split()]
    # In float, Pillow resizes single channels only, without rounding and clipping between the two passes.
    expected = [np.asarray(Image.fromarray(c).resize((224, 224), Image.Resampling.BICUBIC)) for c in channels]
    result = pillow(pixels, image_size=224, crop_padding=32)
    difference = np.abs(result - np.clip(np.dstack(expected), 0, 255))
    assert difference.mean() < 0.4
    assert np.quantile(difference, 0.999) < 1.01


def test_the_two_differ_by_antialiasing():
    """A fine chequer becomes grey only where the resize averages."""
    pixels = np.zeros((1100, 1100, 3), np.uint8)
    pixels[::2, ::2] = pixels[1::2, 1::2] = 255
    smooth = pillow(pixels, image_size=224, crop_padding=32)[8:-8, 8:-8]
    rough = official(pixels, image_size=224, crop_padding=32)[8:-8, 8:-8]
    assert smooth.std() < 8
    assert rough.std() > 50


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["official", "pillow"])
def test_any_shape_gives_a_row(name, shape):
    preprocessing = Preprocessing(transform=name, image_size=64, crop_padding=9)
    pixels = np.full((*shape, 3), (10, 120, 250), np.uint8)
    row = transform(pixels, preprocessing)
    assert row.dtype == np.uint8
    np.testing.assert_array_equal(row, np.full((64, 64, 3), (10, 120, 250)))


def test_transform_dispatches_and_passes_the_parameters():
    pixels = photo()
    for name, function in (("official", official), ("pillow", pillow)):
        row = transform(pixels, Preprocessing(transform=name, image_size=128, crop_padding=16))
        np.testing.assert_array_equal(row, function(pixels, image_size=128, crop_padding=16))


@pytest.mark.parametrize("function", [official, pillow])
def test_the_photo_stays_as_it_was(function):
    pixels = photo().copy()
    before = pixels.copy()
    function(pixels, image_size=224, crop_padding=32)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.tensorflow
@needs_golden
def test_official_gives_the_golden_pixels_from_the_same_decoder():
    """TensorFlow decodes the crop only, by a faster transform than Pillow; from its pixels all must be equal."""
    tensorflow = pytest.importorskip("tensorflow")
    with np.load(GOLDEN / "official" / "preprocessed_224.npz") as golden:
        names, expected = golden["images"], golden["pixels"]
    for name, wanted in zip(names, expected, strict=True):
        data = (GOLDEN / "images" / str(name)).read_bytes()
        pixels = tensorflow.io.decode_jpeg(data, channels=3).numpy()
        height, width, _ = pixels.shape
        side = square(pixels, 224, 32).shape[0]
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        crop = tensorflow.io.decode_and_crop_jpeg(data, [top, left, side, side], channels=3)
        pixels[top : top + side, left : left + side] = crop.numpy()
        np.testing.assert_array_equal(official_float(pixels, image_size=224, crop_padding=32), wanted)


@needs_golden
def test_decode_and_official_come_close_to_the_golden_pixels():
    """Only the JPEG decoders differ: by one level on average, and some at edges."""
    with np.load(GOLDEN / "official" / "preprocessed_224.npz") as golden:
        names, expected = golden["images"], golden["pixels"]
    for name, wanted in zip(names, expected, strict=True):
        pixels = decode((GOLDEN / "images" / str(name)).read_bytes(), max_pixels=10**6)
        difference = np.abs(official(pixels, image_size=224, crop_padding=32) - np.clip(wanted, 0, 255))
        assert difference.mean() < 1.5
        assert difference.max() < 12


@pytest.mark.parametrize(("size", "share"), [(224, None), (160, 0.875), (96, 0.5), (128, 1.0)])
def test_the_central_crop_lies_between_pixels(size, share):
    pixels = np.random.default_rng(0).integers(0, 256, (301, 407, 3), np.uint8)
    side = (share or 0.875) * 301
    box = ((407 - side) / 2, (301 - side) / 2, (407 + side) / 2, (301 + side) / 2)
    expected = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=box)
    preprocessing = Preprocessing(
        transform="central", image_size=size, crop_fraction=share, interpolation="bilinear", crop_padding=7
    )  # the padding is no business of this one's
    np.testing.assert_array_equal(transform(pixels, preprocessing), expected)
    np.testing.assert_array_equal(transform(Image.fromarray(pixels), preprocessing), expected)
    assert preprocessing.crop_share == (share or 0.875)

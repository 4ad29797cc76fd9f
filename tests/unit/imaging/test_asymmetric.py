"""TensorFlow 1's bilinear resize: no half-pixel shift, no antialiasing. A published face detector has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from condconv_serve.domain import Preprocessing
from condconv_serve.imaging import asymmetric, make_row, transform
from tests.golden import FAMILIES, needs_families
from tests.pictures import photo


def by_definition(pixels: NDArray[Any], size: int, *, padded: bool) -> NDArray[np.float64]:
    """Pixel by pixel, of a photo that really has its padding."""
    if padded:
        side = max(pixels.shape[:2])
        pixels = np.pad(pixels, ((0, side - pixels.shape[0]), (0, side - pixels.shape[1]), (0, 0)))
    height, width, _ = pixels.shape
    row = np.zeros((size, size, 3))
    for y, x in np.ndindex(size, size):
        down, across = y * height / size, x * width / size
        for line, column in np.ndindex(2, 2):
            weight = (1 - abs(int(down) + line - down)) * (1 - abs(int(across) + column - across))
            source = min(int(down) + line, height - 1), min(int(across) + column, width - 1)
            row[y, x] += weight * pixels[source]
    return row


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("shape", [(23, 37), (37, 23), (9, 5), (16, 16), (1, 40), (40, 1), (1, 1), (17, 16)])
def test_definition(shape: tuple[int, int], padded: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    row = asymmetric(pixels, image_size=16, padded=padded)
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, by_definition(pixels, 16, padded=padded), atol=1e-3)
    np.testing.assert_array_equal(asymmetric(Image.fromarray(pixels), image_size=16, padded=padded), row)


def test_a_photo_of_the_rows_size_stays_as_it_is() -> None:
    pixels = photo(size=(48, 48))
    for padded in (True, False):
        np.testing.assert_array_equal(asymmetric(pixels, image_size=48, padded=padded), pixels)


def test_white_stays_on_the_scale() -> None:
    assert asymmetric(np.full((777, 1013, 3), 255, np.uint8), image_size=224, padded=True).max() == 255


@pytest.mark.parametrize("name", ["stretch", "letterbox"])
def test_rows_are_rounded_unless_they_are_exact(name: Any) -> None:
    pixels = photo(size=(60, 44))
    exact, rounded = (
        transform(
            pixels, Preprocessing(transform=name, image_size=32, interpolation="asymmetric", exact_decoding=exact)
        )
        for exact in (True, False)
    )
    assert (exact.dtype, rounded.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(exact, asymmetric(pixels, image_size=32, padded=name == "letterbox"))
    np.testing.assert_array_equal(rounded, np.rint(exact))
    assert not np.array_equal(exact, rounded)


@needs_families
@pytest.mark.parametrize("name", ["astronaut", "hopper", "procession"])
def test_the_input_of_the_published_face_detector(name: str) -> None:
    with np.load(FAMILIES / "ssd" / "face_ssd_mobilenetv1_golden.npz") as golden:
        (key,) = (key for key in golden.files if "input_check" in key and name in key)
        wanted = golden[key]
    exact = Preprocessing(transform="letterbox", image_size=512, interpolation="asymmetric", exact_decoding=True)
    row = make_row((FAMILIES / "ssd" / "photos" / f"{name}.png").read_bytes(), exact, max_pixels=10**6).row.astype(
        float
    )
    found = [row.mean(), row.std(), row[100, 200, 0], row[300, 100, 1], row[200, 380, 2]]
    np.testing.assert_allclose(found, wanted, atol=1e-3)

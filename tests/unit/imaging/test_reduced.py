"""Large JPEGs are decoded at a fraction of their size, but never below what the network needs."""

import numpy as np
import pytest
from PIL import Image

from condconv_serve.domain import Preprocessing
from condconv_serve.imaging import SufficientSize, decode, decode_photo, sufficient_size
from tests import pictures

PREPROCESSING = Preprocessing(transform="pillow", image_size=224)
SIDE = 359
SUFFICIENT = SufficientSize(short=SIDE)


def test_sufficient_size():
    assert sufficient_size(PREPROCESSING) == SUFFICIENT
    assert sufficient_size(Preprocessing(transform="pillow", image_size=224, exact_decoding=True)) is None


@pytest.mark.parametrize(
    ("size", "reduced"),
    [
        ((500, 375), (500, 375)),
        ((2 * SIDE - 1, 2 * SIDE - 1), (2 * SIDE - 1, 2 * SIDE - 1)),
        ((2 * SIDE, 2 * SIDE), (SIDE, SIDE)),
        ((1600, 1200), (800, 600)),
        ((1600, 700), (1600, 700)),
        ((2000, 1500), (500, 375)),
        ((3000, 4000), (375, 500)),
    ],
)
def test_size(size, reduced):
    data = pictures.jpeg(pictures.photo("coffee", size))
    assert decode_photo(data, max_pixels=10**8, sufficient=SUFFICIENT).image.size == reduced
    assert decode_photo(data, max_pixels=10**8).image.size == size


def test_other_formats_are_decoded_in_full():
    data = pictures.encode(pictures.photo("coffee", (1600, 1200)), "PNG")
    assert decode_photo(data, max_pixels=10**8, sufficient=SUFFICIENT).image.size == (1600, 1200)


def test_orientation_is_applied():
    image = Image.fromarray(pictures.photo("coffee", (1600, 1200)))
    exif = image.getexif()
    exif[0x0112] = 6
    data = pictures.encode(image, "JPEG", exif=exif)
    exact = decode(data, max_pixels=10**8)
    reduced = decode(data, max_pixels=10**8, sufficient=SUFFICIENT)
    assert (exact.shape, reduced.shape) == ((1600, 1200, 3), (800, 600, 3))
    small = np.asarray(Image.fromarray(exact).resize((600, 800), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - reduced).mean() < 2

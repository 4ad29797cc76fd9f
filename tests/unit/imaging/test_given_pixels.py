"""Pixels that come in as numbers."""

from __future__ import annotations

import numpy as np
import pytest

from condconv_serve.domain import Preprocessing
from condconv_serve.errors import InvalidParameter
from condconv_serve.imaging.given_pixels import row_of_pixels
from tests.contract.fakes import model_info

ROUNDED = model_info()
EXACT = model_info(preprocessing=Preprocessing(transform="official", image_size=32, exact_decoding=True))


def pixels(value: float, dtype: type = np.float32) -> np.ndarray:
    return np.full((32, 32, 3), value, dtype)


@pytest.mark.parametrize(("given", "level"), [(0.0, 0), (1.4, 1), (1.6, 2), (254.6, 255), (255.0, 255)])
def test_float32_becomes_whole_levels(given: float, level: int) -> None:
    row = row_of_pixels(pixels(given), ROUNDED)
    assert row.dtype == np.uint8
    assert (row == level).all()


def test_what_fits_stays_as_it_is() -> None:
    for values, model in ((pixels(7, np.uint8), ROUNDED), (pixels(7, np.uint8), EXACT), (pixels(7.25), EXACT)):
        assert row_of_pixels(values, model) is values


@pytest.mark.parametrize("bad", [-0.001, 255.001, np.nan, np.inf, -np.inf])
def test_values_off_the_scale_are_refused(bad: float) -> None:
    values = pixels(1)
    values[3, 4, 1] = bad
    for model in (ROUNDED, EXACT):
        with pytest.raises(InvalidParameter, match="on the scale 0 to 255"):
            row_of_pixels(values, model)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((31, 32, 3), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((1, 32, 32, 3), np.uint8),
        np.zeros((32, 32, 3), np.float64),
        np.zeros((32, 32, 3), np.int8),
    ],
)
def test_other_shapes_and_types_are_refused(values: np.ndarray) -> None:
    with pytest.raises(InvalidParameter, match=r"uint8 or float32 \[32, 32, 3\], not"):
        row_of_pixels(values, ROUNDED)

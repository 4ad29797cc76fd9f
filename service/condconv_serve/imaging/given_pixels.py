"""Pixels that a caller has cropped and resized -> the row that a network takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import ModelInfo, Row
from condconv_serve.errors import InvalidParameter


def row_of_pixels(values: NDArray[np.generic], model: ModelInfo) -> Row:
    """Check pixels, and make a row of them.

    Float32 values are rounded to whole levels, as photos are, unless the network takes float32 rows.

    Args:
        values: uint8 or float32 `[image_size, image_size, 3]`, RGB on the scale 0..255.
        model: whose network gets them.

    Returns:
        A row of the preprocessing's `row_type`, or uint8.

    Raises:
        InvalidParameter: another shape or dtype, or values that are not finite or not on the scale.
    """
    size = model.preprocessing.image_size
    if values.shape != (size, size, 3) or values.dtype not in (np.uint8, np.float32):
        raise InvalidParameter(
            f"Pixels of {model.name} are uint8 or float32 [{size}, {size}, 3], not {values.dtype.name} "
            f"{list(values.shape)}."
        )
    if values.dtype == np.uint8:
        return values
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # NaN fails both
        found = "some that are not finite" if not np.isfinite(low + high) else f"values from {low:g} to {high:g}"
        raise InvalidParameter(f"Pixels are on the scale 0 to 255; these have {found}.")
    if model.preprocessing.row_type is np.float32:
        return values
    row: Row = np.rint(values).astype(np.uint8)
    return row

"""Tensors as JSON, with no more digits than needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGITS = 9
"""Significant digits that tell any two float32 apart."""


def values_of(tensor: NDArray[Any]) -> Any:
    """Nested lists of text or numbers. Numbers have no more digits than float32 has: half as many bytes to send."""
    if tensor.dtype == np.object_:
        return tensor.tolist()
    exact = tensor.astype(np.float64)
    scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(np.abs(np.where(exact == 0, 1, exact)))))
    return (np.round(exact * scale) / scale).tolist()

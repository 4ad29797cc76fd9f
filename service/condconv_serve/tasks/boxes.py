"""How much boxes have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def overlaps(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of one box `[4]` with each of `[N, 4]`: float64 `[N]`; 0 where neither has an area."""
    tops, lefts, bottoms, rights = boxes.T
    height = np.minimum(box[2], bottoms) - np.maximum(box[0], tops)
    width = np.minimum(box[3], rights) - np.maximum(box[1], lefts)
    common = np.maximum(height, 0) * np.maximum(width, 0)
    areas = np.maximum(bottoms - tops, 0) * np.maximum(rights - lefts, 0)
    union = max(box[2] - box[0], 0) * max(box[3] - box[1], 0) + areas - common
    found: NDArray[np.float64] = common / np.where(common > 0, union, 1)
    return found

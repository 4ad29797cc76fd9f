"""Non-maximum suppression: of boxes that show the same object, the one with the highest score stays.

It is done row by row in NumPy, since each request has thresholds of its own and few boxes reach them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_CANDIDATES = 1000
"""Most boxes of one class that are looked at, the highest scores first."""


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], *, iou_threshold: float, limit: int
) -> NDArray[np.intp]:
    """Choose boxes of one class, the highest score first; ties in the order of the boxes.

    A box is left out if it overlaps one that was chosen before by more than the threshold (intersection over union).

    Args:
        boxes: `[N, 4]`, `ymin, xmin, ymax, xmax`.
        scores: `[N]`.
        iou_threshold: 0 to 1.
        limit: most boxes to choose.

    Returns:
        The numbers of the chosen boxes, at most `limit`, of the `MAX_CANDIDATES` with the highest scores.
    """
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    tops, lefts, bottoms, rights = boxes[order].astype(np.float64).T
    areas = np.maximum(bottoms - tops, 0) * np.maximum(rights - lefts, 0)
    remaining, chosen = np.arange(len(order)), list[int]()
    while len(remaining) and len(chosen) < limit:
        first, remaining = remaining[0], remaining[1:]
        chosen.append(order[first])
        height = np.minimum(bottoms[first], bottoms[remaining]) - np.maximum(tops[first], tops[remaining])
        width = np.minimum(rights[first], rights[remaining]) - np.maximum(lefts[first], lefts[remaining])
        common = np.maximum(height, 0) * np.maximum(width, 0)
        union = areas[first] + areas[remaining] - common
        # Not divided: boxes without an area have no union.
        remaining = remaining[common <= iou_threshold * union]
    return np.array(chosen, np.intp)

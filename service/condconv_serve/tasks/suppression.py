"""Non-maximum suppression: of boxes that show the same object, the one with the highest score stays.

It is done row by row in NumPy, since each request has thresholds of its own and few boxes reach them. A low threshold
lets all of them pass, so boxes are chosen one by one, and no more than are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

MAX_CANDIDATES = 1000
"""Most boxes of one class that are looked at, the highest scores first."""


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], *, iou_threshold: float, limit: int
) -> NDArray[np.intp]:
    """Choose at most `limit` boxes of one class, as `chosen` does.

    Returns:
        The numbers of the chosen boxes.
    """
    return np.fromiter(islice(chosen(boxes, scores, iou_threshold=iou_threshold), limit), np.intp)


def chosen(boxes: NDArray[np.float32], scores: NDArray[np.float32], *, iou_threshold: float) -> Iterator[int]:
    """Choose boxes of one class, the highest score first; ties in the order of the boxes.

    A box is left out if it overlaps one that was chosen before by more than the threshold (intersection over union).

    Args:
        boxes: `[N, 4]`, `ymin, xmin, ymax, xmax`.
        scores: `[N]`.
        iou_threshold: 0 to 1.

    Yields:
        The numbers of the chosen boxes, of the `MAX_CANDIDATES` with the highest scores.
    """
    order = _highest(scores)
    tops, lefts, bottoms, rights = boxes[order].astype(np.float64).T
    areas = np.maximum(bottoms - tops, 0) * np.maximum(rights - lefts, 0)
    remaining = np.arange(len(order))
    while len(remaining):
        first, remaining = remaining[0], remaining[1:]
        yield int(order[first])
        height = np.minimum(bottoms[first], bottoms[remaining]) - np.maximum(tops[first], tops[remaining])
        width = np.minimum(rights[first], rights[remaining]) - np.maximum(lefts[first], lefts[remaining])
        common = np.maximum(height, 0) * np.maximum(width, 0)
        union = areas[first] + areas[remaining] - common
        # Not divided: boxes without an area have no union.
        remaining = remaining[common <= iou_threshold * union]


def _highest(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """The numbers of the `MAX_CANDIDATES` highest scores, highest first; ties in order."""
    if len(scores) <= MAX_CANDIDATES:
        return np.argsort(-scores, kind="stable")
    # Sorting them all would take longer than all the rest.
    least = np.partition(scores, -MAX_CANDIDATES)[-MAX_CANDIDATES]
    enough = np.flatnonzero(scores >= least)
    return enough[np.argsort(-scores[enough], kind="stable")][:MAX_CANDIDATES]

"""Which prior boxes are to find which objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import Objects

BACKGROUND, IGNORED = -1, -2
"""What a prior box is assigned to that has no object: nothing is there, or it doesn't matter what it says."""
THRESHOLD = 0.5
"""A prior box is to find the object that it overlaps by so much (intersection over union)."""

Boxes = NDArray[np.floating]


def match(priors: Boxes, objects: Objects, *, threshold: float = THRESHOLD) -> NDArray[np.intp]:
    """Assign prior boxes to objects, as SSD does (Liu et al., 2016, section 2.2).

    Each prior box takes the object that it overlaps most, if that is enough. Each object has at least one prior box: of
    those that no other object needs more, the one that overlaps it most. What overlaps a crowd, and no object, is
    ignored.

    Args:
        priors: `[A, 4]`, `ymin, xmin, ymax, xmax`.
        objects: in the same units.
        threshold: intersection over union.

    Returns:
        `[A]`: the number of an object, `BACKGROUND` or `IGNORED`.
    """
    assigned = np.full(len(priors), BACKGROUND, np.intp)
    wanted = np.flatnonzero(~objects.crowd)
    if len(wanted):
        overlap = intersection_over_union(priors, objects.boxes[wanted])
        best = overlap.argmax(axis=1)
        enough = overlap[np.arange(len(priors)), best] >= threshold
        assigned[enough] = wanted[best[enough]]
        for column in np.argsort(-overlap.max(axis=0), kind="stable"):
            prior = int(overlap[:, column].argmax())
            if overlap[prior, column] > 0:
                assigned[prior] = wanted[column]
                overlap[prior] = 0  # taken
    if objects.crowd.any():
        within = np.stack([covered(priors, crowd) for crowd in objects.boxes[objects.crowd]])
        assigned[(assigned == BACKGROUND) & (within >= threshold).any(axis=0)] = IGNORED
    return assigned


def intersection_over_union(one: Boxes, other: Boxes) -> NDArray[np.floating]:
    """How much boxes overlap: `[A, 4]` and `[N, 4]` to `[A, N]`, 0 to 1."""
    common = _intersection(one, other)
    union = _areas(one)[:, None] + _areas(other)[None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def covered(boxes: Boxes, by: Boxes) -> NDArray[np.floating]:
    """Which share of each box `[A, 4]` lies within another one `[4]`: `[A]`."""
    areas = _areas(boxes)
    return np.divide(_intersection(boxes, by[None])[:, 0], areas, out=np.zeros_like(areas), where=areas > 0)


def _intersection(one: Boxes, other: Boxes) -> NDArray[np.floating]:
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=-1)


def _areas(boxes: Boxes) -> NDArray[np.floating]:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=-1)

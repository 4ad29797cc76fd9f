"""Feature maps and prior boxes that fit the objects of a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from condconv_serve.domain import Objects

_COARSEST_TAP = 32
_FINE_BELOW = 40
"""Pixels of the row: where there are smaller objects, boxes are predicted at stride 8, too."""
_MANY = 0.01
"""A share of the objects; fewer don't decide."""
_SMALLEST, _MOST_RATIO = 0.01, 8.0
"""No prior box is smaller, or has longer sides in proportion."""
_SPREAD = 1.6
"""A map has boxes that are so much wider and so much higher than usual ones."""
_EXTRAS = ((256, 512, 2), (128, 256, 2), (128, 256, 2))


def fitting_maps(objects: Sequence[Objects], *, image_size: int) -> dict[str, Any]:
    """Choose a detector's feature maps and prior boxes.

    Scales go in equal steps of their logarithm from those of the smallest objects to those of the largest ones, so that
    an object of any size overlaps some prior box well.

    Args:
        objects: of all photos, where 0 to 1 is the row; at least one is no crowd.
        image_size: pixels per side of the row.

    Returns:
        `taps`, `extras` and `prior_boxes`, as `detector_for` takes them.
    """
    boxes = np.concatenate([one.boxes[~one.crowd] for one in objects])
    height, width = (boxes[:, 2:] - boxes[:, :2]).T
    scales, ratio = np.sqrt(height * width), float(np.exp(np.median(np.log(width / height))))
    smallest, largest = np.clip(np.quantile(scales, (_MANY, 1 - _MANY)), _SMALLEST, 1)
    ratio = min(max(ratio, 1 / _MOST_RATIO), _MOST_RATIO)
    taps = ["stride_16", "stride_32"]
    if smallest * image_size < _FINE_BELOW:
        taps.insert(0, "stride_8")
    # A map should have some cells across the largest objects, but not many.
    extras = 0
    while extras < len(_EXTRAS) and largest * image_size > 4 * _COARSEST_TAP * 2**extras * 1.5:
        extras += 1
    count = len(taps) + extras
    return {
        "taps": taps,
        "extras": [list(one) for one in _EXTRAS[:extras]],
        "prior_boxes": prior_boxes_between(float(smallest), float(largest), maps=count, ratio=ratio),
    }


def prior_boxes_between(smallest: float, largest: float, *, maps: int, ratio: float) -> list[list[list[float]]]:
    """Scales and ratios of the prior boxes of each map, from fine to coarse.

    Args:
        smallest: the root of the area of the smallest objects, as a share of the row's side.
        largest: of the largest ones.
        maps: how many there are.
        ratio: usual width of an object, over its height.
    """
    step = max((largest / smallest) ** (1 / max(maps - 1, 1)), 1.25)
    found = []
    for number in range(maps):
        scale = smallest * step**number
        between = scale * math.sqrt(step)
        shapes = [(scale, ratio), (between, ratio), (scale, ratio * _SPREAD), (scale, ratio / _SPREAD)]
        found.append([[round(min(one, 1.0), 4), round(shape, 4)] for one, shape in shapes])
    return found

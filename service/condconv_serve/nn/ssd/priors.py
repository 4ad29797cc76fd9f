"""Prior boxes: the shapes that an SSD detector tries at each place of its feature maps.

A shape is a scale, the root of the box's area as a share of the image's side, and an aspect ratio, width over height.
Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 2.2, and the TensorFlow Object Detection API.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Shape = tuple[float, float]
"""Scale and aspect ratio."""
MapShapes = tuple[Shape, ...]
"""The shapes of one feature map, in the order of its predictors' channels."""

ASPECT_RATIOS = (1.0, 2.0, 0.5, 3.0, 0.3333)
_FINEST = 0.1


def prior_shapes(
    maps: int,
    *,
    min_scale: float = 0.2,
    max_scale: float = 0.95,
    aspect_ratios: Sequence[float] = ASPECT_RATIOS,
    fewer_on_first: bool = True,
    between_last: bool = False,
) -> tuple[MapShapes, ...]:
    """Shapes as in the TensorFlow Object Detection API: scales grow evenly from map to map.

    Besides its aspect ratios at its own scale, a map has a square between its scale and the next one. After the last
    scale comes 1.

    Args:
        maps: number of feature maps, from fine to coarse.
        min_scale: of the first map.
        max_scale: of the last one.
        aspect_ratios: of each map.
        fewer_on_first: whether the first map has three shapes: a small square, and a wide and a high box.
        between_last: whether the square between two scales comes after all others, as in newer versions of the API,
            or after the first.
    """
    scales = [*np.linspace(min_scale, max_scale, maps).tolist(), 1.0]
    found = []
    for scale, following in itertools.pairwise(scales):
        shapes = [(scale, float(ratio)) for ratio in aspect_ratios]
        shapes.insert(len(shapes) if between_last else 1, (math.sqrt(scale * following), 1.0))
        found.append(tuple(shapes))
    if fewer_on_first:
        found[0] = ((_FINEST, 1.0), (scales[0], 2.0), (scales[0], 0.5))
    return tuple(found)


def prior_boxes(map_sizes: Sequence[tuple[int, int]], shapes: Sequence[MapShapes]) -> NDArray[np.float32]:
    """All prior boxes of a detector.

    Args:
        map_sizes: height and width of each feature map.
        shapes: of each feature map.

    Returns:
        float32 `[anchors, 4]`: `ymin, xmin, ymax, xmax`, where 0 to 1 is the image; some reach beyond. By map, row,
        column and shape, as the predictors' outputs lie.
    """
    found = []
    for (height, width), own in zip(map_sizes, shapes, strict=True):
        scale, ratio = np.array(own, np.float64).T
        half = np.stack([scale / np.sqrt(ratio), scale * np.sqrt(ratio)], axis=-1) / 2
        rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        centre = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)[:, :, None]
        found.append(np.concatenate([centre - half, centre + half], axis=-1).reshape(-1, 4))
    return np.concatenate(found).astype(np.float32)

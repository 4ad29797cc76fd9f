"""Reference profiles: what a model's routing looks like on known images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from condconv_serve.domain import RoutingLayout, RoutingProfile
from condconv_serve.routing.tally import ClassesOfImages, Floats, Tally

MIN_CLASS_IMAGES = 5
"""A class has a profile of its own if so many images were taken for it, or it was found in so many."""
UNUSUAL_SHARE = 0.05
"""The share of a profile's own images that are as far from the others as what is called unusual."""


def profile_of(
    routing: ArrayLike,
    classes: ClassesOfImages,
    layout: RoutingLayout,
    *,
    min_class_images: int = MIN_CLASS_IMAGES,
) -> RoutingProfile:
    """Make a profile of the routing weights of some images.

    Args:
        routing: `[N, blocks, experts]`, from 0 to 1.
        classes: the class that the model predicted for each of the images, or all that it found in each.
        layout: whose weights they are.
        min_class_images: images that a class needs for a profile of its own.
    """
    tally = Tally.of(routing, classes, layout, class_bytes=2**40)
    return profile_from(tally, routing, min_class_images=min_class_images)


def profile_from(tally: Tally, routing: ArrayLike, *, min_class_images: int = MIN_CLASS_IMAGES) -> RoutingProfile:
    """Make a profile of images that have been counted, whose weights are `routing`, `[N, blocks, experts]`."""
    typical, unusual = _own_distances(tally, np.asarray(routing, np.float64))
    found, counts = tally.classes.counts()
    enough = counts >= min_class_images
    means = [mean for index in found[enough].tolist() if (known := tally.classes.get(index)) for mean in known[1:]]
    return RoutingProfile(
        images=tally.count,
        mean=tally.mean.astype(np.float32),
        deviation=tally.deviation.astype(np.float32),
        histogram=tally.histogram.copy(),
        load=tally.load.astype(np.float32),
        entropy=tally.entropy_mean.astype(np.float32),
        typical_distance=typical.astype(np.float32),
        unusual_above=unusual.astype(np.float32),
        classes=found[enough],
        class_images=counts[enough],
        class_mean=np.array(means, np.float32).reshape(-1, *tally.layout.shape),
    )


def _own_distances(tally: Tally, routing: Floats) -> tuple[Floats, Floats]:
    """The median of the images' distances from the others, and what `UNUSUAL_SHARE` of them exceed."""
    if not tally.count:
        return (zeros := np.zeros(len(tally.layout.blocks) + 1)), zeros
    # The mean of the others is so much farther away than that of all, which an image pulls towards itself.
    pull = tally.count / max(tally.count - 1, 1)
    distances = pull * root_mean_square(routing - tally.mean, tally.layout)
    typical, unusual = np.quantile(distances, (0.5, 1 - UNUSUAL_SHARE), axis=0)
    return typical, unusual


def root_mean_square(values: ArrayLike, layout: RoutingLayout) -> Floats:
    """Of each block's experts, and of all: `[..., blocks, experts]` to `[..., blocks + 1]`."""
    squares = (np.asarray(values, np.float64) ** 2).sum(axis=-1)
    sums = np.concatenate([squares, squares.sum(axis=-1, keepdims=True)], axis=-1)
    result: Floats = np.sqrt(sums / np.maximum([*layout.experts, sum(layout.experts)], 1))
    return result

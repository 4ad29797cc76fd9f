"""Reference profiles: what a model's routing looks like on known images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from condconv_serve.domain import RoutingLayout, RoutingProfile
from condconv_serve.routing.tally import Tally

MIN_CLASS_IMAGES = 5
"""A class has a profile of its own if so many images were taken for it."""


def profile_of(
    routing: ArrayLike,
    classes: ArrayLike,
    layout: RoutingLayout,
    *,
    min_class_images: int = MIN_CLASS_IMAGES,
) -> RoutingProfile:
    """Make a profile of the routing weights of some images.

    Args:
        routing: `[N, blocks, experts]`, from 0 to 1.
        classes: `[N]`, the class that the model predicted for each image.
        layout: whose weights they are.
        min_class_images: images that a class needs for a profile of its own.
    """
    tally = Tally.of(routing, classes, layout, class_bytes=2**40)
    return profile_from(tally, min_class_images=min_class_images)


def profile_from(tally: Tally, *, min_class_images: int = MIN_CLASS_IMAGES) -> RoutingProfile:
    """Make a profile of images that have been counted."""
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
        classes=found[enough],
        class_images=counts[enough],
        class_mean=np.array(means, np.float32).reshape(-1, *tally.layout.shape),
    )

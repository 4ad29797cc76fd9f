"""What stands out in one image's routing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from condconv_serve.domain import RoutingProfile, RoutingTrace
from condconv_serve.routing.profile import UNUSUAL_SHARE, root_mean_square
from condconv_serve.routing.tally import Floats, entropy

STRONGEST = 3
MIN_LIVE_IMAGES = 5
"""Live traffic serves as a class's profile once it has this many images."""
MIN_REFERENCE_IMAGES = round(1 / UNUSUAL_SHARE)
"""Fewer images can't tell what is farther away than all but `UNUSUAL_SHARE` of them."""


ClassMeans = Mapping[int, tuple[int, Floats]]
"""Images and mean weights `[blocks, experts]` by class, of live traffic."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassProfile:
    """The mean routing `[blocks, experts]` of `images` images that were taken for class `index`."""

    index: int
    images: int
    mean: Floats
    source: Literal["reference", "live"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Insight:
    """What stands out in one image's routing. Distances are root mean squares of differences of weights.

    Attributes:
        entropy: `[blocks]`, see `condconv_serve.routing.tally.entropy`.
        strongest: by block, the experts with the largest weights, largest first.
        reference_distance: `[blocks + 1]`, distance to the reference profile's mean; the last one is over all blocks.
        typical_distance: `[blocks + 1]`, half of the reference's own images are nearer to the mean of the others.
        unusual_above: `[blocks + 1]`, all but one in twenty of them are.
        reference_images: how many the reference has.
        class_distance: `[blocks + 1]`, distance to the predicted class's mean.
        class_profile: which one that is.
    """

    entropy: Floats
    strongest: tuple[tuple[int, ...], ...]
    reference_distance: Floats | None = None
    typical_distance: Floats | None = None
    unusual_above: Floats | None = None
    reference_images: int | None = None
    class_distance: Floats | None = None
    class_profile: ClassProfile | None = None

    @property
    def unusual(self) -> bool | None:
        """Whether the image is unlike the reference's; None without a reference that can tell."""
        if self.reference_distance is None or self.unusual_above is None or self.reference_images is None:
            return None
        if self.reference_images < MIN_REFERENCE_IMAGES:
            return None
        return bool(self.reference_distance[-1] > self.unusual_above[-1])


def insight(
    trace: RoutingTrace, *, profile: RoutingProfile | None = None, class_profile: ClassProfile | None = None
) -> Insight:
    """Look at one image's routing."""
    values, layout = trace.weights.astype(np.float64), trace.layout
    order = np.argsort(-values, axis=1, kind="stable")[:, :STRONGEST]
    return Insight(
        entropy=entropy(values, layout.experts),
        strongest=tuple(
            tuple(places[: min(count, STRONGEST)]) for places, count in zip(order.tolist(), layout.experts, strict=True)
        ),
        reference_distance=None if profile is None else root_mean_square(values - profile.mean, layout),
        typical_distance=None if profile is None else profile.typical_distance.astype(np.float64),
        unusual_above=None if profile is None else profile.unusual_above.astype(np.float64),
        reference_images=None if profile is None else profile.images,
        class_distance=None if class_profile is None else root_mean_square(values - class_profile.mean, layout),
        class_profile=class_profile,
    )


def class_profile_of(
    index: int, *, profile: RoutingProfile | None, live: tuple[int, Floats] | None = None
) -> ClassProfile | None:
    """What is known about a class: from the reference profile, or else from live traffic if that has enough images.

    Args:
        index: the class.
        profile: of the model.
        live: images of the class and their mean weights.
    """
    if profile is not None:
        place = int(np.searchsorted(profile.classes, index))
        if place < len(profile.classes) and profile.classes[place] == index:
            return ClassProfile(
                index=index,
                images=int(profile.class_images[place]),
                mean=profile.class_mean[place].astype(np.float64),
                source="reference",
            )
    if live is None or live[0] < MIN_LIVE_IMAGES:
        return None
    return ClassProfile(index=index, images=live[0], mean=live[1], source="live")

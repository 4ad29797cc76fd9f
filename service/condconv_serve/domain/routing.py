"""Routing: a network's blocks and experts, images' weights, and reference profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RoutingLayout:
    """The CondConv blocks of a network, in order of depth, and how many experts each has.

    Routing weights are arrays `[..., blocks, experts]`, as wide as the block with the most experts. Blocks with fewer
    experts are filled up with zeros; `split` cuts these off. The layout of a static network has no blocks, and is
    false.
    """

    blocks: tuple[str, ...] = ()
    experts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that every block has a number of experts.

        Raises:
            ValueError: it hasn't, or two blocks have one name.
        """
        if len(self.blocks) != len(self.experts) or len(set(self.blocks)) != len(self.blocks):
            raise ValueError(f"Each block needs a name and its number of experts: {self.blocks}, {self.experts}.")

    @classmethod
    def of(cls, experts: Mapping[str, int]) -> RoutingLayout:
        """Make a layout of the number of experts by block."""
        return cls(tuple(experts), tuple(experts.values()))

    def __bool__(self) -> bool:
        """Whether there is any routing."""
        return bool(self.blocks)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Blocks, and the most experts that any of them has."""
        return len(self.blocks), max(self.experts, default=0)

    @cached_property
    def own(self) -> NDArray[np.bool_]:
        """Bool `[blocks, experts]`: True for an expert, False for filling."""
        own: NDArray[np.bool_] = np.arange(self.shape[1]) < np.array(self.experts, np.int64)[:, None]
        return own.reshape(self.shape)

    def split(self, weights: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        """Cut an array `[..., blocks, experts]` into one `[..., experts]` for each block, without the filling."""
        named = zip(self.blocks, self.experts, strict=True)
        return {block: weights[..., place, :count] for place, (block, count) in enumerate(named)}

    def lists(self, weights: NDArray[np.generic]) -> dict[str, list[float]]:
        """Cut an array `[blocks, experts]` into one list for each block, without the filling."""
        return {block: own.tolist() for block, own in self.split(weights).items()}

    def blanked(self, weights: NDArray[np.generic]) -> NDArray[np.float64]:
        """A copy of an array `[..., blocks, experts]` with NaN in place of the filling."""
        return np.where(self.own, weights.astype(np.float64), np.nan)


@dataclass(frozen=True, slots=True)
class RoutingTrace:
    """The routing weights of one image: `weights` float32 `[blocks, experts]`, each the sigmoid's value in 0..1."""

    layout: RoutingLayout
    weights: NDArray[np.float32]

    def by_block(self) -> dict[str, NDArray[np.generic]]:
        """The weights of each block's own experts, float32 `[experts]`."""
        return self.layout.split(self.weights)


@dataclass(frozen=True, slots=True, eq=False)
class RoutingOverrides:
    """The routing of `V` variants of one image.

    Attributes:
        weights: float32 `[V, blocks, experts]`. NaN keeps the model's own weight, computed after the changes in earlier
            blocks.
        uniform: bool `[V, blocks]`. True gives every expert with NaN the mean of the block's own weights.
    """

    weights: NDArray[np.float32]
    uniform: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingProfile:
    """A model's routing on known images, to compare live traffic with.

    Attributes:
        images: how many images it is made of.
        mean: float32 `[blocks, experts]`, the mean routing weight.
        deviation: float32 `[blocks, experts]`, the standard deviation.
        histogram: int64 `[blocks, experts, bins]`, images by weight, in equal bins from 0 to 1.
        load: float32 `[blocks, experts]`, the share of images whose strongest expert this is.
        entropy: float32 `[blocks]`, the mean entropy, 0 to 1.
        typical_distance: float32 `[blocks + 1]`, how far from the mean of the others half of the images are at most:
            the root mean square of the differences of weights; the last one is over all blocks.
        unusual_above: float32 `[blocks + 1]`, the same of all but one in twenty images.
        classes: int64 `[K]`, ascending: the predicted classes with enough images for a profile of their own.
        class_images: int64 `[K]`, how many images each had.
        class_mean: float32 `[K, blocks, experts]`, their mean routing weights.
    """

    images: int
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    histogram: NDArray[np.int64]
    load: NDArray[np.float32]
    entropy: NDArray[np.float32]
    typical_distance: NDArray[np.float32]
    unusual_above: NDArray[np.float32]
    classes: NDArray[np.int64]
    class_images: NDArray[np.int64]
    class_mean: NDArray[np.float32]

"""Sums over routing weights. They add up over images, spans of time, and replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from condconv_serve.domain import RoutingLayout

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

ClassesOfImages = NDArray[np.integer[Any]] | Sequence[int | NDArray[np.integer[Any]]]
"""For each image its class, or an array of the classes that were found in it, each once; perhaps none."""

BINS = 20
"""Bins of the histograms: equal ones from 0 to 1. A bin holds its upper end, as Prometheus's buckets do."""
EDGES: tuple[float, ...] = tuple(i / BINS for i in range(BINS + 1))
ACTIVE = 0.5
"""A weight above this counts as active."""
CLASS_BYTES = 32 * 2**20
"""Default memory for the classes of one tally."""
_BYTES_PER_CLASS = 160  # the counters, and the dictionary's entry


def entropy(weights: ArrayLike, experts: ArrayLike) -> Floats:
    """How evenly weights are spread over the experts.

    Args:
        weights: `[..., blocks, experts]`, not negative; zeros where a block has fewer experts than another.
        experts: how many each block has, `[blocks]`; of one block's weights `[..., experts]`, one number.

    Returns:
        `[..., blocks]`, or `[...]`: Shannon's entropy of the weights, made to sum to 1, divided by its greatest
        possible value: 0 if one expert has all the weight, 1 if all have the same. 0 where there is no weight, or only
        one expert.
    """
    values = np.asarray(weights, np.float64)
    if values.shape[-1] < 2:
        return np.zeros(values.shape[:-1])
    total = values.sum(axis=-1, keepdims=True)
    shares = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    most = np.log(np.maximum(experts, 2))
    result: Floats = -(shares * logarithms).sum(axis=-1) / most
    return result


class ClassTally:
    """Images and sums of routing weights by predicted class, within a limit of memory.

    While there is room every class is kept, and all is exact. After that the class that ranks lowest makes room for a
    new one, which takes over its rank (Space-Saving; Metwally et al., ICDT 2005). A class with more than `1 / capacity`
    of all images is always kept. Dropped classes and their images are counted in `dropped_classes` and
    `dropped_images`. A class that comes back starts without them.
    """

    def __init__(self, shape: tuple[int, int], *, max_bytes: int = CLASS_BYTES) -> None:
        """Start empty.

        Args:
            shape: blocks and experts.
            max_bytes: most memory for the classes; at least one is kept.
        """
        self.capacity = max(1, max_bytes // (8 * shape[0] * shape[1] + _BYTES_PER_CLASS))
        self.dropped_classes = 0
        self.dropped_images = 0
        self._slots: dict[int, int] = {}
        self._counts = np.zeros(0, np.int64)
        self._ranks = np.zeros(0, np.int64)
        self._sums = np.zeros((0, *shape))

    def __len__(self) -> int:
        """How many classes there are."""
        return len(self._slots)

    def add(self, classes: Counts, counts: Counts, sums: Floats, ranks: Counts | None = None) -> None:
        """Add images of some classes, each named once.

        Args:
            classes: `[K]`.
            counts: `[K]`, their images.
            sums: `[K, blocks, experts]`, the sums of their weights.
            ranks: `[K]`, from another tally; the counts if None.
        """
        ranks = counts if ranks is None else ranks
        slots = np.array([self._slots.get(index, -1) for index in classes.tolist()], np.int64)
        known = slots >= 0
        self._counts[slots[known]] += counts[known]
        self._ranks[slots[known]] += ranks[known]
        self._sums[slots[known]] += sums[known]
        new = np.flatnonzero(~known)
        for position in new[np.argsort(-ranks[new], kind="stable")].tolist():
            slot, inherited = self._slot()
            self._slots[int(classes[position])] = slot
            self._counts[slot] = counts[position]
            self._ranks[slot] = ranks[position] + inherited
            self._sums[slot] = sums[position]

    def merge(self, other: ClassTally) -> None:
        """Add another tally's classes; exact as long as nothing is dropped."""
        classes, counts, sums, ranks = other._arrays()
        self.add(classes, counts, sums, ranks)
        self.dropped_classes += other.dropped_classes
        self.dropped_images += other.dropped_images

    def get(self, index: int) -> tuple[int, Floats] | None:
        """Images of a class and their mean weights `[blocks, experts]`; None if there is none of it."""
        slot = self._slots.get(index)
        return None if slot is None else (int(self._counts[slot]), self._sums[slot] / self._counts[slot])

    def counts(self) -> tuple[Counts, Counts]:
        """Classes in ascending order, and their images."""
        classes, counts, _, _ = self._arrays(sums=False)
        return classes, counts

    def means(self, block: int, expert: int) -> Floats:
        """The mean weight of one expert for each class, in the order of `counts`."""
        slots = self._ordered()
        result: Floats = self._sums[slots, block, expert] / self._counts[slots]
        return result

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """All that `from_arrays` needs."""
        classes, counts, sums, ranks = self._arrays()
        dropped = np.array([self.dropped_classes, self.dropped_images], np.int64)
        return {"classes": classes, "counts": counts, "sums": sums, "ranks": ranks, "dropped": dropped}

    def restore(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Add what `to_arrays` gave."""
        classes, counts, ranks = (arrays[name].astype(np.int64) for name in ("classes", "counts", "ranks"))
        self.add(classes, counts, arrays["sums"].astype(np.float64), ranks)
        self.dropped_classes += int(arrays["dropped"][0])
        self.dropped_images += int(arrays["dropped"][1])

    def _ordered(self) -> Counts:
        return np.array([self._slots[index] for index in sorted(self._slots)], np.int64)

    def _arrays(self, *, sums: bool = True) -> tuple[Counts, Counts, Floats, Counts]:
        slots = self._ordered()
        nothing = np.zeros((0, *self._sums.shape[1:]))
        return (
            np.array(sorted(self._slots), np.int64),
            self._counts[slots],
            self._sums[slots] if sums else nothing,
            self._ranks[slots],
        )

    def _slot(self) -> tuple[int, int]:
        """A free slot, and the rank that its next class inherits."""
        used = len(self._slots)
        if used < self.capacity:
            if used == len(self._counts):
                self._grow(min(max(2 * used, 8), self.capacity))
            return used, 0
        slot = int(self._ranks.argmin())
        self.dropped_classes += 1
        self.dropped_images += int(self._counts[slot])
        victim = next(index for index, place in self._slots.items() if place == slot)
        del self._slots[victim]
        return slot, int(self._ranks[slot])

    def _grow(self, size: int) -> None:
        more = size - len(self._counts)
        self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])
        self._ranks = np.concatenate([self._ranks, np.zeros(more, np.int64)])
        self._sums = np.concatenate([self._sums, np.zeros((more, *self._sums.shape[1:]))])


@dataclass(slots=True, eq=False)
class Tally:
    """Count, moments, histograms and load of the routing weights of some images, in float64 and whole numbers.

    Attributes:
        layout: whose routing; where a block has fewer experts than another, its figures are filled up with zeros.
        class_bytes: most memory for the classes.
        count: images.
        mean: `[blocks, experts]`.
        squares: `[blocks, experts]`, the sum of squared differences from the mean.
        histogram: `[blocks, experts, BINS]`, images by weight.
        strongest: `[blocks, experts]`, images whose strongest expert this is; the first one if several are.
        active: `[blocks, experts]`, images that give it a weight above `ACTIVE`.
        entropy_mean: `[blocks]`, see `entropy`.
        entropy_squares: `[blocks]`.
        classes: by predicted class, or by each class that a detector found.
    """

    layout: RoutingLayout
    class_bytes: int = CLASS_BYTES
    count: int = 0
    mean: Floats = field(init=False)
    squares: Floats = field(init=False)
    histogram: Counts = field(init=False)
    strongest: Counts = field(init=False)
    active: Counts = field(init=False)
    entropy_mean: Floats = field(init=False)
    entropy_squares: Floats = field(init=False)
    classes: ClassTally = field(init=False)

    def __post_init__(self) -> None:
        """Start at nothing."""
        shape = self.layout.shape
        self.mean, self.squares = np.zeros(shape), np.zeros(shape)
        self.histogram = np.zeros((*shape, BINS), np.int64)
        self.strongest, self.active = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.entropy_mean, self.entropy_squares = np.zeros(shape[0]), np.zeros(shape[0])
        self.classes = ClassTally(shape, max_bytes=self.class_bytes)

    @classmethod
    def of(
        cls,
        routing: ArrayLike,
        classes: ClassesOfImages,
        layout: RoutingLayout,
        *,
        class_bytes: int = CLASS_BYTES,
    ) -> Tally:
        """Count images.

        Args:
            routing: their weights `[N, blocks, experts]`, from 0 to 1; images with one that isn't finite don't count.
            classes: their predicted classes `[N]`, or all that were found in each.
            layout: whose weights they are.
            class_bytes: most memory for the classes.
        """
        weights = np.asarray(routing, np.float64)
        places, predicted = _by_class(classes)
        finite = np.asarray(np.isfinite(weights).all(axis=(1, 2)))
        if not finite.all():
            counts = finite[places]
            places, predicted = (finite.cumsum() - 1)[places[counts]], predicted[counts]
            weights = weights[finite]
        tally = cls(layout, class_bytes)
        tally.count = len(weights)
        if not weights.size:
            return tally
        tally.mean = weights.mean(axis=0)
        tally.squares = ((weights - tally.mean) ** 2).sum(axis=0)
        tally.histogram = _histogram(weights)
        strongest = weights.argmax(axis=2)
        tally.strongest = (strongest[..., None] == np.arange(weights.shape[2])).sum(axis=0)
        tally.active = (weights > ACTIVE).sum(axis=0)
        entropies = entropy(weights, layout.experts)
        tally.entropy_mean = entropies.mean(axis=0)
        tally.entropy_squares = ((entropies - tally.entropy_mean) ** 2).sum(axis=0)
        order = predicted.argsort(kind="stable")
        found, starts, images = np.unique(predicted[order], return_index=True, return_counts=True)
        if len(found):
            sums = np.add.reduceat(weights[places[order]], starts, axis=0)
            tally.classes.add(found, images.astype(np.int64), sums)
        return tally

    def merge(self, other: Tally, *, classes: bool = True) -> None:
        """Add another tally to this one (Chan et al., 1979): the same as if one had counted all images.

        Args:
            other: stays as it is.
            classes: whether to add its classes, too.

        Raises:
            ValueError: it is one of other blocks or experts.
        """
        if other.layout != self.layout:
            raise ValueError(
                f"Tallies of {other.layout.shape} and {self.layout.shape} blocks and experts don't add up."
            )
        if other.count:
            total = self.count + other.count
            share, joint = other.count / total, self.count * other.count / total
            for mean, squares in (("mean", "squares"), ("entropy_mean", "entropy_squares")):
                apart = getattr(other, mean) - getattr(self, mean)
                setattr(self, squares, getattr(self, squares) + getattr(other, squares) + apart**2 * joint)
                setattr(self, mean, getattr(self, mean) + apart * share)
            self.histogram += other.histogram
            self.strongest += other.strongest
            self.active += other.active
            self.count = total
        if classes:
            self.classes.merge(other.classes)

    @property
    def deviation(self) -> Floats:
        """Standard deviation of the weights `[blocks, experts]`, over the images themselves; 0 without images."""
        result: Floats = np.sqrt(self.squares / max(self.count, 1))
        return result

    @property
    def entropy_deviation(self) -> Floats:
        """Standard deviation of the entropies `[blocks]`."""
        result: Floats = np.sqrt(self.entropy_squares / max(self.count, 1))
        return result

    @property
    def load(self) -> Floats:
        """Share of images whose strongest expert this is, `[blocks, experts]`; sums to 1 over the experts."""
        result: Floats = self.strongest / max(self.count, 1)
        return result

    @property
    def active_share(self) -> Floats:
        """Share of images that give the expert a weight above `ACTIVE`, `[blocks, experts]`."""
        result: Floats = self.active / max(self.count, 1)
        return result

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """All that `from_arrays` needs."""
        return {
            "count": np.array(self.count, np.int64),
            **{name: getattr(self, name) for name in _ARRAYS},
            **{f"class_{name}": value for name, value in self.classes.to_arrays().items()},
        }

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, NDArray[np.generic]], layout: RoutingLayout, *, class_bytes: int = CLASS_BYTES
    ) -> Tally:
        """Make a tally of what `to_arrays` gave of the same layout.

        Raises:
            ValueError: an array is missing or misshaped.
        """
        if missing := {"count", *_ARRAYS, *(f"class_{name}" for name in _CLASS_ARRAYS)} - arrays.keys():
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        if arrays["mean"].shape != layout.shape:  # before there is memory for it
            raise ValueError(f"mean has shape {arrays['mean'].shape} instead of {layout.shape}")
        tally = cls(layout, class_bytes)
        tally.count = int(arrays["count"])
        for name in _ARRAYS:
            empty = getattr(tally, name)
            if arrays[name].shape != empty.shape:
                raise ValueError(f"{name} has shape {arrays[name].shape} instead of {empty.shape}")
            setattr(tally, name, arrays[name].astype(empty.dtype))
        classes = {name: arrays[f"class_{name}"] for name in _CLASS_ARRAYS}
        number = len(classes["classes"])
        shapes = {"classes": (number,), "counts": (number,), "ranks": (number,), "sums": (number, *layout.shape)}
        for name, shape in {**shapes, "dropped": (2,)}.items():
            if classes[name].shape != shape:
                raise ValueError(f"class_{name} has shape {classes[name].shape} instead of {shape}")
        tally.classes.restore(classes)
        return tally


_ARRAYS = ("mean", "squares", "histogram", "strongest", "active", "entropy_mean", "entropy_squares")
_CLASS_ARRAYS = ("classes", "counts", "sums", "ranks", "dropped")


def _by_class(classes: ClassesOfImages) -> tuple[Counts, Counts]:
    """Each image's place, once for each of its classes, and these classes."""
    if isinstance(classes, np.ndarray):
        return np.arange(len(classes)), classes.astype(np.int64)
    found = [np.atleast_1d(np.asarray(of_image, np.int64)) for of_image in classes]
    places = np.repeat(np.arange(len(found)), [len(of_image) for of_image in found])
    return places, np.concatenate([np.zeros(0, np.int64), *found])


def _histogram(weights: Floats) -> Counts:
    """Count `[N, blocks, experts]` into `[blocks, experts, BINS]`."""
    _, blocks, experts = weights.shape
    bins = np.clip(np.ceil(weights * BINS).astype(np.int64) - 1, 0, BINS - 1)
    places = bins + BINS * np.arange(blocks * experts).reshape(blocks, experts)
    counted = np.bincount(places.ravel(), minlength=blocks * experts * BINS)
    return counted.reshape(blocks, experts, BINS).astype(np.int64)

"""Batches for training a detector: photos varied with their boxes, and what its prior boxes are to say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from condconv_serve.domain import Objects, Preprocessing
from condconv_serve.nn.ssd import encode
from condconv_serve.training.batches import Selection, normalise, shuffled
from condconv_serve.training.detection.augmentation import DetectionAugmentation, vary
from condconv_serve.training.detection.matching import IGNORED, match

IGNORED_CLASS = -1
"""In targets: what is there doesn't matter. 0 is for nothing, and class `c` is `c + 1`."""


@dataclass(frozen=True, slots=True, eq=False)
class Anchors:
    """A detector's prior boxes float32 `[A, 4]`, and the factors of its encodings."""

    priors: NDArray[np.float32]
    variances: tuple[float, float, float, float]

    def targets(self, objects: Objects, *, smallest: float = 0.0) -> NDArray[np.float32]:
        """What a detector is to say of a photo: `[A, 5]`, an encoded box and a class for each prior box.

        Args:
            objects: where 0 to 1 is the row.
            smallest: objects with a shorter side can't be seen, and are ignored.
        """
        sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).min(axis=1, initial=1)
        objects = replace(objects, crowd=objects.crowd | (sides < smallest))
        assigned = match(self.priors, objects)
        targets = np.zeros((len(self.priors), 5), np.float32)
        targets[assigned == IGNORED, 4] = IGNORED_CLASS
        found = assigned >= 0
        chosen = assigned[found]
        targets[found, :4] = encode(objects.boxes[chosen], self.priors[found], variances=self.variances)
        targets[found, 4] = objects.classes[chosen] + 1
        return targets


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DetectionBatches:
    """Training batches of photos.

    Attributes:
        rows: what to learn from, as large as the network takes them or larger.
        objects: in each.
        preprocessing: size, mean and standard deviation of what the network takes.
        anchors: of the network.
        batch_size: photos per batch; the last one of an epoch may have fewer.
        augmentation: how photos are varied.
        seed: of order and variation; each epoch has its own.
    """

    rows: Selection
    objects: tuple[Objects, ...]
    preprocessing: Preprocessing
    anchors: Anchors
    batch_size: int
    augmentation: DetectionAugmentation
    seed: int

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return -(-len(self.rows) // self.batch_size)

    @property
    def signature(self) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """Shape and type of a batch's pixels and targets."""
        size = self.preprocessing.image_size
        return (
            tf.TensorSpec((None, size, size, 3), tf.float32),
            tf.TensorSpec((None, len(self.anchors.priors), 5), tf.float32),
        )

    def epochs(self, first: int, last: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Batches of the epochs `first` (from 0) to `last` (excluded): normalised pixels and targets."""
        size, ground = self.preprocessing.image_size, np.array(self.preprocessing.mean, np.float32)
        for epoch in range(first, last):
            for chosen, rng in shuffled(len(self.rows), batch_size=self.batch_size, seed=(self.seed, epoch)):
                pixels, targets = [], []
                for row, number in zip(self.rows[chosen], chosen.tolist(), strict=True):
                    shown, objects = vary(
                        row,
                        self.objects[number],
                        size=size,
                        augmentation=self.augmentation,
                        ground=ground,
                        rng=rng,
                    )
                    pixels.append(shown)
                    targets.append(self.anchors.targets(objects, smallest=1 / size))
                yield normalise(np.stack(pixels), self.preprocessing), np.stack(targets)

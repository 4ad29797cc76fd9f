"""Batches for training: shuffled in every epoch, slightly varied, and the same after a run is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from condconv_serve.domain import Preprocessing, Row

_SHIFT = 0.1
_BRIGHTNESS = 0.1
_CONTRAST = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How images are varied. `shift`: moved by up to a tenth, a little brighter or darker; `mirror`: half of them."""

    shift: bool = True
    mirror: bool = True

    def __bool__(self) -> bool:
        """Whether they are varied at all."""
        return self.shift or self.mirror


@dataclass(frozen=True, slots=True)
class Selection:
    """Some of the rows `[N, image_size, image_size, 3]` of a mapped file, read when they are asked for."""

    rows: Row
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.positions)

    def __getitem__(self, which: slice | NDArray[np.int64]) -> Row:
        """A copy of some of the rows."""
        return self.rows[self.positions[which]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Training batches of some rows.

    Attributes:
        images: what to learn from.
        targets: `[N, ...]`.
        preprocessing: mean and standard deviation.
        batch_size: rows per batch; the last one of an epoch may have fewer.
        augmentation: how rows are varied.
        seed: of order and variation; each epoch has its own.
    """

    images: Selection
    targets: NDArray[Any]
    preprocessing: Preprocessing
    batch_size: int
    augmentation: Augmentation
    seed: int

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return -(-len(self.images) // self.batch_size)

    def epochs(self, first: int, last: int) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        """Batches of the epochs `first` (from 0) to `last` (excluded): normalised pixels and targets."""
        for epoch in range(first, last):
            for chosen, rng in shuffled(len(self.images), batch_size=self.batch_size, seed=(self.seed, epoch)):
                yield normalise(self._vary(self.images[chosen], rng), self.preprocessing), self.targets[chosen]

    @property
    def signature(self) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """Shape and type of a batch's inputs and targets."""
        return signature_of((self.preprocessing.image_size,) * 2 + (3,), self.targets)

    def _vary(self, rows: Row, rng: np.random.Generator) -> NDArray[np.float32]:
        varied = rows.astype(np.float32)
        for row in varied:
            if self.augmentation.mirror and rng.random() < 0.5:
                row[:] = row[:, ::-1]
            if self.augmentation.shift:
                _move(row, *rng.integers(-_reach(len(row)), _reach(len(row)) + 1, 2).tolist())
                contrast, brightness = 1 + rng.uniform(-_CONTRAST, _CONTRAST), rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
                mean = row.mean()
                np.clip((row - mean) * contrast + mean + 255 * brightness, 0, 255, out=row)
        return varied


def shuffled(
    count: int, *, batch_size: int, seed: tuple[int, int]
) -> Iterator[tuple[NDArray[np.int64], np.random.Generator]]:
    """The positions of each batch of an epoch, ascending in each, and the generator for what else is random in it."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    for start in range(0, count, batch_size):
        yield np.sort(order[start : start + batch_size]), rng  # sorted: disks read so


def signature_of(shape: tuple[int, ...], targets: NDArray[Any]) -> tuple[tf.TensorSpec, tf.TensorSpec]:
    """Shape and type of batches of examples of a shape, float32, and of their targets `[N, ...]`."""
    return tf.TensorSpec((None, *shape), tf.float32), tf.TensorSpec((None, *targets.shape[1:]), targets.dtype)


def normalise(rows: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Make pixels 0..255 what the network takes, as the inference graph does."""
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    result: NDArray[np.float32] = (rows.astype(np.float32) - mean) / std
    return result


def _reach(size: int) -> int:
    return max(1, round(_SHIFT * size))


def _move(row: NDArray[np.float32], down: int, right: int) -> None:
    """Shift one image in place; what comes in from outside repeats the edge."""
    size = len(row)
    lines = np.clip(np.arange(size) - down, 0, size - 1)
    columns = np.clip(np.arange(size) - right, 0, size - 1)
    row[:] = row[lines][:, columns]

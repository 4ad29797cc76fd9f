"""Training the last layer alone: what the rest of the network makes of an image is computed once, and kept in a file.

The rest is frozen, and computes as it does when it serves. Only the last layer, and the dropout before it, are computed
in each step. A feature takes 4 bytes, so 5 kB an image with 1280 of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from condconv_serve.domain import Preprocessing
from condconv_serve.training.batches import Selection, normalise, shuffled, signature_of
from condconv_serve.training.mapped import create_mapped
from condconv_serve.training.network import ending_of

_FEATURES = "features.npy"


@dataclass(frozen=True, slots=True)
class SplitNetwork:
    """One network in two: `backbone` makes `features` and `routing` of pixels, `head` makes logits of features.

    The features of a head with experts end in its routing weights.
    """

    backbone: keras.Model
    head: keras.Model


def split_network(network: keras.Model) -> SplitNetwork:
    """Split a network before its last layer, and the dropout before that; both parts share its layers.

    Raises:
        ConfigurationError: the network doesn't end in a Dense or CondConvDense layer.
    """
    ending = ending_of(network)
    features, routing = ending.features, ending.routing
    if routing is not None:
        features = keras.layers.Concatenate(dtype="float32")([features, routing])
    backbone = keras.Model(network.inputs[0], {"features": features, "routing": network.output["routing"]})
    inputs = x = keras.Input(features.shape[1:])
    rest: list[Any] = []
    if routing is not None:
        experts = routing.shape[-1]
        x, rest = inputs[:, :-experts], [inputs[:, -experts:]]
    for dropout in ending.dropouts:
        x = dropout(x)
    return SplitNetwork(backbone, keras.Model(inputs, ending.head(x, *rest)))


def compute_features(
    backbone: keras.Model,
    images: Selection,
    preprocessing: Preprocessing,
    directory: Path,
    *,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> NDArray[np.float32]:
    """Compute what a frozen backbone makes of images, unless the file is there already.

    Args:
        backbone: of a `SplitNetwork`.
        images: `N` rows.
        preprocessing: mean and standard deviation.
        directory: where the file goes; it appears when it is whole.
        batch_size: rows computed at once.
        progress: told how many of how many are done.

    Returns:
        `[N, features]`, mapped from the file.

    Raises:
        OSError: the disk is full.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file, part = directory / _FEATURES, directory / f"{_FEATURES}.part"
    if not file.exists():
        shape = (len(images), *backbone.output["features"].shape[1:])
        store = create_mapped(part, dtype=np.float32, shape=shape)
        for start, found in _in_batches(backbone, images, preprocessing, batch_size):
            store[start : start + batch_size] = found["features"]
            progress(min(start + batch_size, len(images)), len(images))
        store.flush()
        os.replace(part, file)
    features: NDArray[np.float32] = np.load(file, mmap_mode="r")
    return features


def compute_outputs(
    backbone: keras.Model, images: Selection, preprocessing: Preprocessing, *, batch_size: int
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """The features `[N, features]` and, by block, the routing weights `[N, experts]` of images."""
    found = [output for _, output in _in_batches(backbone, images, preprocessing, batch_size)]
    routing = {block: np.concatenate([output["routing"][block] for output in found]) for block in found[0]["routing"]}
    return np.concatenate([output["features"] for output in found]), routing


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureBatches:
    """Training batches of features, in the order in which `Batches` would give their images."""

    features: NDArray[np.float32]
    targets: NDArray[Any]
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return -(-len(self.features) // self.batch_size)

    @property
    def signature(self) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """Shape and type of a batch's features and targets."""
        return signature_of(self.features.shape[1:], self.targets)

    def epochs(self, first: int, last: int) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        """Batches of the epochs `first` (from 0) to `last` (excluded): features and targets."""
        for epoch in range(first, last):
            for chosen, _ in shuffled(len(self.features), batch_size=self.batch_size, seed=(self.seed, epoch)):
                yield np.asarray(self.features[chosen]), self.targets[chosen]


def _in_batches(
    backbone: keras.Model, images: Selection, preprocessing: Preprocessing, batch_size: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for start in range(0, len(images), batch_size):
        yield start, backbone.predict_on_batch(normalise(images[start : start + batch_size], preprocessing))

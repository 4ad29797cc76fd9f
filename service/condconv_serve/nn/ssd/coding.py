"""Box coding and scores: between boxes and what an SSD detector predicts, in NumPy and in Keras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from condconv_serve.nn.ssd.priors import MapShapes, prior_boxes

Tensor = Any
Variances = tuple[float, float, float, float]
ScoreName = Literal["softmax", "sigmoid"]
"""How class logits become probabilities: of classes that exclude each other and the background, or one by one."""

VARIANCES: Variances = (10.0, 10.0, 5.0, 5.0)
"""What the encodings of centre (y, x) and size (height, width) are multiplied with, as in the published networks."""
MOST_GROWTH = math.log(1000 / 16)
"""Logarithm of how many times larger than its prior box a box can be: an exponential would know no limit."""


def encode(
    boxes: NDArray[np.floating[Any]], priors: NDArray[np.floating[Any]], *, variances: Variances = VARIANCES
) -> NDArray[np.float32]:
    """What a detector should predict at each prior box.

    Args:
        boxes: `[..., anchors, 4]`, `ymin, xmin, ymax, xmax`, each with an area.
        priors: `[anchors, 4]`, in the same way.
        variances: factors.

    Returns:
        float32 `[..., anchors, 4]`: `ty, tx, th, tw`.
    """
    centre, size = _centre_and_size(boxes)
    prior_centre, prior_size = _centre_and_size(priors)
    moved = np.concatenate([(centre - prior_centre) / prior_size, np.log(size / prior_size)], axis=-1)
    return (moved * np.array(variances)).astype(np.float32)


def decode(
    encodings: NDArray[np.floating[Any]], priors: NDArray[np.floating[Any]], *, variances: Variances = VARIANCES
) -> NDArray[np.float32]:
    """The boxes that a detector predicts; undoes `encode`.

    Args:
        encodings: `[..., anchors, 4]`.
        priors: `[anchors, 4]`.
        variances: factors.

    Returns:
        float32 `[..., anchors, 4]`: `ymin, xmin, ymax, xmax`, not clipped, but no box is more than 62.5 times as high
        or as wide as its prior box.
    """
    prior_centre, prior_size = _centre_and_size(priors)
    moved = np.asarray(encodings, np.float64) / np.array(variances)
    centre = moved[..., :2] * prior_size + prior_centre
    half = np.exp(np.minimum(moved[..., 2:], MOST_GROWTH)) * prior_size / 2
    return np.concatenate([centre - half, centre + half], axis=-1).astype(np.float32)


def _centre_and_size(boxes: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    corner, opposite = np.split(np.asarray(boxes, np.float64), 2, axis=-1)
    return (corner + opposite) / 2, opposite - corner


@keras.saving.register_keras_serializable(package="condconv")
class DecodeBoxes(keras.layers.Layer):
    """Makes boxes `[B, anchors, 4]` of box encodings `[B, anchors, 4]`: `decode` as a layer, without weights.

    Args:
        map_sizes: height and width of each feature map.
        shapes: scale and aspect ratio of the prior boxes of each map.
        variances: factors of the encodings.
    """

    def __init__(
        self,
        map_sizes: Sequence[Sequence[int]],
        shapes: Sequence[MapShapes],
        *,
        variances: Sequence[float] = VARIANCES,
        **kwargs: Any,
    ) -> None:
        """See the class."""
        super().__init__(**kwargs)
        self.map_sizes = tuple((int(height), int(width)) for height, width in map_sizes)
        self.shapes = tuple(tuple((float(scale), float(ratio)) for scale, ratio in own) for own in shapes)
        self.variances = tuple(float(factor) for factor in variances)
        self.priors = prior_boxes(self.map_sizes, self.shapes)
        """float32 `[anchors, 4]`."""
        centre, size = _centre_and_size(self.priors)
        self._centre, self._half = centre.astype(np.float32), (size / 2).astype(np.float32)
        self._per_centre = (size / self.variances[:2]).astype(np.float32)
        self._per_size = (1 / np.array(self.variances[2:])).astype(np.float32)

    def call(self, encodings: Tensor) -> Tensor:
        """Decode."""
        encodings = ops.cast(encodings, "float32")
        centre = encodings[..., :2] * self._per_centre + self._centre
        half = ops.exp(ops.minimum(encodings[..., 2:] * self._per_size, MOST_GROWTH)) * self._half
        return ops.concatenate([centre - half, centre + half], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """As the input's."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "map_sizes": self.map_sizes,
            "shapes": self.shapes,
            "variances": self.variances,
        }


@keras.saving.register_keras_serializable(package="condconv")
class ClassScores(keras.layers.Layer):
    """Makes probabilities `[B, anchors, classes]` of class logits `[B, anchors, 1 + classes]`, the background first.

    Args:
        function: "softmax" or "sigmoid".
    """

    def __init__(self, function: ScoreName = "softmax", **kwargs: Any) -> None:
        """See the class."""
        super().__init__(**kwargs)
        if function not in ("softmax", "sigmoid"):
            raise ValueError(f"function must be 'softmax' or 'sigmoid', not {function!r}.")
        self.function = function

    def call(self, logits: Tensor) -> Tensor:
        """Leave the background out."""
        logits = ops.cast(logits, "float32")
        if self.function == "sigmoid":
            return ops.sigmoid(logits[..., 1:])
        return ops.softmax(logits, axis=-1)[..., 1:]

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """One class less."""
        *others, classes = input_shape
        return (*others, None if classes is None else classes - 1)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "function": self.function}

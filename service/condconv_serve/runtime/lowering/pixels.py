"""From rows of pixels to what a network takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from condconv_serve.domain import Preprocessing


def normalised(rows: Any, preprocessing: Preprocessing) -> Any:
    """Rows as the network takes them: float32, with the mean 0 and the standard deviation 1."""
    mean, scale = _per_channel(preprocessing.mean), _per_channel(tuple(1 / s for s in preprocessing.std))
    return (tf.cast(rows, tf.float32) - mean) * scale


def _per_channel(values: tuple[float, ...]) -> Any:
    """A single number if all channels have the same: broadcasting over an innermost axis of three is slow."""
    return values[0] if len(set(values)) == 1 else np.array(values, np.float32)

"""Which classes an image counts for in the statistics by class."""

from __future__ import annotations

import numpy as np

from condconv_serve.domain import LOGITS, SCORES, Tensors
from condconv_serve.routing.tally import Counts

FOUND_ABOVE = 0.5
"""A detector has found a class in an image if one of its boxes has a higher score than this."""


def classes_in(tensors: Tensors) -> Counts:
    """The classes of one image: a classifier's most probable one; all that a detector has found, perhaps none.

    Args:
        tensors: what the network answered for the image: `logits` or `scores`.

    Returns:
        `[K]`, ascending, each class once.
    """
    if LOGITS in tensors:
        return np.array([tensors[LOGITS].argmax()], np.int64)
    return np.flatnonzero(tensors[SCORES].max(axis=0, initial=0) > FOUND_ABOVE).astype(np.int64)

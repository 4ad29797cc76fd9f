"""Warms a model up before it is served: the first batch of each size is slow, and no request should wait for that."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from condconv_serve.domain import ServedModel


def warm_up(model: ServedModel, *, sizes: Sequence[int], streams: int) -> None:
    """Compute a batch of each of `sizes` on each of `streams` streams, each stream on its own thread as in service."""
    side = model.info.preprocessing.image_size

    def compute(stream: int) -> None:
        for rows in sizes:
            model.engine(np.zeros((rows, side, side, 3), np.uint8), stream)

    with ThreadPoolExecutor(streams) as threads:
        list(threads.map(compute, range(streams)))

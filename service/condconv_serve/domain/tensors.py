"""Named tensors: engines return them, tasks say what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from condconv_serve.domain.caching import FROM_CACHE, CacheResult
from condconv_serve.domain.images import Placement

Tensors = Mapping[str, NDArray[Any]]
"""Arrays by name of the output. Those of a batch are `[B, ...]`; those of one row have no batch axis."""

LOGITS = "logits"
"""Class scores before the softmax: float32 `[classes]` per row."""
ROUTING = "routing"
"""Routing weights: float32 `[blocks, experts]` per row, see `RoutingLayout`."""
BOXES = "boxes"
"""A detector's candidates: float32 `[anchors, 4]` per row, `ymin, xmin, ymax, xmax`; 0 to 1 is the row, from edge to
edge, and boxes may reach beyond it."""
SCORES = "scores"
"""The probability of each class in each of a detector's candidate boxes: float32 `[anchors, classes]` per row."""
FEATURES = "features"
"""Pooled features before the classifier: float32 `[features]` per row. Where it isn't found, there are none."""
PROBABILITIES = "probabilities"
"""The softmax of the logits: float32 `[classes]` per row. No engine's output, but an answer's."""
LABEL = "label"
"""The name of the most probable class: text, a scalar per row. No engine's output, but an answer's."""


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """A tensor by its name, its shape per row, and its dtype as NumPy names it; `str` is text, `bytes` a file.

    -1 in the shape is a size that the request decides.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


def rows_of(tensors: Tensors) -> list[Tensors]:
    """Cut a batch's tensors into those of each row; views, no copies."""
    batch = len(next(iter(tensors.values())))
    return [{name: values[row] for name, values in tensors.items()} for row in range(batch)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long an image took, in seconds. `total` includes the time between the stages.

    `cache` is where its answer came from; None if no cache was asked. Stages take no time for an answer from the cache.
    """

    decode: float
    queue: float
    inference: float
    total: float
    cache: CacheResult | None = None

    @property
    def cached(self) -> bool | None:
        """Whether nothing had to be computed; None if no cache was asked."""
        return None if self.cache is None else self.cache in FROM_CACHE


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAnswer:
    """The plane's answer for one row.

    Attributes:
        tensors: the model's outputs.
        timings: where the time went.
        batch_size: rows in its batch.
        placement: where the row lies in its photo; None if it came as pixels alone.
    """

    tensors: Tensors
    timings: Timings
    batch_size: int
    placement: Placement | None = None

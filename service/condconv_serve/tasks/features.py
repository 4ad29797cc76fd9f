"""Features: what the classifier reads, a vector by which images can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import FEATURES, LOGITS, ModelInfo, RowAnswer, Timings
from condconv_serve.errors import InvalidParameter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """The features of one image.

    Attributes:
        features: float32 `[features]`.
        logits: float32 `[classes]`, class scores before the softmax; None if they weren't asked for.
        timings: where the time went.
        batch_size: rows in its batch.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    timings: Timings
    batch_size: int


@dataclass(frozen=True, slots=True)
class Embed:
    """The task of embedding. `logits` says whether they are wanted, too."""

    logits: bool = False

    def check(self, model: ModelInfo) -> None:
        """Refuse a model without features.

        Raises:
            InvalidParameter: no single layer of it makes the logits of one vector.
        """
        features_of(model)

    def answer(self, row: RowAnswer, model: ModelInfo) -> Embedding:
        """Copies, which keep no other row of the batch in memory."""
        return Embedding(
            features=row.tensors[FEATURES].copy(),
            logits=row.tensors[LOGITS].copy() if self.logits else None,
            timings=row.timings,
            batch_size=row.batch_size,
        )


def features_of(model: ModelInfo) -> int:
    """How many features a model has.

    Raises:
        InvalidParameter: it has none.
    """
    for output in model.outputs:
        if output.name == FEATURES:
            return output.shape[0]
    if model.task != "classification":
        raise InvalidParameter(f"{model.name} is a model for {model.task}: it has no features.")
    raise InvalidParameter(
        f"{model.name} has no features: its logits aren't made by one last layer of one vector. A network of your own "
        "can return `features` itself."
    )

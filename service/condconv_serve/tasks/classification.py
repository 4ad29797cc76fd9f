"""Classification: logits are class scores, and the answer is the most probable classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import LOGITS, ROUTING, ClassScore, Label, ModelInfo, Prediction, RoutingTrace, RowAnswer
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.numbers import check_count, check_share

DEFAULT_TOP_K = 5


@dataclass(frozen=True, slots=True)
class Classify:
    """The task of classification.

    Attributes:
        top_k: how many classes to return, best first; `DEFAULT_TOP_K`, or all if there are fewer, if None.
        threshold: of these, classes with a smaller probability are left out, perhaps all.
    """

    top_k: int | None = None
    threshold: float = 0.0

    def check(self, model: ModelInfo) -> None:
        """Refuse a model that doesn't classify, and an impossible `top_k` or `threshold`.

        Raises:
            InvalidParameter: says what is allowed.
        """
        if model.task != "classification":
            raise InvalidParameter(f"{model.name} is a model for {model.task}: it doesn't classify whole images.")
        if self.top_k is not None:
            remark = f", the number of classes of {model.name}"
            check_count("top_k", self.top_k, most=len(model.labels), remark=remark)
        check_share("threshold", self.threshold)

    def answer(self, row: RowAnswer, model: ModelInfo) -> Prediction:
        """The classes, the routing, and where the time went."""
        top_k = min(DEFAULT_TOP_K, len(model.labels)) if self.top_k is None else self.top_k
        logits = row.tensors[LOGITS]
        classes = best_classes(logits, softmax(logits), model.labels, top_k=top_k)
        return Prediction(
            best=classes[0],
            classes=tuple(scored for scored in classes if scored.probability >= self.threshold),
            routing=RoutingTrace(model.routing, row.tensors[ROUTING]),
            timings=row.timings,
            batch_size=row.batch_size,
        )


def best_classes(
    logits: NDArray[np.float32], probabilities: NDArray[np.float64], labels: Sequence[Label], *, top_k: int
) -> tuple[ClassScore, ...]:
    """The `top_k` most probable classes of one row, best first; ties in the order of the classes.

    Args:
        logits: `[classes]`; they order the classes, since tiny probabilities may be alike.
        probabilities: `[classes]`, their softmax.
        labels: names of the classes.
        top_k: from 1 to the number of classes.
    """
    best = np.argsort(-logits, kind="stable")[:top_k]
    return tuple(ClassScore(int(i), labels[i].label, labels[i].synset, float(probabilities[i])) for i in best)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of all classes, float64 `[..., classes]` like the logits."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities

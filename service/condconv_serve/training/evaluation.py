"""How often a network is right on validation images, and how well its routing separates classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import Preprocessing
from condconv_serve.routing.tally import entropy
from condconv_serve.training.batches import Selection, normalise


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Figures on validation images.

    Attributes:
        loss: the training's loss: cross-entropy to the labels, or divergence from the teacher, in nats.
        accuracy: share of images with the right class, or the teacher's.
        entropy: by block, how evenly routing weights are spread over the experts: 1 is evenly, 0 is all on one.
        between_classes: by block, the share of the routing weights' variance that lies between classes, corrected for
            chance: 0 on average if all classes are routed alike, so it may be below 0.
    """

    loss: float
    accuracy: float
    entropy: Mapping[str, float]
    between_classes: Mapping[str, float]

    @property
    def rank(self) -> tuple[float, float]:
        """More right answers are better, and among equals those given with less doubt."""
        return self.accuracy, -self.loss

    @property
    def mean_entropy(self) -> float | None:
        """Over the blocks; None in a static network."""
        return float(np.mean(list(self.entropy.values()))) if self.entropy else None

    @property
    def mean_between_classes(self) -> float | None:
        """Over the blocks; None in a static network."""
        return float(np.mean(list(self.between_classes.values()))) if self.between_classes else None


def evaluate(
    network: keras.Model,
    images: Selection,
    classes: NDArray[np.int64],
    *,
    teacher: NDArray[np.float32] | None,
    temperature: float,
    preprocessing: Preprocessing,
    batch_size: int,
) -> Evaluation:
    """Compute validation images.

    Args:
        network: returns `logits` and `routing`.
        images: what to validate with.
        classes: the right classes `[N]`, or those that the teacher takes for right.
        teacher: the teacher's logits `[N, C]`, if it is to be agreed with.
        temperature: of the divergence from the teacher.
        preprocessing: mean and standard deviation.
        batch_size: rows computed at once.
    """
    outputs = [
        network.predict_on_batch(normalise(images[start : start + batch_size], preprocessing))
        for start in range(0, len(images), batch_size)
    ]
    logits = np.concatenate([output["logits"] for output in outputs])
    routing = {
        block: np.concatenate([output["routing"][block] for output in outputs]) for block in outputs[0]["routing"]
    }
    return measure(logits, routing, classes, teacher=teacher, temperature=temperature)


def measure(
    logits: NDArray[np.float32],
    routing: Mapping[str, NDArray[np.float32]],
    classes: NDArray[np.int64],
    *,
    teacher: NDArray[np.float32] | None,
    temperature: float,
) -> Evaluation:
    """Compare answers.

    Args:
        logits: `[N, C]`.
        routing: by block, `[N, experts]`.
        classes: as in `evaluate`.
        teacher: as in `evaluate`.
        temperature: as in `evaluate`.
    """
    if teacher is None:
        loss = -float(_log_softmax(logits)[np.arange(len(logits)), classes].mean())
    else:
        wanted, found = _log_softmax(teacher / temperature), _log_softmax(logits / temperature)
        loss = temperature**2 * float((np.exp(wanted) * (wanted - found)).sum(axis=1).mean())
    return Evaluation(
        loss=loss,
        accuracy=float((logits.argmax(axis=1) == classes).mean()),
        entropy={block: float(entropy(weights, weights.shape[-1]).mean()) for block, weights in routing.items()},
        between_classes={block: variance_between(weights, classes) for block, weights in routing.items()},
    )


def variance_between(weights: NDArray[Any], classes: NDArray[np.int64]) -> float:
    """Share of the variance of `weights` `[N, experts]` that lies between the classes `[N]`, corrected for chance.

    It is epsilon squared, as in `condconv_serve.routing.effect_size`; 0 where nothing varies, or every class has one
    image only.
    """
    values = weights.astype(np.float64)
    total = float(((values - values.mean(axis=0)) ** 2).sum())
    found = np.unique(classes)
    if total < 1e-12 or len(found) == len(classes):
        return 0.0
    within = sum(
        float(((values[classes == index] - values[classes == index].mean(axis=0)) ** 2).sum()) for index in found
    )
    return 1 - within / (len(classes) - len(found)) * (len(classes) - 1) / total


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result

"""How good a detector is on validation photos, while it is trained and afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import BOXES, ROUTING, SCORES, Label, Placement, Preprocessing, Tensors
from condconv_serve.nn.ssd import BOX_ENCODINGS, CLASS_LOGITS, predictions_of
from condconv_serve.routing.tally import entropy
from condconv_serve.tasks.average_precision import (
    MAX_DETECTIONS,
    SCORE_THRESHOLD,
    DetectionQuality,
    Found,
    quality_of_boxes,
)
from condconv_serve.tasks.detection import Detect, in_photo
from condconv_serve.training.batches import normalise
from condconv_serve.training.detection.batches import Anchors
from condconv_serve.training.detection.photos import Photos


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorEvaluation:
    """Figures on validation photos.

    Attributes:
        loss: the training's.
        ap: COCO's average precision.
        ap50: at the threshold 0.5.
        ap75: at the threshold 0.75.
        by_class: AP50 by the class's name; None where there is no object.
        entropy: by block, how evenly routing weights are spread over the experts: 1 is evenly, 0 is all on one.
    """

    loss: float
    ap: float
    ap50: float
    ap75: float
    by_class: Mapping[str, float | None]
    entropy: Mapping[str, float]

    @property
    def rank(self) -> tuple[float, float]:
        """A higher average precision is better, and among equals a smaller loss."""
        return self.ap, -self.loss

    @property
    def mean_entropy(self) -> float | None:
        """Over the blocks; None in a static network."""
        return float(np.mean(list(self.entropy.values()))) if self.entropy else None


class Evaluator:
    """Evaluates a network on the same photos again and again."""

    def __init__(
        self,
        network: keras.Model,
        photos: Photos,
        *,
        labels: Sequence[Label],
        preprocessing: Preprocessing,
        anchors: Anchors,
        loss: Any,
        batch_size: int,
    ) -> None:
        """Take the network as it will be at each call."""
        self._network = keras.Model(network.inputs[0], {**network.output, **predictions_of(network).output})
        self._photos, self._known = photos, photos.in_pixels()
        self._labels, self._preprocessing = labels, preprocessing
        self._anchors, self._loss, self._batch_size = anchors, loss, batch_size

    def __call__(self) -> DetectorEvaluation:
        """Compute all photos."""
        photos, losses, found = self._photos, [], list[Found]()
        routing: dict[str, list[NDArray[Any]]] = {}
        for start in range(0, len(photos.rows), self._batch_size):
            part = slice(start, start + self._batch_size)
            output = self._network.predict_on_batch(normalise(photos.rows[part], self._preprocessing))
            targets = np.stack([self._anchors.targets(objects) for objects in photos.objects[part]])
            predictions = np.concatenate([output[BOX_ENCODINGS], output[CLASS_LOGITS]], axis=-1)
            losses.append(len(targets) * float(self._loss(targets, predictions)))
            found += select(output, photos.placements[part])
            for block, weights in output[ROUTING].items():
                routing.setdefault(block, []).append(weights)
        quality = quality_of_boxes(self._known, found, num_classes=len(self._labels), by_size=False)
        spread = {block: np.concatenate(weights) for block, weights in routing.items()}
        return DetectorEvaluation(
            loss=sum(losses) / len(found),
            ap=quality.ap,
            ap50=quality.ap50,
            ap75=quality.ap75,
            by_class=precision_by_class(quality, self._labels),
            entropy={block: float(entropy(weights, weights.shape[-1]).mean()) for block, weights in spread.items()},
        )


def select(output: Tensors, placements: Iterable[Placement]) -> list[Found]:
    """The boxes that a detector finds in the photos of a batch, in pixels.

    Args:
        output: `boxes` `[B, A, 4]` and `scores` `[B, A, classes]`.
        placements: of the photos' rows.
    """
    task = Detect(score_threshold=SCORE_THRESHOLD, max_detections=MAX_DETECTIONS)
    found = []
    for boxes, scores, placement in zip(output[BOXES], output[SCORES], placements, strict=True):
        chosen, classes, score = task.select(boxes, scores)
        found.append(Found(in_photo(chosen, placement), classes, score))
    return found


def precision_by_class(quality: DetectionQuality, labels: Sequence[Label]) -> dict[str, float | None]:
    """AP50 by the class's name."""
    return {labels[one.index].label: one.ap50 for one in quality.classes}

"""Named tensors as the answer, for protocols whose callers choose outputs by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import (
    LABEL,
    LOGITS,
    PROBABILITIES,
    SCORES,
    DetectedObject,
    ModelInfo,
    OutputSpec,
    RowAnswer,
    Tensors,
)
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.classification import softmax
from condconv_serve.tasks.detection import Detect, whole_row

DETECTION_BOXES = "detection_boxes"
"""The objects' boxes: float32 `[max_detections, 4]` per row, `ymin, xmin, ymax, xmax`, 0 to 1 in the whole photo."""
DETECTION_SCORES = "detection_scores"
"""The objects' scores, the highest first: float32 `[max_detections]` per row."""
DETECTION_CLASSES = "detection_classes"
"""The objects' classes, as the labels are numbered, from 0: float32 `[max_detections]` per row."""
NUM_DETECTIONS = "num_detections"
"""How many objects there are: float32, a scalar per row. Zeros fill the other outputs up."""
DETECTIONS = (DETECTION_BOXES, DETECTION_SCORES, DETECTION_CLASSES, NUM_DETECTIONS)
"""What is found in a photo, with the names and data types of the TensorFlow Object Detection API's exported models."""
OPEN = -1
"""Size of an axis that the request decides."""


def outputs_of(model: ModelInfo) -> tuple[OutputSpec, ...]:
    """What may be asked for: what the engine computes, and what follows from it. Empty outputs are left out.

    A static network has no `routing`, for instance.
    """
    computed = tuple(output for output in model.outputs if 0 not in output.shape)
    names = {output.name for output in computed}
    if LOGITS in names:
        return (*computed, OutputSpec(PROBABILITIES, (len(model.labels),)), OutputSpec(LABEL, (), "str"))
    if SCORES in names:
        shapes = {DETECTION_BOXES: (OPEN, 4), NUM_DETECTIONS: ()}
        return (*computed, *(OutputSpec(name, shapes.get(name, (OPEN,))) for name in DETECTIONS))
    return computed


@dataclass(frozen=True, slots=True)
class NamedOutputs:
    """The task of returning outputs.

    Attributes:
        names: which ones, as `outputs_of` names them.
        detect: what counts as an object, of a model for detection; its usual thresholds if None.
    """

    names: tuple[str, ...]
    detect: Detect | None = None

    def check(self, model: ModelInfo) -> None:
        """Refuse outputs that the model doesn't have, and thresholds that it can't use.

        Raises:
            InvalidParameter: says which there are.
        """
        known = [output.name for output in outputs_of(model)]
        if unknown := [name for name in self.names if name not in known]:
            raise InvalidParameter(f"{model.name} has no output {unknown[0][:100]!r}; it has {', '.join(known)}.")
        if self.detect is not None:
            self.detect.check(model)

    def answer(self, row: RowAnswer, model: ModelInfo) -> Tensors:
        """The outputs of one row, by name, in the order of `names`; `label` is an array of text without axes."""
        found: Tensors = self._detections(row, model) if set(self.names) & set(DETECTIONS) else {}
        return {name: found[name] if name in found else _output(name, row.tensors, model) for name in self.names}

    def scores_in(self, answer: Tensors) -> list[float] | None:
        """The score of each object of an answer; None if `detection_scores` isn't in it."""
        scores = answer.get(DETECTION_SCORES)
        return None if scores is None else [score for score in scores.tolist() if score > 0]

    def _detections(self, row: RowAnswer, model: ModelInfo) -> Tensors:
        detect = self.detect or Detect()
        objects = detect.objects(row.tensors, model, row.placement or whole_row(model))
        return _padded(objects, detect.max_detections)


def _padded(objects: Sequence[DetectedObject], most: int) -> dict[str, NDArray[np.float32]]:
    boxes, scores, classes = np.zeros((most, 4), np.float32), np.zeros(most, np.float32), np.zeros(most, np.float32)
    for place, found in enumerate(objects):
        box = found.box_normalized
        boxes[place] = box.ymin, box.xmin, box.ymax, box.xmax
        scores[place], classes[place] = found.score, found.index
    return {
        DETECTION_BOXES: boxes,
        DETECTION_SCORES: scores,
        DETECTION_CLASSES: classes,
        NUM_DETECTIONS: np.array(len(objects), np.float32),
    }


def _output(name: str, tensors: Tensors, model: ModelInfo) -> np.ndarray:
    if name == PROBABILITIES:
        return softmax(tensors[LOGITS]).astype(np.float32)
    if name == LABEL:
        return np.array(model.labels[int(tensors[LOGITS].argmax())].label, np.object_)
    return tensors[name]


def stacked(rows: Sequence[Tensors]) -> Tensors:
    """The outputs of several rows as arrays `[N, ...]`; `rows` holds at least one."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

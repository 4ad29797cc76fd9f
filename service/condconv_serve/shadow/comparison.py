"""How far the answers of two versions are apart, for one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import BOXES, LOGITS, ROUTING, SCORES, Box, DetectedObject, Label, ModelInfo, RowAnswer
from condconv_serve.tasks.boxes import overlaps
from condconv_serve.tasks.classification import softmax
from condconv_serve.tasks.detection import Detect

COMPARED: Final = (LOGITS, BOXES, SCORES, ROUTING)
"""The outputs that are looked at."""
MATCHING_IOU = 0.5
"""Two boxes of one class show the same object if they overlap by at least this (intersection over union)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of one image; each number is from 0 to 1.

    Attributes:
        agreement: of classifiers: 1 if the most probable class is the same, else 0. Of detectors: the share of both
            versions' objects that the other one found, too (the Dice coefficient); 1 if neither found any.
        distance: of classifiers: the total variation distance of the probabilities, which is half the sum of their
            absolute differences. Of detectors: the mean difference of scores over all objects; an object that only one
            version found has score 0 with the other.
        routing: for each block that both networks have, with as many experts: the mean absolute difference of weights.
    """

    agreement: float
    distance: float
    routing: Mapping[str, float]


class Comparer:
    """Compares the answers of two versions. Classes are matched by their names, so their order may differ."""

    def __init__(self, ours: ModelInfo, theirs: ModelInfo) -> None:
        """Match classes and blocks of the version that answers and of the one that gets copies.

        Raises:
            ValueError: one classifies, and the other detects.
        """
        if ours.task != theirs.task:
            raise ValueError(f"Version {theirs.version} is for {theirs.task}, not for {ours.task}.")
        self._ours, self._theirs = ours, theirs
        self._classes = _matched(ours.labels, theirs.labels)
        self._blocks = _common_blocks(ours, theirs)

    def compare(self, ours: RowAnswer, theirs: RowAnswer) -> Comparison:
        """Compare two answers for one image."""
        routing = {
            block: float(np.abs(ours.tensors[ROUTING][mine, :count] - theirs.tensors[ROUTING][other, :count]).mean())
            for block, mine, other, count in self._blocks
        }
        measure = self._detections if self._ours.task == "detection" else self._probabilities
        agreement, distance = measure(ours, theirs)
        return Comparison(agreement=agreement, distance=distance, routing=routing)

    def _probabilities(self, ours: RowAnswer, theirs: RowAnswer) -> tuple[float, float]:
        logits = ours.tensors[LOGITS], theirs.tensors[LOGITS]
        mine, other = self._classes
        size = max(mine.max(), other.max()) + 1
        p, q = (
            np.bincount(classes, softmax(values), minlength=size)
            for classes, values in zip((mine, other), logits, strict=True)
        )
        best = int(mine[logits[0].argmax()]), int(other[logits[1].argmax()])
        return float(best[0] == best[1]), min(float(np.abs(p - q).sum() / 2), 1.0)

    def _detections(self, ours: RowAnswer, theirs: RowAnswer) -> tuple[float, float]:
        task = Detect()
        mine = list(task.answer(ours, self._ours).objects)
        others = list(task.answer(theirs, self._theirs).objects)
        found = len(mine) + len(others)
        if not found:
            return 1.0, 0.0
        pairs = self._pairs(mine, others)
        apart = sum(abs(one.score - other.score) for one, other in pairs)
        paired = {id(each) for pair in pairs for each in pair}
        apart += sum(each.score for each in (*mine, *others) if id(each) not in paired)
        return 2 * len(pairs) / found, apart / (found - len(pairs))

    def _pairs(
        self, mine: Sequence[DetectedObject], others: Sequence[DetectedObject]
    ) -> list[tuple[DetectedObject, DetectedObject]]:
        """Objects that both found: the surest first, each with the free one of its class that it overlaps most."""
        our_classes, their_classes = self._classes
        boxes, classes = _boxes(others), np.array([their_classes[each.index] for each in others])
        free, pairs = np.ones(len(others), bool), []
        for one in mine:
            fits = free & (classes == our_classes[one.index])
            if not fits.any():
                continue
            shared = np.where(fits, overlaps(_corners(one.box_normalized), boxes), 0.0)
            if shared[best := int(shared.argmax())] >= MATCHING_IOU:
                free[best] = False
                pairs.append((one, others[best]))
        return pairs


def _matched(ours: Sequence[Label], theirs: Sequence[Label]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """A number for each class of both: equal for equal classes."""
    if tuple(ours) == tuple(theirs):
        same = np.arange(len(ours))
        return same, same
    by_synset = all(label.synset for label in (*ours, *theirs))  # names of classes needn't be unique, synsets are
    numbers: dict[str | None, int] = {}
    mine, other = (
        np.array([numbers.setdefault(label.synset if by_synset else label.label, len(numbers)) for label in labels])
        for labels in (ours, theirs)
    )
    return mine, other


def _common_blocks(ours: ModelInfo, theirs: ModelInfo) -> list[tuple[str, int, int, int]]:
    """Name, place in both networks and number of experts of each block that both have."""
    other = {block: (place, n) for place, (block, n) in enumerate(zip(*_layout(theirs), strict=True))}
    return [
        (block, place, other[block][0], n)
        for place, (block, n) in enumerate(zip(*_layout(ours), strict=True))
        if block in other and other[block][1] == n
    ]


def _layout(model: ModelInfo) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return model.routing.blocks, model.routing.experts


def _boxes(objects: Sequence[DetectedObject]) -> NDArray[np.float64]:
    return np.array([_corners(each.box_normalized) for each in objects]).reshape(-1, 4)


def _corners(box: Box) -> NDArray[np.float64]:
    return np.array([box.ymin, box.xmin, box.ymax, box.xmax])
